package wire

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// DDRName is the name that a resolver is asked for its encrypted transports (RFC 9462).
const DDRName = "_dns.resolver.arpa"

// A Designation is one way to ask a resolver over an encrypted transport (RFC 9461).
type Designation struct {
	ALPN      []string
	Port      uint16       // 0: that of the protocol
	Addresses []netip.Addr // hints; the resolver's own if there are none
	Path      string       // over HTTPS; empty otherwise
}

// Designations returns what the SVCB records in the answer to q designate, the most preferred
// first. Aliases are left out, as are records that require keys which are not known here.
func (a Answer) Designations(q Query) []Designation {
	var m dns.Msg
	if m.Unpack(a.AppendReply(nil, q, Terms{})) != nil {
		return nil
	}
	var records []*dns.SVCB
	for _, record := range m.Answer {
		if s, ok := record.(*dns.SVCB); ok && s.Priority > 0 {
			records = append(records, s)
		}
	}
	slices.SortStableFunc(records, func(a, b *dns.SVCB) int { return int(a.Priority) - int(b.Priority) })
	var all []Designation
	for _, record := range records {
		if d, ok := designation(record); ok {
			all = append(all, d)
		}
	}
	return all
}

func designation(record *dns.SVCB) (d Designation, ok bool) {
	add := func(ips ...[]byte) {
		for _, ip := range ips {
			if a, ok := netip.AddrFromSlice(ip); ok {
				d.Addresses = append(d.Addresses, a.Unmap())
			}
		}
	}
	for _, value := range record.Value {
		switch value := value.(type) {
		case *dns.SVCBAlpn:
			d.ALPN = value.Alpn
		case *dns.SVCBPort:
			d.Port = value.Port
		case *dns.SVCBIPv4Hint:
			for _, ip := range value.Hint {
				add(ip.To4())
			}
		case *dns.SVCBIPv6Hint:
			for _, ip := range value.Hint {
				add(ip)
			}
		case *dns.SVCBDoHPath:
			d.Path = strings.TrimSuffix(value.Template, "{?dns}")
		case *dns.SVCBMandatory:
			for _, key := range value.Code {
				switch key {
				case dns.SVCB_ALPN, dns.SVCB_PORT, dns.SVCB_IPV4HINT, dns.SVCB_IPV6HINT, dns.SVCB_DOHPATH:
				default:
					return d, false
				}
			}
		}
	}
	return d, len(d.ALPN) > 0
}

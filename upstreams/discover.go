package upstreams

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"dotgate/gateway/wire"
)

// designated has the transports by their names in SVCB records (RFC 9461 section 7).
var designated = map[string]string{"dot": DoT, "h2": DoH, "h3": DoH3, "doq": DoQ}

// designatedMax is how many endpoints an upstream may designate.
const designatedMax = 64

// Discover asks the upstream that o describes which encrypted transports it has (RFC 9462). It
// returns options for each endpoint: the same upstream there alone, which is verified for the
// same name, so that nothing that is designated needs to be trusted. None are returned if it
// designates none, and designatedMax at most, with an error if there are more. Discover blocks
// until ctx is done at the latest.
func Discover(ctx context.Context, o Options) ([]Options, error) {
	u, err := New(o)
	if err != nil {
		return nil, err
	}
	defer u.Close()
	q, err := wire.NewQuery(wire.DDRName, "SVCB")
	if err != nil {
		return nil, err
	}
	answer, err := u.Exchange(ctx, q)
	if err != nil {
		return nil, err
	}
	var hosts []netip.Addr
	for _, a := range u.Addresses() {
		hosts = append(hosts, a.Addr())
	}
	return u.o.at(answer.Designations(q), hosts)
}

// at returns o at each endpoint that is designated by an upstream with these addresses.
func (o Options) at(by []wire.Designation, hosts []netip.Addr) (all []Options, err error) {
	seen := make(map[way]bool)
	for _, d := range by {
		if len(d.Addresses) == 0 {
			d.Addresses = hosts
		}
		for _, alpn := range d.ALPN {
			for _, a := range d.Addresses {
				w := way{designated[alpn], netip.AddrPortFrom(a, cmp.Or(d.Port, dotPort)), ""}
				if overHTTP(w.transport) {
					w.addr, w.path = netip.AddrPortFrom(a, cmp.Or(d.Port, dohPort)), d.Path
				}
				switch {
				case seen[w], w.transport == "", overHTTP(w.transport) && w.path == "", !mayDesignate(hosts, a):
				case len(all) == designatedMax:
					return all, fmt.Errorf("it designates more than %d endpoints; the others are left out", designatedMax)
				default:
					seen[w] = true
					all = append(all, o.only(w))
				}
			}
		}
	}
	return all, nil
}

// mayDesignate reports whether an upstream with these addresses may have another address tried.
// An address of this machine or of a private network is for upstreams that are there.
func mayDesignate(hosts []netip.Addr, a netip.Addr) bool {
	if slices.Contains(hosts, a) {
		return true
	}
	return a.IsGlobalUnicast() && !isNear(a) || (a.IsPrivate() || a.IsLoopback()) && slices.ContainsFunc(hosts, isNear)
}

// A way is one endpoint that is designated.
type way struct {
	transport string
	addr      netip.AddrPort
	path      string // over HTTPS
}

// only returns o with one endpoint.
func (o Options) only(w way) Options {
	o.Transports, o.Addresses, o.Host, o.Bootstrap, o.Port, o.DoQPort = []string{w.transport}, nil, "", nil, 0, 0
	o.DoHAddresses, o.DoHPort, o.DoHPath = nil, 0, w.path
	if overHTTP(w.transport) {
		o.DoHAddresses = []netip.AddrPort{w.addr}
	} else {
		o.Addresses, o.DoHName = []netip.AddrPort{w.addr}, ""
	}
	return o
}

package records

import (
	"fmt"
	"maps"
	"strings"

	"dotgate/gateway/wire"
)

// A zone is a name that is answered here, with the names below it.
type zone struct {
	records []wire.Record // of its name
	// asAbove is whether names below it have the same answers. Otherwise they do not exist.
	asAbove bool
	// gone is whether the name itself does not exist either.
	gone bool
	// forwarded is whether it is not answered here after all.
	forwarded bool
}

// zones are the names that are answered here.
type zones = wire.Patterns[zone]

const localTTL = 3600 // of these records, in seconds

var (
	loopback4 = wire.Record{Type: wire.TypeA, TTL: localTTL, Data: []byte{127, 0, 0, 1}}
	loopback6 = wire.Record{Type: wire.TypeAAAA, TTL: localTTL, Data: append(make([]byte, 15), 1)}
	pointer   = wire.Record{Type: wire.TypePTR, TTL: localTTL, Data: []byte("\x09localhost\x00")}
)

// specialNames are the special-use names that public resolvers have no answers for.
var specialNames = map[string]zone{
	"localhost":     {records: []wire.Record{loopback4, loopback6}, asAbove: true}, // RFC 6761 section 6.3
	"invalid":       {},                                                            // section 6.4
	"test":          {},                                                            // section 6.2
	"onion":         {},                                                            // RFC 7686 section 2
	"internal":      {},                                                            // ICANN board resolution 2024.07.29.06
	"alt":           {},                                                            // RFC 9476
	"local":         {},                                                            // RFC 6762 section 22.1
	"home.arpa":     {},                                                            // RFC 8375 section 4
	"resolver.arpa": {asAbove: true},                                               // RFC 9462 section 4: this server is no designated resolver
	"ipv4only.arpa": {records: []wire.Record{ // RFC 8880: no NAT64 is known here
		{Type: wire.TypeA, TTL: localTTL, Data: []byte{192, 0, 0, 170}},
		{Type: wire.TypeA, TTL: localTTL, Data: []byte{192, 0, 0, 171}},
	}},
}

// reverseZones are the zones of addresses with a meaning of their own on every network (RFC
// 6303 section 4, RFC 7793), except those of ranges of zones.
var reverseZones = strings.Fields(`
	10.in-addr.arpa 168.192.in-addr.arpa 0.in-addr.arpa 254.169.in-addr.arpa
	2.0.192.in-addr.arpa 100.51.198.in-addr.arpa 113.0.203.in-addr.arpa 255.255.255.255.in-addr.arpa
	d.f.ip6.arpa 8.e.f.ip6.arpa 9.e.f.ip6.arpa a.e.f.ip6.arpa b.e.f.ip6.arpa 8.b.d.0.1.0.0.2.ip6.arpa
`)

// canary is the name by which browsers find out whether they may use resolvers of their own.
const canary = "use-application-dns.net"

// newZones returns the zones. Names that a forwarded pattern matches are none of them.
func newZones(forwarded []string, noApplicationDNS bool) (zs zones, err error) {
	here := maps.Clone(specialNames)
	for _, name := range reverseZones {
		here[name] = zone{}
	}
	for n := 16; n < 32; n++ {
		here[fmt.Sprintf("%d.172.in-addr.arpa", n)] = zone{}
	}
	for n := 64; n < 128; n++ {
		here[fmt.Sprintf("%d.100.in-addr.arpa", n)] = zone{}
	}
	// Names exist between this one and the next, hence asAbove.
	here["127.in-addr.arpa"] = zone{asAbove: true}
	here["1.0.0.127.in-addr.arpa"] = zone{records: []wire.Record{pointer}}
	here[strings.Repeat("0.", 31)+"0.ip6.arpa"] = zone{}
	here["1."+strings.Repeat("0.", 31)+"ip6.arpa"] = zone{records: []wire.Record{pointer}}
	if noApplicationDNS {
		here[canary] = zone{gone: true}
	}
	for _, text := range forwarded {
		pattern, err := wire.CleanPattern(text)
		if err != nil {
			return zs, err
		}
		maps.DeleteFunc(here, func(name string, _ zone) bool { return matches(pattern, name) })
		here[pattern] = zone{forwarded: true}
	}
	for pattern, z := range here {
		if _, err := zs.Add(pattern, z); err != nil {
			return zs, err
		}
	}
	return zs, nil
}

// matches reports whether a pattern matches all names that another one does, except its
// apex if that is starred: both are as CleanPattern returns them.
func matches(pattern, other string) bool {
	apex, starred := wire.Apex(pattern)
	otherApex, otherStarred := wire.Apex(other)
	top, _ := wire.PackName(apex)
	name, _ := wire.PackName(otherApex)
	return wire.InSubtree(name, top) && (!starred || otherStarred || len(name) > len(top))
}

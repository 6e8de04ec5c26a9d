package gateway

import (
	"fmt"
	"strings"

	"dotgate/gateway/wire"
)

// A zone is a name that is answered here, and what is below it.
type zone struct {
	records []wire.Record // of its name
	// asAbove is that names below it are as it is. Otherwise there are none.
	asAbove bool
	// gone is that not even itself is there.
	gone bool
	// forwarded is that it is not answered here after all.
	forwarded bool
}

// zones are those that are answered here.
type zones wire.Names[zone]

const localTTL = 3600 // of our own records, in seconds

var (
	loopback4 = wire.Record{Type: wire.TypeA, TTL: localTTL, Data: []byte{127, 0, 0, 1}}
	loopback6 = wire.Record{Type: wire.TypeAAAA, TTL: localTTL, Data: append(make([]byte, 15), 1)}
	pointer   = wire.Record{Type: wire.TypePTR, TTL: localTTL, Data: []byte("\x09localhost\x00")}
)

// specialNames are those that no public resolver has to do with.
var specialNames = map[string]zone{
	"localhost":     {records: []wire.Record{loopback4, loopback6}, asAbove: true}, // RFC 6761 section 6.3
	"invalid":       {},                                                            // section 6.4
	"test":          {},                                                            // section 6.2
	"onion":         {},                                                            // RFC 7686 section 2
	"local":         {},                                                            // RFC 6762 section 22.1
	"home.arpa":     {},                                                            // RFC 8375 section 4
	"resolver.arpa": {asAbove: true},                                               // RFC 9462 section 4: we are no designated resolver
	"ipv4only.arpa": {records: []wire.Record{ // RFC 8880: there is no NAT64 that we would know of
		{Type: wire.TypeA, TTL: localTTL, Data: []byte{192, 0, 0, 170}},
		{Type: wire.TypeA, TTL: localTTL, Data: []byte{192, 0, 0, 171}},
	}},
}

// reverseZones are those of addresses that mean something else on every network
// (RFC 6303 section 4, RFC 7793), but for those in ranges.
var reverseZones = strings.Fields(`
	10.in-addr.arpa 168.192.in-addr.arpa 0.in-addr.arpa 254.169.in-addr.arpa
	2.0.192.in-addr.arpa 100.51.198.in-addr.arpa 113.0.203.in-addr.arpa 255.255.255.255.in-addr.arpa
	d.f.ip6.arpa 8.e.f.ip6.arpa 9.e.f.ip6.arpa a.e.f.ip6.arpa b.e.f.ip6.arpa 8.b.d.0.1.0.0.2.ip6.arpa
`)

// canary is the name by which browsers find out whether they may have a resolver
// of their own.
const canary = "use-application-dns.net"

// newZones returns the zones that are answered here. Those at or below a name
// that is forwarded are not.
func newZones(forwarded []string, noApplicationDNS bool) (zones, error) {
	zs := make(zones)
	add := func(name string, z zone) {
		packed, err := wire.PackName(name)
		if err != nil {
			panic("BUG: " + err.Error())
		}
		zs[string(packed)] = z
	}
	for name, z := range specialNames {
		add(name, z)
	}
	for _, name := range reverseZones {
		add(name, zone{})
	}
	for n := 16; n < 32; n++ {
		add(fmt.Sprintf("%d.172.in-addr.arpa", n), zone{})
	}
	for n := 64; n < 128; n++ {
		add(fmt.Sprintf("%d.100.in-addr.arpa", n), zone{})
	}
	// There are names on the way to these two, hence asAbove.
	add("127.in-addr.arpa", zone{asAbove: true})
	add("1.0.0.127.in-addr.arpa", zone{records: []wire.Record{pointer}})
	add(strings.Repeat("0.", 31)+"0.ip6.arpa", zone{})
	add("1."+strings.Repeat("0.", 31)+"ip6.arpa", zone{records: []wire.Record{pointer}})
	if noApplicationDNS {
		add(canary, zone{gone: true})
	}
	return zs, zs.forward(forwarded)
}

// forward takes names, and what is below them, out of what is answered here.
func (zs zones) forward(names []string) error {
	for _, name := range names {
		top, err := wire.PackName(name)
		if err != nil {
			return err
		}
		for name := range zs {
			if wire.InSubtree([]byte(name), top) {
				delete(zs, name)
			}
		}
		zs[string(top)] = zone{forwarded: true}
	}
	return nil
}

// answerHere appends the reply to q if its name is one of those that are answered
// here. The next step is pass if not.
func (g *Gateway) answerHere(dst []byte, q wire.Query, t *tally) ([]byte, step) {
	var room [wire.MaxKey]byte
	z, below, ok := wire.Names[zone](g.now().zones).Find(q.AppendName(room[:0]))
	switch {
	case !ok || z.forwarded:
		return dst, pass
	case below == 0 && q.Type() == wire.TypeDS:
		// That there is none is for the zone above to prove, which is public
		// (RFC 8375 section 4).
		return dst, pass
	}
	t.count(AnsweredLocally)
	if z.gone || below > 0 && !z.asAbove {
		return q.AppendNegative(dst, wire.NXDomain, below), send
	}
	var found [2]wire.Record
	n := 0
	for _, r := range z.records {
		if r.Type == q.Type() || q.Type() == wire.TypeANY {
			found[n] = r
			n++
		}
	}
	if n == 0 {
		return q.AppendNegative(dst, wire.NoError, below), send
	}
	return q.AppendRecords(dst, found[:n]), send
}

// minimal is what RFC 8482 section 4.2 has for an answer to ANY.
var minimal = []wire.Record{{Type: wire.TypeHINFO, TTL: localTTL, Data: []byte("\x07RFC8482\x00")}}

// answerANY appends the reply to a query for ANY over UDP, where a whole answer
// would be a gift to those who forge addresses (RFC 8482). A client that validates
// is told to come by TCP, as nobody has signed our record.
func (g *Gateway) answerANY(dst []byte, q wire.Query, t *tally) ([]byte, step) {
	t.count(AnsweredLocally)
	if q.Validates() {
		return q.AppendTruncated(dst), send
	}
	return q.AppendRecords(dst, minimal), send
}

// aboutSelf appends the reply to a query about this server, in the class CHAOS.
// The next step is pass if nothing is to be told.
func (g *Gateway) aboutSelf(dst []byte, q wire.Query, t *tally) ([]byte, step) {
	text := ""
	if q.Type() == wire.TypeTXT || q.Type() == wire.TypeANY {
		var room [wire.MaxKey]byte
		text = g.now().chaos[string(q.AppendName(room[:0]))]
	}
	if text == "" {
		return dst, pass
	}
	t.count(AnsweredLocally)
	data := append(make([]byte, 0, 1+len(text)), byte(len(text)))
	return q.AppendRecords(dst, []wire.Record{{Type: wire.TypeTXT, Data: append(data, text...)}}), send
}

// newChaos returns the names that are about this server (RFC 4892), with what to
// say.
func newChaos(o Options) map[string]string {
	return map[string]string{
		"\x07version\x04bind\x00": o.Version, "\x07version\x06server\x00": o.Version,
		"\x02id\x06server\x00": o.ID, "\x08hostname\x04bind\x00": o.Hostname,
	}
}

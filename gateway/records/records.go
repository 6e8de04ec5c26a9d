// Package records answers the names that never leave this host: special-use names (RFC 6761
// and its successors), reverse names of private addresses (RFC 6303), names of one label if
// so configured, this server's own names in the class CHAOS (RFC 4892), and ANY over UDP
// (RFC 8482).
//
// What it never does: it asks nothing, caches nothing and allocates nothing for a reply. A
// Set does not change; names that are to be forwarded, or that have a route, are not in it.
package records

import (
	"dotgate/gateway/wire"
)

// Options of a Set.
type Options struct {
	// Forwarded are names that are not answered here although they would be, with the names
	// below them: patterns as wire.CleanPattern reads them.
	Forwarded []string
	// Routes has further ones.
	Routes *wire.Routes
	// NoApplicationDNS denies the name by which browsers find out whether they may use
	// resolvers of their own.
	NoApplicationDNS bool
	// BlockSingleLabel denies addresses of names with one label.
	BlockSingleLabel bool
	// Version, ID and Hostname are the texts of this server's names in the class CHAOS;
	// empty ones have no name.
	Version, ID, Hostname string
}

// A Set is the names that are answered here.
type Set struct {
	zones       zones
	routes      *wire.Routes
	singleLabel bool
	chaos       map[string]string // texts by name, in wire format and lower case
}

// New returns the Set for the options. The error is about Forwarded.
func New(o Options) (*Set, error) {
	zs, err := newZones(o.Forwarded, o.NoApplicationDNS)
	if err != nil {
		return nil, err
	}
	return &Set{zones: zs, routes: o.Routes, singleLabel: o.BlockSingleLabel, chaos: map[string]string{
		"\x07version\x04bind\x00": o.Version, "\x07version\x06server\x00": o.Version,
		"\x02id\x06server\x00": o.ID, "\x08hostname\x04bind\x00": o.Hostname,
	}}, nil
}

// Has reports whether a name, in wire format and lower case, is answered here.
func (s *Set) Has(name []byte) bool {
	z, _, ok := s.zones.Find(name)
	single := len(name) > 1 && int(name[0]) == len(name)-2
	return (ok && !z.forwarded || !ok && single && s.singleLabel) && s.routes.Source(name) == ""
}

// Append appends the reply to q. It reports false if the name is not answered here.
func (s *Set) Append(dst []byte, q wire.Query) (reply []byte, ok bool) {
	var buf [wire.MaxKey]byte
	name := q.AppendName(buf[:0])
	z, below, ok := s.zones.Find(name)
	switch {
	case !ok && s.singleLabel && isHost(name, q.Type()) && s.routes.Source(name) == "":
		return q.AppendNegative(dst, wire.NoError, len(name)-1), true
	case !ok || z.forwarded || s.routes.Source(name) != "":
		return dst, false
	case below == 0 && q.Type() == wire.TypeDS:
		// The zone above has to prove that there is none, and it is public (RFC 8375
		// section 4).
		return dst, false
	case z.gone || below > 0 && !z.asAbove:
		return q.AppendNegative(dst, wire.NXDomain, below), true
	}
	return z.append(dst, q, below), true
}

// append appends the reply to q from the zone's records. The zone is the name of q without its
// first below octets.
func (z *zone) append(dst []byte, q wire.Query, below int) []byte {
	var found [2]wire.Record
	count := 0
	for _, r := range z.records {
		if r.Type == q.Type() || q.Type() == wire.TypeANY {
			found[count] = r
			count++
		}
	}
	if count == 0 {
		return q.AppendNegative(dst, wire.NoError, below)
	}
	return q.AppendRecords(dst, found[:count])
}

// AppendChaos appends the reply to a query of the class CHAOS. It reports false if the name
// has no text.
func (s *Set) AppendChaos(dst []byte, q wire.Query) (reply []byte, ok bool) {
	text := ""
	if q.Type() == wire.TypeTXT || q.Type() == wire.TypeANY {
		var buf [wire.MaxKey]byte
		text = s.chaos[string(q.AppendName(buf[:0]))]
	}
	if text == "" {
		return dst, false
	}
	data := append(make([]byte, 0, 1+len(text)), byte(len(text)))
	return q.AppendRecords(dst, []wire.Record{{Type: wire.TypeTXT, Data: append(data, text...)}}), true
}

// minimal is the answer to ANY of RFC 8482 section 4.2.
var minimal = []wire.Record{{Type: wire.TypeHINFO, TTL: localTTL, Data: []byte("\x07RFC8482\x00")}}

// AppendANY appends the reply to a query for ANY over UDP, where a whole answer would serve
// attackers with forged addresses (RFC 8482). A client that validates has to use TCP, since the
// record is not signed.
func AppendANY(dst []byte, q wire.Query) []byte {
	if q.Validates() {
		return q.AppendTruncated(dst)
	}
	return q.AppendRecords(dst, minimal)
}

// isHost reports whether a query for the address of name, in wire format, is for a host of the
// local network rather than for a public name: the name has one label. That it has no address
// is true of top-level domains as well; denying the name would deny all names below it (RFC
// 8020).
func isHost(name []byte, t wire.Type) bool {
	switch t {
	case wire.TypeA, wire.TypeAAAA, wire.TypeSVCB, wire.TypeHTTPS:
		return name[0] > 0 && len(name) == 2+int(name[0])
	}
	return false
}

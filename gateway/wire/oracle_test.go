package wire_test

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// What follows decides with miekg/dns which messages are well-formed, and adds
// what it leaves open: it takes trailing octets, counts that promise too much,
// records that end between two fields, and pointers to anywhere.

// dissected is a message in parts.
type dissected struct {
	qname       string // of the first question
	qtype       uint16
	qclass      uint16
	questionEnd int
	records     []dissectedRecord
}

type dissectedRecord struct {
	section           int // 1 answer, 2 authority, 3 additional
	start, ttlAt, end int
	header            dns.RR_Header
	rdata             []byte
	rr                dns.RR // nil if rdata is opaque to a gateway
}

// dataNames tells how many octets come before the names in the data of a type,
// and how many names there are.
var dataNames = map[uint16][2]int{
	dns.TypeA: {0, 0}, dns.TypeAAAA: {0, 0},
	dns.TypeNS: {0, 1}, dns.TypeMD: {0, 1}, dns.TypeMF: {0, 1}, dns.TypeCNAME: {0, 1}, dns.TypeMB: {0, 1},
	dns.TypeMG: {0, 1}, dns.TypeMR: {0, 1}, dns.TypePTR: {0, 1}, dns.TypeDNAME: {0, 1},
	dns.TypeSOA: {0, 2}, dns.TypeMINFO: {0, 2}, dns.TypeRP: {0, 2},
	dns.TypeMX: {2, 1}, dns.TypeAFSDB: {2, 1}, dns.TypeRT: {2, 1}, dns.TypeKX: {2, 1}, dns.TypeSRV: {6, 1},
}

// dissect takes a message with at most one question apart. It fails unless the
// message is well-formed and ends where its counts say.
func dissect(msg []byte) (d dissected, ok bool) {
	if len(msg) < 12 || len(msg) > 65535 {
		return d, false
	}
	msg = append(slices.Clone(msg), make([]byte, 64)...)[:len(msg)] // see dissectRecord
	count := func(i int) int { return int(binary.BigEndian.Uint16(msg[4+2*i:])) }
	off := 12
	switch count(0) {
	case 0:
	case 1:
		if d.qname, off, ok = readName(msg, off, nil); !ok || off+4 > len(msg) {
			return d, false
		}
		d.qtype, d.qclass = binary.BigEndian.Uint16(msg[off:]), binary.BigEndian.Uint16(msg[off+2:])
		off += 4
	default:
		return d, false
	}
	d.questionEnd = off
	var ttls []int
	for section := 1; section <= 3; section++ {
		for range count(section) {
			r, ok := dissectRecord(msg, off, &ttls)
			if !ok {
				return d, false
			}
			r.section = section
			d.records = append(d.records, r)
			off = r.end
		}
	}
	return d, off == len(msg)
}

// dissectRecord takes the record at off apart. Names avoid the TTLs at ttls, among
// which its own is then; unless ttls is nil, as for queries, which don't age.
func dissectRecord(msg []byte, off int, ttls *[]int) (r dissectedRecord, ok bool) {
	r.start = off
	ages := ttls != nil
	if !ages {
		ttls = new([]int)
	}
	r.header.Name, off, ok = readName(msg, off, *ttls)
	if !ok || off+10 > len(msg) {
		return r, false
	}
	r.header.Rrtype = binary.BigEndian.Uint16(msg[off:])
	r.header.Class = binary.BigEndian.Uint16(msg[off+2:])
	r.header.Ttl = binary.BigEndian.Uint32(msg[off+4:])
	r.header.Rdlength = binary.BigEndian.Uint16(msg[off+8:])
	r.ttlAt = off + 4
	data := off + 10
	r.end = data + int(r.header.Rdlength)
	if r.end > len(msg) {
		return r, false
	}
	r.rdata = msg[data:r.end]
	if r.header.Rrtype != dns.TypeOPT && ages {
		*ttls = append(*ttls, r.ttlAt)
	}
	layout, known := dataNames[r.header.Rrtype]
	if !known {
		return r, true
	}
	// Data may lack its last fields, as in dynamic updates (RFC 2136 section
	// 2.4). With more octets to read, a missing field shows as a wrong length.
	rr, _, err := dns.UnpackRRWithHeader(r.header, msg[:len(msg)+64], data)
	if err != nil || r.header.Rdlength == 0 {
		return r, false
	}
	r.rr = rr
	for at := data + layout[0]; layout[1] > 0; layout[1]-- {
		if _, at, ok = readName(msg[:r.end], at, *ttls); !ok {
			return r, false
		}
	}
	return r, true
}

// readName reads the name at off with miekg/dns. It fails unless the name's
// pointers lead back to octets that end before start, where those that
// point to them begin, and that avoid the header and the TTLs.
func readName(msg []byte, off int, ttls []int) (name string, end int, ok bool) {
	name, end, err := dns.UnpackDomainName(msg, off)
	if err != nil {
		return "", 0, false
	}
	limit, at := len(msg), off
	for {
		next, pointer := labels(msg, at)
		if next > limit || at < 12 {
			return "", 0, false
		}
		for _, ttl := range ttls {
			if ttl+4 > at && ttl < next {
				return "", 0, false
			}
		}
		if pointer < 0 {
			return name, end, true
		}
		at, limit = pointer, at
	}
}

// labels returns where the labels at off end, and where the pointer leads that
// ends them, or -1. The name must be well-formed.
func labels(msg []byte, off int) (end, pointer int) {
	for ; ; off += 1 + int(msg[off]) {
		switch n := msg[off]; {
		case n == 0:
			return off + 1, -1
		case n >= 0xc0:
			return off + 2, int(binary.BigEndian.Uint16(msg[off:]) & 0x3fff)
		}
	}
}

// equalName compares names in presentation format, which is ASCII.
func equalName(a, b string) bool { return strings.EqualFold(a, b) }

// optOf returns the only OPT record of a message, or nil. It fails if there is
// another one, or one out of place.
func (d dissected) optOf() (opt *dissectedRecord, ok bool) {
	for i, r := range d.records {
		if r.header.Rrtype != dns.TypeOPT {
			continue
		}
		if opt != nil || r.section != 3 || r.ttlAt-r.start != 5 || r.header.Name != "." || !optionsOK(r.rdata) {
			return nil, false
		}
		opt = &d.records[i]
	}
	return opt, true
}

// optionsOK asks miekg/dns about a list of options, under a code without a
// format of its own.
func optionsOK(rdata []byte) bool {
	opaque := slices.Clone(rdata)
	hideOptions(opaque)
	header := dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT, Rdlength: uint16(len(opaque))}
	_, _, err := dns.UnpackRRWithHeader(header, opaque, 0)
	return err == nil
}

// cookiesOK reports whether every cookie has one of the lengths of RFC 7873
// section 4.
func cookiesOK(rdata []byte) bool {
	for at := 0; at+4 <= len(rdata); {
		size := int(binary.BigEndian.Uint16(rdata[at+2:]))
		if binary.BigEndian.Uint16(rdata[at:]) == dns.EDNS0COOKIE && size != 8 && (size < 16 || size > 40) {
			return false
		}
		at += 4 + size
	}
	return true
}

// chain returns the names that the question leads to, in lower case. Names are
// compared as text.
func (d dissected) chain() []string {
	names := []string{strings.ToLower(d.qname)}
	for range d.records { // each round may add a name
		for _, r := range d.records {
			cname, ok := r.rr.(*dns.CNAME)
			if !ok || r.section != 1 || r.header.Class != dns.ClassINET || !slices.Contains(names, strings.ToLower(r.header.Name)) {
				continue
			}
			if target := strings.ToLower(cname.Target); len(names) < 32 && !slices.Contains(names, target) {
				names = append(names, target)
			}
		}
	}
	return names
}

// isOnChain reports whether all records of the answer section are of names that
// the question leads to.
func (d dissected) isOnChain() bool {
	if d.strays() > 256 {
		return false
	}
	names := d.chain()
	for _, r := range d.records {
		above := r.covered() == dns.TypeDNAME && slices.ContainsFunc(names, func(name string) bool { return dns.IsSubDomain(r.header.Name, name) })
		on := above || slices.Contains(names, strings.ToLower(r.header.Name))
		if r.section == 1 && (!on || r.header.Class != dns.ClassINET) {
			return false
		}
	}
	return true
}

// strays returns how many records of the answer section come before the chain leads to
// them.
func (d dissected) strays() (n int) {
	names := []string{strings.ToLower(d.qname)}
	for _, r := range d.records {
		above := r.covered() == dns.TypeDNAME && slices.ContainsFunc(names, func(name string) bool { return dns.IsSubDomain(r.header.Name, name) })
		switch on := slices.Contains(names, strings.ToLower(r.header.Name)); {
		case r.section != 1:
		case !on && !above || r.header.Class != dns.ClassINET:
			n++
		default:
			if cname, ok := r.rr.(*dns.CNAME); ok && n <= 256 {
				names = addName(names, cname.Target, 32)
			}
		}
	}
	return n
}

func (r dissectedRecord) covered() uint16 {
	if r.header.Rrtype == dns.TypeRRSIG && len(r.rdata) >= 2 {
		return binary.BigEndian.Uint16(r.rdata)
	}
	return r.header.Rrtype
}

// kept returns the records that clients get to see: up to the OPT record, and only
// those that have to do with the question. Lost tells how many don't.
func (d dissected) kept() (kept []dissectedRecord, lost int) {
	chain, signers, targets := d.chain(), []string(nil), []string(nil)
	holds := func(top string) bool {
		return slices.ContainsFunc(chain, func(name string) bool { return dns.IsSubDomain(top, name) })
	}
	others := func(i int) int { return i - d.counts()[0] } // the number of a record behind the answer section
	for i, r := range d.records {
		signer, ok := plainName(r.rdata, 18)
		if others(i) < 256 && r.section == 2 && r.header.Rrtype == dns.TypeRRSIG && ok && holds(signer) && dns.IsSubDomain(signer, r.header.Name) {
			signers = addName(signers, signer, 8)
		}
	}
	for i, r := range d.records {
		if r.header.Rrtype == dns.TypeOPT {
			return kept, lost
		}
		owner, stays := strings.ToLower(r.header.Name), r.section == 1
		switch typ := r.covered(); {
		case r.header.Class != dns.ClassINET || others(i) >= 256:
		case r.section == 3:
			stays = (r.header.Rrtype < 128 || r.header.Rrtype > 255) && (slices.Contains(chain, owner) || slices.Contains(targets, owner))
		case typ == dns.TypeNS || typ == dns.TypeSOA || typ == dns.TypeDS:
			stays = stays || holds(owner)
		case typ == dns.TypeNSEC || typ == dns.TypeNSEC3:
			stays = stays || slices.ContainsFunc(signers, func(s string) bool { return dns.IsSubDomain(s, owner) })
		}
		if !stays {
			lost++
			continue
		}
		kept = append(kept, r)
		if target := r.target(); target != "" && target != "." {
			targets = addName(targets, target, 64)
		}
	}
	return kept, lost
}

func addName(names []string, name string, most int) []string {
	if name = strings.ToLower(name); len(names) < most && !slices.Contains(names, name) {
		return append(names, name)
	}
	return names
}

// target returns the name that a record leads to, or nothing.
func (r dissectedRecord) target() string {
	switch rr := r.rr.(type) {
	case *dns.NS:
		return rr.Ns
	case *dns.PTR:
		return rr.Ptr
	case *dns.MX:
		return rr.Mx
	case *dns.AFSDB:
		return rr.Hostname
	case *dns.RT:
		return rr.Host
	case *dns.KX:
		return rr.Exchanger
	case *dns.SRV:
		return rr.Target
	}
	if r.header.Rrtype == dns.TypeSVCB || r.header.Rrtype == dns.TypeHTTPS {
		if name, ok := plainName(r.rdata, 2); ok {
			return name
		}
	}
	return ""
}

// plainName reads a name that has no pointers.
func plainName(data []byte, at int) (string, bool) {
	if at >= len(data) {
		return "", false
	}
	name, end, err := dns.UnpackDomainName(data, at)
	if err != nil {
		return "", false
	}
	again := make([]byte, 256)
	n, err := dns.PackDomainName(name, again, 0, nil, false)
	return name, err == nil && string(again[:n]) == string(data[at:end])
}

// fullLen returns how long a record is when its names are written in full, up to
// where they lead into the question.
func (d dissected) fullLen(msg []byte, r dissectedRecord) int {
	name := func(off int) (n, end int) {
		for first := true; ; first = false {
			stop, pointer := labels(msg, off)
			if first {
				end = stop
			}
			n += stop - off
			if pointer < 0 {
				return n, end
			}
			if last, more := labels(msg, pointer); more < 0 && last <= d.questionEnd-4 {
				return n, end
			}
			n, off = n-2, pointer
		}
	}
	size, _ := name(r.start)
	size += 10 + len(r.rdata)
	layout := dataNames[r.header.Rrtype]
	for at := r.end - len(r.rdata) + layout[0]; layout[1] > 0; layout[1]-- {
		n, end := name(at)
		size += n - (end - at)
		at = end
	}
	return size
}

// isTooLong reports whether the message is without what it must be without, and with
// names in full.
func (d dissected) isTooLong(msg []byte) bool {
	kept, lost := d.kept()
	size := d.questionEnd
	for _, r := range kept {
		size += d.fullLen(msg, r)
	}
	if opt, _ := d.optOf(); opt != nil {
		size += opt.end - opt.start
	}
	return lost > 0 && size > 65535
}

// hideOptions gives each option a code for local use.
func hideOptions(rdata []byte) {
	for at := 0; at+4 <= len(rdata); at += 4 + int(binary.BigEndian.Uint16(rdata[at+2:])) {
		binary.BigEndian.PutUint16(rdata[at:], dns.EDNS0LOCALSTART)
	}
}

// mustUnpack has miekg/dns unpack a message that dissect accepts. Of opaque
// data and options it may ask more than a gateway does, so it gets to see them
// as types and codes for private use.
func mustUnpack(tb testing.TB, message []byte) *dns.Msg {
	d, ok := dissect(message)
	if !ok {
		tb.Fatalf("malformed %x", message)
	}
	private := slices.Clone(message)
	for _, r := range d.records {
		switch _, known := dataNames[r.header.Rrtype]; {
		case r.header.Rrtype == dns.TypeOPT:
			hideOptions(private[r.end-len(r.rdata) : r.end])
		case !known:
			binary.BigEndian.PutUint16(private[r.ttlAt-4:], 65280)
		}
	}
	if p, ok := dissect(private); !ok || !slices.EqualFunc(d.records, p.records, sameNames) {
		tb.Skip("a name leads through a type that had to change")
	}
	m := new(dns.Msg)
	if err := m.Unpack(private); err != nil {
		tb.Fatalf("%x: %s", private, err)
	}
	if got := [3]int{len(m.Answer), len(m.Ns), len(m.Extra)}; got != d.counts() {
		tb.Fatalf("%x: got %v records, want %v", private, got, d.counts())
	}
	return m
}

func sameNames(a, b dissectedRecord) bool {
	if a.header.Name != b.header.Name || (a.rr == nil) != (b.rr == nil) {
		return false
	}
	return a.rr == nil || a.rr.String() == b.rr.String()
}

func (d dissected) counts() (n [3]int) {
	for _, r := range d.records {
		n[r.section-1]++
	}
	return n
}

type packed struct {
	msg   *dns.Msg
	bytes []byte
}

// repack returns the ways in which miekg/dns writes what it reads, if it can.
func repack(message []byte) (ways []packed) {
	for _, compress := range []bool{false, true} {
		m := new(dns.Msg)
		if m.Unpack(message) != nil {
			return nil
		}
		m.Compress = compress
		if b, err := m.Pack(); err == nil && len(b) <= 65535 {
			ways = append(ways, packed{m, b})
		}
	}
	return ways
}

// isGoodQuery tells from the fields of m whether it is a query we pass on.
func isGoodQuery(m *dns.Msg) bool {
	if m.Response || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 || len(m.Answer)+len(m.Ns) > 0 {
		return false
	}
	switch m.Question[0].Qtype {
	case dns.TypeAXFR, dns.TypeIXFR, dns.TypeOPT, dns.TypeTSIG:
		return false
	}
	opt := m.IsEdns0()
	if opt != nil {
		for _, option := range opt.Option {
			cookie, ok := option.(*dns.EDNS0_COOKIE)
			if ok && len(cookie.Cookie) != 16 && (len(cookie.Cookie) < 32 || len(cookie.Cookie) > 80) {
				return false
			}
		}
	}
	return m.Question[0].Qclass == dns.ClassINET && areGoodRecords(m) && m.IsTsig() == nil && (opt == nil || opt.Version() == 0)
}

// isGoodResponse tells from the fields of m whether it answers its question.
func isGoodResponse(m *dns.Msg) bool {
	if !m.Response || m.Opcode != dns.OpcodeQuery || m.Truncated || len(m.Question) != 1 {
		return false
	}
	question := dns.Msg{Question: m.Question}
	return isGoodQuery(&question) && areGoodRecords(m)
}

// areGoodRecords reports whether all records are whole and at most one is an
// OPT record, in its place.
func areGoodRecords(m *dns.Msg) bool {
	opts := 0
	for section, records := range sections(m) {
		for _, rr := range records {
			if rr.Header().Rrtype == dns.TypeOPT {
				opts++
				if section != "additional" || rr.Header().Name != "." {
					return false
				}
			}
			if rr.Header().Rrtype == dns.TypeTSIG && !m.Response {
				return false
			}
			buf := make([]byte, 1<<17)
			end, err := dns.PackRR(rr, buf, 12, nil, false)
			if err != nil {
				return false
			}
			var ttls []int
			if _, ok := dissectRecord(buf[:end], 12, &ttls); !ok {
				return false
			}
		}
	}
	return opts <= 1
}

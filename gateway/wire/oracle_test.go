package wire_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/miekg/dns"
)

// The oracle decides with miekg/dns which messages are well-formed, and adds checks that
// it does not have: for trailing octets, counts beyond the records, records that end
// between two fields, and pointers.

// dissected is a message, parsed by the oracle.
type dissected struct {
	rcode       int    // of the header
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

// dataNames has, by type, the number of octets before the names in its data, and the
// number of names.
var dataNames = map[uint16][2]int{
	dns.TypeA: {0, 0}, dns.TypeAAAA: {0, 0},
	dns.TypeNS: {0, 1}, dns.TypeMD: {0, 1}, dns.TypeMF: {0, 1}, dns.TypeCNAME: {0, 1}, dns.TypeMB: {0, 1},
	dns.TypeMG: {0, 1}, dns.TypeMR: {0, 1}, dns.TypePTR: {0, 1}, dns.TypeDNAME: {0, 1},
	dns.TypeSOA: {0, 2}, dns.TypeMINFO: {0, 2}, dns.TypeRP: {0, 2},
	dns.TypeMX: {2, 1}, dns.TypeAFSDB: {2, 1}, dns.TypeRT: {2, 1}, dns.TypeKX: {2, 1}, dns.TypeSRV: {6, 1},
}

// dissect parses a message with at most one question. It fails unless the
// message is well-formed and ends where its counts say.
func dissect(msg []byte) (d dissected, ok bool) {
	if len(msg) < 12 || len(msg) > 65535 {
		return d, false
	}
	msg = append(slices.Clone(msg), make([]byte, 64)...)[:len(msg)] // see dissectRecord
	count := func(i int) int { return int(binary.BigEndian.Uint16(msg[4+2*i:])) }
	d.rcode = int(msg[3] & 0xf)
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

// dissectRecord parses the record at off and adds its TTL to ttls. Names must not
// overlap these TTLs, unless ttls is nil, as for queries.
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
		return r, fieldsOK(r.header.Rrtype, r.rdata)
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

// fieldsOK reports whether the data of a type with fields has them, to the end.
func fieldsOK(typ uint16, data []byte) bool {
	ok := true
	octets := func(n int) []byte {
		if n > len(data) {
			ok, n = false, len(data)
		}
		head := data[:n]
		data = data[n:]
		return head
	}
	text := func() []byte {
		if len(data) == 0 {
			ok = false
			return nil
		}
		return octets(1 + int(data[0]))
	}
	name := func() {
		if _, plain := plainName(data, 0); !plain {
			ok = false
			return
		}
		end, _ := labels(data, 0)
		octets(end)
	}
	rest := func(least int) { ok = ok && len(octets(len(data))) >= least }
	switch typ {
	case dns.TypeHINFO:
		text()
		text()
	case dns.TypeX25:
		text()
	case dns.TypePX:
		octets(2)
		name()
		name()
	case dns.TypeNSAPPTR:
		name()
	case dns.TypeTALINK:
		name()
		name()
	case dns.TypeLP:
		octets(2)
		name()
	case dns.TypeCERT:
		octets(5)
		rest(1)
	case dns.TypeURI:
		octets(4)
		rest(1)
	case dns.TypeOPENPGPKEY:
		rest(1)
	case dns.TypeCSYNC:
		octets(6)
		ok = ok && bitmapOK(octets(len(data)))
	case dns.TypeNID, dns.TypeL64:
		octets(10)
	case dns.TypeL32, dns.TypeEUI48:
		octets(6)
	case dns.TypeEUI64:
		octets(8)
	case dns.TypeLOC:
		ok = placeOK(octets(16))
	case dns.TypeAPL:
		for ok && len(data) > 0 {
			head := octets(4)
			if !ok {
				break
			}
			prefix := octets(int(head[3] & 0x7f))
			if most := map[string]int{"\x00\x01": 4, "\x00\x02": 16}[string(head[:2])]; most > 0 {
				ok = ok && len(prefix) <= most && int(head[2]) <= 8*most && !bytes.HasSuffix(prefix, []byte{0})
			}
		}
	case dns.TypeIPSECKEY:
		switch head := octets(3); {
		case !ok || head[1] > 3:
			ok = false
		case head[1] == 3:
			name()
		default:
			octets([]int{0, 4, 16}[head[1]])
		}
		rest(0)
	case dns.TypeZONEMD:
		octets(5)
		ok = hashOK(typ, data) && ok
		rest(0)
	case dns.TypeTXT, dns.TypeSPF, dns.TypeAVC, dns.TypeNINFO, dns.TypeRESINFO, 262:
		for text(); len(data) > 0; {
			text()
		}
	case dns.TypeRRSIG:
		octets(18)
		name()
		rest(1)
	case dns.TypeDS, dns.TypeCDS, dns.TypeDLV:
		octets(3)
		ok = hashOK(typ, data) && ok
		rest(0)
	case dns.TypeDNSKEY, dns.TypeCDNSKEY:
		octets(4)
		rest(1)
	case dns.TypeNSEC:
		name()
		ok = ok && len(data) > 0 && bitmapOK(octets(len(data)))
	case dns.TypeNSEC3:
		octets(4)
		text()
		hash := text()
		ok = ok && len(hash) > 1 && bitmapOK(octets(len(data)))
	case dns.TypeNSEC3PARAM:
		octets(4)
		text()
	case dns.TypeNAPTR:
		octets(4)
		text()
		text()
		text()
		name()
	case dns.TypeCAA:
		octets(1)
		tag := text()
		ok = ok && len(tag) > 1 && !bytes.ContainsFunc(tag[1:], func(c rune) bool {
			return c > '~' || !unicode.IsLetter(c) && !unicode.IsDigit(c)
		})
		rest(0)
	case dns.TypeTLSA, dns.TypeSMIMEA:
		octets(3)
		rest(1)
	case dns.TypeSSHFP:
		octets(1)
		ok = hashOK(typ, data) && ok
		rest(0)
	case dns.TypeSVCB, dns.TypeHTTPS:
		octets(2)
		name()
		params := map[uint16]string{}
		for last := -1; ok && len(data) > 0; {
			head := octets(4)
			if !ok {
				break
			}
			key := binary.BigEndian.Uint16(head)
			value := octets(int(binary.BigEndian.Uint16(head[2:])))
			ok = ok && int(key) > last
			last, params[key] = int(key), string(value)
		}
		ok = ok && paramsOK(params)
	default:
		return true
	}
	return ok && len(data) == 0
}

// paramsOK reports whether service parameters are consistent.
func paramsOK(params map[uint16]string) bool {
	expr := map[uint16]string{
		0: `(?s)^(..)+$`, 1: `(?s)^.+$`, 2: `^$`, 3: `(?s)^..$`, 4: `(?s)^(.{4})+$`, 5: `(?s)^.+$`, 6: `(?s)^(.{16})+$`,
		7: `(?s)^/.*\{[+#./;?&]*([^},]*,)*dns(,[^}]*)?(}|$)`,
	}
	for key, value := range params {
		runes := make([]rune, 0, len(value)) // one for each octet
		for _, c := range []byte(value) {
			runes = append(runes, rune(c))
		}
		if e, known := expr[key]; known && !regexp.MustCompile(e).MatchString(string(runes)) {
			return false
		}
	}
	last := uint16(0)
	for mandatory := params[0]; mandatory != ""; mandatory = mandatory[2:] {
		key := binary.BigEndian.Uint16([]byte(mandatory))
		if _, found := params[key]; !found || key <= last {
			return false
		}
		last = key
	}
	for alpn := params[1]; alpn != ""; alpn = alpn[1+alpn[0]:] {
		if alpn[0] == 0 || int(alpn[0]) >= len(alpn) {
			return false
		}
	}
	_, alpn := params[1]
	_, without := params[2]
	return (alpn || !without) && utf8.ValidString(params[7])
}

// hashOK reports whether data is an algorithm and a hash with its length.
func hashOK(typ uint16, data []byte) bool {
	if len(data) < 2 {
		return false
	}
	sizes := map[byte]int{1: 20, 2: 32, 3: 32, 4: 48}
	switch typ {
	case dns.TypeCDS:
		sizes[0] = 1
	case dns.TypeSSHFP:
		sizes = map[byte]int{1: 20, 2: 32}
	case dns.TypeZONEMD:
		sizes = map[byte]int{1: 48, 2: 64}
		if len(data) < 13 {
			return false
		}
	}
	size, known := sizes[data[0]]
	return !known || len(data) == 1+size
}

// placeOK reports whether data is the data of a LOC record.
func placeOK(data []byte) bool {
	if len(data) != 16 || data[0] != 0 {
		return false
	}
	for _, digit := range fmt.Sprintf("%x", data[1:4]) {
		if digit > '9' {
			return false
		}
	}
	for _, size := range data[1:4] {
		if size > 0 && size < 16 {
			return false
		}
	}
	for i, most := range []float64{90, 180} {
		if angle := float64(binary.BigEndian.Uint32(data[4+4*i:])) - 1<<31; math.Abs(angle) > most*3600e3 {
			return false
		}
	}
	return true
}

// bitmapOK reports whether a type bitmap is as miekg/dns would write it.
func bitmapOK(data []byte) bool {
	nsec := append([]byte{0}, data...)
	rr, _, err := dns.UnpackRRWithHeader(dns.RR_Header{Name: ".", Rrtype: dns.TypeNSEC, Rdlength: uint16(len(nsec))}, nsec, 0)
	if err != nil {
		return false
	}
	buf := make([]byte, 64+len(nsec))
	n, err := dns.PackRR(rr, buf, 0, nil, false)
	return err == nil && bytes.HasSuffix(buf[:n], nsec) && n == 11+len(nsec)
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

// labels returns the end of the labels at off, and the target of the pointer at their
// end, or -1. The name must be well-formed.
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

// optionsOK reports whether miekg/dns accepts a list of options, with their codes
// replaced by one without a format.
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

// usable is the part of a message that clients should get.
type usable struct {
	records   []dissectedRecord // in their order
	dropped   int               // number of other records of the message
	asSent    bool              // the answer section is in order as it was sent
	unrelated bool              // all answers are of unrelated names
	endless   bool              // its CNAME chain has a loop
}

// usableFor returns the part for a client that asked for a type, with signatures or
// without. Names are compared as text.
func (d dissected) usableFor(asked uint16, sigs bool) (u usable) {
	c := &textChain{asked: asked, sigs: sigs || asked == dns.TypeRRSIG || isSeveral(asked), names: []string{strings.ToLower(d.qname)}}
	answers, related := d.answers(), false
	if u.asSent = !slices.ContainsFunc(answers, func(r dissectedRecord) bool { return !c.accepts(r) }); u.asSent {
		u.records = answers
	} else {
		c.names, c.data = c.names[:1], false
		u.records, related, u.endless = c.arrange(answers)
		aliases := 0
		for _, r := range answers {
			if t := r.covered(); (t == dns.TypeCNAME || t == dns.TypeDNAME) && r.header.Class == dns.ClassINET {
				aliases++
			}
		}
		u.unrelated = aliases > 256 || !u.endless && !related && d.rcode == dns.RcodeSuccess
	}
	others := d.others(c.names, u.records)
	u.records = append(slices.Clip(u.records), others...)
	u.dropped = -len(u.records)
	for _, r := range d.records {
		if r.header.Rrtype == dns.TypeOPT {
			break
		}
		u.dropped++
	}
	return u
}

func (d dissected) answers() (all []dissectedRecord) {
	for _, r := range d.records {
		if r.section == 1 {
			all = append(all, r)
		}
	}
	return all
}

func isSeveral(t uint16) bool { return t >= dns.TypeMAILB && t <= dns.TypeANY }

// A textChain is the names that a question leads to.
type textChain struct {
	asked uint16
	sigs  bool
	names []string // in lower case
	data  bool     // accepts has seen data of the last name
}

func (c *textChain) last() string { return c.names[len(c.names)-1] }

func (c *textChain) follows() bool { return c.asked != dns.TypeCNAME && !isSeveral(c.asked) }

func (c *textChain) isData(r dissectedRecord) bool {
	return r.header.Rrtype == c.asked || isSeveral(c.asked) || c.sigs && r.covered() == c.asked
}

func isAbove(r dissectedRecord, name string) bool {
	return dns.IsSubDomain(r.header.Name, name) && !equalName(r.header.Name, name)
}

// leadTo adds the target of an alias. It reports false if the chain has it already, or is
// too long.
func (c *textChain) leadTo(r dissectedRecord) bool {
	target := strings.ToLower(r.rr.(*dns.CNAME).Target)
	if slices.Contains(c.names, target) || len(c.names) > 16 {
		return false
	}
	c.names = append(c.names, target)
	return true
}

// accepts reports whether r may come next in an answer that is in order.
func (c *textChain) accepts(r dissectedRecord) bool {
	isLast, isSig := equalName(r.header.Name, c.last()), r.header.Rrtype == dns.TypeRRSIG
	switch {
	case r.header.Class != dns.ClassINET || isSig && !c.sigs:
		return false
	case isLast && c.isData(r):
		c.data = true
		return true
	case c.data || !c.follows():
		return false
	case r.covered() == dns.TypeDNAME:
		return isAbove(r, c.last())
	case r.covered() == dns.TypeCNAME && isSig:
		return len(c.names) > 1 && equalName(r.header.Name, c.names[len(c.names)-2])
	}
	return r.covered() == dns.TypeCNAME && isLast && c.leadTo(r)
}

// arrange returns the answers that are related to the question, in order, whether any
// record is related, and whether the chain has a loop.
func (c *textChain) arrange(answers []dissectedRecord) (in []dissectedRecord, related, endless bool) {
	take := func(fits func(dissectedRecord) bool, most int) (taken []dissectedRecord) {
		for _, r := range answers {
			had := slices.ContainsFunc(in, func(o dissectedRecord) bool { return o.start == r.start })
			if len(taken) < most && !had && r.header.Class == dns.ClassINET && fits(r) {
				taken = append(taken, r)
			}
		}
		in = append(in, taken...)
		return taken
	}
	isA := func(t uint16, fits func(dissectedRecord) bool) func(dissectedRecord) bool {
		return func(r dissectedRecord) bool { return r.header.Rrtype == t && fits(r) }
	}
	signs := func(t uint16, fits func(dissectedRecord) bool) func(dissectedRecord) bool {
		return func(r dissectedRecord) bool {
			return c.sigs && r.header.Rrtype == dns.TypeRRSIG && r.covered() == t && fits(r)
		}
	}
	for c.follows() {
		above := func(r dissectedRecord) bool { return isAbove(r, c.last()) }
		if len(take(isA(dns.TypeDNAME, above), len(answers))) > 0 {
			take(signs(dns.TypeDNAME, above), len(answers))
		}
		at := func(r dissectedRecord) bool { return equalName(r.header.Name, c.last()) }
		alias := take(isA(dns.TypeCNAME, at), 1)
		if len(alias) == 0 {
			break
		}
		take(signs(dns.TypeCNAME, at), len(answers))
		if !c.leadTo(alias[0]) {
			return nil, true, true
		}
	}
	related = len(in) > 0 || slices.ContainsFunc(answers, func(r dissectedRecord) bool {
		return r.header.Class == dns.ClassINET && equalName(r.header.Name, c.last())
	})
	take(func(r dissectedRecord) bool { return equalName(r.header.Name, c.last()) && c.isData(r) }, len(answers))
	return in, related, false
}

func (r dissectedRecord) covered() uint16 {
	if r.header.Rrtype == dns.TypeRRSIG && len(r.rdata) >= 2 {
		return binary.BigEndian.Uint16(r.rdata)
	}
	return r.header.Rrtype
}

// others returns the records behind the answer section, up to the OPT record, that are
// related to the question.
func (d dissected) others(chain []string, answers []dissectedRecord) (kept []dissectedRecord) {
	signers, targets := []string(nil), []string(nil)
	for _, r := range answers {
		if target := r.target(); target != "" && target != "." {
			targets = addName(targets, target, 64)
		}
	}
	holds := func(top string) bool {
		return slices.ContainsFunc(chain, func(name string) bool { return dns.IsSubDomain(top, name) })
	}
	behind := d.records[d.counts()[0]:]
	for i, r := range behind {
		signer, ok := plainName(r.rdata, 18)
		if i < 256 && r.section == 2 && r.header.Rrtype == dns.TypeRRSIG && ok && holds(signer) && dns.IsSubDomain(signer, r.header.Name) {
			signers = addName(signers, signer, 8)
		}
	}
	for i, r := range behind {
		if r.header.Rrtype == dns.TypeOPT {
			break
		}
		owner, stays := strings.ToLower(r.header.Name), false
		switch typ := r.covered(); {
		case r.header.Class != dns.ClassINET || i >= 256:
		case r.section == 3:
			stays = (r.header.Rrtype < 128 || r.header.Rrtype > 255) && (slices.Contains(chain, owner) || slices.Contains(targets, owner))
		case typ == dns.TypeNS || typ == dns.TypeSOA || typ == dns.TypeDS:
			stays = holds(owner)
		case typ == dns.TypeNSEC || typ == dns.TypeNSEC3:
			stays = slices.ContainsFunc(signers, func(s string) bool { return dns.IsSubDomain(s, owner) })
		}
		if !stays {
			continue
		}
		kept = append(kept, r)
		if target := r.target(); target != "" && target != "." {
			targets = addName(targets, target, 64)
		}
	}
	return kept
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

// compressesNewer reports whether a name is compressed that must not be: in data of a
// type that is not in RFC 1035.
func (d dissected) compressesNewer(msg []byte) bool {
	for _, r := range d.records {
		switch r.header.Rrtype {
		case dns.TypeDNAME, dns.TypeRP, dns.TypeAFSDB, dns.TypeRT, dns.TypeKX, dns.TypeSRV:
			layout := dataNames[r.header.Rrtype]
			for at := r.end - len(r.rdata) + layout[0]; layout[1] > 0; layout[1]-- {
				end, pointer := labels(msg, at)
				if at = end; pointer >= 0 {
					return true
				}
			}
		}
	}
	return false
}

// hideOptions gives each option a code for local use.
func hideOptions(rdata []byte) {
	for at := 0; at+4 <= len(rdata); at += 4 + int(binary.BigEndian.Uint16(rdata[at+2:])) {
		binary.BigEndian.PutUint16(rdata[at:], dns.EDNS0LOCALSTART)
	}
}

// mustUnpack has miekg/dns unpack a message that dissect accepts. It may
// reject opaque data and options, so they get types and codes for private use.
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

// isGoodQuery reports whether m is a query that is passed on, by its fields.
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

// isGoodResponse reports whether m answers its question, by its fields.
func isGoodResponse(m *dns.Msg) bool {
	if !m.Response || m.Opcode != dns.OpcodeQuery || m.Truncated || len(m.Question) != 1 {
		return false
	}
	question := dns.Msg{Question: m.Question}
	return isGoodQuery(&question) && areGoodRecords(m)
}

// areGoodRecords reports whether all records are whole, and at most one is an OPT
// record, in the additional section.
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

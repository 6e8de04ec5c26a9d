package dottest

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"dotgate/gateway/wire"
)

// A Handler answers queries, as raw messages without a length prefix. It
// appends the response to dst, or nothing to leave the query unanswered, and returns
// how long the answer takes. It is called by many goroutines, and must neither block nor
// keep dst or query.
//
// query is at least a header long and otherwise as it came. The response is at
// most wire.MaxSize octets long.
type Handler func(dst, query []byte) (response []byte, after time.Duration)

// Answer is the default Handler. It answers so that the answer shows whether
// it belongs to the name asked for: A with Address, AAAA with Address6, TXT
// with the name itself in lower case, all with a TTL of 300. Other types have
// no data.
//
// Labels of the name are instructions, anywhere in it and in any combination:
//
//	d500       takes 500 ms
//	never      gets no answer
//	servfail   SERVFAIL; likewise refused, notimp, formerr
//	bogus      SERVFAIL, with the EDE "DNSSEC Bogus" if the query has an OPT record
//	nxdomain   NXDOMAIN with a SOA record
//	blocked    NXDOMAIN without one, as filtering resolvers do
//	nodata     NOERROR with a SOA record only
//	tc         truncated
//	big4000    as many records as fit into 4000 octets, for A, AAAA and TXT
//	ttl60      a TTL of 60 s
func Answer(dst, query []byte) ([]byte, time.Duration) {
	q, ok := parseQuestion(query)
	if !ok {
		return appendResponse(dst, q, wire.FormErr, section{}), 0
	}
	if q.flags()&maskOpcode != 0 {
		return appendResponse(dst, q, wire.NotImp, section{}), 0
	}
	do := q.instructions()
	if do.never {
		return dst, 0
	}
	return appendResponse(dst, q, do.rcode, do.section), do.delay
}

// Address is the answer of Answer to a query of type A for name, with or
// without its final dot: a hash of the name within 192.0.2.0/24.
func Address(name string) netip.Addr {
	return netip.AddrFrom4(address4(hashName(name)))
}

// Address6 is the answer of Answer to a query of type AAAA: 64 bits of hash
// within 2001:db8::/64.
func Address6(name string) netip.Addr {
	return netip.AddrFrom16(address6(hashName(name)))
}

func address4(hash uint64) [4]byte {
	return [4]byte{192, 0, 2, byte(hash ^ hash>>8 ^ hash>>16 ^ hash>>24)}
}

func address6(hash uint64) (a [16]byte) {
	copy(a[:], "\x20\x01\x0d\xb8")
	binary.BigEndian.PutUint64(a[8:], hash)
	return a
}

// FNV-1a. It need not resist attacks, but be the same everywhere.
const (
	hashStart uint64 = 14695981039346656037
	hashPrime uint64 = 1099511628211
)

func hashName(name string) uint64 {
	hash := hashStart
	name = strings.TrimSuffix(name, ".")
	if name == "" {
		return hash
	}
	for i := range len(name) {
		hash = (hash ^ uint64(lower(name[i]))) * hashPrime
	}
	return (hash ^ '.') * hashPrime
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}

const (
	headerLen = 12
	optLen    = 11

	flagQR     = 1 << 15
	maskOpcode = 0xf << 11
	flagTC     = 1 << 9
	flagRD     = 1 << 8
	flagRA     = 1 << 7
	flagCD     = 1 << 4

	typeA    = 1
	typeSOA  = 6
	typeTXT  = 16
	typeAAAA = 28
	typeOPT  = 41
	classIN  = 1

	defaultTTL = 300
	noDataTTL  = 60
	edeBogus   = 6 // RFC 8914 section 4.7
)

// A question is a query with its parsed question.
type question struct {
	message []byte
	end     int    // of the question
	qtype   uint16 // of the question
	zone    int    // where the last two labels of the name are
	hash    uint64 // of the name
	opt     bool   // whether there is an OPT record
}

func (q question) flags() uint16 { return binary.BigEndian.Uint16(q.message[2:]) }

// parseQuestion reads the question of query, which is at least a header long.
// Without a well-formed one, it returns a query that has none.
func parseQuestion(query []byte) (_ question, ok bool) {
	none := question{message: query, end: headerLen}
	if binary.BigEndian.Uint16(query[4:]) != 1 {
		return none, false
	}
	q := question{message: query, zone: headerLen, hash: hashStart}
	last, at := headerLen, headerLen
	for {
		if at >= len(query) {
			return none, false
		}
		n := int(query[at])
		if n == 0 {
			break
		}
		if n > 63 || at+1+n > len(query) {
			return none, false
		}
		q.zone, last = last, at
		for _, b := range query[at+1 : at+1+n] {
			q.hash = (q.hash ^ uint64(lower(b))) * hashPrime
		}
		q.hash = (q.hash ^ '.') * hashPrime
		at += 1 + n
	}
	q.end = at + 5
	if q.end > len(query) {
		return none, false
	}
	q.qtype = binary.BigEndian.Uint16(query[at+1:])
	q.opt = hasOPT(query, q.end)
	return q, true
}

// hasOPT is for queries only, in which OPT is the first record after the question.
func hasOPT(query []byte, at int) bool {
	return binary.BigEndian.Uint16(query[10:]) > 0 && at+optLen <= len(query) &&
		query[at] == 0 && binary.BigEndian.Uint16(query[at+1:]) == typeOPT
}

// A section describes what a response has besides the question.
type section struct {
	flags   uint16
	records bool // of the name and type in the question
	size    int  // with records: fill the message up to this size
	soa     bool
	ttl     uint32
	ede     uint16 // 0: none
	strays  Mangle // Foreign, Stray
}

type instructions struct {
	section
	rcode wire.RCode
	delay time.Duration
	never bool
}

func (q question) instructions() instructions {
	do := instructions{section: section{records: true, ttl: defaultTTL}}
	for at := headerLen; q.message[at] != 0; at += 1 + int(q.message[at]) {
		do.obey(q.message[at+1 : at+1+int(q.message[at])])
	}
	return do
}

func (do *instructions) obey(label []byte) {
	var folded [8]byte // as long as the longest instruction
	if len(label) > len(folded) {
		return
	}
	for i, b := range label {
		folded[i] = lower(b)
	}
	switch word := string(folded[:len(label)]); word {
	case "never":
		do.never = true
	case "servfail":
		do.fail(wire.ServFail)
	case "refused":
		do.fail(wire.Refused)
	case "notimp":
		do.fail(wire.NotImp)
	case "formerr":
		do.fail(wire.FormErr)
	case "bogus":
		do.fail(wire.ServFail)
		do.ede = edeBogus
	case "nxdomain":
		do.fail(wire.NXDomain)
		do.soa = true
	case "blocked":
		do.fail(wire.NXDomain)
	case "nodata":
		do.records, do.soa = false, true
	case "tc":
		do.records, do.flags = false, flagTC
	default:
		do.obeyNumber(word)
	}
}

// obeyNumber follows an instruction with a number.
func (do *instructions) obeyNumber(word string) {
	if n, ok := number(word, "d"); ok {
		do.delay = time.Duration(n) * time.Millisecond
	} else if n, ok := number(word, "big"); ok {
		do.size = int(min(n, wire.MaxSize))
	} else if n, ok := number(word, "ttl"); ok {
		do.ttl = n
	}
}

func (do *instructions) fail(rcode wire.RCode) { do.rcode, do.records = rcode, false }

func number(word, prefix string) (uint32, bool) {
	digits, ok := strings.CutPrefix(word, prefix)
	if !ok || digits == "" || digits[0] < '0' || digits[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), err == nil
}

// appendResponse appends a response to q. Names in it are pointers to the
// question.
func appendResponse(dst []byte, q question, rcode wire.RCode, s section) []byte {
	start := len(dst)
	flags := q.flags()&(maskOpcode|flagRD|flagCD) | flagQR | flagRA | s.flags | uint16(rcode)&0xf
	dst = append(dst, q.message[:2]...)
	dst = binary.BigEndian.AppendUint16(dst, flags)
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	dst = append(dst, q.message[headerLen:q.end]...)
	var questions, answers, authority, additional uint16
	if q.end > headerLen {
		questions = 1
	}
	if s.records {
		room := s.size - (len(dst) - start)
		if q.opt {
			room -= optLen
		}
		dst, answers = appendRecords(dst, q, s.ttl, room)
	}
	if s.strays&Foreign != 0 {
		dst, answers = append(dst, stray...), answers+1
	}
	if s.soa || s.records && answers == 0 {
		dst = appendSOA(dst, q)
		authority = 1
	}
	if s.strays&Stray != 0 {
		dst, additional = append(dst, stray...), 1
	}
	if q.opt {
		dst = appendOPT(dst, byte(rcode>>4), s.ede)
		additional++
	}
	for i, n := range [...]uint16{questions, answers, authority, additional} {
		binary.BigEndian.PutUint16(dst[start+4+2*i:], n)
	}
	return dst
}

// stray is an address of a name that was not asked for.
const stray = "\x05stray\x07invalid\x00\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x42"

// appendRecords appends one record, or as many as have room. The first is
// always the one that Answer promises.
func appendRecords(dst []byte, q question, ttl uint32, room int) (_ []byte, n uint16) {
	end := len(dst) + room
	switch q.qtype {
	case typeA:
		for a := address4(q.hash); n == 0 || len(dst)+fixedLen+len(a) <= end; a[3]++ {
			dst = appendFixed(dst, typeA, ttl, len(a))
			dst = append(dst, a[:]...)
			n++
		}
	case typeAAAA:
		for a := address6(q.hash); n == 0 || len(dst)+fixedLen+len(a) <= end; n++ {
			binary.BigEndian.PutUint16(a[4:], n) // all but the first are outside of Address6
			dst = appendFixed(dst, typeAAAA, ttl, len(a))
			dst = append(dst, a[:]...)
		}
	case typeTXT:
		dst = appendText(dst, q, ttl)
		for n = 1; end-len(dst) > fixedLen; n++ {
			dst = appendFiller(dst, ttl, end-len(dst)-fixedLen)
		}
	}
	return dst, n
}

const fixedLen = 12 // what a record has besides its data

// appendFixed appends a record for the name asked for, up to its data.
func appendFixed(dst []byte, recordType uint16, ttl uint32, size int) []byte {
	dst = append(dst, 0xc0, headerLen)
	dst = binary.BigEndian.AppendUint16(dst, recordType)
	dst = binary.BigEndian.AppendUint16(dst, classIN)
	dst = binary.BigEndian.AppendUint32(dst, ttl)
	return binary.BigEndian.AppendUint16(dst, uint16(size))
}

// appendText appends a TXT record that holds the name asked for.
func appendText(dst []byte, q question, ttl uint32) []byte {
	name := q.message[headerLen : q.end-5] // without the root label
	size := max(len(name), 1)              // each label's length becomes its dot; the root has one too
	dst = appendFixed(dst, typeTXT, ttl, 1+size)
	dst = append(dst, byte(size))
	return appendName(dst, name)
}

// appendName appends a name in wire format, without its root label, for
// people: in lower case, with the final dot.
func appendName(dst, name []byte) []byte {
	if len(name) == 0 {
		return append(dst, '.')
	}
	for i := 0; i < len(name); i += 1 + int(name[i]) {
		for _, b := range name[i+1 : i+1+int(name[i])] {
			dst = append(dst, lower(b))
		}
		dst = append(dst, '.')
	}
	return dst
}

// appendFiller appends a TXT record with data of up to room octets, so that the rest of
// room is empty or enough for another record.
func appendFiller(dst []byte, ttl uint32, room int) []byte {
	size := min(room, 256)
	if left := room - size; left > 0 && left <= fixedLen {
		size -= fixedLen + 1 - left
	}
	dst = appendFixed(dst, typeTXT, ttl, size)
	dst = append(dst, byte(size-1))
	for range size - 1 {
		dst = append(dst, 'x')
	}
	return dst
}

func appendSOA(dst []byte, q question) []byte {
	zone := [2]byte{0xc0 | byte(q.zone>>8), byte(q.zone)}
	dst = append(dst, zone[:]...)
	dst = binary.BigEndian.AppendUint16(dst, typeSOA)
	dst = binary.BigEndian.AppendUint16(dst, classIN)
	dst = binary.BigEndian.AppendUint32(dst, noDataTTL)
	dst = binary.BigEndian.AppendUint16(dst, 2+2+5*4)
	dst = append(dst, zone[:]...) // primary
	dst = append(dst, zone[:]...) // mailbox
	for _, n := range [...]uint32{1, 7200, 1800, 86400, noDataTTL} {
		dst = binary.BigEndian.AppendUint32(dst, n)
	}
	return dst
}

func appendOPT(dst []byte, extendedRCode byte, ede uint16) []byte {
	const size, optionEDE = 1232, 15
	dst = append(dst, 0, 0, typeOPT, size>>8, size&0xff, extendedRCode, 0, 0, 0)
	if ede == 0 {
		return append(dst, 0, 0)
	}
	return append(dst, 0, 6, 0, optionEDE, 0, 2, byte(ede>>8), byte(ede))
}

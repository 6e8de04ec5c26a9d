package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/miekg/dns"
)

// ErrNotQuery means that a packet is no query at all: shorter than a header, or
// a response. It is ignored: any reply could be used to start a loop or to
// amplify.
var ErrNotQuery = errors.New("not a query")

// A Refusal is why a query gets an error for a reply instead of an answer. It
// is always one of a fixed set of values.
type Refusal struct {
	RCode  RCode
	Reason string
	EDE    EDECode // EDEOther: none is sent
}

func (r *Refusal) Error() string { return r.RCode.String() + ": " + r.Reason }

var (
	errOpcode     = &Refusal{RCode: NotImp, Reason: "opcode other than QUERY"}
	errQuestions  = &Refusal{RCode: FormErr, Reason: "not exactly one question"} // RFC 9619
	errQuestion   = &Refusal{RCode: FormErr, Reason: "malformed question"}
	errRecords    = &Refusal{RCode: FormErr, Reason: "records in the answer or authority section"}
	errAdditional = &Refusal{RCode: FormErr, Reason: "malformed additional section"}
	errOPT        = &Refusal{RCode: FormErr, Reason: "malformed or repeated OPT record"} // RFC 6891 section 6.1.1
	errCookie     = &Refusal{RCode: FormErr, Reason: "malformed cookie"}                 // RFC 7873 section 5.2.2
	errTrailing   = &Refusal{RCode: FormErr, Reason: "garbage after the message"}
	errVersion    = &Refusal{RCode: BadVers, Reason: "EDNS version above 0"} // RFC 6891 section 6.1.3
	errTransfer   = &Refusal{RCode: Refused, Reason: "zone transfer", EDE: EDENotSupported}
	errClass      = &Refusal{RCode: Refused, Reason: "class other than IN", EDE: EDENotSupported}
	errSigned     = &Refusal{RCode: Refused, Reason: "TSIG-signed query", EDE: EDENotSupported}
)

// A Query is a verified client query. Only ParseQuery and NewQuery make one.
//
// It borrows the packet it was parsed from: Clone it before it outlives the
// packet. It is small and meant to be passed by value.
type Query struct {
	packet      []byte
	extras      *Extras // or nil
	questionEnd uint16  // headerLen if there is no question to echo
	udpSize     uint16  // as advertised; meaningful with edns only
	cookieAt    uint16  // where its COOKIE option is, or 0
	subnetAt    uint16  // where its Client Subnet option is, or 0
	via         Transport
	edns        bool // an OPT record came with it
	do          bool
	nsid        bool // asked for
	keepalive   bool // asked for
}

// Extras are EDNS options that a Query has on its way besides those that each has.
// They are few, and rare, so that a Query, which is copied a lot, stays small.
type Extras struct {
	// Reply goes into the OPT record of the reply: options as AppendCookie and its
	// like make them. Without an OPT record in the query, there is none in the reply,
	// and nowhere for them to go.
	Reply []byte
	// Subnet is a Client Subnet option for upstreams, as AppendSubnet makes it, or as
	// Query.ClientSubnet returns it.
	Subnet []byte
	// Scoped tells that Subnet is the client's own: the answer is for it alone.
	Scoped bool
}

// With returns q with extras, which it borrows until it is cloned.
func (q Query) With(e *Extras) Query {
	q.extras = e
	return q
}

// Scoped reports whether the answer to q is for its client alone.
func (q Query) Scoped() bool { return q.extras != nil && q.extras.Scoped }

func (q Query) extra() []byte {
	if q.extras == nil {
		return nil
	}
	return q.extras.Reply
}

func (q Query) subnet() []byte {
	if q.extras == nil {
		return nil
	}
	return q.extras.Subnet
}

// option returns the EDNS option at an offset, with its code and length.
func (q Query) option(at uint16) []byte {
	return q.packet[at : int(at)+4+int(binary.BigEndian.Uint16(q.packet[at+2:]))]
}

// ParseQuery verifies packet, which came in over via, and borrows it.
//
// The error is ErrNotQuery, which deserves no reply, or a *Refusal; with a
// Refusal, the Query is good for AppendError and for nothing else.
func ParseQuery(packet []byte, via Transport) (Query, error) {
	q := Query{packet: packet, questionEnd: headerLen, via: via}
	if len(packet) < headerLen || len(packet) > MaxSize || flagsOf(packet)&flagQR != 0 {
		return Query{}, ErrNotQuery
	}
	if flagsOf(packet)&maskOpcode != 0 {
		return q, errOpcode
	}
	count := func(section int) int { return int(binary.BigEndian.Uint16(packet[4+2*section:])) }
	if count(0) != 1 {
		return q, errQuestions
	}
	nameEnd, ok := skipPlainName(packet, headerLen)
	if !ok || nameEnd+4 > len(packet) {
		return q, errQuestion
	}
	q.questionEnd = uint16(nameEnd + 4)
	refusal := q.refuse()
	misplaced := count(1) + count(2) // a refused IXFR has a SOA there (RFC 1995 section 3)
	if refusal == nil && misplaced > 0 {
		refusal = errRecords
	}
	// The OPT record is read even for what is refused: the reply needs one too.
	if malformed := q.parseRecords(misplaced, count(3)); refusal == nil {
		refusal = malformed
	}
	if refusal != nil {
		return q, refusal
	}
	return q, nil
}

// refuse looks at the question alone.
func (q *Query) refuse() *Refusal {
	switch q.Type() {
	case typeAXFR, typeIXFR:
		return errTransfer
	case typeOPT, typeTSIG: // pseudo-records that live in the additional section only
		return errQuestion
	}
	if q.class() != classIN {
		return errClass
	}
	return nil
}

// parseRecords finds the OPT record, which is in the additional section, behind
// the misplaced records.
func (q *Query) parseRecords(misplaced, additional int) *Refusal {
	off := int(q.questionEnd)
	for i := range misplaced + additional {
		r, ok := parseRecord(q.packet, off, nil)
		if !ok || !validData(q.packet, r, nil) {
			return errAdditional
		}
		off = r.end
		switch {
		case i < misplaced:
		case r.typ == typeTSIG:
			// Forwarded, the signature would be half a promise.
			return errSigned
		case r.typ == typeOPT:
			if refusal := q.parseOPT(r); refusal != nil {
				return refusal
			}
		}
	}
	if off != len(q.packet) {
		return errTrailing
	}
	return nil
}

func (q *Query) parseOPT(r record) *Refusal {
	if q.edns || !r.root || !validOptions(r.rdata(q.packet)) {
		return errOPT
	}
	q.edns = true
	if !q.noteOptions(r.end-r.rdataLen, r.end) {
		return errCookie
	}
	q.do = r.ttl&ednsFlagDO != 0
	q.udpSize = r.class
	if version := byte(r.ttl >> 16); version != 0 {
		return errVersion
	}
	return nil
}

// noteOptions takes note of those options between two offsets that a gateway has
// to do with; all others are ignored (RFC 6891 section 6.1.2). It reports false
// if there is a cookie of a length that no cookie has (RFC 7873 section 5.2.2).
func (q *Query) noteOptions(at, end int) (ok bool) {
	for at < end {
		data := at + 4
		next := data + int(binary.BigEndian.Uint16(q.packet[at+2:]))
		switch binary.BigEndian.Uint16(q.packet[at:]) {
		case ednsOptionCookie:
			if n := next - data; n != clientCookieLen && (n < clientCookieLen+8 || n > clientCookieLen+32) {
				return false
			}
			if q.cookieAt == 0 { // section 5.2.2: the first counts
				q.cookieAt = uint16(at)
			}
		case ednsOptionNSID:
			q.nsid = true
		case ednsOptionKeepalive:
			q.keepalive = true
		case ednsOptionSubnet:
			q.subnetAt = uint16(at)
		}
		at = next
	}
	return true
}

// NewQuery makes a query of our own for name, in presentation format, as
// probes and checks need it.
func NewQuery(name, recordType string) (Query, error) {
	t, ok := dns.StringToType[recordType]
	if !ok {
		return Query{}, fmt.Errorf("make a query: %q is no record type", recordType)
	}
	if _, ok := dns.IsDomainName(name); !ok {
		return Query{}, fmt.Errorf("make a query: %q is no domain name", name)
	}
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), t).SetEdns0(MaxUDPSize, false)
	packet, err := m.Pack()
	if err != nil {
		return Query{}, fmt.Errorf("make a query for %q: %w", name, err)
	}
	q, err := ParseQuery(packet, TCP)
	if err != nil {
		return Query{}, fmt.Errorf("make a query for %q: %w", name, err)
	}
	return q, nil
}

// Clone returns a Query that borrows nothing from whoever made q.
func (q Query) Clone() Query {
	q.packet = bytes.Clone(q.packet)
	if q.extras == nil {
		return q
	}
	own := *q.extras
	own.Reply = bytes.Clone(own.Reply)
	if own.Scoped {
		own.Subnet = q.option(q.subnetAt)
	}
	q.extras = &own
	return q
}

// Packet returns the bytes that q was made from. They are still borrowed.
func (q Query) Packet() []byte { return q.packet }

// Via returns how q came in.
func (q Query) Via() Transport { return q.via }

// Type returns the type asked for.
func (q Query) Type() Type { return Type(binary.BigEndian.Uint16(q.packet[q.questionEnd-4:])) }

func (q Query) class() uint16 { return binary.BigEndian.Uint16(q.packet[q.questionEnd-2:]) }

// String returns the question for people: "example.com. A".
func (q Query) String() string {
	if q.questionEnd <= headerLen {
		return "no question"
	}
	name, _, err := dns.UnpackDomainName(q.packet, headerLen)
	if err != nil {
		return "unprintable question"
	}
	return name + " " + dns.Type(q.Type()).String()
}

func (q Query) question() []byte { return q.packet[headerLen:q.questionEnd] }

// AppendName appends the name asked for in wire format and lower case.
func (q Query) AppendName(dst []byte) []byte {
	for _, c := range q.packet[headerLen : q.questionEnd-4] {
		dst = append(dst, lower(c))
	}
	return dst
}

// NameHash returns a hash (FNV-1a) of the name asked for in lower case, the same
// in every process. Whoever looks for collisions finds them.
func (q Query) NameHash() uint64 {
	hash := uint64(14695981039346656037)
	for _, c := range q.packet[headerLen : q.questionEnd-4] {
		hash = (hash ^ uint64(lower(c))) * 1099511628211
	}
	return hash
}

// AppendKey appends a key that is equal for two queries exactly if one answer
// serves both: name in lower case, type, class, DO and CD (RFC 6840 section 5.9
// tells why CD belongs there).
func (q Query) AppendKey(dst []byte) []byte {
	dst = q.AppendName(dst)
	dst = append(dst, q.packet[q.questionEnd-4:q.questionEnd]...)
	return append(dst, q.keyBits())
}

// The last octet of a key.
const (
	keyDO = 1
	keyCD = 2
)

func (q Query) keyBits() (bits byte) {
	if q.do {
		bits |= keyDO
	}
	if flagsOf(q.packet)&flagCD != 0 {
		bits |= keyCD
	}
	return bits
}

// AppendUpstream appends q as we ask it: with our own ID, recursion desired, AD
// set so that the answer says whether it was validated (RFC 6840 section 5.7),
// and an OPT record of ours, padded to a multiple of 128 octets (RFC 8467).
// Nothing of the client's OPT record but DO goes along (RFC 6891 section 6.2.1:
// it is hop by hop), unless there are Extras.
func (q Query) AppendUpstream(dst []byte, id uint16) []byte {
	flags := uint16(flagRD|flagAD) | flagsOf(q.packet)&flagCD
	start := len(dst)
	dst = appendHeader(dst, id, flags, [4]uint16{1, 0, 0, 1})
	dst = append(dst, q.question()...)
	bare := len(dst) - start + optFixedLen + len(q.subnet()) + 4
	pad := (padding - bare%padding) % padding
	dst = appendOPT(dst, NoError, q.do, len(q.subnet())+4+pad)
	dst = append(dst, q.subnet()...)
	dst = append(dst, 0, ednsOptionPadding, 0, byte(pad))
	return append(dst, zeros[:pad]...)
}

var zeros [padding]byte

// room returns how many octets a reply to q may have.
func (q Query) room() int {
	switch {
	case q.via == TCP:
		return MaxSize
	case !q.edns:
		return minUDPSize
	}
	return min(max(int(q.udpSize), minUDPSize), MaxUDPSize)
}

// replyFlags returns the flags that every reply to q has: RD and CD as they
// came (RFC 1035 section 4.1.1, RFC 4035 section 3.2.2), recursion available,
// never authoritative.
func (q Query) replyFlags() uint16 {
	return flagQR | flagRA | flagsOf(q.packet)&(maskOpcode|flagRD|flagCD)
}

// rcodeFlags returns what the header of a reply to q holds of rcode. The bits
// above it need an OPT record; without one, all we can say is that we failed.
func (q Query) rcodeFlags(rcode RCode) uint16 {
	if rcode > maskRCode && !q.edns {
		return uint16(ServFail)
	}
	return uint16(rcode) & maskRCode
}

// wantsAD reports whether the client understands AD (RFC 6840 section 5.8).
func (q Query) wantsAD() bool { return q.do || flagsOf(q.packet)&flagAD != 0 }

// replyCounts returns the counts of a reply without records: a question if there
// is one to echo, an OPT record if there was one.
func (q Query) replyCounts() (counts [4]uint16) {
	if q.questionEnd > headerLen {
		counts[0] = 1
	}
	if q.edns {
		counts[3] = 1
	}
	return counts
}

// AppendError appends a reply to q that is an error of our own. An EDE is sent
// only if the client speaks EDNS, with as much of its text as q has room for.
//
// With the zero EDE, and unless q has reply options, it is no longer than q.
func (q Query) AppendError(dst []byte, rcode RCode, ede EDE) []byte {
	start := len(dst)
	dst = appendHeader(dst, ID(q.packet), q.replyFlags()|q.rcodeFlags(rcode), q.replyCounts())
	dst = append(dst, q.question()...)
	switch {
	case !q.edns:
		return dst
	case ede == (EDE{}):
		return append(appendOPT(dst, rcode, q.do, len(q.extra())), q.extra()...)
	}
	// Even 512 octets leave more than 200 behind the longest question.
	left := q.room() - (len(dst) - start) - optFixedLen - len(q.extra()) - edeFixedLen
	ede.Text = cutText(ede.Text, left)
	dst = appendOPT(dst, rcode, q.do, len(q.extra())+edeFixedLen+len(ede.Text))
	return appendEDE(append(dst, q.extra()...), ede)
}

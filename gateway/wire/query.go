package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/miekg/dns"
)

// ErrNotQuery means that a packet is shorter than a header, or a response. It gets no
// reply, as that could start a loop or amplify an attack.
var ErrNotQuery = errors.New("not a query")

// A Refusal is the reason for an error reply to a query. All Refusals are constants of
// this package, so they can be compared.
type Refusal struct {
	RCode  RCode
	Reason string
	EDE    EDECode // not sent if it is EDEOther
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
	options     *ExtraOptions // or nil
	cancelled   *atomic.Bool  // or nil
	questionEnd uint16        // headerLen if there is no question to echo
	optionsAt   uint16        // offset of the data of the OPT record, or 0
	client      uint16        // see WithClient
	via         Transport
	has         properties
}

// properties are flags and EDNS options of a query. They are bits to keep a Query small:
// each pending query holds several copies.
type properties uint8

const (
	hasEDNS properties = 1 << iota // an OPT record, whether well-formed or not
	hasDO
	hasCookie
	hasSubnet
	hasHealthCheck
	wantsNSID
	wantsKeepalive
)

func (q Query) edns() bool { return q.has&hasEDNS != 0 }

func (q Query) do() bool { return q.has&hasDO != 0 }

// ExtraOptions are EDNS options that are added to a query or its reply. Few queries
// have any, so they are kept outside Query.
type ExtraOptions struct {
	// Reply is appended to the OPT record of the reply: options as AppendCookie,
	// AppendNSID and AppendKeepalive make them. If the query has no OPT record, neither
	// has the reply, and Reply is not sent.
	Reply []byte
	// Subnet is a Client Subnet option for upstreams, as AppendSubnet makes it, or as
	// Query.ClientSubnet returns it.
	Subnet []byte
	// Scoped means that Subnet came from the client: the answer is for it alone.
	Scoped bool
}

// WithOptions returns q with extra options, which it borrows until it is cloned.
func (q Query) WithOptions(e *ExtraOptions) Query {
	q.options = e
	return q
}

// WithCancel returns a q that is cancelled once c is true.
func (q Query) WithCancel(c *atomic.Bool) Query {
	q.cancelled = c
	return q
}

// Cancelled reports whether nothing waits for the answer to q any more. If q has not
// been sent yet, it need not be sent.
func (q Query) Cancelled() bool { return q.cancelled != nil && q.cancelled.Load() }

// Scoped reports whether the answer to q is for its client alone.
func (q Query) Scoped() bool { return q.options != nil && q.options.Scoped }

func (q Query) replyOptions() []byte {
	if q.options == nil {
		return nil
	}
	return q.options.Reply
}

func (q Query) subnet() []byte {
	if q.options == nil {
		return nil
	}
	return q.options.Subnet
}

// option returns the first EDNS option of q with this code, including code and length. q
// must have one. Of several cookies the first counts (RFC 7873 section 5.2.2).
func (q Query) option(code uint16) []byte {
	for has, option := range optionsIn(q.packet[q.optionsAt:]) {
		if has == code {
			return option
		}
	}
	panic("BUG: a query does not have this option")
}

func (q Query) udpSize() int {
	if q.optionsAt == 0 {
		return 0
	}
	return int(binary.BigEndian.Uint16(q.packet[q.optionsAt-8:]))
}

// ParseQuery verifies packet, which arrived over via, and borrows it.
//
// The error is ErrNotQuery, which gets no reply, or a *Refusal. With a Refusal, only
// AppendError and IsChaos of the Query may be called.
func ParseQuery(packet []byte, via Transport) (q Query, err error) {
	if len(packet) < headerLen || len(packet) > MaxSize || flagsOf(packet)&flagQR != 0 {
		return Query{}, ErrNotQuery
	}
	q = Query{packet: packet, questionEnd: headerLen, via: via}
	if flagsOf(packet)&maskOpcode != 0 {
		return q, errOpcode
	}
	count := func(section int) int { return int(binary.BigEndian.Uint16(packet[4+2*section:])) }
	if count(0) > 1 {
		return q, errQuestions
	}
	refusal := errQuestions
	if count(0) == 1 {
		nameEnd, ok := skipPlainName(packet, headerLen)
		if !ok || nameEnd+4 > len(packet) {
			return q, errQuestion
		}
		q.questionEnd = uint16(nameEnd + 4)
		refusal = q.checkQuestion()
	}
	misplaced := count(1) + count(2) // an IXFR query, which is refused, has an SOA record here (RFC 1995 section 3)
	if refusal == nil && misplaced > 0 {
		refusal = errRecords
	}
	// The OPT record of a refused query is read, too: the reply needs one.
	if malformed := q.parseRecords(misplaced, count(3)); refusal == nil {
		refusal = malformed
	}
	if refusal != nil {
		return q, refusal
	}
	return q, nil
}

// checkQuestion returns the reason to refuse the type or class of q, or nil.
func (q *Query) checkQuestion() *Refusal {
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

// parseRecords verifies all records and reads the OPT record in the additional section,
// which comes after the misplaced records of answer and authority section.
func (q *Query) parseRecords(misplaced, additional int) *Refusal {
	off := int(q.questionEnd)
	for i := range misplaced + additional {
		r, ok := parseRecord(q.packet, off, nil)
		if !ok {
			return errAdditional
		}
		if r.typ != typeOPT { // parseOPT looks at its data
			if _, ok := validData(q.packet, r, nil); !ok {
				return errAdditional
			}
		}
		off = r.end
		switch {
		case i < misplaced:
		case r.typ == typeTSIG:
			// The signature covers this hop only, and would not be verified.
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

// parseOPT reads the OPT record r. The reply has one even if r is malformed: its absence
// would mean that EDNS is not supported (RFC 6891 section 7).
func (q *Query) parseOPT(r record) *Refusal {
	again := q.edns()
	q.has |= hasEDNS
	if again || !r.root || !validOptions(r.rdata(q.packet)) {
		return errOPT
	}
	if r.ttl&ednsFlagDO != 0 {
		q.has |= hasDO
	}
	q.optionsAt = uint16(r.end - r.rdataLen)
	if version := byte(r.ttl >> 16); version != 0 {
		return errVersion // before the options, as their meaning depends on it
	}
	if !q.readOptions(r.rdata(q.packet)) {
		return errCookie
	}
	return nil
}

// readOptions sets the properties for the options of an OPT record. Unknown ones are
// ignored (RFC 6891 section 6.1.2). It reports false if a cookie has an invalid length
// (RFC 7873 section 5.2.2).
func (q *Query) readOptions(rdata []byte) (ok bool) {
	for code, option := range optionsIn(rdata) {
		switch code {
		case ednsOptionCookie:
			if n := len(option) - 4; n != clientCookieLen && (n < clientCookieLen+8 || n > clientCookieLen+32) {
				return false
			}
			q.has |= hasCookie
		case ednsOptionNSID:
			q.has |= wantsNSID
		case ednsOptionKeepalive:
			q.has |= wantsKeepalive
		case ednsOptionSubnet:
			q.has |= hasSubnet
		case ednsOptionHealthCheck:
			q.has |= hasHealthCheck
		}
	}
	return true
}

// NewQuery makes a query for name, in presentation format, for probes and health checks.
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

// WithClient returns q with a client class: a hash of the address prefix that counts as
// one client, or 0 if there is no client. The class is never sent.
func (q Query) WithClient(class uint16) Query {
	q.client = class
	return q
}

// Client returns the class that WithClient was given.
func (q Query) Client() uint16 { return q.client }

// Clone returns a copy of q that borrows no bytes.
func (q Query) Clone() Query {
	q.packet = bytes.Clone(q.packet)
	if q.options == nil {
		return q
	}
	own := *q.options
	own.Reply = bytes.Clone(own.Reply)
	if own.Scoped {
		own.Subnet = q.option(ednsOptionSubnet)
	}
	q.options = &own
	return q
}

// Packet returns the bytes that q was made from. They are still borrowed.
func (q Query) Packet() []byte { return q.packet }

// Via returns the transport by which q arrived.
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
	start := len(dst)
	dst = append(dst, q.packet[headerLen:q.questionEnd-4]...)
	lowerAll(dst[start:])
	return dst
}

// NameHash returns a hash (FNV-1a) of the name asked for in lower case. It is the same
// in every process and not resistant to chosen collisions.
func (q Query) NameHash() uint64 { return nameHash(q.packet[headerLen : q.questionEnd-4]) }

func nameHash(name []byte) uint64 {
	hash := uint64(14695981039346656037)
	for _, c := range name {
		hash = (hash ^ uint64(lower(c))) * 1099511628211
	}
	return hash
}

// AppendKey appends the cache key of q: name in lower case, type, class, DO and CD
// (for CD see RFC 6840 section 5.9). Two queries have the same key exactly if one
// answer serves both.
func (q Query) AppendKey(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, q.question()...)
	lowerAll(dst[start : len(dst)-4])
	return append(dst, q.keyBits())
}

// The last octet of a key.
const (
	keyDO = 1
	keyCD = 2
)

func (q Query) keyBits() (bits byte) {
	if q.do() {
		bits |= keyDO
	}
	if flagsOf(q.packet)&flagCD != 0 {
		bits |= keyCD
	}
	return bits
}

const clientCookieLen = 8 // RFC 7873 section 4.1

// Cookie returns the client cookie of q, eight octets, and the server cookie behind it,
// of this server or another one. Both are nil if q has no cookie.
func (q Query) Cookie() (client, server []byte) {
	if q.has&hasCookie == 0 {
		return nil, nil
	}
	cookie := q.option(ednsOptionCookie)[4:]
	return cookie[:clientCookieLen:clientCookieLen], cookie[clientCookieLen:]
}

// WantsNSID reports whether q asks for the identifier of this server (RFC 5001).
func (q Query) WantsNSID() bool { return q.has&wantsNSID != 0 }

// WantsKeepalive reports whether q asks for the idle timeout of its connection
// (RFC 7828). It is false over UDP.
func (q Query) WantsKeepalive() bool { return q.has&wantsKeepalive != 0 && q.via == TCP }

// IsChaos reports whether q has the class CHAOS: questions about the server itself.
// ParseQuery refuses them, but AppendRecords takes them.
func (q Query) IsChaos() bool { return q.questionEnd > headerLen && q.class() == classCH }

// Validates reports whether the client may validate the answer: DO or CD is set.
func (q Query) Validates() bool { return q.do() || flagsOf(q.packet)&flagCD != 0 }

// AppendUpstream appends q as it is sent to an upstream: with this ID, RD and AD set (so
// that the response tells whether it was validated, RFC 6840 section 5.7), and a new
// OPT record, padded to a multiple of 128 octets (RFC 8467). Of the client's OPT
// record, which is hop by hop (RFC 6891 section 6.2.1), only DO is copied. The Subnet
// of ExtraOptions is added.
func (q Query) AppendUpstream(dst []byte, id uint16) []byte {
	flags := uint16(flagRD|flagAD) | flagsOf(q.packet)&flagCD
	start := len(dst)
	dst = appendHeader(dst, id, flags, [4]uint16{1, 0, 0, 1})
	dst = append(dst, q.question()...)
	bare := len(dst) - start + optFixedLen + len(q.subnet()) + 4
	pad := (padding - bare%padding) % padding
	dst = appendOPT(dst, NoError, q.do(), len(q.subnet())+4+pad)
	dst = append(dst, q.subnet()...)
	dst = append(dst, 0, ednsOptionPadding, 0, byte(pad))
	return append(dst, zeros[:pad]...)
}

var zeros [padding]byte

// WithMixedCase returns q with the letters of its name in random case, so that forged
// responses are harder to make (draft-vixie-dnsext-dns0x20). It has a packet of its
// own. Each call of random returns 64 bits.
func (q Query) WithMixedCase(random func() uint64) Query {
	q = q.Clone()
	var bits uint64
	for i := range q.packet[headerLen : q.questionEnd-4] {
		if i%64 == 0 {
			bits = random()
		}
		c := &q.packet[headerLen+i]
		if l := lower(*c); 'a' <= l && l <= 'z' {
			*c = l &^ (byte(bits>>(i%64)&1) << 5)
		}
	}
	return q
}

// SameCase reports whether message, which ParseAnswer took for the answer to q, has no
// question, or has it in the same letter case.
func (q Query) SameCase(message []byte) bool {
	return binary.BigEndian.Uint16(message[4:]) == 0 || bytes.HasPrefix(message[headerLen:], q.question())
}

// AppendUnpadded is AppendUpstream for clear text, where padding hides nothing
// (RFC 7830 section 6).
func (q Query) AppendUnpadded(dst []byte, id uint16) []byte {
	dst = appendHeader(dst, id, uint16(flagRD|flagAD)|flagsOf(q.packet)&flagCD, [4]uint16{1, 0, 0, 1})
	dst = append(dst, q.question()...)
	dst = appendOPT(dst, NoError, q.do(), len(q.subnet()))
	return append(dst, q.subnet()...)
}

// AppendWithoutEDNS is AppendUnpadded without an OPT record, for servers that do not
// know EDNS (RFC 6891 section 6.2.2).
func (q Query) AppendWithoutEDNS(dst []byte, id uint16) []byte {
	dst = appendHeader(dst, id, uint16(flagRD|flagAD)|flagsOf(q.packet)&flagCD, [4]uint16{1, 0, 0, 0})
	return append(dst, q.question()...)
}

// RefusesEDNS reports whether message, which ParseAnswer took for an answer, is a
// response as servers give that do not know EDNS: NOTIMP without an OPT record, or
// FORMERR (RFC 6891 section 7). Some of them send the query back as FORMERR, with its
// OPT record in it.
func RefusesEDNS(message []byte) bool {
	switch RCode(flagsOf(message) & maskRCode) {
	case FormErr:
		return true
	case NotImp:
		return binary.BigEndian.Uint16(message[10:]) == 0
	}
	return false
}

func (q Query) maxReplyLen() int {
	switch {
	case q.via == TCP:
		return MaxSize
	case !q.edns():
		return minUDPSize
	}
	return min(max(q.udpSize(), minUDPSize), MaxUDPSize)
}

// replyFlags returns the flags of each reply to q: RD and CD copied (RFC 1035 section
// 4.1.1, RFC 4035 section 3.2.2), RA set, AA never set. For opcodes other than QUERY,
// whose flags may have other meanings, none is copied.
func (q Query) replyFlags() uint16 {
	flags := flagsOf(q.packet)
	if flags&maskOpcode != 0 {
		return flagQR | flags&maskOpcode
	}
	return flagQR | flagRA | flags&(flagRD|flagCD)
}

// rcodeFlags returns the bits of rcode in the header of a reply to q. The upper bits
// need an OPT record. Without one, the code is SERVFAIL.
func (q Query) rcodeFlags(rcode RCode) uint16 {
	if rcode > maskRCode && !q.edns() {
		return uint16(ServFail)
	}
	return uint16(rcode) & maskRCode
}

// wantsAD reports whether the client understands AD (RFC 6840 section 5.8).
func (q Query) wantsAD() bool { return q.do() || flagsOf(q.packet)&flagAD != 0 }

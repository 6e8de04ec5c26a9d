package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// Why a message is not the answer to a query.
var (
	ErrNotResponse   = errors.New("not a response to a standard query")
	ErrWrongQuestion = errors.New("response to another question")
	ErrTruncated     = errors.New("truncated response")
	ErrMalformed     = errors.New("malformed response")
	// ErrWrongSubnet is an ErrWrongQuestion too: it was asked for another network.
	ErrWrongSubnet = fmt.Errorf("%w: the Client Subnet is not the one sent", ErrWrongQuestion)
	// ErrForeign means that the answer section has records that are not of names that
	// the question leads to.
	ErrForeign = errors.New("response with records that were not asked for")
)

// An Answer is a verified response to a Query. Only ParseAnswer makes one.
//
// It owns its bytes and never changes, so a cache and any number of waiting
// clients may share it. The zero Answer is none.
type Answer struct {
	// data is, in one allocation: the message without its OPT record, those
	// options of the OPT record that clients get to see, and the offset of each TTL in two octets.
	data       []byte
	messageLen uint16
	edeLen     uint16
	rcode      RCode
	kind       Kind
	stripped   bool
	ttl        uint32
}

// Kind is what an answer says, as far as a cache has to know.
type Kind uint8

const (
	Positive Kind = iota // the data asked for
	NoData               // the name is there, but not this type (RFC 2308 section 2.2)
	NoName               // NXDOMAIN
	Failure              // every other code
)

func (k Kind) String() string {
	switch k {
	case Positive:
		return "positive"
	case NoData:
		return "no data"
	case NoName:
		return "no name"
	case Failure:
		return "failure"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// noSOATTL is the most, in seconds, that a negative answer without a SOA record
// may be kept. RFC 2308 section 5 would not keep it at all; but it is how some
// resolvers say that they block a name, and such names are asked for a lot.
const noSOATTL = 10

// ParseAnswer verifies that message is the whole, well-formed response to q's
// question, whatever its ID. It keeps a copy of what it needs, so message stays
// the caller's.
//
// A response without a question counts if its code says that the question was
// not understood or not answered (RFC 1035 section 4.1.1 asks for no more). One
// that has, in its answer section, a record whose owner neither is the name asked
// for nor is led to from there by CNAME and DNAME records is none. From the other
// sections, records that have nothing to do with the question are removed. If q has a
// subnet on its way, a response that is for another one is none (RFC 7871 section 7.3).
func ParseAnswer(q Query, message []byte) (Answer, error) {
	if len(message) < headerLen || len(message) > MaxSize {
		return Answer{}, ErrMalformed
	}
	flags := flagsOf(message)
	switch {
	case flags&flagQR == 0 || flags&maskOpcode != 0:
		return Answer{}, ErrNotResponse
	case flags&flagTC != 0:
		return Answer{}, ErrTruncated
	}
	off, err := matchQuestion(q, message)
	if err != nil {
		return Answer{}, err
	}
	var room [64]uint16 // more records than that are rare, and then allocate
	found, ok := walk(message, off, q.Type(), room[:0])
	switch {
	case !ok:
		return Answer{}, ErrMalformed
	case off == headerLen && len(found.ttls) > 0:
		return Answer{}, ErrWrongQuestion
	case found.strays > maxStrays, found.strays > 0 && !found.chain.holds(message, off):
		return Answer{}, ErrForeign
	case found.hasOPT && !q.sentSubnet(found.opt.rdata(message)):
		return Answer{}, ErrWrongSubnet
	}
	lost := 0
	if found.others > 0 {
		sieve := sieve{msg: message, chain: found.chain}
		if sieve.sift(off); sieve.lost > 0 {
			lost, message = sieve.lost, sieve.rest(off)
			if len(message) > MaxSize {
				return Answer{}, ErrForeign
			}
			if found, ok = walk(message, off, q.Type(), room[:0]); !ok {
				return Answer{}, ErrMalformed
			}
		}
	}
	a := assemble(q, message, off, found)
	a.stripped = lost > 0
	return a, nil
}

// matchQuestion returns the offset behind message's question, headerLen if it
// has none.
func matchQuestion(q Query, message []byte) (int, error) {
	switch binary.BigEndian.Uint16(message[4:]) {
	case 1:
		end, ok := skipPlainName(message, headerLen)
		if !ok || end+4 > len(message) {
			return 0, ErrMalformed
		}
		end += 4
		// Type and class are compared without case too, which is no equality.
		if !equalNames(q.question(), message[headerLen:end]) ||
			[4]byte(q.packet[q.questionEnd-4:]) != [4]byte(message[end-4:]) {
			return 0, ErrWrongQuestion
		}
		return end, nil
	case 0:
		switch RCode(flagsOf(message) & maskRCode) {
		case FormErr, ServFail, NotImp, Refused:
			return headerLen, nil
		}
	}
	return 0, ErrWrongQuestion
}

// parts is what walk found behind the question.
type parts struct {
	ttls   []uint16 // offsets of the TTLs that stay
	end    int      // of what stays
	cut    uint16   // records of the additional section that don't stay
	opt    record   // valid if hasOPT
	hasOPT bool

	least  uint32 // of the TTLs that stay, and of the minimum of a SOA
	hasSOA bool   // in the authority section
	hasOne bool   // of the type asked for, in the answer section

	chain  chain // of the answer section
	strays int   // records of the answer section that are not on it as far as it was known
	others int   // records of the other sections that stay
}

// note takes down what r, which stays, means for how long the answer is good.
func (p *parts) note(message []byte, r record, section int, asked Type) {
	p.least = min(p.least, soundTTL(r.ttl))
	switch {
	case section == 1 && (r.typ == asked || asked == TypeANY):
		p.hasOne = true
	case section == 2 && r.typ == typeSOA: // RFC 2308 section 5
		p.hasSOA = true
		p.least = min(p.least, soundTTL(binary.BigEndian.Uint32(message[r.end-4:])))
	}
}

// soundTTL returns a TTL as it is meant: with its top bit set it counts as 0
// (RFC 2181 section 8).
func soundTTL(ttl uint32) uint32 {
	if ttl >= 1<<31 {
		return 0
	}
	return ttl
}

// walk reads all records behind off. It fails unless they are well-formed, end
// where the message ends, and have at most one OPT record, in its place.
//
// What stays ends at the OPT record, which comes last by custom. Records behind
// it could not move up, as names in them may point into each other; being
// additional, they are dropped.
func walk(message []byte, off int, asked Type, ttls []uint16) (parts, bool) {
	p := parts{ttls: ttls, end: len(message), least: 1<<31 - 1, chain: newChain(message, off)}
	for section := 1; section <= 3; section++ {
		for range binary.BigEndian.Uint16(message[4+2*section:]) {
			r, ok := parseRecord(message, off, p.ttls)
			if !ok {
				return p, false
			}
			if r.typ == typeOPT {
				if section != 3 || p.hasOPT || !r.root || !validOptions(r.rdata(message)) {
					return p, false
				}
				p.hasOPT, p.opt, p.end = true, r, off
			}
			if p.hasOPT {
				p.cut++
			} else {
				p.ttls = append(p.ttls, uint16(r.ttlAt))
			}
			if !validData(message, r, p.ttls) { // with its own TTL among them
				return p, false
			}
			switch {
			case section > 1 && !p.hasOPT:
				p.others++
			case section == 1 && p.strays <= maxStrays && !p.chain.take(message, r, off):
				p.strays++
			}
			if !p.hasOPT {
				p.note(message, r, section, asked)
			}
			off = r.end
		}
	}
	return p, off == len(message)
}

// assemble copies what an answer keeps of message.
func assemble(q Query, message []byte, off int, p parts) Answer {
	a := Answer{rcode: RCode(flagsOf(message) & maskRCode)}
	edeLen := 0
	var options []byte
	if p.hasOPT {
		options = p.opt.rdata(message)
		a.rcode |= RCode(p.opt.ttl>>24) << 4
		for option := range q.keptOptions(options) {
			edeLen += len(option)
		}
	}
	messageLen := int(q.questionEnd) + p.end - off
	a.data = make([]byte, 0, messageLen+edeLen+2*len(p.ttls))
	a.data = append(a.data, message[:headerLen]...)
	a.data = append(a.data, q.question()...)
	a.data = append(a.data, message[off:p.end]...)
	binary.BigEndian.PutUint16(a.data[4:], 1)
	binary.BigEndian.PutUint16(a.data[10:], binary.BigEndian.Uint16(a.data[10:])-p.cut)
	for option := range q.keptOptions(options) {
		a.data = append(a.data, option...)
	}
	for _, at := range p.ttls {
		a.data = binary.BigEndian.AppendUint16(a.data, at)
	}
	a.messageLen, a.edeLen = uint16(messageLen), uint16(edeLen)
	a.kind, a.ttl = p.meaning(a.rcode)
	return a
}

// meaning returns what an answer with these parts says, and for how long.
func (p *parts) meaning(rcode RCode) (Kind, uint32) {
	kind := Failure
	switch {
	case rcode == NoError && p.hasOne:
		return Positive, p.least
	case rcode == NoError:
		kind = NoData
	case rcode == NXDomain:
		kind = NoName
	}
	if !p.hasSOA {
		return kind, min(p.least, noSOATTL)
	}
	return kind, p.least
}

// keptOptions yields the options in the data of an OPT record that are not hop by
// hop, each with its code and length: Extended DNS Errors, and what the answer to
// a client's own subnet says about it (RFC 7871 section 7.2.2).
func (q Query) keptOptions(rdata []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(rdata) > 0 {
			code, n := binary.BigEndian.Uint16(rdata), 4+int(binary.BigEndian.Uint16(rdata[2:]))
			kept := code == ednsOptionEDE && n >= 6 || code == ednsOptionSubnet && q.Scoped()
			if kept && !yield(rdata[:n]) {
				return
			}
			rdata = rdata[n:]
		}
	}
}

// RCode returns the response code. An error, with the EDE that came with it,
// is an answer too: it is for the balancer to ask for a better one.
func (a Answer) RCode() RCode { return a.rcode }

// IsZero reports whether a is none.
func (a Answer) IsZero() bool { return a.data == nil }

// Kind returns what a says.
func (a Answer) Kind() Kind { return a.kind }

// TTL returns for how many seconds a may be kept: the least TTL of its records,
// for negative answers no more than their SOA record says (RFC 2308 section 5),
// and 10 at the most if they have none. 0 means not at all.
func (a Answer) TTL() uint32 { return a.ttl }

// Stripped reports whether a came with records that had nothing to do with the
// question, and which it has no more. It is not stored.
func (a Answer) Stripped() bool { return a.stripped }

// Len returns how many octets a keeps.
func (a Answer) Len() int { return cap(a.data) }

// String returns the answer for people, in the format of zone files.
func (a Answer) String() string {
	var m dns.Msg
	if err := m.Unpack(a.data[:a.messageLen]); err != nil {
		return "unprintable answer: " + err.Error()
	}
	return m.String()
}

// Terms are on what terms an answer is passed on. The zero Terms are for one
// that has just come, and pass on what it says.
type Terms struct {
	// Age is how long ago the answer came. It is taken off each TTL, in whole
	// seconds.
	Age time.Duration
	// MinTTL and MaxTTL are, in seconds, what each TTL is raised or cut to
	// before Age is taken off. 0: no bound.
	MinTTL, MaxTTL uint32
	// EDE is told besides what came with the answer. The zero EDE is not.
	EDE EDE
}

// AppendReply appends a as the reply to q, with q's ID, flags and spelling of
// the name, TTLs by the terms, and an OPT record if q had one. If q has no room
// for it, the reply is the question with TC set (RFC 2181 section 9).
//
// The question of q must be the one that a answers.
func (a Answer) AppendReply(dst []byte, q Query, t Terms) []byte {
	room := q.room()
	optLen := 0
	if q.edns {
		optLen = optFixedLen + len(q.extra())
	}
	flags := q.replyFlags() | q.rcodeFlags(a.rcode)
	if q.wantsAD() {
		flags |= flagsOf(a.data) & flagAD
	}
	if int(a.messageLen)+optLen > room {
		dst = appendHeader(dst, ID(q.packet), flags|flagTC, [4]uint16{1, 0, 0, uint16(min(optLen, 1))})
		dst = append(dst, q.question()...)
		return a.appendOPT(dst, q, nil, EDE{})
	}
	start := len(dst)
	dst = append(dst, a.data[:a.messageLen]...)
	reply := dst[start:]
	binary.BigEndian.PutUint16(reply, ID(q.packet))
	binary.BigEndian.PutUint16(reply[2:], flags)
	copy(reply[headerLen:], q.question())
	a.setTTLs(reply, t)
	if !q.edns {
		return dst
	}
	binary.BigEndian.PutUint16(reply[10:], binary.BigEndian.Uint16(reply[10:])+1)
	// An explanation is not worth a second query over TCP. Ours comes first.
	left := room - len(reply) - optLen
	ours, theirs := t.EDE, a.data[a.messageLen:int(a.messageLen)+int(a.edeLen)]
	if ours.size() > left {
		ours = EDE{}
	}
	if len(theirs) > left-ours.size() {
		theirs = nil
	}
	return a.appendOPT(dst, q, theirs, ours)
}

// appendOPT appends the OPT record of a reply, with options that came with the
// answer and one of ours.
func (a Answer) appendOPT(dst []byte, q Query, options []byte, ours EDE) []byte {
	if !q.edns {
		return dst
	}
	dst = appendOPT(dst, a.rcode, q.do, len(q.extra())+ours.size()+len(options))
	dst = append(dst, q.extra()...)
	if ours != (EDE{}) {
		dst = appendEDE(dst, ours)
	}
	return append(dst, options...)
}

// setTTLs sets each TTL in reply to what the terms make of it.
func (a Answer) setTTLs(reply []byte, t Terms) {
	seconds := uint32(min(max(t.Age/time.Second, 0), 1<<31))
	most := t.MaxTTL
	if most == 0 {
		most = 1 << 31
	}
	offsets := a.data[int(a.messageLen)+int(a.edeLen):]
	for ; len(offsets) > 1; offsets = offsets[2:] {
		field := reply[binary.BigEndian.Uint16(offsets):]
		ttl := soundTTL(binary.BigEndian.Uint32(field))
		ttl = min(max(ttl, t.MinTTL), most)
		binary.BigEndian.PutUint32(field, ttl-min(ttl, seconds))
	}
}

// Padded reports whether a message has an option for padding (RFC 7830).
func Padded(message []byte) bool {
	var m dns.Msg
	if m.Unpack(message) != nil || m.IsEdns0() == nil {
		return false
	}
	return slices.ContainsFunc(m.IsEdns0().Option, func(o dns.EDNS0) bool { return o.Option() == dns.EDNS0PADDING })
}

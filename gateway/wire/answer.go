package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// Reasons why a message is not the answer to a query.
var (
	ErrNotResponse   = errors.New("not a response to a standard query")
	ErrWrongQuestion = errors.New("response to another question")
	ErrTruncated     = errors.New("truncated response")
	ErrMalformed     = errors.New("malformed response")
	// ErrWrongSubnet is an ErrWrongQuestion, too: the response is for another network.
	ErrWrongSubnet = fmt.Errorf("%w: the Client Subnet is not the one sent", ErrWrongQuestion)
	// ErrUnrelated means that the answer section has records, but none of a name that
	// the question leads to.
	ErrUnrelated = errors.New("response with records that were not asked for")
	// ErrNoAnswer means that an upstream had no answer to a query, or none in time.
	ErrNoAnswer = errors.New("no answer in time")
)

// An Answer is a verified response to a Query. Only ParseAnswer makes one.
//
// It owns its bytes and never changes, so a cache and any number of pending queries may
// share it. The zero Answer is no answer.
type Answer struct {
	// data has, in one allocation: the message without its OPT record, the options that
	// are passed on to clients, and the offset of each TTL in two octets.
	data       []byte
	messageLen uint16
	edeLen     uint16
	rcode      RCode
	kind       Kind
	stripped   bool
	ttl        uint32
}

// Kind is the class of an answer, as a cache distinguishes them.
type Kind uint8

const (
	Positive Kind = iota // it has the requested data
	NoData               // the name exists, but has no data of this type (RFC 2308 section 2.2), or YXDOMAIN
	NoName               // NXDOMAIN
	Failure              // every other response code
)

var kindNames = [...]string{Positive: "positive", NoData: "no data", NoName: "no name", Failure: "failure"}

func (k Kind) String() string { return kindNames[k] }

// noSOATTL is the maximum TTL, in seconds, of a negative answer without an SOA record.
// RFC 2308 section 5 says not to cache it at all, but some resolvers block names by it,
// and blocked names are queried often.
const noSOATTL = 10

// ParseAnswer verifies that message is a whole, well-formed response to the question of
// q. The ID is not compared. message is copied, and stays the caller's.
//
// A response without a question is accepted if its code is FORMERR, SERVFAIL, NOTIMP
// or REFUSED. If q was sent with a Client Subnet, a response for another subnet is an
// error (RFC 7871 section 7.3). If all records of the answer section are unrelated to
// the question, it is an error, too.
//
// The Answer has the CNAME chain in order, then the requested data, and of the other
// sections the records that are related to the question. All other records are
// dropped; if the response code is not the result of a query, all are. An answer with a
// CNAME loop becomes SERVFAIL.
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
	var buf [64]uint16 // more records are rare, and allocate
	found, ok := scanRecords(q, message, off, buf[:0])
	switch {
	case !ok:
		return Answer{}, ErrMalformed
	case off == headerLen && len(found.ttls) > 0:
		return Answer{}, ErrWrongQuestion
	case found.hasOPT && !q.sentSubnet(found.opt.rdata(message)):
		return Answer{}, ErrWrongSubnet
	case !found.rcode(message).IsResult():
		found.dropRecords(off)
		return assemble(q, message, off, found), nil
	case found.isUsableAsIs(message):
		return assemble(q, message, off, found), nil
	}
	return normalize(q, message, off, found)
}

// normalize makes an answer of a message that has unrelated records, records out of
// order, or names that are not compressed as they may be.
func normalize(q Query, message []byte, off int, found layout) (Answer, error) {
	var buf [64]uint16
	f := recordFilter{msg: message, chain: found.chain, selected: buf[:0]}
	end := 0
	if found.inOrder {
		end = f.selectAnswers(off)
	} else {
		var err error
		if end, err = f.selectChain(q, off); errors.Is(err, errAliasLoop) {
			return q.OwnAnswer(ServFail, EDE{Text: errAliasLoop.Error()}), nil
		} else if err != nil {
			return Answer{}, err
		}
	}
	f.selectOthers(end)
	if found.inOrder && f.dropped == 0 && !found.wrongCompression && len(message) <= minUDPSize {
		return assemble(q, message, off, found), nil
	}
	c := f.compose(off, &found)
	defer c.release()
	if found.inOrder && f.dropped == 0 && !found.wrongCompression && len(c.dst) >= len(message) {
		return assemble(q, message, off, found), nil
	}
	rescanned, ok := scanRecords(q, c.dst, off, found.ttls[:0])
	if !ok || len(c.dst) > MaxSize {
		return Answer{}, ErrMalformed // too long, as some names must not be compressed
	}
	a := assemble(q, c.dst, off, rescanned)
	a.stripped = f.dropped > 0
	return a, nil
}

// OwnAnswer makes an answer to q without records.
func (q Query) OwnAnswer(rcode RCode, ede EDE) Answer {
	a := Answer{rcode: rcode, kind: Failure, messageLen: q.questionEnd, edeLen: uint16(ede.size()), ttl: noSOATTL}
	switch {
	case rcode == NXDomain:
		a.kind = NoName
	case rcode.IsResult():
		a.kind = NoData
	}
	a.data = appendHeader(make([]byte, 0, int(q.questionEnd)+ede.size()), 0, flagQR|uint16(rcode)&maskRCode, [4]uint16{1, 0, 0, 0})
	a.data = append(a.data, q.question()...)
	if ede != (EDE{}) {
		a.data = appendEDE(a.data, ede)
	}
	return a
}

// matchQuestion returns the end of message's question, or headerLen if it has none.
func matchQuestion(q Query, message []byte) (int, error) {
	switch binary.BigEndian.Uint16(message[4:]) {
	case 1:
		end, ok := skipPlainName(message, headerLen)
		if !ok || end+4 > len(message) {
			return 0, ErrMalformed
		}
		end += 4
		// equalNames compares type and class without regard to case, so again exactly.
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

// layout describes the records of a message, as scanRecords found them.
type layout struct {
	ttls    []uint16 // offsets of the kept TTLs
	end     int      // of the last record that is kept
	dropped uint16   // number of records of the additional section that are dropped
	opt     record   // valid if hasOPT
	hasOPT  bool

	minTTL  uint32 // least of the kept TTLs and of the minimum of an SOA record
	hasSOA  bool   // in the authority section
	hasData bool   // the answer section has the requested type

	chain            cnameChain // of the answer section, as far as it is in order
	inOrder          bool       // the answer section is in order
	wrongCompression bool       // a name is compressed that must not be
	otherRecords     int        // number of kept records in the other sections
}

func (l *layout) rcode(message []byte) RCode {
	rcode := RCode(flagsOf(message) & maskRCode)
	if l.hasOPT {
		rcode |= RCode(l.opt.ttl>>24) << 4
	}
	return rcode
}

// isUsableAsIs reports whether the message can be passed on unchanged. If it fits every
// client, it need not be compressed further.
func (l *layout) isUsableAsIs(message []byte) bool {
	return l.inOrder && !l.wrongCompression && l.otherRecords == 0 && len(message) <= minUDPSize
}

// dropRecords drops all records. The question ends at off.
func (l *layout) dropRecords(off int) {
	l.ttls, l.end, l.hasData, l.hasSOA, l.minTTL = l.ttls[:0], off, false, false, noSOATTL
}

// noteRecord updates the layout by the record r at off, which is kept.
func (l *layout) noteRecord(message []byte, r record, section, off int, asked Type) {
	l.minTTL = min(l.minTTL, effectiveTTL(r.ttl))
	if section == 1 {
		l.inOrder = l.inOrder && l.chain.accepts(message, r, off)
		l.hasData = l.hasData || r.typ == asked || asked == TypeANY
		return
	}
	l.otherRecords++
	if section == 2 && r.typ == typeSOA { // RFC 2308 section 5
		l.hasSOA = true
		l.minTTL = min(l.minTTL, effectiveTTL(binary.BigEndian.Uint32(message[r.end-4:])))
	}
}

// noteOPT stores the OPT record r, behind which no record is kept. It reports false if r
// is malformed or in the wrong place.
func (l *layout) noteOPT(message []byte, r record, section, off int) bool {
	if section != 3 || l.hasOPT || !r.root || !validOptions(r.rdata(message)) {
		return false
	}
	l.hasOPT, l.opt, l.end = true, r, off
	return true
}

// effectiveTTL returns ttl, or 0 if its top bit is set (RFC 2181 section 8).
func effectiveTTL(ttl uint32) uint32 {
	if ttl >= 1<<31 {
		return 0
	}
	return ttl
}

// scanRecords reads all records behind off. It fails unless they are well-formed, end
// with the message, and have at most one OPT record, in the additional section.
//
// Records behind the OPT record are dropped: they can't be moved, as compressed names
// may point into them, and the OPT record is usually the last one.
func scanRecords(q Query, message []byte, off int, ttls []uint16) (layout, bool) {
	l := layout{ttls: ttls, end: len(message), minTTL: 1<<31 - 1, chain: newChain(q, message, off), inOrder: true}
	for section := 1; section <= 3; section++ {
		for range binary.BigEndian.Uint16(message[4+2*section:]) {
			r, ok := parseRecord(message, off, l.ttls)
			if !ok {
				return l, false
			}
			if r.typ == typeOPT && !l.noteOPT(message, r, section, off) {
				return l, false
			}
			if l.hasOPT {
				l.dropped++
			} else {
				l.ttls = append(l.ttls, uint16(r.ttlAt))
			}
			wrong, ok := validData(message, r, l.ttls) // with its own TTL among them
			if !ok {
				return l, false
			}
			if !l.hasOPT {
				l.wrongCompression = l.wrongCompression || wrong
				l.noteRecord(message, r, section, off, q.Type())
			}
			off = r.end
		}
	}
	return l, off == len(message)
}

// assemble makes an answer from the parts of message that are kept.
func assemble(q Query, message []byte, off int, l layout) Answer {
	a := Answer{rcode: l.rcode(message)}
	var options []byte
	if l.hasOPT {
		options = l.opt.rdata(message)
	}
	messageLen := int(q.questionEnd) + l.end - off
	a.data = make([]byte, 0, messageLen+q.keptOptionsLen(options)+2*len(l.ttls))
	a.data = append(a.data, message[:headerLen]...)
	a.data = append(a.data, q.question()...)
	a.data = append(a.data, message[off:l.end]...)
	binary.BigEndian.PutUint16(a.data[4:], 1)
	if len(l.ttls) == 0 {
		clear(a.data[6:headerLen])
	} else {
		binary.BigEndian.PutUint16(a.data[10:], binary.BigEndian.Uint16(a.data[10:])-l.dropped)
	}
	a.data = q.appendKeptOptions(a.data, options)
	a.messageLen, a.edeLen = uint16(messageLen), uint16(len(a.data)-messageLen)
	for _, at := range l.ttls {
		a.data = binary.BigEndian.AppendUint16(a.data, at)
	}
	a.kind, a.ttl = l.classify(a.rcode)
	return a
}

// classify returns the kind and the TTL of an answer with these records.
func (l *layout) classify(rcode RCode) (Kind, uint32) {
	kind := Failure
	switch {
	case rcode == NoError && l.hasData:
		return Positive, l.minTTL
	case rcode == NoError, rcode == YXDomain:
		kind = NoData
	case rcode == NXDomain:
		kind = NoName
	}
	if !l.hasSOA {
		return kind, min(l.minTTL, noSOATTL)
	}
	return kind, l.minTTL
}

// RCode returns the response code. An error code, with its EDE, makes an answer, too:
// the balancer decides whether to ask another upstream.
func (a Answer) RCode() RCode { return a.rcode }

// IsZero reports whether a is the zero Answer.
func (a Answer) IsZero() bool { return a.data == nil }

// Same reports whether b has the same octets as a.
func (a Answer) Same(b Answer) bool { return bytes.Equal(a.data, b.data) }

// Kind returns the class of a.
func (a Answer) Kind() Kind { return a.kind }

// TTL returns the number of seconds that a may be cached: the least TTL of its records,
// for negative answers at most the minimum of their SOA record (RFC 2308 section 5), or
// 10 if they have none. 0 means that it may not be cached.
func (a Answer) TTL() uint32 { return a.ttl }

// Stripped reports whether unrelated records were dropped. AppendStored does not keep
// it.
func (a Answer) Stripped() bool { return a.stripped }

// Len returns the number of octets that a keeps allocated.
func (a Answer) Len() int { return cap(a.data) }

// String returns the answer in the format of zone files.
func (a Answer) String() string {
	var m dns.Msg
	if err := m.Unpack(a.data[:a.messageLen]); err != nil {
		return "unprintable answer: " + err.Error()
	}
	return m.String()
}

// Terms are the changes to an answer when it is sent to a client. The zero Terms are
// for a new answer, which they leave unchanged.
type Terms struct {
	// Age is the time since the answer arrived. It is subtracted from each TTL, in
	// whole seconds.
	Age time.Duration
	// MinTTL and MaxTTL are, in seconds, the bounds of each TTL before Age is
	// subtracted. 0: no bound.
	MinTTL, MaxTTL uint32
	// EDE is sent before those of the answer, unless it is the zero EDE.
	EDE EDE
}

// AppendReply appends the reply to q, whose question must be that of a. It has q's ID,
// flags and spelling of the name, TTLs by the terms, and an OPT record if q has one. A
// response code that is not the result of a query becomes SERVFAIL: it is about the
// query to the upstream, not about the client's.
//
// If the reply would be too long for q, it has the records that fit, in their order. TC
// is set if required records are missing (RFC 2181 section 9).
func (a Answer) AppendReply(dst []byte, q Query, t Terms) []byte {
	optLen := 0
	if q.edns() {
		optLen = optFixedLen + len(q.replyOptions())
	}
	rcode, ours := a.rcode, t.EDE
	if !rcode.IsResult() {
		rcode = ServFail
		if ours == (EDE{}) {
			ours.Text = a.errorText()
		}
	}
	flags := q.replyFlags() | q.rcodeFlags(rcode)
	if q.wantsAD() && rcode != ServFail {
		flags |= flagsOf(a.data) & flagAD
	}
	limit := q.maxReplyLen() - optLen
	end, truncated, counts := int(a.messageLen), false, [3]uint16{}
	if truncated = end > limit; truncated {
		var tc bool
		if end, counts, tc = a.fit(limit, q); tc {
			flags |= flagTC
		}
	}
	start := len(dst)
	dst = append(dst, a.data[:end]...)
	reply := dst[start:]
	binary.BigEndian.PutUint16(reply, ID(q.packet))
	binary.BigEndian.PutUint16(reply[2:], flags)
	if truncated {
		for section, n := range counts {
			binary.BigEndian.PutUint16(reply[6+2*section:], n)
		}
	}
	copy(reply[headerLen:], q.question())
	a.setTTLs(reply, t)
	if !q.edns() {
		return dst
	}
	binary.BigEndian.PutUint16(reply[10:], binary.BigEndian.Uint16(reply[10:])+1)
	// EDEs are left out rather than truncate the reply. That of the terms comes first.
	left := limit - len(reply)
	if flags&flagTC != 0 {
		left = 0
	}
	theirs := a.data[a.messageLen : int(a.messageLen)+int(a.edeLen)]
	if ours.size() > left {
		ours = EDE{}
	}
	if len(theirs) > left-ours.size() {
		theirs = nil
	}
	dst = appendOPT(dst, rcode, q.do(), len(q.replyOptions())+ours.size()+len(theirs))
	dst = append(dst, q.replyOptions()...)
	if ours != (EDE{}) {
		dst = appendEDE(dst, ours)
	}
	return append(dst, theirs...)
}

// errorText returns the EDE text for the upstream's response code, if the reply has
// another code.
func (a Answer) errorText() string {
	switch a.rcode {
	case ServFail:
		return ""
	case FormErr:
		return "upstream answered FORMERR"
	case NotImp:
		return "upstream answered NOTIMP"
	case Refused:
		return "upstream answered REFUSED"
	}
	return "upstream answered an error"
}

// fit returns the end of the last record that fits into limit octets, the number of
// records up to it by section, and whether the client must ask again over TCP. The
// additional section and, behind positive data for a client without DO, the authority
// section are left out whole if they do not fit, without truncation.
func (a Answer) fit(limit int, q Query) (end int, counts [3]uint16, truncated bool) {
	message, off := a.data[:a.messageLen], int(q.questionEnd)
	for section := 1; section <= 3; section++ {
		begin := off
		for range binary.BigEndian.Uint16(message[4+2*section:]) {
			r, ok := parseRecord(message, off, nil)
			switch {
			case ok && r.end <= limit:
				off = r.end
				counts[section-1]++
			case section == 3 || section == 2 && a.kind == Positive && !q.do():
				counts[section-1] = 0
				return begin, counts, false
			default:
				return off, counts, true
			}
		}
	}
	return off, counts, false
}

func (a Answer) setTTLs(reply []byte, t Terms) {
	seconds := uint32(min(max(t.Age/time.Second, 0), 1<<31))
	most := t.MaxTTL
	if most == 0 {
		most = 1 << 31
	}
	offsets := a.data[int(a.messageLen)+int(a.edeLen):]
	for ; len(offsets) > 1; offsets = offsets[2:] {
		at := int(binary.BigEndian.Uint16(offsets))
		if at >= len(reply) {
			return // it is of a record that did not fit
		}
		field := reply[at:]
		ttl := effectiveTTL(binary.BigEndian.Uint32(field))
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

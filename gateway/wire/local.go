package wire

import "encoding/binary"

// A Record is one of our own making, of the name and the class that were asked
// for.
type Record struct {
	Type Type
	TTL  uint32
	Data []byte // in wire format, without compressed names
}

// AppendRecords appends a reply to q with records of ours. They have to fit into
// 512 octets together with the question.
func (q Query) AppendRecords(dst []byte, records []Record) []byte {
	counts := q.replyCounts()
	counts[1] = uint16(len(records))
	dst = appendHeader(dst, ID(q.packet), q.replyFlags(), counts)
	dst = append(dst, q.question()...)
	for _, r := range records {
		dst = appendRecord(dst, headerLen, r, q.class())
	}
	return q.appendOwnOPT(dst)
}

// negativeTTL is how long our own negative answers are good, in seconds
// (RFC 6303 section 3).
const negativeTTL = 10800

// AppendNegative appends a reply to q that says that there is no such name, or
// nothing of that type, with the SOA record that lets clients remember it
// (RFC 2308 section 2). The name of its zone is what is left of the name asked
// for behind the octets that below says.
func (q Query) AppendNegative(dst []byte, rcode RCode, below int) []byte {
	counts := q.replyCounts()
	counts[2] = 1
	dst = appendHeader(dst, ID(q.packet), q.replyFlags()|q.rcodeFlags(rcode), counts)
	dst = append(dst, q.question()...)
	zone := uint16(0xc000 | headerLen + below)
	var room [64]byte
	soa := binary.BigEndian.AppendUint16(room[:0], zone)
	soa = append(soa, "\x06nobody\x07invalid\x00"...)
	for _, field := range [...]uint32{1, 3600, 1200, 604800, negativeTTL} {
		soa = binary.BigEndian.AppendUint32(soa, field)
	}
	dst = appendRecord(dst, headerLen+below, Record{Type: typeSOA, TTL: negativeTTL, Data: soa}, q.class())
	return q.appendOwnOPT(dst)
}

// appendRecord appends r with a name that is in the question at this offset.
func appendRecord(dst []byte, owner int, r Record, class uint16) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(0xc000|owner))
	dst = binary.BigEndian.AppendUint16(dst, uint16(r.Type))
	dst = binary.BigEndian.AppendUint16(dst, class)
	dst = binary.BigEndian.AppendUint32(dst, r.TTL)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(r.Data)))
	return append(dst, r.Data...)
}

func (q Query) appendOwnOPT(dst []byte) []byte {
	if !q.edns {
		return dst
	}
	return append(appendOPT(dst, NoError, q.do, len(q.extra())), q.extra()...)
}

// IsChaos reports whether q asks in the class CHAOS, which ParseQuery refuses:
// questions about the server itself. Q is good for AppendRecords then.
func (q Query) IsChaos() bool { return q.questionEnd > headerLen && q.class() == classCH }

// Validates reports whether the client may validate what it gets: DO or CD is set.
func (q Query) Validates() bool { return q.do || flagsOf(q.packet)&flagCD != 0 }

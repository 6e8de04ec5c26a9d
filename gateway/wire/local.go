package wire

import "encoding/binary"

// A Record is a record that is made here. Its owner and class are those of the
// question.
type Record struct {
	Type Type
	TTL  uint32
	Data []byte // in wire format, without compressed names
}

// AppendRecords appends a reply to q with these records in the answer section. Together
// with the question they must fit into 512 octets.
func (q Query) AppendRecords(dst []byte, records []Record) []byte {
	dst = q.appendReplyHead(dst, 0, len(records), 0)
	for _, r := range records {
		dst = appendRecord(dst, headerLen, r, q.class())
	}
	return q.appendReplyOPT(dst, NoError)
}

// negativeTTL is the TTL of negative answers that are made here, in seconds (RFC 6303
// section 3).
const negativeTTL = 10800

// AppendNegative appends a negative reply to q, with the SOA record that lets clients
// cache it (RFC 2308 section 2). The zone of the SOA record is the name asked for
// without its first `below` octets.
func (q Query) AppendNegative(dst []byte, rcode RCode, below int) []byte {
	dst = q.appendReplyHead(dst, q.rcodeFlags(rcode), 0, 1)
	zone := uint16(0xc000 | headerLen + below)
	var buf [64]byte
	soa := binary.BigEndian.AppendUint16(buf[:0], zone)
	soa = append(soa, "\x06nobody\x07invalid\x00"...)
	for _, field := range [...]uint32{1, 3600, 1200, 604800, negativeTTL} {
		soa = binary.BigEndian.AppendUint32(soa, field)
	}
	dst = appendRecord(dst, headerLen+below, Record{Type: typeSOA, TTL: negativeTTL, Data: soa}, q.class())
	return q.appendReplyOPT(dst, NoError)
}

// appendRecord appends r. Its owner is a pointer to this offset in the question.
func appendRecord(dst []byte, owner int, r Record, class uint16) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(0xc000|owner))
	dst = binary.BigEndian.AppendUint16(dst, uint16(r.Type))
	dst = binary.BigEndian.AppendUint16(dst, class)
	dst = binary.BigEndian.AppendUint32(dst, r.TTL)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(r.Data)))
	return append(dst, r.Data...)
}

// IsChaos reports whether q has the class CHAOS: questions about the server itself.
// ParseQuery refuses them, but AppendRecords takes them.
func (q Query) IsChaos() bool { return q.questionEnd > headerLen && q.class() == classCH }

// Validates reports whether the client may validate the answer: DO or CD is set.
func (q Query) Validates() bool { return q.do() || flagsOf(q.packet)&flagCD != 0 }

package wire

import "encoding/binary"

// appendReplyHead appends the header and the question of a reply, with these flags besides,
// and these numbers of records besides an OPT record.
func (q Query) appendReplyHead(dst []byte, flags uint16, answers, authority int) []byte {
	counts := [4]uint16{1: uint16(answers), 2: uint16(authority)}
	if q.questionEnd > headerLen {
		counts[0] = 1
	}
	if q.edns() {
		counts[3] = 1
	}
	return append(appendHeader(dst, ID(q.packet), q.replyFlags()|flags, counts), q.question()...)
}

// appendReplyOPT appends an OPT record with the reply options of q, if q has one.
func (q Query) appendReplyOPT(dst []byte, rcode RCode) []byte {
	if !q.edns() {
		return dst
	}
	return append(appendOPT(dst, rcode, q.do(), len(q.replyOptions())), q.replyOptions()...)
}

// AppendError appends an error reply to q. The EDE is sent only if the client supports
// EDNS, with its text cut to the maximum length of the reply.
//
// Without EDE and reply options, the reply is no longer than q.
func (q Query) AppendError(dst []byte, rcode RCode, ede EDE) []byte {
	start := len(dst)
	dst = q.appendReplyHead(dst, q.rcodeFlags(rcode), 0, 0)
	if !q.edns() || ede == (EDE{}) {
		return q.appendReplyOPT(dst, rcode)
	}
	// Even 512 octets leave more than 200 behind the longest question.
	left := q.maxReplyLen() - (len(dst) - start) - optFixedLen - len(q.replyOptions()) - edeFixedLen
	ede.Text = cutText(ede.Text, left)
	dst = appendOPT(dst, rcode, q.do(), len(q.replyOptions())+edeFixedLen+len(ede.Text))
	return appendEDE(append(dst, q.replyOptions()...), ede)
}

// AppendTruncated appends a reply to q with TC set, without records and reply options.
// It is no longer than q.
func (q Query) AppendTruncated(dst []byte) []byte {
	dst = q.appendReplyHead(dst, flagTC, 0, 0)
	if !q.edns() {
		return dst
	}
	return appendOPT(dst, NoError, q.do(), 0)
}

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

// AppendCookie appends a COOKIE option (RFC 7873 section 4).
func AppendCookie(dst, client, server []byte) []byte {
	dst = appendOption(dst, ednsOptionCookie, len(client)+len(server))
	return append(append(dst, client...), server...)
}

// AppendNSID appends an NSID option (RFC 5001 section 2.3).
func AppendNSID(dst []byte, id string) []byte {
	return append(appendOption(dst, ednsOptionNSID, len(id)), id...)
}

// AppendKeepalive appends an edns-tcp-keepalive option with a timeout in units of
// 100 ms (RFC 7828 section 3.1).
func AppendKeepalive(dst []byte, timeout uint16) []byte {
	return binary.BigEndian.AppendUint16(appendOption(dst, ednsOptionKeepalive, 2), timeout)
}

// appendOption appends code and length of an EDNS option with n octets of data.
func appendOption(dst []byte, code uint16, n int) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(dst, code), uint16(n))
}

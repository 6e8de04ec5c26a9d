package wire

import (
	"bytes"
	"encoding/binary"
)

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

// AppendTruncated appends a reply to q with TC set, without records and reply options.
// It is no longer than q.
func (q Query) AppendTruncated(dst []byte) []byte {
	dst = q.appendReplyHead(dst, flagTC, 0, 0)
	if !q.edns() {
		return dst
	}
	return appendOPT(dst, NoError, q.do(), 0)
}

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

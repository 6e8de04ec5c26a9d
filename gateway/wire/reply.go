package wire

import (
	"bytes"
	"encoding/binary"
)

const clientCookieLen = 8 // RFC 7873 section 4.1

// Cookie returns the client cookie of q, eight octets, and what came behind it:
// the server cookie that the client has of us, or of somebody. Both are nil if
// there is none.
func (q Query) Cookie() (client, server []byte) {
	if q.cookieAt == 0 {
		return nil, nil
	}
	cookie := q.option(q.cookieAt)[4:]
	return cookie[:clientCookieLen:clientCookieLen], cookie[clientCookieLen:]
}

// WantsNSID reports whether q asks for the name of this server (RFC 5001).
func (q Query) WantsNSID() bool { return q.nsid }

// WantsKeepalive reports whether q asks how long its connection may idle
// (RFC 7828). Over UDP, that has no meaning.
func (q Query) WantsKeepalive() bool { return q.keepalive && q.via == TCP }

// AppendCookie appends a COOKIE option (RFC 7873 section 4).
func AppendCookie(dst, client, server []byte) []byte {
	dst = appendOption(dst, ednsOptionCookie, len(client)+len(server))
	return append(append(dst, client...), server...)
}

// AppendNSID appends an NSID option (RFC 5001 section 2.3).
func AppendNSID(dst []byte, id string) []byte {
	return append(appendOption(dst, ednsOptionNSID, len(id)), id...)
}

// AppendKeepalive appends an edns-tcp-keepalive option with a time-out in units
// of 100 ms (RFC 7828 section 3.1).
func AppendKeepalive(dst []byte, timeout uint16) []byte {
	return binary.BigEndian.AppendUint16(appendOption(dst, ednsOptionKeepalive, 2), timeout)
}

// appendOption appends the head of an EDNS option with n octets of data.
func appendOption(dst []byte, code uint16, n int) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(dst, code), uint16(n))
}

// AppendTruncated appends a reply to q that tells the client to come by TCP. It
// is no longer than q, and without reply options.
func (q Query) AppendTruncated(dst []byte) []byte {
	dst = appendHeader(dst, ID(q.packet), q.replyFlags()|flagTC, q.replyCounts())
	dst = append(dst, q.question()...)
	if !q.edns {
		return dst
	}
	return appendOPT(dst, NoError, q.do, 0)
}

// Respelled returns q with the name in another spelling, which is hard to guess
// for whoever doesn't see it (draft-vixie-dnsext-dns0x20), and a packet of its
// own. Each call of random gives 64 bits.
func (q Query) Respelled(random func() uint64) Query {
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

// SameSpelling reports whether message, which ParseAnswer took for the answer to
// q, has no question, or has it in q's spelling.
func (q Query) SameSpelling(message []byte) bool {
	return binary.BigEndian.Uint16(message[4:]) == 0 || bytes.HasPrefix(message[headerLen:], q.question())
}

// AppendPlain is AppendUpstream for a network that anybody can read: there is
// nothing to pad (RFC 7830 section 6).
func (q Query) AppendPlain(dst []byte, id uint16) []byte {
	dst = appendHeader(dst, id, uint16(flagRD|flagAD)|flagsOf(q.packet)&flagCD, [4]uint16{1, 0, 0, 1})
	dst = append(dst, q.question()...)
	dst = appendOPT(dst, NoError, q.do, len(q.subnet()))
	return append(dst, q.subnet()...)
}

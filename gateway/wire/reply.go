package wire

import "encoding/binary"

const clientCookieLen = 8 // RFC 7873 section 4.1

// Cookie returns the client cookie of q, eight octets, and what came behind it:
// the server cookie that the client has of us, or of somebody. Both are nil if
// there is none.
func (q Query) Cookie() (client, server []byte) {
	if q.cookie == (span{}) {
		return nil, nil
	}
	cookie := q.cookie.of(q.packet)
	return cookie[:clientCookieLen:clientCookieLen], cookie[clientCookieLen:]
}

// WantsNSID reports whether q asks for the name of this server (RFC 5001).
func (q Query) WantsNSID() bool { return q.nsid }

// WantsKeepalive reports whether q asks how long its connection may idle
// (RFC 7828). Over UDP, that has no meaning.
func (q Query) WantsKeepalive() bool { return q.keepalive && q.via == TCP }

// WithReplyOptions returns q with EDNS options for its reply, as AppendCookie and
// its like make them. They are borrowed until q is cloned. Without an OPT record
// in q, there is none in the reply, and nowhere for them to go.
func (q Query) WithReplyOptions(options []byte) Query {
	q.extra = options
	return q
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

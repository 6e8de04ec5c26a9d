package wire

import (
	"encoding/binary"
	"unicode"
	"unicode/utf8"
)

// maxKeptOptions is the most octets of an upstream's EDNS options that are kept.
const maxKeptOptions = 1024

// keptOptionsLen returns an upper bound of the octets that appendKeptOptions appends.
func (q Query) keptOptionsLen(rdata []byte) (n int) {
	for code, option := range optionsIn(rdata) {
		if q.keepsOption(code, option) {
			n += len(option)
		}
	}
	return min(n, maxKeptOptions)
}

// keepsOption reports whether an option of an upstream is passed on to clients. All
// others are hop by hop: only Extended DNS Errors, and the Client Subnet in the answer to
// a client's own one (RFC 7871 section 7.2.2), are not.
func (q Query) keepsOption(code uint16, option []byte) bool {
	return code == ednsOptionEDE && len(option) >= edeFixedLen || code == ednsOptionSubnet && q.Scoped()
}

// appendKeptOptions appends the options in the data of an OPT record that are passed on
// to clients, in a form that each client can parse.
func (q Query) appendKeptOptions(dst, rdata []byte) []byte {
	start, hasSubnet := len(dst), false
	for code, option := range optionsIn(rdata) {
		switch {
		case !q.keepsOption(code, option) || len(dst)-start+len(option) > maxKeptOptions:
		case code == ednsOptionEDE:
			at := len(dst)
			dst = appendText(append(dst, option[:edeFixedLen]...), option[edeFixedLen:])
			binary.BigEndian.PutUint16(dst[at+2:], uint16(len(dst)-at-4))
		case !hasSubnet:
			hasSubnet = true
			dst = append(dst, option...)
		}
	}
	return dst
}

// appendText appends a text from the network as printable UTF-8 of at most the same
// length. BIND and dnspython refuse a whole message if an EDE text is not UTF-8 or
// begins with a byte order mark, and other characters could control a terminal. A NUL at
// the end is removed (RFC 8914 section 2).
func appendText(dst, text []byte) []byte {
	for len(text) > 0 && text[len(text)-1] == 0 {
		text = text[:len(text)-1]
	}
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		if unicode.IsPrint(r) && !(r == utf8.RuneError && n == 1) {
			dst = append(dst, text[:n]...)
		} else {
			dst = append(dst, '?')
		}
		text = text[n:]
	}
	return dst
}

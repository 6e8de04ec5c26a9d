package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// MaxKey is the length of the longest key: a name, type, class, DO and CD.
const MaxKey = maxName + 5

// storedHeaderLen is the length of the header of a stored answer: messageLen, edeLen and
// rcode in two octets each, the kind, the last octet of the key, and the TTL.
const storedHeaderLen = 12

// StoredLen returns the length of a in stored form.
func (a Answer) StoredLen() int { return storedHeaderLen + len(a.data) }

// AppendStored appends a, the answer to q, in the form that Stored reads. The form is
// for memory only: it has no version and no checksum. Its question is in lower case, as
// in a key.
func (a Answer) AppendStored(dst []byte, q Query) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, a.messageLen)
	dst = binary.LittleEndian.AppendUint16(dst, a.edeLen)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(a.rcode))
	dst = append(dst, byte(a.kind), q.keyBits())
	dst = binary.LittleEndian.AppendUint32(dst, a.ttl)
	start := len(dst) + headerLen
	dst = append(dst, a.data...)
	lowerAll(dst[start : start+int(q.questionEnd)-4-headerLen])
	return dst
}

// Stored returns the stored answer b. It borrows b, which must not change while the
// answer is used.
func Stored(b []byte) Answer {
	return Answer{
		data:       b[storedHeaderLen:],
		messageLen: binary.LittleEndian.Uint16(b),
		edeLen:     binary.LittleEndian.Uint16(b[2:]),
		rcode:      RCode(binary.LittleEndian.Uint16(b[4:])),
		kind:       Kind(b[6]),
		ttl:        binary.LittleEndian.Uint32(b[8:]),
	}
}

// StoredFor reports whether the stored answer b is for queries with this key.
func StoredFor(b, key []byte) bool {
	const question = storedHeaderLen + headerLen
	n := len(key) - 1
	return len(b) >= question+n && b[7] == key[n] && bytes.Equal(b[question:question+n], key[:n])
}

// AppendStoredKey appends the key of the stored answer b.
func AppendStoredKey(dst, b []byte) []byte {
	const question = storedHeaderLen + headerLen
	end, _ := skipPlainName(b, question)
	dst = append(dst, b[question:end+4]...)
	return append(dst, b[7])
}

// KeyQuery makes a query that has this key. Its reply may have the maximum size of TCP.
func KeyQuery(key []byte) (Query, error) {
	if len(key) < 6 || len(key) > MaxKey || key[len(key)-1] > keyDO|keyCD {
		return Query{}, errNotKey
	}
	question, bits := key[:len(key)-1], key[len(key)-1]
	flags := uint16(flagRD | flagAD)
	if bits&keyCD != 0 {
		flags |= flagCD
	}
	packet := appendHeader(nil, 0, flags, [4]uint16{1, 0, 0, 1})
	packet = append(packet, question...)
	packet = appendOPT(packet, NoError, bits&keyDO != 0, 0)
	q, err := ParseQuery(packet, TCP)
	if err != nil || int(q.questionEnd) != headerLen+len(question) {
		return Query{}, errNotKey
	}
	return q, nil
}

var errNotKey = errors.New("not the key of a query")

// KeyName returns the name in a key, in wire format.
func KeyName(key []byte) []byte { return key[:len(key)-5] }

// KeyFlags returns the flags in a key.
func KeyFlags(key []byte) (do, cd bool) {
	bits := key[len(key)-1]
	return bits&keyDO != 0, bits&keyCD != 0
}

// PackName converts a name from presentation format to wire format in lower case, as in
// a key.
func PackName(name string) ([]byte, error) {
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return nil, fmt.Errorf("%q is no domain name", name)
	}
	packed := make([]byte, maxName+1)
	n, err := dns.PackDomainName(dns.Fqdn(name), packed, 0, nil, false)
	if err != nil {
		return nil, fmt.Errorf("%q is no domain name: %w", name, err)
	}
	lowerAll(packed[:n])
	return packed[:n], nil
}

// NameText converts a name from wire format to presentation format, without a dot at its
// end. It returns "" if name is malformed.
func NameText(name []byte) string {
	text, _, err := dns.UnpackDomainName(name, 0)
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(text, ".")
}

// InSubtree reports whether name is top or below it, both in wire format and
// lower case.
func InSubtree(name, top []byte) bool {
	for len(name) > len(top) {
		name = name[1+int(name[0]):]
	}
	return bytes.Equal(name, top)
}

package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/miekg/dns"
)

// MaxKey is the length of the longest key: a name, type, class, DO and CD.
const MaxKey = maxName + 5

// storedHead is the length of what comes before the data of a stored answer:
// messageLen, edeLen and rcode in two octets each, the kind, the last octet of
// the key, and the TTL.
const storedHead = 12

// StoredLen returns the length of a in stored form.
func (a Answer) StoredLen() int { return storedHead + len(a.data) }

// AppendStored appends a, the answer to q, in a form that Stored reads back. It
// is for memory; it has neither a version nor a check.
//
// The question in it is in lower case, as in a key.
func (a Answer) AppendStored(dst []byte, q Query) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, a.messageLen)
	dst = binary.LittleEndian.AppendUint16(dst, a.edeLen)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(a.rcode))
	dst = append(dst, byte(a.kind), q.keyBits())
	dst = binary.LittleEndian.AppendUint32(dst, a.ttl)
	start := len(dst) + headerLen
	dst = append(dst, a.data...)
	name := dst[start : start+int(q.questionEnd)-4-headerLen]
	for i, c := range name {
		name[i] = lower(c)
	}
	return dst
}

// Stored returns the answer that is in b, which it borrows: it is good for as
// long as b does not change.
func Stored(b []byte) Answer {
	return Answer{
		data:       b[storedHead:],
		messageLen: binary.LittleEndian.Uint16(b),
		edeLen:     binary.LittleEndian.Uint16(b[2:]),
		rcode:      RCode(binary.LittleEndian.Uint16(b[4:])),
		kind:       Kind(b[6]),
		ttl:        binary.LittleEndian.Uint32(b[8:]),
	}
}

// StoredFor reports whether the stored answer b is for the queries that have
// this key.
func StoredFor(b, key []byte) bool {
	const question = storedHead + headerLen
	n := len(key) - 1
	return len(b) >= question+n && b[7] == key[n] && bytes.Equal(b[question:question+n], key[:n])
}

// AppendStoredKey appends the key of the stored answer b.
func AppendStoredKey(dst, b []byte) []byte {
	const question = storedHead + headerLen
	end, _ := skipPlainName(b, question)
	dst = append(dst, b[question:end+4]...)
	return append(dst, b[7])
}

// KeyQuery makes a query of our own that has this key. Its reply has room for
// all that there is.
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

// PackName returns a name, given in presentation format, in wire format and
// lower case, as keys have it.
func PackName(name string) ([]byte, error) {
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return nil, fmt.Errorf("%q is no domain name", name)
	}
	packed := make([]byte, maxName+1)
	n, err := dns.PackDomainName(dns.Fqdn(name), packed, 0, nil, false)
	if err != nil {
		return nil, fmt.Errorf("%q is no domain name: %w", name, err)
	}
	for i, c := range packed[:n] {
		packed[i] = lower(c)
	}
	return packed[:n], nil
}

// InSubtree reports whether name is top or below it, both in wire format and
// lower case.
func InSubtree(name, top []byte) bool {
	for len(name) > len(top) {
		name = name[1+int(name[0]):]
	}
	return bytes.Equal(name, top)
}

// Names are values for subtrees of the name space, by the name at the top of each,
// in wire format and lower case, as PackName makes it.
type Names[T any] map[string]T

// Find returns the value of the smallest subtree that name is in, also in lower
// case, and how many octets of it come before the name at its top.
func (n Names[T]) Find(name []byte) (value T, below int, ok bool) {
	if len(n) == 0 {
		return value, 0, false
	}
	for at := 0; at < len(name); at += 1 + int(name[at]) {
		if value, ok := n[string(name[at:])]; ok {
			return value, at, true
		}
	}
	return value, 0, false
}

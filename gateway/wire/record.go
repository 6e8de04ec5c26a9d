package wire

import (
	"encoding/binary"
	"iter"
	"slices"

	"github.com/miekg/dns"
)

// maxPointers bounds the compression pointers in one name. A name of 255 octets has at
// most 127 labels, and a pointer leads to at least one.
const maxPointers = 126

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

func lowerAll(name []byte) {
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			name[i] = c | 0x20
		}
	}
}

// equalNames compares two uncompressed names without regard to ASCII case
// (RFC 4343). Length octets are at most 63, below any letter.
func equalNames(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

// skipPlainName returns the offset behind the uncompressed name at off.
func skipPlainName(msg []byte, off int) (end int, ok bool) {
	start := off
	for off < len(msg) {
		n := int(msg[off])
		off += 1 + n
		switch {
		case n > 63 || off > len(msg) || off-start > maxName:
			return 0, false
		case n == 0:
			return off, true
		}
	}
	return 0, false
}

// skipName returns the offset behind the name at off, which may be compressed.
//
// A pointer must lead to "a prior occurrence" (RFC 1035 section 4.1.4): octets that
// begin and end before those that point to them, so that reading always ends. They
// must not be in the header or in the TTLs at ttls, as a name must not change with ID
// or age.
func skipName(msg []byte, off int, ttls []uint16) (end int, ok bool) {
	length, pointers, start := 0, 0, off // start: of the labels up to the next pointer
	for off < len(msg) {
		n := int(msg[off])
		switch {
		case n == 0:
			if pointers == 0 {
				end = off + 1
			}
			return end, !overlaps(ttls, start, off+1)
		case n <= 63:
			off += 1 + n
			length += 1 + n
		case n >= 0xc0 && off+1 < len(msg):
			if pointers == 0 {
				end = off + 2
			}
			target := (n&0x3f)<<8 | int(msg[off+1])
			pointers++
			if target < headerLen || pointers > maxPointers || overlaps(ttls, start, off+2) {
				return 0, false
			}
			msg, off, start = msg[:start], target, target
		default: // label types that RFC 6891 section 5 abandoned, or half a pointer
			return 0, false
		}
		if length >= maxName {
			return 0, false
		}
	}
	return 0, false
}

// overlaps reports whether msg[start:end] has an octet of one of the TTLs whose
// offsets are in ttls, in ascending order.
func overlaps(ttls []uint16, start, end int) bool {
	if len(ttls) == 0 || end <= int(ttls[0]) || start >= int(ttls[len(ttls)-1])+4 {
		return false // nearly always: in the question, or not compressed
	}
	i, _ := slices.BinarySearch(ttls, uint16(start-3))
	return int(ttls[i]) < end
}

// record has the fields of a resource record, and the offsets of its parts.
type record struct {
	typ      Type
	class    uint16
	ttl      uint32
	ttlAt    int
	end      int
	rdataLen int
	root     bool // its owner is the root, written as one octet
}

func (r record) rdata(msg []byte) []byte { return msg[r.end-r.rdataLen : r.end] }

// parseRecord reads the record at off. Its owner must not overlap the TTLs at ttls.
// The data is verified by validData.
func parseRecord(msg []byte, off int, ttls []uint16) (r record, ok bool) {
	fixed, ok := skipName(msg, off, ttls)
	if !ok || fixed+10 > len(msg) {
		return record{}, false
	}
	r = record{
		typ:      Type(binary.BigEndian.Uint16(msg[fixed:])),
		class:    binary.BigEndian.Uint16(msg[fixed+2:]),
		ttl:      binary.BigEndian.Uint32(msg[fixed+4:]),
		ttlAt:    fixed + 4,
		rdataLen: int(binary.BigEndian.Uint16(msg[fixed+8:])),
		root:     msg[off] == 0,
	}
	r.end = fixed + 10 + r.rdataLen
	return r, r.end <= len(msg)
}

// namesOf returns the position of names in the data of type t, for the types whose
// names some servers compress: the octets before the first name, and the number of
// consecutive names. Only names in the data of types of RFC 1035 may be sent compressed
// (RFC 3597 section 4).
func namesOf(t Type) (before, names int, compress bool) {
	switch uint16(t) {
	case dns.TypeNS, dns.TypeMD, dns.TypeMF, dns.TypeCNAME, dns.TypeMB, dns.TypeMG, dns.TypeMR, dns.TypePTR:
		return 0, 1, true
	case dns.TypeSOA, dns.TypeMINFO:
		return 0, 2, true
	case dns.TypeMX:
		return 2, 1, true
	case dns.TypeDNAME:
		return 0, 1, false
	case dns.TypeRP:
		return 0, 2, false
	case dns.TypeAFSDB, dns.TypeRT, dns.TypeKX:
		return 2, 1, false
	case dns.TypeSRV:
		return 6, 1, false
	}
	return 0, 0, false
}

// behindNames returns the number of octets in the data of type t behind its names. It
// reports false for types without names.
func behindNames(t Type, names int) (octets int, known bool) {
	if t == typeSOA {
		return 20, true
	}
	return 0, names > 0
}

// validData reports whether the data of r has the layout of its type, if that is known:
// clients can't read a message with malformed data. wrongCompression reports a
// compressed name in a type that may not have one.
func validData(msg []byte, r record, ttls []uint16) (wrongCompression, ok bool) {
	switch r.typ { // nearly all records are addresses
	case TypeA:
		return false, r.rdataLen == 4
	case TypeAAAA:
		return false, r.rdataLen == 16
	}
	before, names, compress := namesOf(r.typ)
	after, known := behindNames(r.typ, names)
	if !known {
		return false, validFields(r.typ, r.rdata(msg))
	}
	off := r.end - r.rdataLen + before
	for range names {
		end, ok := skipName(msg[:r.end], off, ttls)
		if !ok {
			return false, false
		}
		if !compress && !wrongCompression {
			_, plain := skipPlainName(msg[:r.end], off)
			wrongCompression = !plain
		}
		off = end
	}
	return wrongCompression, off+after == r.end
}

// validOptions reports whether the data of an OPT record is a list of options
// (RFC 6891 section 6.1.2).
func validOptions(rdata []byte) bool {
	for len(rdata) > 0 {
		if len(rdata) < 4 {
			return false
		}
		n := 4 + int(binary.BigEndian.Uint16(rdata[2:]))
		if n > len(rdata) {
			return false
		}
		rdata = rdata[n:]
	}
	return true
}

// optionsIn returns the options in the data of an OPT record that validOptions accepts:
// the code of each, and its octets with code and length.
func optionsIn(rdata []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(rdata) > 0 {
			n := 4 + int(binary.BigEndian.Uint16(rdata[2:]))
			if !yield(binary.BigEndian.Uint16(rdata), rdata[:n:n]) {
				return
			}
			rdata = rdata[n:]
		}
	}
}

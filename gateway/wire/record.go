package wire

import (
	"encoding/binary"
	"slices"
)

// maxPointers bounds the compression pointers in one name. A name of 255 octets
// has at most 127 labels, and no sane encoder spends a pointer on less than one.
const maxPointers = 126

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
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
// A pointer has to lead to what RFC 1035 section 4.1.4 calls "a prior
// occurrence": octets that begin and end before those that point to them, so
// that reading always ends. They must avoid the header and the TTLs at ttls, as
// a name must not change with ID or age.
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
		default: // label types that RFC 6891 section 5 gave up, or a cut pointer
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
		return false // nearly always: in the question, or in no compressed name
	}
	i, _ := slices.BinarySearch(ttls, uint16(start-3))
	return int(ttls[i]) < end
}

// record is where the parts of one resource record are.
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

// parseRecord reads the record at off, whose owner avoids the TTLs at ttls. It
// leaves the data to validData.
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

// layout returns what the data of a type is: octets before the names, names, octets
// behind them. It knows those types only whose names may be compressed, or whose
// size is fixed.
func layout(t Type) (before, names, after int, known bool) {
	switch t {
	case TypeA:
		return 4, 0, 0, true
	case TypeAAAA:
		return 16, 0, 0, true
	case typeNS, typeMD, typeMF, typeCNAME, typeMB, typeMG, typeMR, TypePTR, typeDNAME:
		return 0, 1, 0, true
	case typeSOA:
		return 0, 2, 20, true
	case typeMINFO, typeRP:
		return 0, 2, 0, true
	case typeMX, typeAFSDB, typeRT, typeKX:
		return 2, 1, 0, true
	case typeSRV:
		return 6, 1, 0, true
	}
	return 0, 0, 0, false
}

// validData reports whether the data of r has the layout of its type, if that is
// known: a mistake there would reach clients as a message that they can't read.
func validData(msg []byte, r record, ttls []uint16) bool {
	before, names, after, known := layout(r.typ)
	if !known {
		return true
	}
	off := r.end - r.rdataLen + before
	for range names {
		end, ok := skipName(msg[:r.end], off, ttls)
		if !ok {
			return false
		}
		off = end
	}
	return off+after == r.end
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

package wire

import "encoding/binary"

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
// It accepts only pointers that lead backwards, to where an earlier name may be
// (RFC 1035 section 4.1.4: "a prior occurrence"), so that it always ends.
func skipName(msg []byte, off int) (end int, ok bool) {
	length, pointers, floor := 0, 0, off
	for off < len(msg) {
		n := int(msg[off])
		switch {
		case n == 0:
			if pointers == 0 {
				end = off + 1
			}
			return end, length+1 <= maxName
		case n <= 63:
			off += 1 + n
			length += 1 + n
		case n >= 0xc0 && off+1 < len(msg):
			if pointers == 0 {
				end = off + 2
			}
			off = (n&0x3f)<<8 | int(msg[off+1])
			pointers++
			if off < headerLen || off >= floor || pointers > maxPointers {
				return 0, false
			}
			floor = off
		default: // label types that RFC 6891 section 5 gave up, or a cut pointer
			return 0, false
		}
		if length >= maxName {
			return 0, false
		}
	}
	return 0, false
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

// parseRecord reads the record at off. It looks into the data of those types
// only whose names may be compressed, or whose size is fixed: there, a mistake
// would reach clients as a message that they can't read.
func parseRecord(msg []byte, off int) (r record, ok bool) {
	fixed, ok := skipName(msg, off)
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
	if r.end > len(msg) {
		return record{}, false
	}
	return r, validData(msg[:r.end], r)
}

// validData reports whether the data of r, which ends msg, has the form that
// its type asks for: octets before the names, names, octets behind them.
func validData(msg []byte, r record) bool {
	before, names, after := 0, 0, 0
	switch r.typ {
	case typeA:
		return r.rdataLen == 4
	case typeAAAA:
		return r.rdataLen == 16
	case typeNS, typeMD, typeMF, typeCNAME, typeMB, typeMG, typeMR, typePTR, typeDNAME:
		names = 1
	case typeSOA:
		names, after = 2, 20
	case typeMINFO, typeRP:
		names = 2
	case typeMX, typeAFSDB, typeRT, typeKX:
		before, names = 2, 1
	case typeSRV:
		before, names = 6, 1
	default:
		return true
	}
	off := r.end - r.rdataLen + before
	for range names {
		if off > len(msg) {
			return false
		}
		end, ok := skipName(msg, off)
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

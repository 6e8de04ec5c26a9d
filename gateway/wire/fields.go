package wire

import (
	"bytes"
	"encoding/binary"
	"iter"
	"unicode/utf8"

	"github.com/miekg/dns"
)

// typeWALLET is not in package dns yet.
const typeWALLET = 262

// validFields reports whether data has the fields of type t, and is true for types that
// are not known here. Common programs (dig, BIND, dnspython) refuse a whole message if
// the fields of one record do not fit into its data. Names in this data are never
// compressed (RFC 3597 section 4).
func validFields(t Type, data []byte) bool {
	layout := layoutOf(t)
	for _, field := range layout {
		n, ok := fieldLen(t, field, data)
		if !ok {
			return false
		}
		data = data[n:]
	}
	return len(data) == 0 || layout == ""
}

// layoutOf returns the fields of a type, or "" if its data is not checked.
func layoutOf(t Type) string {
	switch {
	case int(t) < len(fields):
		return fields[t]
	case uint16(t) == dns.TypeDLV:
		return fields[dns.TypeDS]
	}
	return ""
}

// fields has the fields of each type whose data is checked, one character of fieldLen or
// endsWell for each.
var fields = [...]string{
	dns.TypeHINFO:      "ss",
	dns.TypeTXT:        "S",
	dns.TypeX25:        "s",
	dns.TypeNSAPPTR:    "n",
	dns.TypePX:         "2nn",
	dns.TypeLOC:        "L",
	dns.TypeNAPTR:      "4sssn",
	dns.TypeCERT:       "5+",
	dns.TypeAPL:        "P",
	dns.TypeDS:         "3H",
	dns.TypeSSHFP:      "1H",
	dns.TypeIPSECKEY:   "G",
	dns.TypeRRSIG:      "88" + "2" + "n+",
	dns.TypeNSEC:       "nB",
	dns.TypeDNSKEY:     "4+",
	dns.TypeNSEC3:      "4stb",
	dns.TypeNSEC3PARAM: "4s",
	dns.TypeTLSA:       "3+",
	dns.TypeSMIMEA:     "3+",
	dns.TypeNINFO:      "S",
	dns.TypeTALINK:     "nn",
	dns.TypeCDS:        "3H",
	dns.TypeCDNSKEY:    "4+",
	dns.TypeOPENPGPKEY: "+",
	dns.TypeCSYNC:      "6b",
	dns.TypeZONEMD:     "5H",
	dns.TypeSVCB:       "2np",
	dns.TypeHTTPS:      "2np",
	dns.TypeSPF:        "S",
	dns.TypeNID:        "55",
	dns.TypeL32:        "6",
	dns.TypeL64:        "55",
	dns.TypeLP:         "2n",
	dns.TypeEUI48:      "6",
	dns.TypeEUI64:      "8",
	dns.TypeURI:        "4+",
	dns.TypeCAA:        "1a*",
	dns.TypeAVC:        "S",
	dns.TypeRESINFO:    "S",
	typeWALLET:         "S",
}

// fieldLen returns the length of the field at the start of data, which is of type t:
//
//	digit  that number of octets
//	s      a character-string (RFC 1035 section 3.3)
//	t      a character-string that is not empty
//	a      a character-string of letters and digits (RFC 8659 section 4.1)
//	S      one or more character-strings up to the end
//	n      a name
//	+      one or more octets
//	*      any number of octets
//
// All other fields are those of endsWell.
func fieldLen(t Type, field rune, data []byte) (n int, ok bool) {
	switch field {
	case 's', 't', 'a':
		if len(data) == 0 {
			return 0, false
		}
		n = 1 + int(data[0])
		return n, n <= len(data) && (field == 's' || n > 1) && (field != 'a' || isAlphanumeric(data[1:n]))
	case 'S':
		for ok = false; n < len(data); ok = true {
			n += 1 + int(data[n])
		}
		return n, ok && n == len(data)
	case 'n':
		return skipPlainName(data, 0)
	case '+':
		return len(data), len(data) > 0
	case '*':
		return len(data), true
	}
	if '1' <= field && field <= '9' {
		n = int(field - '0')
		return n, n <= len(data)
	}
	return len(data), endsWell(t, field, data)
}

// endsWell reports whether data, up to the end of the record, is a well-formed field:
//
//	b  a type bitmap (RFC 4034 section 4.1.2)
//	B  a type bitmap that is not empty
//	p  service parameters (RFC 9460 section 2.2)
//	H  an algorithm and a hash of it
//	L  a location (RFC 1876 section 2)
//	P  address prefixes (RFC 3123 section 4)
//	G  a gateway (RFC 4025 section 2.1)
func endsWell(t Type, field rune, data []byte) bool {
	switch field {
	case 'b':
		return validBitmap(data)
	case 'B':
		return len(data) > 0 && validBitmap(data)
	case 'p':
		return validParams(data)
	case 'H':
		return validHash(t, data)
	case 'L':
		return validPlace(data)
	case 'P':
		return validPrefixes(data)
	case 'G':
		return validGateway(data)
	}
	return false
}

func isAlphanumeric(text []byte) bool {
	for _, c := range text {
		if c = lower(c); (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// validBitmap reports whether data is a type bitmap: blocks in ascending order, each
// with a length between 1 and 32 and no zero octet at its end. It may be empty: an
// NSEC3 record of a name without records has no types.
func validBitmap(data []byte) bool {
	for last := -1; len(data) > 0; {
		if len(data) < 2 {
			return false
		}
		block, n := int(data[0]), int(data[1])
		if block <= last || n < 1 || n > 32 || 2+n > len(data) || data[1+n] == 0 {
			return false
		}
		last, data = block, data[2+n:]
	}
	return true
}

// params returns the keys and values of a list of service parameters. It ends at a
// malformed one.
func params(data []byte) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		for len(data) >= 4 {
			key, n := int(binary.BigEndian.Uint16(data)), 4+int(binary.BigEndian.Uint16(data[2:]))
			if n > len(data) || !yield(key, data[4:n]) {
				return
			}
			data = data[n:]
		}
	}
}

// validParams reports whether data is a list of service parameters in ascending order.
func validParams(data []byte) bool {
	last, size := -1, 0
	for key, value := range params(data) {
		if key <= last || !validParam(key, value, data) {
			return false
		}
		last, size = key, size+4+len(value)
	}
	return size == len(data)
}

// The keys of parameters whose values are known (RFC 9460 section 14.3.2, RFC 9461
// section 5).
const (
	paramMandatory     = 0
	paramALPN          = 1
	paramNoDefaultALPN = 2
	paramPort          = 3
	paramIPv4Hint      = 4
	paramECH           = 5
	paramIPv6Hint      = 6
	paramDoHPath       = 7
)

// validParam reports whether a parameter of the list `all` has a valid value.
func validParam(key int, value, all []byte) bool {
	switch key {
	case paramMandatory:
		return validMandatory(value, all)
	case paramALPN:
		return validProtocols(value)
	case paramNoDefaultALPN:
		return len(value) == 0 && hasParam(all, paramALPN)
	case paramPort:
		return len(value) == 2
	case paramIPv4Hint:
		return len(value) > 0 && len(value)%4 == 0
	case paramECH:
		return len(value) > 0
	case paramIPv6Hint:
		return len(value) > 0 && len(value)%16 == 0
	case paramDoHPath:
		return validDoHPath(value)
	}
	return true
}

// validMandatory reports whether value is a list of other keys in ascending order, all of
// which have a parameter.
func validMandatory(value, all []byte) bool {
	if len(value) == 0 || len(value)%2 != 0 {
		return false
	}
	for last := paramMandatory; len(value) > 0; value = value[2:] {
		key := int(binary.BigEndian.Uint16(value))
		if key <= last || !hasParam(all, key) {
			return false
		}
		last = key
	}
	return true
}

func hasParam(list []byte, key int) bool {
	for has := range params(list) {
		if has == key {
			return true
		}
	}
	return false
}

// validProtocols reports whether value is a list of protocol names.
func validProtocols(value []byte) bool {
	for n := 0; len(value) > 0; value = value[n:] {
		n = 1 + int(value[0])
		if n == 1 || n > len(value) {
			return false
		}
		if n == len(value) {
			return true
		}
	}
	return false
}

// validDoHPath reports whether value is a URI template of a path with the variable dns, as
// {dns}, {?dns} or {&x,dns}.
func validDoHPath(value []byte) bool {
	if len(value) == 0 || value[0] != '/' || !utf8.Valid(value) {
		return false
	}
	for {
		_, rest, ok := bytes.Cut(value, []byte("{"))
		if !ok {
			return false
		}
		expression, after, _ := bytes.Cut(rest, []byte("}"))
		for variable := range bytes.SplitSeq(bytes.TrimLeft(expression, "+#./;?&"), []byte(",")) {
			if string(variable) == "dns" {
				return true
			}
		}
		value = after
	}
}

// hashLens has the lengths of hashes, by type and algorithm. Hashes of others may have any
// length except 0.
var hashLens = map[uint16][]int{
	dns.TypeDS:     {1: 20, 2: 32, 3: 32, 4: 48},
	dns.TypeCDS:    {0: 1, 1: 20, 2: 32, 3: 32, 4: 48}, // 0: deletes the records (RFC 8078 section 4)
	dns.TypeDLV:    {1: 20, 2: 32, 3: 32, 4: 48},
	dns.TypeSSHFP:  {1: 20, 2: 32},
	dns.TypeZONEMD: {1: 48, 2: 64},
}

// minZoneHash is the minimum length of a zone digest (RFC 8976 section 2.2.4).
const minZoneHash = 12

func validHash(t Type, data []byte) bool {
	if len(data) < 2 {
		return false
	}
	algorithm, n := int(data[0]), len(data)-1
	if lens := hashLens[uint16(t)]; algorithm < len(lens) && lens[algorithm] > 0 {
		return n == lens[algorithm]
	}
	return uint16(t) != dns.TypeZONEMD || n >= minZoneHash
}

// validPlace reports whether data is a location within the limits of RFC 1876.
func validPlace(data []byte) bool {
	if len(data) != 16 || data[0] != 0 {
		return false
	}
	for _, size := range data[1:4] { // a decimal digit and its power of ten
		if digit, power := size>>4, size&0xf; digit > 9 || power > 9 || digit == 0 && power > 0 {
			return false
		}
	}
	const second, equator = 1000, 1 << 31
	degrees := func(at []byte, most int64) bool {
		angle := int64(binary.BigEndian.Uint32(at)) - equator
		return -most*3600*second <= angle && angle <= most*3600*second
	}
	return degrees(data[4:], 90) && degrees(data[8:], 180)
}

// validPrefixes reports whether data is a list of address prefixes.
func validPrefixes(data []byte) bool {
	for len(data) > 0 {
		if len(data) < 4 {
			return false
		}
		bits, n, most := int(data[2]), int(data[3]&0x7f), 0
		switch binary.BigEndian.Uint16(data) {
		case 1: // IPv4
			most = 4
		case 2: // IPv6
			most = 16
		}
		if 4+n > len(data) || most > 0 && (bits > 8*most || n > most || n > 0 && data[3+n] == 0) {
			return false
		}
		data = data[4+n:]
	}
	return true
}

// validGateway reports whether data is a precedence, a gateway type, an algorithm, a
// gateway of that type and a key.
func validGateway(data []byte) bool {
	if len(data) < 3 {
		return false
	}
	n := 0
	switch gateway := data[3:]; data[1] {
	case 0:
	case 1:
		n = 4
	case 2:
		n = 16
	case 3:
		end, ok := skipPlainName(gateway, 0)
		if !ok {
			return false
		}
		n = end
	default:
		return false
	}
	return 3+n <= len(data)
}

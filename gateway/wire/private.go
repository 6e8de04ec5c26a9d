package wire

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// WithoutPrivate returns a without records that have private addresses in its authority
// and additional section, unless their owner (in wire format and lower case) is exempt.
// It reports false if the answer section has a private address. Address hints of SVCB
// and HTTPS records count, too (RFC 9460 section 7.3).
func (a Answer) WithoutPrivate(exempt func(name []byte) bool) (public Answer, ok bool) {
	var buf [64]uint16
	f := recordFilter{msg: a.data[:a.messageLen], selected: buf[:0]}
	question, _ := skipPlainName(f.msg, headerLen)
	question += 4
	off := question
	for section := 1; section <= 3; section++ {
		for range f.count(section) {
			r := f.record(off)
			switch private := r.hasPrivate(f.msg); {
			case private && section == 1:
				return a, false
			case private && !exempt(appendPlain(nil, f.msg, off)):
				f.dropped++
			default:
				f.add(section, off)
			}
			off = r.end
		}
	}
	if f.dropped == 0 {
		return a, true
	}
	c := f.compose(question, &layout{})
	defer c.release()
	return a.withMessage(c.dst, question), true
}

// withMessage returns a with the records of message, which are some of its own. The
// question of message ends at off.
func (a Answer) withMessage(message []byte, off int) Answer {
	options := a.data[a.messageLen : int(a.messageLen)+int(a.edeLen)]
	b := a
	b.messageLen = uint16(len(message))
	b.data = append(bytes.Clone(message), options...)
	for off < len(message) {
		r, ok := parseRecord(message, off, nil)
		if !ok {
			panic("BUG: a message is no longer well-formed")
		}
		b.data = binary.BigEndian.AppendUint16(b.data, uint16(r.ttlAt))
		off = r.end
	}
	return b
}

// appendPlain appends the well-formed name at off in lower case and uncompressed.
func appendPlain(dst, msg []byte, off int) []byte {
	for off = firstLabel(msg, off); msg[off] != 0; off = firstLabel(msg, off+1+int(msg[off])) {
		for _, b := range msg[off : off+1+int(msg[off])] {
			dst = append(dst, lower(b))
		}
	}
	return append(dst, 0)
}

func (r record) hasPrivate(msg []byte) bool {
	switch data := r.rdata(msg); r.typ {
	case TypeA:
		return anyPrivate(data, 4)
	case TypeAAAA:
		return anyPrivate(data, 16)
	case TypeSVCB, TypeHTTPS:
		return hintsPrivate(data)
	}
	return false
}

// hintsPrivate reports whether the data of an SVCB or HTTPS record (RFC 9460 section
// 2.2) has a private address in a hint.
func hintsPrivate(data []byte) bool {
	at, _ := skipPlainName(data, 2) // well-formed, as in each answer
	for key, value := range params(data[at:]) {
		if key == paramIPv4Hint && anyPrivate(value, 4) || key == paramIPv6Hint && anyPrivate(value, 16) {
			return true
		}
	}
	return false
}

func anyPrivate(addresses []byte, size int) bool {
	for ; len(addresses) >= size; addresses = addresses[size:] {
		if a, ok := netip.AddrFromSlice(addresses[:size]); ok && isPrivate(a) {
			return true
		}
	}
	return false
}

// privatePrefixes are the networks without global reachability that netip has no
// predicate for.
var privatePrefixes = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),     // RFC 1122 section 3.2.1.3
	netip.MustParsePrefix("100.64.0.0/10"), // RFC 6598
	netip.MustParsePrefix("fec0::/10"),     // RFC 3879
}

// isPrivate reports whether an address, or an IPv4 address embedded in it, is not
// globally reachable.
func isPrivate(a netip.Addr) bool {
	a = embeddedIPv4(a)
	if a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() {
		return true
	}
	for _, p := range privatePrefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

var (
	compatible = netip.MustParsePrefix("::/96")          // RFC 4291 section 2.5.5.1
	nat64      = netip.MustParsePrefix("64:ff9b::/96")   // RFC 6052 section 2.1
	localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48") // RFC 8215
	sixToFour  = netip.MustParsePrefix("2002::/16")      // RFC 3056
)

// embeddedIPv4 returns the IPv4 address embedded in a, or a if there is none.
func embeddedIPv4(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is4() {
		return a
	}
	b := a.As16()
	last := [4]byte(b[12:])
	switch {
	case nat64.Contains(a):
		return netip.AddrFrom4(last)
	case localNAT64.Contains(a) && last == [4]byte{}: // the prefix is the whole /48: RFC 6052 section 2.2
		return netip.AddrFrom4([4]byte{b[6], b[7], b[9], b[10]})
	case localNAT64.Contains(a):
		return netip.AddrFrom4(last)
	case compatible.Contains(a) && last[0] != 0: // others are ::, ::1 and the like
		return netip.AddrFrom4(last)
	case sixToFour.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return a
}

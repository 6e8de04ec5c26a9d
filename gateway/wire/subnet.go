package wire

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// AppendSubnet appends a Client Subnet option for a query (RFC 7871 section 6).
func AppendSubnet(dst []byte, p netip.Prefix) []byte {
	p = p.Masked()
	octets := (p.Bits() + 7) / 8
	dst = appendOption(dst, ednsOptionSubnet, 4+octets)
	family := uint16(1)
	if p.Addr().Is6() {
		family = 2
	}
	dst = binary.BigEndian.AppendUint16(dst, family)
	dst = append(dst, byte(p.Bits()), 0)
	return append(dst, p.Addr().AsSlice()[:octets]...)
}

// ClientSubnet returns the Client Subnet option that came with q, or nil if there is
// none, or if it says that the client's address is nobody's business (RFC 7871
// section 7.1.2). Ok is false if it is malformed, which deserves FORMERR (the same).
func (q Query) ClientSubnet() (option []byte, ok bool) {
	if q.subnetAt == 0 {
		return nil, true
	}
	option = q.option(q.subnetAt)
	if len(option) < 8 {
		return nil, false
	}
	bits, scope, most := int(option[6]), option[7], -1
	switch binary.BigEndian.Uint16(option[4:]) { // the family
	case 1:
		most = 32
	case 2:
		most = 128
	}
	address := option[8:]
	switch {
	case bits > most || scope != 0 || len(address) != (bits+7)/8:
		return nil, false
	case bits%8 != 0 && address[len(address)-1]<<(bits%8) != 0:
		return nil, false // bits behind the prefix
	case bits == 0:
		return nil, true
	}
	return option, true
}

// sentSubnet reports whether the options in the data of an OPT record have no Client
// Subnet but the one that went along with q, whatever its scope. Who sent none does
// not look: the option is then of no meaning (RFC 7871 section 7.3).
func (q Query) sentSubnet(rdata []byte) bool {
	sent := q.subnet()
	if sent == nil {
		return true
	}
	const scope = 7 // its offset, behind code, length, family and prefix length
	for len(rdata) > 0 {
		option := rdata[:4+int(binary.BigEndian.Uint16(rdata[2:]))]
		rdata = rdata[len(option):]
		if binary.BigEndian.Uint16(option) != ednsOptionSubnet {
			continue
		}
		if len(option) != len(sent) || !bytes.Equal(option[4:scope], sent[4:scope]) || !bytes.Equal(option[scope+1:], sent[scope+1:]) {
			return false
		}
	}
	return true
}

const (
	typeSVCB  = 64
	typeHTTPS = 65
	ipv4hint  = 4 // RFC 9460 section 14.3.2
	ipv6hint  = 6
)

// HasPrivate reports whether a has an address, be it a hint for a service
// (RFC 9460 section 7.3), that is of no use outside of somebody's own network.
func (a Answer) HasPrivate() bool {
	message := a.data[:a.messageLen]
	off, ok := skipPlainName(message, headerLen)
	for off += 4; ok && off < len(message); {
		var r record
		if r, ok = parseRecord(message, off, nil); !ok {
			break
		}
		data := r.rdata(message)
		switch r.typ {
		case TypeA:
			if anyPrivate(data, 4) {
				return true
			}
		case TypeAAAA:
			if anyPrivate(data, 16) {
				return true
			}
		case typeSVCB, typeHTTPS:
			if hintsPrivate(data) {
				return true
			}
		}
		off = r.end
	}
	return false
}

// hintsPrivate looks at the parameters of a service (RFC 9460 section 2.2). What is
// malformed has none that anybody could use.
func hintsPrivate(data []byte) bool {
	if len(data) < 2 {
		return false
	}
	at, ok := skipPlainName(data, 2)
	for ok && at+4 <= len(data) {
		key, n := binary.BigEndian.Uint16(data[at:]), int(binary.BigEndian.Uint16(data[at+2:]))
		if at += 4; at+n > len(data) {
			return false
		}
		switch value := data[at : at+n]; {
		case key == ipv4hint && anyPrivate(value, 4), key == ipv6hint && anyPrivate(value, 16):
			return true
		}
		at += n
	}
	return false
}

func anyPrivate(addresses []byte, size int) bool {
	for ; len(addresses) >= size; addresses = addresses[size:] {
		if a, ok := netip.AddrFromSlice(addresses[:size]); ok && isPrivate(a.Unmap()) {
			return true
		}
	}
	return false
}

// shared is the address space of RFC 6598, and this is RFC 1122 section 3.2.1.3.
var (
	shared = netip.MustParsePrefix("100.64.0.0/10")
	this   = netip.MustParsePrefix("0.0.0.0/8")
)

func isPrivate(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || shared.Contains(a) || this.Contains(a)
}

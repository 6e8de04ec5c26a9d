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

// ClientSubnet returns the Client Subnet option of q, or nil if there is none, or if its
// prefix length is 0: the client wants no information about its address to be sent (RFC
// 7871 section 7.1.2). ok is false if the option is malformed, for which the reply is
// FORMERR (same section).
func (q Query) ClientSubnet() (option []byte, ok bool) {
	if q.has&hasSubnet == 0 {
		return nil, true
	}
	option = q.option(ednsOptionSubnet)
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

// sentSubnet reports whether each Client Subnet option in the data of an OPT record
// equals the one that was sent with q, apart from the scope. If none was sent, all are
// ignored (RFC 7871 section 7.3).
func (q Query) sentSubnet(rdata []byte) bool {
	sent := q.subnet()
	if sent == nil {
		return true
	}
	const scope = 7 // its offset, behind code, length, family and prefix length
	most := byte(32)
	if sent[5] == 2 { // IPv6
		most = 128
	}
	for code, option := range optionsIn(rdata) {
		if code != ednsOptionSubnet {
			continue
		}
		if len(option) != len(sent) || option[scope] > most || !bytes.Equal(option[4:scope], sent[4:scope]) || !bytes.Equal(option[scope+1:], sent[scope+1:]) {
			return false
		}
	}
	return true
}

// Package wire reads and edits DNS messages as the bytes they travel in.
//
// It knows the header, the question, the OPT record, where names are and where
// the TTLs are (RFC 1035 section 4, RFC 6891), and no more than that. All index
// arithmetic on bytes from the network happens here, and all of it is fuzzed
// against an independent codec.
package wire

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// MaxUDPSize is the largest UDP message we send and the size we advertise: what
// fits unfragmented into the smallest IPv6 MTU (DNS flag day 2020).
const MaxUDPSize = 1232

// MaxSize is the largest message there is, as the length prefix of TCP says.
const MaxSize = 1<<16 - 1

const (
	headerLen  = 12
	minUDPSize = 512 // RFC 1035 section 4.2.1, for clients without EDNS
	maxName    = 255 // RFC 1035 section 2.3.4
	padding    = 128 // block of padded queries, RFC 8467 section 4.1
)

// Transport is how a client's query came in. It decides how long a reply may be.
type Transport uint8

const (
	UDP Transport = iota
	TCP
)

func (t Transport) String() string {
	switch t {
	case UDP:
		return "UDP"
	case TCP:
		return "TCP"
	}
	return fmt.Sprintf("Transport(%d)", uint8(t))
}

// RCode is a response code with the extended bits of RFC 6891 section 6.1.3.
type RCode uint16

const (
	NoError  RCode = 0
	FormErr  RCode = 1
	ServFail RCode = 2
	NXDomain RCode = 3
	NotImp   RCode = 4
	Refused  RCode = 5
	BadVers  RCode = 16

	BadCookie RCode = 23 // RFC 7873 section 8
)

var rcodeNames = map[RCode]string{
	NoError: "NOERROR", FormErr: "FORMERR", ServFail: "SERVFAIL", NXDomain: "NXDOMAIN",
	NotImp: "NOTIMP", Refused: "REFUSED", BadVers: "BADVERS", BadCookie: "BADCOOKIE",
}

func (r RCode) String() string {
	if name, ok := rcodeNames[r]; ok {
		return name
	}
	return fmt.Sprintf("RCODE%d", uint16(r))
}

// Type is a record type. Only those with a meaning to a gateway have a name
// here; every other type travels through untouched (RFC 3597).
type Type uint16

const (
	TypeA     Type = 1
	typeNS    Type = 2
	typeMD    Type = 3
	typeMF    Type = 4
	typeCNAME Type = 5
	typeSOA   Type = 6
	typeMB    Type = 7
	typeMG    Type = 8
	typeMR    Type = 9
	TypePTR   Type = 12
	TypeHINFO Type = 13
	typeMINFO Type = 14
	typeMX    Type = 15
	TypeTXT   Type = 16
	typeRP    Type = 17
	typeAFSDB Type = 18
	typeRT    Type = 21
	TypeAAAA  Type = 28
	typeSRV   Type = 33
	typeKX    Type = 36
	typeDNAME Type = 39
	typeOPT   Type = 41
	TypeDS    Type = 43
	typeTSIG  Type = 250
	typeIXFR  Type = 251
	typeAXFR  Type = 252
	TypeANY   Type = 255
)

const (
	classIN = 1
	classCH = 3
)

// EDE is an Extended DNS Error (RFC 8914): why a reply is an error. The zero
// EDE says nothing and is not sent.
type EDE struct {
	Code EDECode
	Text string // for people; may be empty
}

// size returns how many octets e takes as an EDNS option.
func (e EDE) size() int {
	if e == (EDE{}) {
		return 0
	}
	return edeFixedLen + len(e.Text)
}

// EDECode is an INFO-CODE of RFC 8914 section 4.
type EDECode uint16

const (
	EDEOther         EDECode = 0
	EDEStale         EDECode = 3
	EDEBlocked       EDECode = 15
	EDEProhibited    EDECode = 18
	EDEStaleNXDomain EDECode = 19
	EDENotSupported  EDECode = 21
	EDENoReachable   EDECode = 22
	EDENetworkError  EDECode = 23
	EDEInvalidData   EDECode = 24
)

// EDNS options that a gateway has to do with.
const (
	ednsOptionNSID      = 3  // RFC 5001
	ednsOptionSubnet    = 8  // RFC 7871
	ednsOptionCookie    = 10 // RFC 7873
	ednsOptionKeepalive = 11 // RFC 7828
	ednsOptionPadding   = 12 // RFC 7830
	ednsOptionEDE       = 15 // RFC 8914
)

// The second 16 bits of a header, as one number.
const (
	flagQR      = 1 << 15
	maskOpcode  = 0xf << 11
	flagTC      = 1 << 9
	flagRD      = 1 << 8
	flagRA      = 1 << 7
	flagAD      = 1 << 5
	flagCD      = 1 << 4
	maskRCode   = 0xf
	ednsFlagDO  = 1 << 15
	optFixedLen = 11 // an OPT record without options
	edeFixedLen = 6  // an EDE option without text
)

// ID returns the message ID of any packet at least a header long.
func ID(packet []byte) uint16 { return binary.BigEndian.Uint16(packet) }

// HeaderRCode returns what the header of any packet at least a header long has of
// its response code: all but what an OPT record adds to it.
func HeaderRCode(packet []byte) RCode { return RCode(flagsOf(packet) & maskRCode) }

func flagsOf(packet []byte) uint16 { return binary.BigEndian.Uint16(packet[2:]) }

// appendHeader appends a header. Counts are question, answer, authority, additional.
func appendHeader(dst []byte, id, flags uint16, counts [4]uint16) []byte {
	dst = binary.BigEndian.AppendUint16(dst, id)
	dst = binary.BigEndian.AppendUint16(dst, flags)
	for _, n := range counts {
		dst = binary.BigEndian.AppendUint16(dst, n)
	}
	return dst
}

// appendOPT appends the head of an OPT record of ours, with the upper bits of
// rcode, that will be followed by rdlen octets of options.
func appendOPT(dst []byte, rcode RCode, do bool, rdlen int) []byte {
	var flags uint16
	if do {
		flags = ednsFlagDO
	}
	dst = append(dst, 0, 0, byte(typeOPT), MaxUDPSize>>8, MaxUDPSize&0xff, byte(rcode>>4), 0)
	dst = binary.BigEndian.AppendUint16(dst, flags)
	return binary.BigEndian.AppendUint16(dst, uint16(rdlen))
}

// appendEDE appends e as an EDNS option.
func appendEDE(dst []byte, e EDE) []byte {
	dst = binary.BigEndian.AppendUint16(dst, ednsOptionEDE)
	dst = binary.BigEndian.AppendUint16(dst, uint16(2+len(e.Text)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(e.Code))
	return append(dst, e.Text...)
}

// cutText returns at most size octets of text, whole characters all of them:
// the text of an EDE is UTF-8 (RFC 8914 section 2).
func cutText(text string, size int) string {
	if len(text) <= size {
		return text
	}
	for size > 0 && !utf8.RuneStart(text[size]) {
		size--
	}
	return text[:size]
}

// Package wire parses and edits DNS messages in wire format.
//
// ParseQuery verifies a client's query, ParseAnswer verifies an upstream's response to
// it, and Answer.AppendReply makes the reply to a client. All other packages pass Query
// and Answer values around: all index arithmetic on bytes from the network happens
// here, and it is fuzzed against an independent codec (miekg/dns).
//
// The package knows the header, the question, the OPT record and its options, where
// names and TTLs are, and the layout of common record types (RFC 1035 section 4,
// RFC 6891). It does no I/O, starts no goroutine and keeps no state. Parsing a query
// allocates nothing, an answer is one allocation. Limits: messages up to 65,535
// octets, names up to 255 octets, 16 CNAME records in a chain, 256 records looked at
// behind the answer section, 1,024 octets of EDNS options of an upstream.
package wire

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// MaxUDPSize is the largest UDP message that is sent and the size that is advertised:
// it fits unfragmented into the smallest IPv6 MTU (DNS flag day 2020).
const MaxUDPSize = 1232

// MaxSize is the largest possible message: the length prefix of TCP has 16 bits.
const MaxSize = 1<<16 - 1

const (
	headerLen  = 12
	minUDPSize = 512 // RFC 1035 section 4.2.1, for clients without EDNS
	maxName    = 255 // RFC 1035 section 2.3.4
	padding    = 128 // block size of padded queries, RFC 8467 section 4.1
)

// Transport is the protocol by which a client's query arrived. The maximum length of a
// reply depends on it.
type Transport uint8

const (
	UDP Transport = iota
	TCP
)

func (t Transport) String() string { return [...]string{UDP: "UDP", TCP: "TCP"}[t] }

// RCode is a response code with the extended bits of RFC 6891 section 6.1.3.
type RCode uint16

const (
	NoError  RCode = 0
	FormErr  RCode = 1
	ServFail RCode = 2
	NXDomain RCode = 3
	NotImp   RCode = 4
	Refused  RCode = 5
	YXDomain RCode = 6 // a DNAME record leads to a name that is too long (RFC 6672 section 2.2)
	NotAuth  RCode = 9
	BadVers  RCode = 16

	BadCookie RCode = 23 // RFC 7873 section 8
)

var rcodeNames = map[RCode]string{
	NoError: "NOERROR", FormErr: "FORMERR", ServFail: "SERVFAIL", NXDomain: "NXDOMAIN",
	NotImp: "NOTIMP", Refused: "REFUSED", YXDomain: "YXDOMAIN", NotAuth: "NOTAUTH", BadVers: "BADVERS", BadCookie: "BADCOOKIE",
}

func (r RCode) String() string {
	if name, ok := rcodeNames[r]; ok {
		return name
	}
	return fmt.Sprintf("RCODE%d", uint16(r))
}

// IsResult reports whether r is the result of a query. The set is closed: every other
// code, assigned or not, means that the server failed or refused the query.
func (r RCode) IsResult() bool { return r == NoError || r == NXDomain || r == YXDomain }

// Type is a record type. Types without a constant here are passed on unchanged
// (RFC 3597).
type Type uint16

const (
	TypeA     Type = 1
	typeNS    Type = 2
	typeCNAME Type = 5
	typeSOA   Type = 6
	TypePTR   Type = 12
	TypeHINFO Type = 13
	typeMX    Type = 15
	TypeTXT   Type = 16
	typeAFSDB Type = 18
	typeRT    Type = 21
	TypeAAAA  Type = 28
	typeSRV   Type = 33
	typeKX    Type = 36
	typeDNAME Type = 39
	typeOPT   Type = 41
	TypeDS    Type = 43
	typeRRSIG Type = 46
	typeNSEC  Type = 47
	typeNSEC3 Type = 50
	TypeSVCB  Type = 64
	TypeHTTPS Type = 65
	typeTSIG  Type = 250
	typeIXFR  Type = 251
	typeAXFR  Type = 252
	typeMAILB Type = 253
	TypeANY   Type = 255
)

const (
	classIN = 1
	classCH = 3
)

// EDE is an Extended DNS Error (RFC 8914), the reason of an error. The zero EDE is not
// sent.
type EDE struct {
	Code EDECode
	Text string // for people; may be empty
}

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

// EDNS options that are read or written here.
const (
	ednsOptionNSID      = 3  // RFC 5001
	ednsOptionSubnet    = 8  // RFC 7871
	ednsOptionCookie    = 10 // RFC 7873
	ednsOptionKeepalive = 11 // RFC 7828
	ednsOptionPadding   = 12 // RFC 7830
	ednsOptionEDE       = 15 // RFC 8914
	// ednsOptionHealthCheck is in the range for local use (RFC 6891 section 9). It has
	// the token of a health check from this machine, and is never sent upstream.
	ednsOptionHealthCheck = 65363
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

// ID returns the message ID of packet, which must have a whole header.
func ID(packet []byte) uint16 { return binary.BigEndian.Uint16(packet) }

// HeaderRCode returns the response code in the header of packet, which must have a
// whole header, without the upper bits in an OPT record.
func HeaderRCode(packet []byte) RCode { return RCode(flagsOf(packet) & maskRCode) }

func flagsOf(packet []byte) uint16 { return binary.BigEndian.Uint16(packet[2:]) }

// appendHeader appends a header. Counts are those of question, answer, authority and
// additional section.
func appendHeader(dst []byte, id, flags uint16, counts [4]uint16) []byte {
	dst = binary.BigEndian.AppendUint16(dst, id)
	dst = binary.BigEndian.AppendUint16(dst, flags)
	for _, n := range counts {
		dst = binary.BigEndian.AppendUint16(dst, n)
	}
	return dst
}

// appendOPT appends the fixed part of an OPT record with the upper bits of rcode. The
// caller appends rdlen octets of options.
func appendOPT(dst []byte, rcode RCode, do bool, rdlen int) []byte {
	var flags uint16
	if do {
		flags = ednsFlagDO
	}
	dst = append(dst, 0, 0, byte(typeOPT), MaxUDPSize>>8, MaxUDPSize&0xff, byte(rcode>>4), 0)
	dst = binary.BigEndian.AppendUint16(dst, flags)
	return binary.BigEndian.AppendUint16(dst, uint16(rdlen))
}

func appendEDE(dst []byte, e EDE) []byte {
	dst = binary.BigEndian.AppendUint16(dst, ednsOptionEDE)
	dst = binary.BigEndian.AppendUint16(dst, uint16(2+len(e.Text)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(e.Code))
	return append(dst, e.Text...)
}

// cutText returns text, shortened to at most size octets between two characters: the
// text of an EDE is UTF-8 (RFC 8914 section 2).
func cutText(text string, size int) string {
	if len(text) <= size {
		return text
	}
	for size > 0 && !utf8.RuneStart(text[size]) {
		size--
	}
	return text[:size]
}

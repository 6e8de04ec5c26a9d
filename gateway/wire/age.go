package wire

import "encoding/binary"

// SubtractAge subtracts an age in seconds from the TTL of each record in message, which is
// changed: that of an answer from a cache of HTTP (RFC 8484 section 5.1). A message that is
// not well-formed is changed up to its first fault.
func SubtractAge(message []byte, age uint32) {
	if len(message) < headerLen || age == 0 {
		return
	}
	count := func(section int) int { return int(binary.BigEndian.Uint16(message[4+2*section:])) }
	off := headerLen
	for range count(0) {
		end, ok := skipPlainName(message, off)
		if !ok || end+4 > len(message) {
			return
		}
		off = end + 4
	}
	for range count(1) + count(2) + count(3) {
		r, ok := parseRecord(message, off, nil)
		if !ok {
			return
		}
		if r.typ != typeOPT {
			ttl := effectiveTTL(r.ttl)
			binary.BigEndian.PutUint32(message[r.ttlAt:], ttl-min(ttl, age))
		}
		off = r.end
	}
}

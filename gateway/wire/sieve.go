package wire

import "encoding/binary"

const (
	// maxTargets is how many names may have additional records: a set of servers
	// is a dozen. Some more are left out.
	maxTargets = 64
	// maxSigners is how many zones may have proven that something is not there: a
	// chain seldom leads through more than two.
	maxSigners = 8

	// maxSifted is how many records behind the answer section are looked at. Honest
	// messages have some dozens; what is beyond is lost.
	maxSifted = 256

	typeNSEC  = 47
	typeNSEC3 = 50
	firstMeta = 128 // types from here to 255 are about messages, not names (RFC 6895 section 3.1)
	lastMeta  = 255
)

// A sieve holds back what the authority and additional sections have to do with the
// question, and lets through what nobody asked for: whoever believed it would be
// deceived (RFC 2181 section 5.4.1). Resolvers do the same.
//
// What is held in the authority section are NS, SOA and DS records of domains that a
// name on the chain is in, NSEC and NSEC3 records of zones of those names that have
// signed something, and signatures of all these; in the additional section, what is
// about a name on the chain, or one that a record leads to which is held.
type sieve struct {
	msg     []byte
	at      int // where the next record begins
	chain   chain
	signers names
	targets names
	keep    []bool // for each record behind the answer section
	lost    int    // how many records it lets through
}

// sift puts a well-formed message through the sieve. Its answer section begins at
// off and is on the chain.
func (s *sieve) sift(off int) {
	s.signers.max, s.targets.max = maxSigners, maxTargets
	s.at = off
	for range s.count(1) {
		r, _ := s.next()
		s.follow(r)
	}
	authority := s.at
	for range min(s.count(2), maxSifted) {
		s.noteSigner(s.next())
	}
	s.at = authority
	for range s.count(2) {
		r, owner := s.next()
		s.put(r, s.isSifted() && s.isProof(r, owner))
	}
	ended := false
	for range s.count(3) {
		switch r, owner := s.next(); {
		case ended: // what is behind the OPT record doesn't stay anyway
			s.keep = append(s.keep, false)
		case r.typ == typeOPT:
			ended = true
			s.keep = append(s.keep, true)
		default:
			s.put(r, s.isSifted() && s.isWanted(r, owner))
		}
	}
}

func (s *sieve) count(section int) uint16 { return binary.BigEndian.Uint16(s.msg[4+2*section:]) }

// next returns the next record, with the offset of its owner.
func (s *sieve) next() (r record, owner int) {
	owner = s.at
	r, ok := parseRecord(s.msg, owner, nil)
	if !ok {
		panic("BUG: a message is no longer well-formed")
	}
	s.at = r.end
	return r, owner
}

// isSifted reports whether the next record is still looked at.
func (s *sieve) isSifted() bool { return len(s.keep) < maxSifted }

func (s *sieve) put(r record, held bool) {
	s.keep = append(s.keep, held)
	if held {
		s.follow(r)
	} else {
		s.lost++
	}
}

// follow takes note of the name that r leads to, other than by the chain.
func (s *sieve) follow(r record) {
	at := r.end - r.rdataLen
	switch r.typ {
	case typeNS, TypePTR:
	case typeMX, typeAFSDB, typeRT, typeKX:
		at += 2
	case typeSRV:
		at += 6
	case typeSVCB, typeHTTPS:
		if at += 2; r.rdataLen < 3 {
			return
		}
		if _, ok := skipPlainName(s.msg[:r.end], at); !ok {
			return
		}
	default:
		return
	}
	if s.msg[at] != 0 { // the root is how to say none, or the owner itself
		s.targets.add(s.msg, at)
	}
}

// noteSigner takes note of the zone that r is a signature of, if r is one, is of that
// zone, and a name on the chain is in it.
func (s *sieve) noteSigner(r record, owner int) {
	if zone, ok := r.signer(s.msg); ok && s.chain.anyIn(s.msg, zone) && inSubtree(s.msg, owner, zone) {
		s.signers.add(s.msg, zone)
	}
}

// isProof reports whether r is held, being in the authority section.
func (s *sieve) isProof(r record, owner int) bool {
	if r.class != classIN {
		return false
	}
	switch r.covered(s.msg) {
	case typeNS, typeSOA, TypeDS:
		return s.chain.anyIn(s.msg, owner)
	case typeNSEC, typeNSEC3:
		return s.signers.anyAbove(s.msg, owner)
	}
	return false
}

// isWanted reports whether r is held, being in the additional section.
func (s *sieve) isWanted(r record, owner int) bool {
	if r.class != classIN || r.typ >= firstMeta && r.typ <= lastMeta {
		return false
	}
	return s.chain.has(s.msg, owner) || s.targets.has(s.msg, owner)
}

// signer returns the offset of the name of the zone that r is a signature of. It is
// never compressed (RFC 4034 section 3.1.7).
func (r record) signer(msg []byte) (at int, ok bool) {
	const fixed = 18
	if r.typ != typeRRSIG || r.rdataLen <= fixed {
		return 0, false
	}
	at = r.end - r.rdataLen + fixed
	_, ok = skipPlainName(msg[:r.end], at)
	return at, ok
}

// rest returns the message, whose answer section begins at off, without what the
// sieve let through. Names are written in full, as what they pointed to may be gone,
// unless they lead into the question, which has the client's spelling later.
func (s *sieve) rest(off int) []byte {
	rest := append(make([]byte, 0, 2*len(s.msg)), s.msg[:off]...)
	keep := s.keep
	s.at = off
	for section := 1; section <= 3; section++ {
		count := uint16(0)
		for range s.count(section) {
			r, owner := s.next()
			if section > 1 {
				kept := keep[0]
				if keep = keep[1:]; !kept {
					continue
				}
			}
			rest = appendInFull(rest, s.msg, owner, r, off-4)
			count++
		}
		binary.BigEndian.PutUint16(rest[4+2*section:], count)
	}
	return rest
}

// appendInFull appends the record r, whose owner is at off, without pointers but
// those into the name that ends at question.
func appendInFull(dst, msg []byte, off int, r record, question int) []byte {
	dst = appendFullName(dst, msg, off, question)
	dst = append(dst, msg[r.ttlAt-4:r.ttlAt+6]...) // type, class, TTL, length
	start := len(dst)
	at := r.end - r.rdataLen
	before, names, _, _ := layout(r.typ)
	dst = append(dst, msg[at:at+before]...)
	at += before
	for range names {
		dst = appendFullName(dst, msg, at, question)
		at, _ = skipName(msg[:r.end], at, nil)
	}
	dst = append(dst, msg[at:r.end]...)
	binary.BigEndian.PutUint16(dst[start-2:], uint16(len(dst)-start))
	return dst
}

func appendFullName(dst, msg []byte, off, question int) []byte {
	for {
		n := int(msg[off])
		if n >= 0xc0 {
			target := int(binary.BigEndian.Uint16(msg[off:]) & 0x3fff)
			if _, ok := skipPlainName(msg[:question], target); ok {
				return append(dst, msg[off:off+2]...)
			}
			off = target
			continue
		}
		dst = append(dst, msg[off:off+1+n]...)
		if n == 0 {
			return dst
		}
		off += 1 + n
	}
}

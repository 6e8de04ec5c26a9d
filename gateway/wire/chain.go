package wire

import "encoding/binary"

const (
	// maxChain is how many names an alias may lead through. Resolvers give up
	// much earlier.
	maxChain = 32
	// maxStrays is how many records may come before the alias that leads to them.
	maxStrays = 256
	typeRRSIG = 46
)

// names are some names of a message, by their offsets, each once. Which ones they
// are does not depend on ASCII case.
type names struct {
	at     [maxTargets]uint16
	labels [maxTargets]uint8 // how many each has
	n      int
	max    int // how many there may be; what is too much is left out
}

// add adds the well-formed name at off.
func (s *names) add(msg []byte, off int) {
	if s.n < s.max && !s.has(msg, off) {
		s.at[s.n], s.labels[s.n] = uint16(off), uint8(depth(msg, off))
		s.n++
	}
}

// has reports whether the well-formed name at off is one of them.
func (s *names) has(msg []byte, off int) bool {
	for i := s.n - 1; i >= 0; i-- { // most often the last
		if sameName(msg, off, int(s.at[i])) {
			return true
		}
	}
	return false
}

// anyIn reports whether one of them is in the subtree of the well-formed name at top.
func (s *names) anyIn(msg []byte, top int) bool {
	labels := depth(msg, top)
	for i := s.n - 1; i >= 0; i-- {
		if isBelow(msg, int(s.at[i]), int(s.labels[i])-labels, top) {
			return true
		}
	}
	return false
}

// anyAbove reports whether the well-formed name at off is in the subtree of one of
// them.
func (s *names) anyAbove(msg []byte, off int) bool {
	labels := depth(msg, off)
	for i := s.n - 1; i >= 0; i-- {
		if isBelow(msg, off, labels-int(s.labels[i]), int(s.at[i])) {
			return true
		}
	}
	return false
}

// A chain is the names that a question leads to: its own, and those that CNAME
// records lead to from there (RFC 1034 section 3.6.2). A DNAME record leads to a
// name through the CNAME record that comes with it (RFC 6672 section 3.1).
type chain struct{ names }

// newChain returns what msg's question, which ends at off and is well-formed, leads
// to at first: nothing if there is none.
func newChain(msg []byte, off int) (c chain) {
	c.max = maxChain
	if off > headerLen {
		c.add(msg, headerLen)
	}
	return c
}

// take reports whether the record r of the answer section, whose owner is at off,
// is on the chain as far as that is known by now. If so, and if it leads further,
// the chain is longer from then on.
func (c *chain) take(msg []byte, r record, off int) bool {
	if r.class != classIN {
		return false
	}
	if !c.has(msg, off) && (r.covered(msg) != typeDNAME || !c.anyIn(msg, off)) {
		return false
	}
	if r.typ == typeCNAME {
		c.add(msg, r.end-r.rdataLen)
	}
	return true
}

// holds reports whether all records of the answer section, which begins at off
// and is well-formed, are on the chain. They may be in any order (RFC 1035 does
// not ask for one), so it looks again while the chain grows.
func (c *chain) holds(msg []byte, off int) bool {
	for {
		before, strays, at := c.n, 0, off
		for range binary.BigEndian.Uint16(msg[6:]) {
			r, ok := parseRecord(msg, at, nil)
			if !ok {
				return false
			}
			if !c.take(msg, r, at) {
				strays++
			}
			at = r.end
		}
		if strays == 0 || c.n == before {
			return strays == 0
		}
	}
}

// covered returns the type of r, or of the records that it signs: a RRSIG record
// begins with that (RFC 4034 section 3.1).
func (r record) covered(msg []byte) Type {
	if r.typ == typeRRSIG && r.rdataLen >= 2 {
		return Type(binary.BigEndian.Uint16(msg[r.end-r.rdataLen:]))
	}
	return r.typ
}

// label returns the offset of the label that a well-formed name at off begins
// with, behind all pointers.
func label(msg []byte, off int) int {
	for msg[off] >= 0xc0 {
		off = int(binary.BigEndian.Uint16(msg[off:]) & 0x3fff)
	}
	return off
}

// sameName compares two well-formed names without regard to ASCII case.
func sameName(msg []byte, a, b int) bool {
	for {
		a, b = label(msg, a), label(msg, b)
		n := int(msg[a])
		switch {
		case a == b:
			return true
		case n != int(msg[b]) || !equalNames(msg[a:a+1+n], msg[b:b+1+n]):
			return false
		case n == 0:
			return true
		}
		a += 1 + n
		b += 1 + n
	}
}

// inSubtree reports whether the well-formed name at off is the one at top or below
// it.
func inSubtree(msg []byte, off, top int) bool {
	return isBelow(msg, off, depth(msg, off)-depth(msg, top), top)
}

// isBelow is inSubtree for names of which the one at off is known to have so many
// labels more.
func isBelow(msg []byte, off, deeper, top int) bool {
	for ; deeper > 0; deeper-- {
		off = label(msg, off)
		off += 1 + int(msg[off])
	}
	return deeper == 0 && sameName(msg, off, top)
}

// depth returns how many labels a well-formed name has.
func depth(msg []byte, off int) (labels int) {
	for off = label(msg, off); msg[off] != 0; off = label(msg, off+1+int(msg[off])) {
		labels++
	}
	return labels
}

package wire

import "encoding/binary"

const (
	// maxAliases is the most CNAME records in a chain. Resolvers give up between 8 and
	// 16.
	maxAliases = 16
	// maxAliasRecords is the most CNAME and DNAME records, with their signatures, in an
	// answer section whose records are not in order.
	maxAliasRecords = 256
)

// nameSet is a set of names of a message, by their offsets. Names are compared without
// regard to ASCII case.
type nameSet struct {
	at     [maxTargets]uint16
	labels [maxTargets]uint8 // number of labels of each name
	n      int
	max    int // further names are left out
}

// add adds the well-formed name at off. It reports false if the set has it already, or
// is full.
func (s *nameSet) add(msg []byte, off int) bool {
	if s.n == s.max || s.has(msg, off) {
		return false
	}
	s.at[s.n], s.labels[s.n] = uint16(off), uint8(labelCount(msg, off))
	s.n++
	return true
}

func (s *nameSet) has(msg []byte, off int) bool {
	for i := s.n - 1; i >= 0; i-- { // most often it is the last one
		if sameName(msg, off, int(s.at[i])) {
			return true
		}
	}
	return false
}

// anyInSubtreeOf reports whether a name of the set is in the subtree of the well-formed
// name at top.
func (s *nameSet) anyInSubtreeOf(msg []byte, top int) bool {
	labels := labelCount(msg, top)
	for i := s.n - 1; i >= 0; i-- {
		if isBelow(msg, int(s.at[i]), int(s.labels[i])-labels, top) {
			return true
		}
	}
	return false
}

// anyContains reports whether the well-formed name at off is in the subtree of a name
// of the set.
func (s *nameSet) anyContains(msg []byte, off int) bool {
	labels := labelCount(msg, off)
	for i := s.n - 1; i >= 0; i-- {
		if isBelow(msg, off, labels-int(s.labels[i]), int(s.at[i])) {
			return true
		}
	}
	return false
}

// isStrictlyBelow reports whether the i-th name of the set is below the well-formed
// name at top.
func (s *nameSet) isStrictlyBelow(msg []byte, i, top int) bool {
	deeper := int(s.labels[i]) - labelCount(msg, top)
	return deeper > 0 && isBelow(msg, int(s.at[i]), deeper, top)
}

// A cnameChain is the name of a question, followed by the names that its CNAME records
// lead to (RFC 1034 section 3.6.2). A DNAME record leads to a name by the CNAME record
// that comes with it (RFC 6672 section 3.1).
type cnameChain struct {
	nameSet
	asked     Type
	wantsSigs bool // the query asks for signatures
	hasData   bool // accepts has seen data of the last name
}

// newChain returns the chain with the name of msg's question only, which is well-formed
// and ends at off. It is empty if msg has no question.
func newChain(q Query, msg []byte, off int) (c cnameChain) {
	c.max, c.asked = maxAliases+1, q.Type()
	c.wantsSigs = q.do() || c.asked == typeRRSIG || c.asked.isMultiType()
	if off > headerLen {
		c.add(msg, headerLen)
	}
	return c
}

// isMultiType reports whether t asks for records of more than one type: ANY, MAILA
// or MAILB (RFC 1035 section 3.2.3).
func (t Type) isMultiType() bool { return t >= typeMAILB && t <= TypeANY }

// followsCNAME reports whether CNAME records lead to another name. If not, they are the
// data asked for (RFC 1034 section 3.6.2).
func (c *cnameChain) followsCNAME() bool { return c.asked != typeCNAME && !c.asked.isMultiType() }

// isData reports whether r has a type that was asked for, or is a signature of that
// type.
func (c *cnameChain) isData(msg []byte, r record) bool {
	return r.typ == c.asked || c.asked.isMultiType() || c.wantsSigs && r.covered(msg) == c.asked
}

// accepts reports whether the record r of the answer section, whose owner is at off, is
// in its place: first the CNAME records in the order of the chain, each followed by its
// signatures, then the data asked for. Some clients can't use another order.
func (c *cnameChain) accepts(msg []byte, r record, off int) bool {
	if r.class != classIN || c.n == 0 || r.typ == typeRRSIG && !c.wantsSigs {
		return false
	}
	last := c.n - 1
	isLast := sameName(msg, off, int(c.at[last]))
	if isLast && c.isData(msg, r) {
		c.hasData = true
		return true
	}
	if c.hasData || !c.followsCNAME() {
		return false
	}
	switch r.covered(msg) {
	case typeCNAME:
		if r.typ == typeRRSIG {
			return last > 0 && sameName(msg, off, int(c.at[last-1]))
		}
		return isLast && c.add(msg, r.end-r.rdataLen)
	case typeDNAME:
		return !isLast && c.isStrictlyBelow(msg, last, off)
	}
	return false
}

// covered returns the type of r, or of the records that it signs: a RRSIG record
// begins with that (RFC 4034 section 3.1).
func (r record) covered(msg []byte) Type {
	if r.typ == typeRRSIG && r.rdataLen >= 2 {
		return Type(binary.BigEndian.Uint16(msg[r.end-r.rdataLen:]))
	}
	return r.typ
}

// firstLabel returns the offset of the first label of the well-formed name at off, with
// pointers followed.
func firstLabel(msg []byte, off int) int {
	for msg[off] >= 0xc0 {
		off = int(binary.BigEndian.Uint16(msg[off:]) & 0x3fff)
	}
	return off
}

// sameName compares two well-formed names without regard to ASCII case.
func sameName(msg []byte, a, b int) bool {
	for {
		a, b = firstLabel(msg, a), firstLabel(msg, b)
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
	return isBelow(msg, off, labelCount(msg, off)-labelCount(msg, top), top)
}

// isBelow is inSubtree for a name at off that has `deeper` labels more than the name at
// top.
func isBelow(msg []byte, off, deeper, top int) bool {
	for ; deeper > 0; deeper-- {
		off = firstLabel(msg, off)
		off += 1 + int(msg[off])
	}
	return deeper == 0 && sameName(msg, off, top)
}

func labelCount(msg []byte, off int) (labels int) {
	for off = firstLabel(msg, off); msg[off] != 0; off = firstLabel(msg, off+1+int(msg[off])) {
		labels++
	}
	return labels
}

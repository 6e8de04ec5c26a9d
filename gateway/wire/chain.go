package wire

import "encoding/binary"

const (
	// maxChain is how many names an alias may lead through. Resolvers give up
	// much earlier.
	maxChain  = 32
	typeRRSIG = 46
)

// A chain is the names that a question leads to: its own, and those that CNAME
// records lead to from there (RFC 1034 section 3.6.2). A DNAME record leads to a
// name through the CNAME record that comes with it (RFC 6672 section 3.1).
type chain struct {
	names [maxChain]uint16 // offsets
	n     int
}

func newChain() (c chain) {
	c.names[0], c.n = headerLen, 1
	return c
}

// take reports whether the record r of the answer section, whose owner is at off,
// is on the chain as far as that is known by now. If so, and if it leads further,
// the chain is longer from then on.
func (c *chain) take(msg []byte, r record, off int) bool {
	data := r.end - r.rdataLen
	typ := r.typ
	if typ == typeRRSIG && r.rdataLen >= 2 { // it begins with the type that it covers (RFC 4034 section 3.1)
		typ = Type(binary.BigEndian.Uint16(msg[data:]))
	}
	for i := c.n - 1; i >= 0; i-- { // most often the last
		name := int(c.names[i])
		if !sameName(msg, off, name) && (typ != typeDNAME || !isAbove(msg, off, name)) {
			continue
		}
		if r.typ == typeCNAME {
			c.add(msg, data)
		}
		return true
	}
	return false
}

// add makes the chain longer by the name at off, unless it is on it.
func (c *chain) add(msg []byte, off int) {
	for _, name := range c.names[:c.n] {
		if sameName(msg, off, int(name)) {
			return
		}
	}
	if c.n < maxChain {
		c.names[c.n] = uint16(off)
		c.n++
	}
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

// isAbove reports whether the well-formed name at top is an ancestor of the one
// at off.
func isAbove(msg []byte, top, off int) bool {
	for off = label(msg, off); msg[off] != 0; {
		off = label(msg, off+1+int(msg[off]))
		if sameName(msg, top, off) {
			return true
		}
	}
	return false
}

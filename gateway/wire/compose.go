package wire

import (
	"encoding/binary"
	"sync"
)

// A composer writes a message anew: selected records in a given order, each name
// compressed as far as its record type allows.
//
// A pointer leads to a name in the same spelling only, so no name changes its letter
// case. Exceptions are pointers into the question, whose name gets the client's
// spelling in the reply.
type composer struct {
	src, dst []byte
	question int // where the question's name ends, in both
	suffixes [suffixSlots]suffix
	count    int // of suffixes

	// The parts of the name that is being written, set by split.
	labels     [maxName / 2]uint16
	hashes     [maxName / 2]uint32
	labelCount int
}

// A suffix is a written name, or the end of one, that a pointer can lead to.
type suffix struct {
	hash   uint32 // without regard to case; 0: the slot is free
	offset uint16 // in dst
}

const (
	suffixSlots = 512 // a power of two
	maxSuffixes = suffixSlots * 3 / 4
	maxPointer  = 1 << 14 // RFC 1035 section 4.1.4
)

var composers = sync.Pool{New: func() any { return new(composer) }}

// compose returns a composer whose dst is a message of the selected records and the
// OPT record, if there was one. The question ends at off. The caller must release it.
func (f *recordFilter) compose(off int, found *layout) *composer {
	c := composers.Get().(*composer)
	c.src, c.question = f.msg, off-4
	clear(c.suffixes[:])
	c.count = 0
	c.dst = append(c.dst[:0], f.msg[:off]...)
	c.split(headerLen)
	for i, at := range c.labels[:c.labelCount] {
		c.addSuffix(c.hashes[i], int(at))
	}
	for _, at := range f.selected {
		c.record(int(at), f.record(int(at)))
	}
	counts := f.counts
	if found.hasOPT {
		r := found.opt
		c.dst = append(c.dst, f.msg[r.end-r.rdataLen-optFixedLen:r.end]...)
		counts[2]++
	}
	for section, n := range counts {
		binary.BigEndian.PutUint16(c.dst[6+2*section:], n)
	}
	return c
}

// release returns c to the pool. Its dst must not be used any more.
func (c *composer) release() {
	c.src = nil
	if cap(c.dst) > 1<<14 { // rare
		c.dst = nil
	}
	composers.Put(c)
}

// record appends the record r, whose owner is at off.
func (c *composer) record(off int, r record) {
	c.name(off, true)
	c.dst = append(c.dst, c.src[r.ttlAt-4:r.ttlAt+6]...) // type, class, TTL, length
	start := len(c.dst)
	at := r.end - r.rdataLen
	before, names, compress := namesOf(r.typ)
	c.dst = append(c.dst, c.src[at:at+before]...)
	at += before
	for range names {
		c.name(at, compress)
		at, _ = skipName(c.src[:r.end], at, nil)
	}
	c.dst = append(c.dst, c.src[at:r.end]...)
	binary.BigEndian.PutUint16(c.dst[start-2:], uint16(len(c.dst)-start))
}

// name appends the name at off of the source, compressed if it may be.
func (c *composer) name(off int, compress bool) {
	c.split(off)
	for i, at := range c.labels[:c.labelCount] {
		to, ok := c.find(c.hashes[i], int(at))
		if ok && compress {
			c.dst = binary.BigEndian.AppendUint16(c.dst, 0xc000|uint16(to))
			return
		}
		if !ok && len(c.dst) < maxPointer {
			c.addSuffix(c.hashes[i], len(c.dst))
		}
		c.dst = append(c.dst, c.src[at:int(at)+1+int(c.src[at])]...)
	}
	c.dst = append(c.dst, 0)
}

// split stores the offsets of the labels of the name at off of the source, without the
// root, and for each label a hash (FNV-1a) of the name from there on, without regard to
// case.
func (c *composer) split(off int) {
	c.labelCount = 0
	for off = firstLabel(c.src, off); c.src[off] != 0; off = firstLabel(c.src, off+1+int(c.src[off])) {
		c.labels[c.labelCount] = uint16(off)
		c.labelCount++
	}
	hash := uint32(2166136261)
	for i := c.labelCount - 1; i >= 0; i-- {
		at := int(c.labels[i])
		for _, b := range c.src[at : at+1+int(c.src[at])] {
			hash = (hash ^ uint32(lower(b))) * 16777619
		}
		c.hashes[i] = max(hash, 1)
	}
}

// find returns the offset in dst of the name at off of the source, if it was written in
// the same spelling.
func (c *composer) find(hash uint32, off int) (at int, ok bool) {
	for slot := hash % suffixSlots; c.suffixes[slot].hash != 0; slot = (slot + 1) % suffixSlots {
		if s := c.suffixes[slot]; s.hash == hash && c.matches(off, int(s.offset)) {
			return int(s.offset), true
		}
	}
	return 0, false
}

// addSuffix adds a name at an offset of dst to the table, unless that is full.
func (c *composer) addSuffix(hash uint32, at int) {
	if c.count == maxSuffixes {
		return
	}
	c.count++
	slot := hash % suffixSlots
	for c.suffixes[slot].hash != 0 {
		slot = (slot + 1) % suffixSlots
	}
	c.suffixes[slot] = suffix{hash, uint16(at)}
}

// matches reports whether the name at off of the source is equal to the one at `at` of
// dst. In the question, case does not matter.
func (c *composer) matches(off, at int) bool {
	for {
		off, at = firstLabel(c.src, off), firstLabel(c.dst, at)
		n := int(c.src[off])
		a, b := c.src[off:off+1+n], c.dst[at:min(at+1+n, len(c.dst))]
		if string(a) != string(b) && (at >= c.question || !equalNames(a, b)) {
			return false
		}
		if n == 0 {
			return true
		}
		off += 1 + n
		if at += 1 + n; at >= len(c.dst) { // it is just being written
			return false
		}
	}
}

package cache

import "encoding/binary"

// A ring is a FIFO queue of entries in a part of the arena: new ones are written at its
// head, the oldest is at its tail. Entries do not wrap around the end of the memory.
type ring struct {
	mem        []byte
	base       int    // offset of mem in the arena of the shard
	head, tail uint64 // numbers of octets written and freed so far; the difference is in use
}

func (r *ring) used() int { return int(r.head - r.tail) }

func (r *ring) at(position uint64) entry { return r.mem[position%uint64(len(r.mem)):] }

// oldest returns the entry at the tail, and its offset in the arena.
func (r *ring) oldest() (e entry, offset int) {
	e = r.at(r.tail)
	return e[:e.size()], r.base + int(r.tail%uint64(len(r.mem)))
}

// isPadding reports whether e is padding or a removed entry.
func (r entry) isPadding() bool { return len(r) < headerSize || r.isRemoved() }

func (r *ring) pop() { r.tail += uint64(r.at(r.tail).size()) }

// spaceFor returns the number of octets that an entry of this size takes now, with the
// end of the memory if it must be skipped.
func (r *ring) spaceFor(size int) int {
	if toEnd := len(r.mem) - int(r.head%uint64(len(r.mem))); toEnd < size {
		return toEnd + size
	}
	return size
}

func (r *ring) fits(size int) bool { return r.used()+r.spaceFor(size) <= len(r.mem) }

// push adds an entry of this size at the head, which must fit, and returns it and its
// offset in the arena.
func (r *ring) push(size int) (e entry, offset int) {
	if skip := r.spaceFor(size) - size; skip > 0 {
		pad := r.at(r.head)
		binary.LittleEndian.PutUint32(pad[atSize:], uint32(skip))
		if skip >= headerSize { // smaller padding is known by its size
			pad.state().Store(flagRemoved)
		}
		r.head += uint64(skip)
	}
	at := r.head % uint64(len(r.mem))
	r.head += uint64(size)
	return r.mem[at : at+uint64(size)], r.base + int(at)
}

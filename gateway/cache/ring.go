package cache

import "encoding/binary"

// A ring is a queue of records in memory of its own: new ones are written at its
// head, the oldest is at its tail. Records are whole, and never move but through
// the queue.
type ring struct {
	mem        []byte
	base       int    // where mem begins in the memory of the shard
	head, tail uint64 // octets ever written, and given up; the difference is in use
}

func (r *ring) used() int { return int(r.head - r.tail) }

func (r *ring) at(position uint64) record { return r.mem[position%uint64(len(r.mem)):] }

// oldest returns the record at the tail, and where it is in the shard.
func (r *ring) oldest() (rec record, offset int) {
	rec = r.at(r.tail)
	return rec[:rec.size()], r.base + int(r.tail%uint64(len(r.mem)))
}

// isPadding reports whether the record, the oldest, is of no more use.
func (r record) isPadding() bool { return len(r) < headSize || r.isDead() }

// drop gives up the record at the tail.
func (r *ring) drop() { r.tail += uint64(r.at(r.tail).size()) }

// needs returns how much room a record of this size takes now: records don't
// wrap around, so the end of the memory may have to be skipped.
func (r *ring) needs(size int) int {
	if toEnd := len(r.mem) - int(r.head%uint64(len(r.mem))); toEnd < size {
		return toEnd + size
	}
	return size
}

// fits reports whether there is room for a record.
func (r *ring) fits(size int) bool { return r.used()+r.needs(size) <= len(r.mem) }

// push makes room at the head for a record, for which it fits, and returns it
// and where it is in the shard.
func (r *ring) push(size int) (rec record, offset int) {
	if skip := r.needs(size) - size; skip > 0 {
		pad := r.at(r.head)
		binary.LittleEndian.PutUint32(pad[atSize:], uint32(skip))
		if skip >= headSize { // or else its size tells that it is none
			pad.state().Store(flagDead)
		}
		r.head += uint64(skip)
	}
	at := r.head % uint64(len(r.mem))
	r.head += uint64(size)
	return r.mem[at : at+uint64(size)], r.base + int(at)
}

package cache

import (
	"encoding/binary"
	"math/bits"
)

// An index maps hashes to entries: a hash table with open addressing and linear
// probing. A slot has the hash in its upper half and the offset of the entry in the
// shard, divided by 8, plus 1, in its lower half. The table is a byte slice as it is in
// the same memory as the entries.
type index struct {
	slots []byte
	n     uint32 // number of slots
	used  uint32 // number of slots in use
}

const slotSize = 8

func (x *index) slot(i uint32) uint64       { return binary.NativeEndian.Uint64(x.slots[i*slotSize:]) }
func (x *index) setSlot(i uint32, s uint64) { binary.NativeEndian.PutUint64(x.slots[i*slotSize:], s) }

// home returns the slot at which the search for a hash begins. It distributes hashes
// evenly over the slots without a division.
func (x *index) home(hash uint32) uint32 {
	high, _ := bits.Mul32(hash, x.n)
	return high
}

func (x *index) next(i uint32) uint32 {
	if i++; i == x.n {
		return 0
	}
	return i
}

// full reports whether 4/5 of the slots are in use: with more, searches get long.
func (x *index) full() bool { return x.used >= x.n/5*4 }

func offset(slot uint64) int { return int(uint32(slot)-1) * 8 }

func makeSlot(hash uint32, offset int) uint64 { return uint64(hash)<<32 | uint64(offset/8+1) }

// insert adds an entry. There must be a free slot.
func (x *index) insert(hash uint32, offset int) {
	i := x.home(hash)
	for x.slot(i) != 0 {
		i = x.next(i)
	}
	x.setSlot(i, makeSlot(hash, offset))
	x.used++
}

func (x *index) move(hash uint32, from, to int) {
	x.setSlot(x.slotOf(makeSlot(hash, from)), makeSlot(hash, to))
}

func (x *index) remove(hash uint32, offset int) {
	hole := x.slotOf(makeSlot(hash, offset))
	x.used--
	// Later slots of the same search are moved into the hole, so that searches can end at
	// the first free slot.
	for i := x.next(hole); x.slot(i) != 0; i = x.next(i) {
		home := x.home(uint32(x.slot(i) >> 32))
		if x.distance(home, i) >= x.distance(hole, i) {
			x.setSlot(hole, x.slot(i))
			hole = i
		}
	}
	x.setSlot(hole, 0)
}

func (x *index) distance(from, to uint32) uint32 {
	if to >= from {
		return to - from
	}
	return to + x.n - from
}

// slotOf returns the position of a slot's value, which must be in the table.
func (x *index) slotOf(slot uint64) uint32 {
	i := x.home(uint32(slot >> 32))
	for x.slot(i) != slot {
		if x.slot(i) == 0 {
			panic("BUG: an entry is not in the index")
		}
		i = x.next(i)
	}
	return i
}

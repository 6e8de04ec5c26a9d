package cache

import (
	"encoding/binary"
	"math/bits"
)

// An index finds records by their hashes: a table with open addressing and
// linear probing. A slot has the hash in its upper half and, in its lower, where
// in the shard the record begins, in steps of 8 and counted from 1. It is bytes
// rather than numbers for it lives in the same memory as the records.
type index struct {
	slots []byte
	n     uint32 // slots
	used  uint32
}

const slotSize = 8

func (x *index) slot(i uint32) uint64       { return binary.NativeEndian.Uint64(x.slots[i*slotSize:]) }
func (x *index) setSlot(i uint32, s uint64) { binary.NativeEndian.PutUint64(x.slots[i*slotSize:], s) }

// home returns where the search for a hash begins: it spreads all hashes evenly
// over the slots, without a division.
func (x *index) home(hash uint32) uint32 {
	high, _ := bits.Mul32(hash, x.n)
	return high
}

func (x *index) after(i uint32) uint32 {
	if i++; i == x.n {
		return 0
	}
	return i
}

// full reports whether one more would make searches long.
func (x *index) full() bool { return x.used >= x.n/5*4 }

// offset returns where the record of a slot begins.
func offset(slot uint64) int { return int(uint32(slot)-1) * 8 }

func makeSlot(hash uint32, offset int) uint64 { return uint64(hash)<<32 | uint64(offset/8+1) }

// insert adds a record. There must be room.
func (x *index) insert(hash uint32, offset int) {
	i := x.home(hash)
	for x.slot(i) != 0 {
		i = x.after(i)
	}
	x.setSlot(i, makeSlot(hash, offset))
	x.used++
}

// move notes that a record has moved.
func (x *index) move(hash uint32, from, to int) {
	x.setSlot(x.find(makeSlot(hash, from)), makeSlot(hash, to))
}

// remove takes a record out.
func (x *index) remove(hash uint32, offset int) {
	hole := x.find(makeSlot(hash, offset))
	x.used--
	// Whoever was pushed past the hole moves up, so that searches may end at
	// the first free slot.
	for i := x.after(hole); x.slot(i) != 0; i = x.after(i) {
		home := x.home(uint32(x.slot(i) >> 32))
		if x.distance(home, i) >= x.distance(hole, i) {
			x.setSlot(hole, x.slot(i))
			hole = i
		}
	}
	x.setSlot(hole, 0)
}

// distance returns how many steps lead from one slot to another.
func (x *index) distance(from, to uint32) uint32 {
	if to >= from {
		return to - from
	}
	return to + x.n - from
}

// find returns where a slot is that is there.
func (x *index) find(slot uint64) uint32 {
	i := x.home(uint32(slot >> 32))
	for x.slot(i) != slot {
		if x.slot(i) == 0 {
			panic("BUG: a record is not in the index")
		}
		i = x.after(i)
	}
	return i
}

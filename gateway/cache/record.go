package cache

import (
	"encoding/binary"
	"sync/atomic"
	"time"
	"unsafe"

	"dotgate/gateway/wire"
)

// A record is one cached answer, as bytes. It begins with a head of numbers, in
// little endian; the answer in stored form follows, and zeros up to the next
// multiple of 8.
type record []byte

const (
	atSize   = 0  // 4: of the whole record; what it occupies, be it more than it needs
	atHash   = 4  // 4: its hash within its shard
	atStored = 8  // 8: when the answer came, in nanoseconds since the epoch of the cache
	atLife   = 16 // 4: for how many seconds it is fresh
	atRetry  = 20 // 4: until when a failure of upstreams to renew it counts, in seconds since the epoch
	atLength = 24 // 4: of the answer
	atState  = 28 // 4: what hits change, which share the lock: uses, hits, flags
	headSize = 32
)

// The parts of a record's state. Uses are hits since it was last looked at for
// eviction, up to maxUses; hits are those since the answer came, up to popular.
const (
	oneUse      = 1
	allUses     = 0xff
	oneHit      = 1 << 8
	allHits     = 0xff << 8
	flagDead    = 1 << 16 // not in the index any more, or padding
	flagRenewed = 1 << 17 // somebody was told to renew it
)

const (
	maxUses = 3 // as S3-FIFO has it: two bits
	popular = 3 // hits that make an answer worth renewing before it ends
)

func recordSize(answerLen int) int { return (headSize + answerLen + 7) &^ 7 }

func (r record) size() int    { return int(binary.LittleEndian.Uint32(r[atSize:])) }
func (r record) hash() uint32 { return binary.LittleEndian.Uint32(r[atHash:]) }
func (r record) stored() time.Duration {
	return time.Duration(binary.LittleEndian.Uint64(r[atStored:]))
}
func (r record) life() uint32       { return binary.LittleEndian.Uint32(r[atLife:]) }
func (r record) retry() uint32      { return binary.LittleEndian.Uint32(r[atRetry:]) }
func (r record) setRetry(at uint32) { binary.LittleEndian.PutUint32(r[atRetry:], at) }

// bytes returns the answer in stored form.
func (r record) bytes() []byte {
	return r[headSize : headSize+int(binary.LittleEndian.Uint32(r[atLength:]))]
}

func (r record) answer() wire.Answer { return wire.Stored(r.bytes()) }

func (r record) age(now time.Duration) time.Duration { return now - r.stored() }

// left returns how long the answer is still fresh; negative: for how long it
// has been stale.
func (r record) left(now time.Duration) time.Duration {
	return time.Duration(r.life())*time.Second - r.age(now)
}

// fill makes r, which is large enough, the record of an answer.
func (r record) fill(size int, hash uint32, a wire.Answer, q wire.Query, stored time.Duration, life uint32) {
	binary.LittleEndian.PutUint32(r[atSize:], uint32(size))
	binary.LittleEndian.PutUint32(r[atHash:], hash)
	r.state().Store(0)
	r.renew(a, q, stored, life)
}

// renew replaces the answer of r.
func (r record) renew(a wire.Answer, q wire.Query, stored time.Duration, life uint32) {
	binary.LittleEndian.PutUint64(r[atStored:], uint64(stored))
	binary.LittleEndian.PutUint32(r[atLife:], life)
	binary.LittleEndian.PutUint32(r[atRetry:], 0)
	binary.LittleEndian.PutUint32(r[atLength:], uint32(a.StoredLen()))
	r.state().And(allUses)
	a.AppendStored(r[headSize:headSize], q)
}

// state is the one part of a record that those who share the lock may change.
// Records begin at multiples of 8, in memory that begins at such a one.
func (r record) state() *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&r[atState])) }

func (r record) isDead() bool { return r.state().Load()&flagDead != 0 }

func (r record) uses() uint32 { return r.state().Load() & allUses }

// hits returns how many clients got the answer, as far as that is counted.
func (r record) hits() int { return int(r.state().Load() & allHits / oneHit) }

// used notes a hit. If the record is ending, one of those who come once it is
// popular is told that it is due.
func (r record) used(ending bool) (due bool) {
	for {
		old := r.state().Load()
		now := old
		if now&allUses < maxUses {
			now += oneUse
		}
		if now&allHits < popular*oneHit {
			now += oneHit
		}
		due = ending && now&allHits == popular*oneHit && old&flagRenewed == 0
		if due {
			now |= flagRenewed
		}
		// Most often nothing changes, and cores don't contend for the line.
		if now == old || r.state().CompareAndSwap(old, now) {
			return due
		}
	}
}

package cache

import (
	"encoding/binary"
	"sync/atomic"
	"time"
	"unsafe"

	"dotgate/gateway/wire"
)

// An entry is a cached answer as bytes: a header of numbers in little endian, the answer
// in stored form, and zeros up to the next multiple of 8.
type entry []byte

const (
	atSize     = 0  // 4: octets that the entry occupies, which may be more than it needs
	atHash     = 4  // 4: hash within its shard
	atStored   = 8  // 8: when the answer was stored, in nanoseconds since the epoch of the cache
	atLife     = 16 // 4: lifetime in seconds
	atRetry    = 20 // 4: end of the delay after upstreams failed to renew it, in seconds since the epoch
	atLength   = 24 // 4: length of the answer
	atState    = 28 // 4: uses, hits and flags, which change under the read lock
	headerSize = 32
)

// The parts of an entry's state. Uses are hits since the entry was last considered for
// eviction, up to maxUses. Hits are those since the answer was stored, up to popularHits.
const (
	oneUse       = 1
	allUses      = 0xff
	oneHit       = 1 << 8
	allHits      = 0xff << 8
	flagRemoved  = 1 << 16 // not in the index any more, or padding
	flagRenewing = 1 << 17 // a caller was told to renew it
)

const (
	maxUses     = 3 // two bits, as in S3-FIFO
	popularHits = 3 // number of hits from which on an answer is renewed before it expires
)

func entrySize(answerLen int) int { return (headerSize + answerLen + 7) &^ 7 }

func (e entry) size() int    { return int(binary.LittleEndian.Uint32(e[atSize:])) }
func (e entry) hash() uint32 { return binary.LittleEndian.Uint32(e[atHash:]) }
func (e entry) storedAt() time.Duration {
	return time.Duration(binary.LittleEndian.Uint64(e[atStored:]))
}
func (e entry) lifetime() uint32   { return binary.LittleEndian.Uint32(e[atLife:]) }
func (e entry) retry() uint32      { return binary.LittleEndian.Uint32(e[atRetry:]) }
func (e entry) setRetry(at uint32) { binary.LittleEndian.PutUint32(e[atRetry:], at) }

// bytes returns the answer in stored form.
func (e entry) bytes() []byte {
	return e[headerSize : headerSize+int(binary.LittleEndian.Uint32(e[atLength:]))]
}

func (e entry) answer() wire.Answer { return wire.Stored(e.bytes()) }

func (e entry) age(now time.Duration) time.Duration { return now - e.storedAt() }

// remaining returns the time until the answer expires. It is negative if it is stale.
func (e entry) remaining(now time.Duration) time.Duration {
	return time.Duration(e.lifetime())*time.Second - e.age(now)
}

// fill makes e, which must be large enough, the entry of an answer.
func (e entry) fill(size int, hash uint32, a wire.Answer, q wire.Query, stored time.Duration, life uint32) {
	binary.LittleEndian.PutUint32(e[atSize:], uint32(size))
	binary.LittleEndian.PutUint32(e[atHash:], hash)
	e.state().Store(0)
	e.replace(a, q, stored, life)
}

func (e entry) replace(a wire.Answer, q wire.Query, stored time.Duration, life uint32) {
	binary.LittleEndian.PutUint64(e[atStored:], uint64(stored))
	binary.LittleEndian.PutUint32(e[atLife:], life)
	binary.LittleEndian.PutUint32(e[atRetry:], 0)
	binary.LittleEndian.PutUint32(e[atLength:], uint32(a.StoredLen()))
	e.state().And(allUses)
	a.AppendStored(e[headerSize:headerSize], q)
}

// state is the only part of an entry that may be changed under the read lock. It is
// aligned: the arena and all entries begin at multiples of 8.
func (e entry) state() *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&e[atState])) }

func (e entry) isRemoved() bool { return e.state().Load()&flagRemoved != 0 }

func (e entry) uses() uint32 { return e.state().Load() & allUses }

// hits returns the number of hits since the answer was stored, up to popularHits.
func (e entry) hits() int { return int(e.state().Load() & allHits / oneHit) }

// hit counts a hit. If the entry expires soon and is popular, renew is true for one
// caller.
func (e entry) hit(ending bool) (renew bool) {
	for {
		old := e.state().Load()
		now := old
		if now&allUses < maxUses {
			now += oneUse
		}
		if now&allHits < popularHits*oneHit {
			now += oneHit
		}
		renew = ending && now&allHits == popularHits*oneHit && old&flagRenewing == 0
		if renew {
			now |= flagRenewing
		}
		// Usually nothing changes, and cores do not contend for the cache line.
		if now == old || e.state().CompareAndSwap(old, now) {
			return renew
		}
	}
}

package gateway

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	// limitSets is how many sets of prefixes a limiter has: with three in each,
	// it knows 49 152 of them in 1 MiB.
	limitSets = 1 << 14
	limitWays = 3
)

// A limiter bounds how often each prefix gets something. It is a token bucket
// for each, kept as the one instant at which the bucket will be full again, as
// in ATM's generic cell rate algorithm. The table does not grow: a newcomer takes
// the place of the prefix, of those with the same hash, that will have its full
// burst soonest, and so loses least by being forgotten.
//
// There are libraries for one bucket. None keeps 50 000 in a bounded table.
type limiter struct {
	interval int64 // nanoseconds for each token
	burst    int64 // nanoseconds until an empty bucket is full
	seed     maphash.Seed
	epoch    time.Time
	sets     []limitSet
}

// A limitSet is a cache line.
type limitSet struct {
	mu   sync.Mutex // guards the rest
	keys [limitWays]uint64
	full [limitWays]int64 // nanoseconds since the epoch
}

func newLimiter(rate, burst int) *limiter {
	interval := int64(time.Second) / int64(rate)
	return &limiter{
		interval: interval, burst: interval * int64(burst), seed: maphash.MakeSeed(),
		epoch: time.Now(), sets: make([]limitSet, limitSets),
	}
}

// prefixOf returns what counts as one client: an IPv4 address, and of an IPv6
// address what a provider gives to one home.
func prefixOf(addr netip.Addr) netip.Prefix {
	bits := 56
	if addr.Is4() {
		bits = 32
	}
	prefix, err := addr.Prefix(bits)
	if err != nil { // it is no address
		return netip.Prefix{}
	}
	return prefix
}

// take takes a token for the prefix of addr. It reports false if there is none.
func (l *limiter) take(addr netip.Addr) bool {
	key := maphash.Comparable(l.seed, prefixOf(addr))
	now := int64(time.Since(l.epoch))
	set := &l.sets[key%limitSets]
	set.mu.Lock()
	defer set.mu.Unlock()
	way := 0
	for i := range limitWays {
		if set.keys[i] == key {
			way = i
			break
		}
		if set.full[i] < set.full[way] {
			way = i
		}
	}
	if set.keys[way] != key {
		set.keys[way], set.full[way] = key, 0
	}
	full := max(set.full[way], now)
	if full+l.interval > now+l.burst {
		return false
	}
	set.full[way] = full + l.interval
	return true
}

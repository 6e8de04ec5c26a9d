package access

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	// limitSets is the number of sets of a limiter: with three prefixes in each, it knows 49 152
	// prefixes in 1 MiB.
	limitSets = 1 << 14
	limitWays = 3
)

// A limiter bounds how often each client prefix gets something: a token bucket for each, kept as
// the one instant at which the bucket will be full again, as in ATM's generic cell rate
// algorithm. The table does not grow. A new prefix replaces the one with the same hash whose
// bucket will be full soonest, which loses least by being forgotten.
//
// Libraries have single buckets; none keeps 50 000 in a bounded table.
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

// ClientPrefix returns the prefix that counts as one client: an IPv4 address, or an IPv6 /56,
// which providers give to one home.
func ClientPrefix(addr netip.Addr) netip.Prefix { return prefixOf(addr, 32, 56) }

// prefixOf returns the prefix of an IPv4 or IPv6 address with one of two lengths, or the zero
// Prefix if addr is no address.
func prefixOf(addr netip.Addr, bits4, bits6 int) netip.Prefix {
	bits := bits6
	if addr.Is4() {
		bits = bits4
	}
	prefix, _ := addr.Prefix(bits)
	return prefix
}

var hashSeed = maphash.MakeSeed()

// ClientHash returns a hash of the client's prefix, for wire.Query.WithClient. Evidence against
// an upstream needs several clients; the hash tells them apart without saying which they are. It
// is 0 for an unknown address.
func ClientHash(addr netip.Addr) uint16 {
	if !addr.IsValid() {
		return 0
	}
	return max(uint16(maphash.Comparable(hashSeed, ClientPrefix(addr))), 1)
}

// take takes a token for the prefix of addr. It reports false if there is none.
func (l *limiter) take(addr netip.Addr) bool {
	key := maphash.Comparable(l.seed, ClientPrefix(addr))
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

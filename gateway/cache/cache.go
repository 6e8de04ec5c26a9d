// Package cache is the answer cache of the gateway.
//
// Put stores answers of upstreams, Append makes replies from them: fresh ones until
// their TTL ends, and stale ones for up to max_stale if no upstream answers (RFC 8767).
// Errors of upstreams are cached for 1 to 5 seconds (RFC 9520). An entry is removed only
// to make space for another one, or when it is flushed: age alone removes none.
//
// A cache consists of shards with a lock each, in one block of memory of Options.Size
// outside the Go heap. A shard evicts by S3-FIFO, so that names that are asked for once
// do not evict names in use. Hits allocate nothing. An answer larger than 1/16 of a
// shard is not cached. The cache never asks upstreams: FreshRenew and Stale tell the
// gateway to do so.
//
// Save and Load keep the cache in a file over restarts, WriteHot and ReadHot copy it to
// another gateway. All that is read is verified as if an upstream had sent it.
//
// The store was chosen after comparing it with otter, whose W-TinyLFU resists floods of
// random names as well (store_test.go measures both):
//
//	                              dotgate   otter
//	octets for each name          130       274 on the heap, 360 with garbage
//	a hit, with its reply         0.8 µs    1.2 µs, no allocation in either
//	an insertion                  1.3 µs    6 µs, 9 allocations
//	hits, 300 000 names           91.6 %    85.8 %    (Zipf 1.01, 16 MiB)
//	hits, 2 000 000 names         78.3 %    74.2 %
//	hits, and 2 of a flood each   81.6 %    78.0 %
//
// The same memory holds twice as many names, and the garbage collector does not scan it.
package cache

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/bits"
	"sync/atomic"
	"time"

	"dotgate/configs/bounds"
	"dotgate/gateway/wire"
)

const (
	// staleTTL is the TTL of stale answers (RFC 8767 section 5).
	staleTTL = 30
	// maxStaleNXDomain is the longest time that NXDOMAIN may be stale: a new name should
	// become visible soon. NODATA may be stale for longer: mostly a name has no AAAA
	// records, and clients that get an error for those treat the whole name as broken.
	maxStaleNXDomain = time.Minute
	// minFailure and maxFailure are the least and the longest time, in seconds, that an
	// upstream's error is cached (RFC 9520 section 3.2). It doubles with each repetition.
	minFailure, maxFailure = 1, 5
)

// A Cache stores answers. The zero Cache stores none. All methods may be called
// concurrently.
type Cache struct {
	options atomic.Pointer[Options] // nil in the zero Cache only
	store   atomic.Pointer[store]   // nil if nothing is cached
	seed    maphash.Seed
	clock   clock
	evicted atomic.Uint64                     // number of evictions from former stores
	bound   atomic.Pointer[[sha256.Size]byte] // see Bind
	changes atomic.Uint32                     // see Changes
}

// A store is the memory of a Cache.
type store struct {
	mem    []byte
	shards []shard // a power of two
}

// New checks all options and returns an empty Cache. The caller must close it.
func New(o Options) (*Cache, error) {
	if err := bounds.Err("cache.", o.Check); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	// The epoch is before the age of any answer in a file.
	c := &Cache{seed: maphash.MakeSeed()}
	c.Bind(new([sha256.Size]byte))
	c.clock.start(time.Now().Add(-2*maxStale), slept)
	first, err := newStore(o)
	if err != nil {
		return nil, err
	}
	c.options.Store(&o)
	c.store.Store(first)
	return c, nil
}

// newStore returns an empty store, or nil if the size is 0.
func newStore(o Options) (*store, error) {
	if o.Size == 0 {
		return nil, nil
	}
	mem, err := allocate(int(o.Size))
	if err != nil {
		return nil, fmt.Errorf("cache.size: allocate %v: %w", o.Size, err)
	}
	st := &store{mem: mem, shards: make([]shard, shardsFor(int(o.Size)))}
	each := int(o.Size) / len(st.shards) &^ 63
	for i := range st.shards {
		st.shards[i].setMemory(mem[i*each:][:each:each])
		st.shards[i].maxStale = o.MaxStale
	}
	return st, nil
}

// shardsFor returns the number of shards: a power of two up to 256, which is enough for
// a large machine's cores, with at least minSize each.
func shardsFor(size int) int {
	return 1 << min(bits.Len(uint(size/minSize))-1, 8)
}

// Close frees the memory. The Cache is empty from then on.
func (c *Cache) Close() { c.store.Swap(nil).close() }

// close frees the memory. No new reference to st may be taken. Goroutines that have one
// already find its shards empty.
func (st *store) close() {
	if st == nil {
		return
	}
	for i := range st.shards {
		s := &st.shards[i]
		s.mu.Lock()
		s.arena, s.probation, s.main, s.index, s.ghosts = nil, ring{}, ring{}, index{}, nil
		s.mu.Unlock()
	}
	free(st.mem)
}

// StaleAfter returns the time to wait for upstreams before a stale answer is sent.
func (c *Cache) StaleAfter() time.Duration {
	if o := c.options.Load(); o != nil {
		return o.StaleAfter
	}
	return 0
}

func (c *Cache) now() time.Duration { return c.clock.now() }

func (c *Cache) shards() []shard {
	if st := c.store.Load(); st != nil {
		return st.shards
	}
	return nil
}

// shardFor returns the shard for a key, and the hash of the key in it. The shard is nil
// if nothing is cached.
func (c *Cache) shardFor(key []byte) (*shard, uint32) {
	st := c.store.Load()
	if st == nil {
		return nil, 0
	}
	return st.shardFor(maphash.Bytes(c.seed, key))
}

// find returns the entry for q, its shard, locked for reading, and the time. If there is no
// entry, the shard is nil.
func (c *Cache) find(q wire.Query) (s *shard, e entry, now time.Duration) {
	var buf [wire.MaxKey]byte
	key := q.AppendKey(buf[:0])
	now = c.now()
	for {
		s, hash := c.shardFor(key)
		if s == nil {
			return nil, nil, now
		}
		s.mu.RLock()
		if e = s.find(hash, key); e != nil {
			return s, e, now
		}
		closed := s.index.n == 0
		s.mu.RUnlock()
		if !closed {
			return nil, nil, now
		}
		// Another store has replaced this one.
	}
}

func (st *store) shardFor(h uint64) (*shard, uint32) {
	return &st.shards[int(h>>32)&(len(st.shards)-1)], uint32(h)
}

// Result is the result of a cache look-up.
type Result uint8

const (
	Miss       Result = iota // no usable answer
	Fresh                    // a fresh answer
	FreshRenew               // a fresh answer that is popular and expires soon: the caller must renew it
	Stale                    // a stale answer, which upstreams failed to renew a moment ago
	Expired                  // no usable answer, but one that may be, should upstreams fail
)

// Changes returns a number that differs from an earlier one if answers were put into the
// cache in between: else a look-up that was a Miss would be one again.
func (c *Cache) Changes() uint32 { return c.changes.Load() }

// Append appends the reply to q if no upstream needs to be asked; the result is neither Miss
// nor Expired then. It doesn't allocate.
// Only one caller gets FreshRenew for an answer.
func (c *Cache) Append(dst []byte, q wire.Query) ([]byte, Result) {
	s, e, now := c.find(q)
	if s == nil {
		return dst, Miss
	}
	defer s.mu.RUnlock()
	a, left := e.answer(), e.remaining(now)
	if left > 0 {
		result := Fresh
		if e.hit(endsSoon(e, left)) {
			result = FreshRenew
		}
		return a.AppendReply(dst, q, c.termsAt(a, e.age(now))), result
	}
	if now < time.Duration(e.retry())*time.Second && c.mayBeStale(a.Kind(), left) {
		e.hit(false)
		return a.AppendReply(dst, q, staleTerms(a.Kind())), Stale
	}
	return dst, Expired
}

// endsSoon reports whether at most a tenth of e's lifetime remains. It is false for
// errors, which are not renewed.
func endsSoon(e entry, left time.Duration) bool {
	return left <= time.Duration(e.lifetime())*time.Second/10 && e.answer().Kind() != wire.Failure
}

// AppendStale appends the reply to q if there is a fresh or stale answer that is no
// error. It doesn't allocate.
func (c *Cache) AppendStale(dst []byte, q wire.Query) ([]byte, Result) {
	s, e, now := c.find(q)
	if s == nil {
		return dst, Miss
	}
	defer s.mu.RUnlock()
	if !c.usable(e, now) || e.answer().Kind() == wire.Failure {
		return dst, Miss
	}
	a := e.answer()
	e.hit(false)
	if e.remaining(now) > 0 {
		return a.AppendReply(dst, q, c.termsAt(a, e.age(now))), Fresh
	}
	return a.AppendReply(dst, q, staleTerms(a.Kind())), Stale
}

// Lookup returns what the cache has for q: Fresh, Stale (an answer that may be sent while
// no upstream answers), or Miss. It counts no hit.
func (c *Cache) Lookup(q wire.Query) Result {
	s, e, now := c.find(q)
	if s == nil {
		return Miss
	}
	defer s.mu.RUnlock()
	switch {
	case !c.usable(e, now):
		return Miss
	case e.remaining(now) > 0:
		return Fresh
	}
	return Stale
}

// Get returns a copy of the fresh answer to q, if there is one, and its terms.
func (c *Cache) Get(q wire.Query) (a wire.Answer, t wire.Terms, ok bool) {
	s, e, now := c.find(q)
	if s == nil {
		return a, t, false
	}
	defer s.mu.RUnlock()
	if e.remaining(now) <= 0 {
		return a, t, false
	}
	e.hit(false)
	a = wire.Stored(bytes.Clone(e.bytes()))
	return a, c.termsAt(a, e.age(now)), true
}

// mayBeStale reports whether an answer that expired -left ago may still be sent.
func (c *Cache) mayBeStale(kind wire.Kind, left time.Duration) bool {
	switch kind {
	case wire.Failure:
		return false
	case wire.NoName:
		return -left < min(c.options.Load().MaxStale, maxStaleNXDomain)
	}
	return -left < c.options.Load().MaxStale
}

func staleTerms(kind wire.Kind) wire.Terms {
	t := wire.Terms{MinTTL: staleTTL, MaxTTL: staleTTL, EDE: wire.EDE{Code: wire.EDEStale}}
	if kind == wire.NoName {
		t.EDE.Code = wire.EDEStaleNXDomain
	}
	return t
}

// Terms returns the terms of a new answer. Its TTLs are the same as in replies from the
// cache.
func (c *Cache) Terms(a wire.Answer) wire.Terms {
	if c.store.Load() == nil {
		return wire.Terms{}
	}
	return c.termsAt(a, 0)
}

func (c *Cache) termsAt(a wire.Answer, age time.Duration) wire.Terms {
	t, o := wire.Terms{Age: age}, c.options.Load()
	switch a.Kind() {
	case wire.Positive:
		if a.TTL() > 0 {
			t.MinTTL = seconds(o.MinTTL)
		}
		t.MaxTTL = seconds(o.MaxTTL)
	case wire.NoData, wire.NoName:
		t.MaxTTL = seconds(min(o.MaxTTL, o.MaxNegativeTTL))
		// Clients cache a negative answer by the TTL of its SOA record (RFC 2308 section
		// 5), so that is cut to the TTL of the answer.
		if a.TTL() > 0 {
			t.MaxTTL = min(t.MaxTTL, a.TTL())
		}
	}
	return t
}

func seconds(d time.Duration) uint32 { return uint32(min(d/time.Second, 1<<31-1)) }

// Put stores a, the answer to q, for its TTL within the limits of the options.
//
// An error of an upstream is cached for some seconds. It never replaces an answer that
// is fresh or may be stale: Append returns that one as Stale for these seconds.
func (c *Cache) Put(q wire.Query, a wire.Answer) {
	if c.store.Load() == nil || a.IsZero() {
		return
	}
	lifetime, ok := c.lifetime(a)
	if !ok {
		return
	}
	var buf [wire.MaxKey]byte
	key := q.AppendKey(buf[:0])
	now := c.now()
	s, hash := c.shardFor(key)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer c.changes.Add(1)
	if a.Kind() == wire.Failure {
		c.putFailure(s, hash, key, a, q, now)
		return
	}
	s.put(hash, key, a, q, now, lifetime, now, false)
}

// lifetime returns the number of seconds that a is fresh. It reports false for a TTL of
// 0, with which an answer must not be cached.
func (c *Cache) lifetime(a wire.Answer) (uint32, bool) {
	if a.Kind() == wire.Failure {
		return minFailure, true
	}
	t := c.termsAt(a, 0)
	return min(max(a.TTL(), t.MinTTL), t.MaxTTL), a.TTL() > 0
}

func (c *Cache) putFailure(s *shard, hash uint32, key []byte, a wire.Answer, q wire.Query, now time.Duration) {
	life := uint32(minFailure)
	if e := s.find(hash, key); e != nil {
		kind, left := e.answer().Kind(), e.remaining(now)
		switch {
		case kind == wire.Failure && -left < maxFailure*time.Second:
			life = min(2*e.lifetime(), maxFailure)
		case kind != wire.Failure && (left > 0 || c.mayBeStale(kind, left)):
			e.setRetry(seconds(now) + maxFailure)
			return
		}
	}
	s.put(hash, key, a, q, now, life, now, false)
}

// Usage is the memory and the number of answers of a Cache.
type Usage struct {
	Answers int
	Bytes   int    // in use by answers, with their headers and the index
	Size    int    // maximum of Bytes
	Evicted uint64 // number of answers evicted since New
}

// Usage returns the current usage.
func (c *Cache) Usage() Usage {
	u := Usage{Evicted: c.evicted.Load()}
	st := c.store.Load()
	if st == nil {
		return u
	}
	u.Size = len(st.mem)
	for i := range st.shards {
		s := &st.shards[i]
		s.mu.RLock()
		u.Answers += int(s.index.used)
		u.Bytes += s.probation.used() + s.main.used() + len(s.index.slots) + len(s.ghosts)
		u.Evicted += s.evicted
		s.mu.RUnlock()
	}
	return u
}

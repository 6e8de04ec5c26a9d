package balancer

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

// A bucket holds what each query earns, in thousandths, up to a limit.
type bucket struct {
	level, income, limit int64
}

func newBucket(income float64, limit int64) bucket {
	return bucket{level: limit * 1000, income: int64(income * 1000), limit: limit * 1000}
}

func (b *bucket) earn() {
	if level := atomic.LoadInt64(&b.level); level < b.limit {
		atomic.AddInt64(&b.level, b.income)
	}
}

// spend takes one, if there is one.
func (b *bucket) spend() bool {
	if atomic.AddInt64(&b.level, -1000) >= 0 {
		return true
	}
	atomic.AddInt64(&b.level, 1000)
	return false
}

// A share is the part of recent events that were bad: a moving average over
// about sixteen of them.
type share struct{ bits atomic.Uint64 }

func (s *share) value() float64 { return math.Float64frombits(s.bits.Load()) }

// add counts an event. Of two at the same moment, one may get lost.
func (s *share) add(bad bool) {
	old := s.bits.Load()
	v := math.Float64frombits(old)
	if !bad && v < 0.001 {
		return // nothing to write that anybody would notice
	}
	target := 0.0
	if bad {
		target = 1
	}
	s.bits.CompareAndSwap(old, math.Float64bits(v+(target-v)/16))
}

// tryEvery is how often a query goes to members that are down, when all are.
const tryEvery = 250 * time.Millisecond

// mayTry reports whether this query is the one, among those that find nobody
// up, to see whether that is still so.
func (b *Balancer) mayTry() bool {
	now := time.Now().UnixNano()
	last := b.lastTry.Load()
	return now-last >= int64(tryEvery) && b.lastTry.CompareAndSwap(last, now)
}

// names remembers names for a while, a bounded number of them.
type names struct {
	mu   sync.Mutex
	seen map[uint64]time.Time // by hash of the name
}

const (
	namesMax   = 1024
	namesWhile = 5 * time.Second // what RFC 9520 section 3.2 asks for at least
)

// firstInAWhile reports whether it was not asked about q's name lately.
func (n *names) firstInAWhile(q wire.Query) bool {
	h := q.NameHash()
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	if at, ok := n.seen[h]; ok && now.Sub(at) < namesWhile {
		return false
	}
	if n.seen == nil || len(n.seen) >= namesMax {
		n.seen = make(map[uint64]time.Time)
	}
	n.seen[h] = now
	return true
}

package balancer

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

// A bucket is a budget: each query adds to it, up to a limit. It counts thousandths.
type bucket struct {
	level, income, limit int64
}

func newBucket(income float64, limit int64) bucket {
	return bucket{level: limit * 1000, income: int64(income * 1000), limit: limit * 1000}
}

func (b *bucket) add() {
	if level := atomic.LoadInt64(&b.level); level < b.limit {
		atomic.AddInt64(&b.level, b.income)
	}
}

// take takes one unit. It reports false if there is none.
func (b *bucket) take() bool {
	if atomic.AddInt64(&b.level, -1000) >= 0 {
		return true
	}
	atomic.AddInt64(&b.level, 1000)
	return false
}

const (
	// hedgeShare is the number of hedges per query in the long run, and hedgeBurst the
	// number of hedges at once.
	hedgeShare = 0.05
	hedgeBurst = 150
	// retryShare and retryBurst are the same for second and further retries.
	retryShare = 0.2
	retryBurst = 100
	// thirdShare and thirdBurst are the same for third attempts at a name that two
	// healthy members do not answer.
	thirdShare = 0.02
	thirdBurst = 20
	// lossy is the share of recent attempts that were lost from which on hedges may be
	// paid from the budget of the retries.
	lossy = 0.15
)

// A price is the cost of an attempt: one unit of the first budget that has it. An attempt
// without budgets is free.
type price struct {
	budgets [2]*bucket
	once    bool // the attempt is made for the first of several queries for a name only
}

// pay takes the price of an attempt for q, and reports whether there was enough.
func (b *Balancer) pay(p price, q wire.Query) bool {
	if p.once && !b.broken.firstSeen(q) {
		return false
	}
	for _, budget := range p.budgets {
		if budget != nil && budget.take() {
			return true
		}
	}
	return p.budgets[0] == nil
}

// lossMemory is the number of events, about, that a share is the average of.
const lossMemory = 16

// A share is the share of recent events that were bad, as a moving average.
type share struct{ bits atomic.Uint64 }

func (s *share) value() float64 { return math.Float64frombits(s.bits.Load()) }

// add counts an event. One of two simultaneous events may get lost.
func (s *share) add(bad bool) {
	old := s.bits.Load()
	v := math.Float64frombits(old)
	if !bad && v < 0.001 {
		return // the change would be too small to be worth a write
	}
	target := 0.0
	if bad {
		target = 1
	}
	s.bits.CompareAndSwap(old, math.Float64bits(v+(target-v)/lossMemory))
}

// losses are the shares of recent attempts that gave no result, by record type: an
// upstream that never answers one type may answer all others. Several types share a
// place, but A, AAAA, HTTPS, PTR, TXT and SRV have one each.
type losses [13]share

func (l *losses) place(q wire.Query) *share { return &l[int(q.Type())%len(l)] }

// of returns the share for the type of q.
func (l *losses) of(q wire.Query) float64 { return l.place(q).value() }

// add counts an attempt for q.
func (l *losses) add(q wire.Query, lost bool) { l.place(q).add(lost) }

// most returns the largest share.
func (l *losses) most() (most float64) {
	for i := range l {
		most = max(most, l[i].value())
	}
	return most
}

const (
	// lateFor is how long an answer that took longer than silenceLimit is remembered.
	lateFor = 10 * time.Minute
	// quickPatience is what the patience with a member exceeds after a few answers that
	// took longer than silenceLimit.
	quickPatience = 250 * time.Millisecond
)

// A slowness is the duration of the last answer that took longer than silenceLimit. The
// answer may have been too late for its client, but the next queries wait for longer.
type slowness struct {
	ns atomic.Int64
	at atomic.Int64 // instant; 0: never
}

// learn records an answer that came at the instant now.
func (s *slowness) learn(took time.Duration, now int64) {
	if took > timing.silenceLimit {
		s.ns.Store(int64(took))
		s.at.Store(now)
	}
}

// slowAnswer returns the duration of a slow answer within lateFor, or 0. It returns 0 if
// answers have been quick since: then that one had just waited for the end of an outage, or
// of a pause of this process.
func (b *Balancer) slowAnswer(m *member, now time.Time) time.Duration {
	at := m.slow.at.Load()
	if at == 0 || b.instant(now)-at > int64(lateFor) {
		return 0
	}
	if _, patience := m.Latency(); patience < quickPatience && b.instant(m.LastAnswer()) > at {
		return 0
	}
	return time.Duration(m.slow.ns.Load())
}

// downTryInterval is the interval at which queries are sent although all members are
// down.
const downTryInterval = 250 * time.Millisecond

// mayAskDown reports whether this query is sent although all members are down, to find
// out whether one is back. That holds for one query in downTryInterval of monotonic time.
func (b *Balancer) mayAskDown() bool {
	last := b.lastDownTry.Load()
	if last != nil && time.Since(*last) < downTryInterval {
		return false
	}
	return b.lastDownTry.CompareAndSwap(last, new(time.Now()))
}

// brokenNames remembers names that members did not answer, a bounded number of them.
type brokenNames struct {
	mu   sync.Mutex
	seen map[uint64]time.Time // by hash of the name
}

const (
	brokenNamesMax = 1024
	brokenNamesFor = 5 * time.Second // the least that RFC 9520 section 3.2 requires
)

// forget removes the name of q, which has an answer after all.
func (n *brokenNames) forget(q wire.Query) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.seen, q.NameHash())
}

// firstSeen reports whether the name of q is new, and remembers it for brokenNamesFor.
func (n *brokenNames) firstSeen(q wire.Query) bool {
	h := q.NameHash()
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	if at, ok := n.seen[h]; ok && now.Sub(at) < brokenNamesFor {
		return false
	}
	if n.seen == nil || len(n.seen) >= brokenNamesMax {
		n.seen = make(map[uint64]time.Time)
	}
	n.seen[h] = now
	return true
}

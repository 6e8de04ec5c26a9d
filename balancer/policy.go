package balancer

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

const (
	// exploration is the percentage of queries that go to a random member first, so that
	// a member that has become faster is noticed.
	exploration = 5
	// band is the ratio of costs up to which two members count as equal. Measurements of
	// identical members differ by as much.
	band = 1.3
	// outclassed is the ratio to the least cost above which a member is asked first for
	// exploration only.
	outclassed = 3
	// granularity is added to latencies, so that differences too small to notice do not
	// decide.
	granularity = 4 * time.Millisecond
	// slowStartTime is how long a member that was down takes to get its full share.
	slowStartTime = 10 * time.Second
	// lossTolerance is the share of all queries that a lossy member may lose because it
	// was asked first. It is below hedgeShare, so that the budget has a hedge for each.
	lossTolerance = hedgeShare * 0.8
	// lossNoise is the share that one lost attempt makes. It changes no order.
	lossNoise = 1.0 / lossMemory
)

// A policy orders the members for a query, best first. It does not heed states, tiers and
// losses: function order does, under all policies.
type policy func(b *Balancer, q wire.Query, members []*member)

var policies = map[string]policy{
	"latency":           byLatency,
	"round_robin":       byTurn,
	"weighted":          byWeight,
	"least_outstanding": byOutstanding,
	"hash":              byHash,
	"ordered":           asConfigured,
}

// Policies returns the names of all policies, sorted.
func Policies() []string {
	var names []string
	for name := range policies {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// A level decides first where a member stands in the order: the lowest level is asked
// first. Within a level, tiers and then the policy decide.
type level uint8

const (
	levelUp      level = iota
	levelReduced       // Up, and asked after the others for this query: slow start, or losses
	levelLimited       // Up, and a query would exceed its limit of queries a second
	levelSuspect       // these three are as the State
	levelErroring
	levelDown
)

// order appends all members for q to dst, which is empty: by level, within levelLimited by
// the time until it is over, within a level by tier, within a tier by policy. It returns
// whether the first one is known to resolve the domain of q where others do not.
func (b *Balancer) order(dst []*member, q wire.Query) (order []*member, resolves bool) {
	now := b.set.Load()
	order = append(dst, now.members...)
	if len(order) == 1 {
		return order, false
	}
	now.policy(b, q, order)
	var levels, losses, limits = [8]level{}, [8]float64{}, [8]time.Duration{}
	ranks, lost, waits := levels[:0], losses[:0], limits[:0]
	least := 1.0
	for _, m := range now.members {
		l := m.level()
		loss := m.losses.of(q)
		if l == levelUp || l == levelReduced {
			least = min(least, loss)
		}
		wait := m.RateWait()
		if l > levelReduced {
			wait = 0
		}
		ranks, lost, waits = append(ranks, l), append(lost, loss), append(waits, wait)
	}
	for i, l := range ranks {
		if l == levelUp && !keepsPlace(lost[i], least) {
			ranks[i] = levelReduced
		}
		if waits[i] > 0 {
			ranks[i] = levelLimited
		}
	}
	slices.SortStableFunc(order, func(x, y *member) int {
		if c := cmp.Compare(ranks[x.index], ranks[y.index]); c != 0 {
			return c
		}
		return cmp.Or(cmp.Compare(waits[x.index], waits[y.index]), cmp.Compare(x.Tier, y.Tier))
	})
	return order, b.resolvedBy.moveFirst(order, ranks, q)
}

// level returns the level of m, losses aside.
func (m *member) level() level {
	switch m.State() {
	case Suspect:
		return levelSuspect
	case Up:
		if m.slowStart.allows() {
			return levelUp
		}
		return levelReduced
	case Erroring:
		m.slowStart.wentDown()
		return levelErroring
	}
	m.slowStart.wentDown()
	return levelDown
}

// keepsPlace reports whether a member with these losses keeps the place that the policy
// gives it, for this query. The larger the loss, the fewer queries the member gets first,
// but it always gets some, so that its recovery is noticed. Least is the least loss of any
// member that is Up: if all members lose queries, no order is better than that of the
// policy.
func keepsPlace(loss, least float64) bool {
	return loss <= lossNoise+2*least || rand.Float64() < lossTolerance/loss
}

// answers reports whether m can be expected to answer.
func (m *member) answers() bool { return m.State().Answers() }

// worse reports whether m should be asked after o as a further member, whatever the policy
// says: by rank, then by the limits of queries a second, by tier, and by risk.
func (m *member) worse(o *member, q wire.Query) bool {
	c := cmp.Compare(m.rank(), o.rank())
	if c == 0 {
		c = cmp.Compare(m.RateWait(), o.RateWait())
	}
	if c == 0 {
		c = cmp.Compare(m.Tier, o.Tier)
	}
	if c == 0 {
		c = cmp.Compare(m.risk(q), o.risk(q))
	}
	return c > 0
}

// rank orders the members by state and, within a state, by whether an answer is overdue.
func (m *member) rank() (rank int) {
	rank = 2 * int(m.State())
	if usual, _ := m.Latency(); usual > 0 && m.Silent() > usual*5/4 {
		rank++
	}
	return rank
}

// risk is the loss of m for the type of q plus its latency in seconds.
func (m *member) risk(q wire.Query) float64 {
	usual, _ := m.Latency()
	return m.losses.of(q) + usual.Seconds()
}

// A slowStart increases the share of a member that was down. Its age is monotonic time, so
// that steps of the wall clock change nothing.
type slowStart struct {
	wasDown atomic.Bool
	since   atomic.Pointer[time.Time] // when it came back; nil if long ago
}

func (c *slowStart) wentDown() { c.wasDown.Store(true) }

// allows reports whether this query may go to the member first. The probability grows
// until slowStartTime is over.
func (c *slowStart) allows() bool {
	if c.wasDown.Load() && c.wasDown.CompareAndSwap(true, false) {
		c.since.Store(new(time.Now()))
	}
	since := c.since.Load()
	if since == nil {
		return true
	}
	age := time.Since(*since)
	if age >= slowStartTime {
		c.since.Store(nil)
		return true
	}
	return rand.Float64() < max(0.1, float64(age)/float64(slowStartTime))
}

// cost estimates how long a query would wait for the member, queue included.
func (m *member) cost() float64 {
	usual, _ := m.Latency()
	return float64(usual+granularity) * float64(m.outstanding.Load()+1)
}

// byLatency takes the better of two random members (power of two choices), so that not
// all queries of a moment follow one measurement. Members with a much higher cost than the
// best one are not drawn: of three members, two slow ones would meet in every third draw.
func byLatency(_ *Balancer, _ wire.Query, members []*member) {
	shuffle(members)
	if rand.IntN(100) < exploration {
		return
	}
	var buf [8]float64
	costs := buf[:0]
	for _, m := range members {
		costs = append(costs, m.cost())
	}
	first, second := -1, -1
	limit := outclassed * slices.Min(costs)
	for i, c := range costs {
		switch {
		case c > limit:
		case first < 0:
			first = i
		case second < 0:
			second = i
		}
	}
	if second >= 0 && costs[second]*band < costs[first] {
		first = second
	}
	members[0], members[first] = members[first], members[0]
	slices.SortStableFunc(members[1:], func(a, b *member) int { return cmp.Compare(a.cost(), b.cost()) })
}

func shuffle(members []*member) {
	rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
}

func byTurn(b *Balancer, _ wire.Query, members []*member) {
	rotate(members, int(b.turn.Add(1)%uint64(len(members))))
}

func rotate(members []*member, n int) {
	rotated := append(slices.Clone(members[n:]), members[:n]...)
	copy(members, rotated)
}

// byWeight draws the members one after the other, by weight.
func byWeight(_ *Balancer, _ wire.Query, members []*member) {
	for rest := members; len(rest) > 1; rest = rest[1:] {
		total := 0
		for _, m := range rest {
			total += m.Weight
		}
		n := rand.IntN(total)
		for i, m := range rest {
			if n -= m.Weight; n < 0 {
				rest[0], rest[i] = rest[i], rest[0]
				break
			}
		}
	}
}

func byOutstanding(_ *Balancer, _ wire.Query, members []*member) {
	shuffle(members)
	slices.SortStableFunc(members, func(a, b *member) int {
		return cmp.Compare(a.outstanding.Load(), b.outstanding.Load())
	})
}

// byHash gives each name its own order of members (rendezvous hashing), the same in all
// processes with the same upstreams. If a member is down, only its own names move.
func byHash(_ *Balancer, q wire.Query, members []*member) {
	name := q.NameHash()
	slices.SortStableFunc(members, func(a, b *member) int { return cmp.Compare(mix(b.hash^name), mix(a.hash^name)) })
}

func asConfigured(*Balancer, wire.Query, []*member) {}

// mix spreads the bits of an FNV hash: the last octets have little effect on its upper
// bits.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	return h
}

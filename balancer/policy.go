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
	// exploration is how many queries in a hundred go to any member first, so
	// that one that has become fast, or well, is found out.
	exploration = 5
	// band is how much dearer than the cheapest a member may be and still count
	// as equal: measurements differ more than that between twins.
	band = 1.3
	// outclassed is how much dearer it may be and still be asked first, except to
	// find out about it.
	outclassed = 3
	// granularity keeps differences that nobody notices from deciding.
	granularity = 4 * time.Millisecond
	// lossCost is what a lost query costs: it waits for a hedge, which the budget
	// may deny for as long.
	lossCost = lateHedge
	// slowStart is how long a member that was down takes to get its full share.
	slowStart = 10 * time.Second
)

// A policy orders the members for a query, best first. It need not care who is
// up, nor about tiers: order does.
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

// order appends all members for q to dst, which is empty: those that are well
// before those that are suspect before those that are down, of which those come
// first that only err; lower tiers before higher ones, and by policy among equals.
func (b *Balancer) order(dst []*member, q wire.Query) []*member {
	now := b.roster.Load()
	order := append(dst, now.members...)
	if len(order) == 1 {
		return order
	}
	now.policy(b, q, order)
	var room [8]int
	ranks := room[:0]
	for _, m := range now.members {
		ranks = append(ranks, m.rank())
	}
	slices.SortStableFunc(order, func(x, y *member) int { return cmp.Compare(ranks[x.index], ranks[y.index]) })
	return order
}

// doubt is how much speaks against asking m now, whatever ordered it before: its
// state, an answer that is overdue, losses, and how long it takes.
func (m *member) doubt() float64 {
	doubt := 0.0
	switch up := m.Up(); {
	case up && m.Suspect():
		doubt = 4
	case up:
	case m.Errs():
		doubt = 8
	default:
		doubt = 16
	}
	usual, _ := m.Latency()
	if usual > 0 && m.Silent() > usual*5/4 {
		doubt += 2
	}
	doubt += m.losses.value() + usual.Seconds()
	return doubt
}

// answers reports whether m can be expected to, if only with errors to some names.
func (m *member) answers() bool { return m.Up() || m.Errs() }

// rank is lower for members that should be asked earlier.
func (m *member) rank() int {
	up := m.Up()
	if !up {
		m.comeback.down()
	}
	switch {
	case up && !m.Suspect() && m.comeback.admits():
		return m.Tier
	case up:
		return 1<<32 + m.Tier
	case m.Errs():
		return 2<<32 + m.Tier
	}
	return 3<<32 + m.Tier
}

// A comeback lets a member that was down return by and by.
type comeback struct {
	wasDown atomic.Bool
	since   atomic.Int64 // when it came back, in Unix nanoseconds; 0 if long ago
}

func (c *comeback) down() { c.wasDown.Store(true) }

// admits reports whether this query may go to the member first, which gets
// likelier until slowStart is over.
func (c *comeback) admits() bool {
	if c.wasDown.Load() && c.wasDown.CompareAndSwap(true, false) {
		c.since.Store(time.Now().UnixNano())
	}
	since := c.since.Load()
	if since == 0 {
		return true
	}
	age := time.Since(time.Unix(0, since))
	if age >= slowStart {
		c.since.Store(0)
		return true
	}
	return rand.Float64() < max(0.1, float64(age)/float64(slowStart))
}

// cost estimates how long a query would wait for the member, queue and loss
// included.
func (m *member) cost() float64 {
	usual, _ := m.Latency()
	queue := float64(m.outstanding.Load() + 1)
	return float64(usual+granularity)*queue + m.losses.value()*float64(lossCost)
}

// byLatency compares two members picked at random and takes the cheaper (power
// of two choices), so that all queries of a moment don't follow one measurement.
// Members that are much dearer than the cheapest are not in the draw: of three,
// two that are slow would meet each other in every third.
func byLatency(_ *Balancer, _ wire.Query, members []*member) {
	shuffle(members)
	if rand.IntN(100) < exploration {
		return
	}
	var room [8]float64
	costs := room[:0]
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

// byWeight draws without putting back.
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
	// Losses count too: who fails fast has nothing outstanding.
	queue := func(m *member) float64 { return float64(m.outstanding.Load()+1) / (1 - min(m.losses.value(), 0.95)) }
	slices.SortStableFunc(members, func(a, b *member) int { return cmp.Compare(queue(a), queue(b)) })
}

// byHash gives each name its own order of members (rendezvous hashing), the same
// in every process with the same upstreams. A member that is down moves its own
// names only.
func byHash(_ *Balancer, q wire.Query, members []*member) {
	name := q.NameHash()
	slices.SortStableFunc(members, func(a, b *member) int { return cmp.Compare(mix(b.hash^name), mix(a.hash^name)) })
}

func asConfigured(*Balancer, wire.Query, []*member) {}

// mix spreads the bits of an FNV hash, whose upper ones know little of the last
// octets.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	return h
}

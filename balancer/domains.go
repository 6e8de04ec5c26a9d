package balancer

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

const (
	domainsMax = 1024
	domainsFor = time.Minute
)

// resolvedBy remembers, for a bounded number of domains, the member that has results where
// others have errors that do not count against them. The names of these domains go to that
// member first, of all members of its tier. Otherwise each would cost two queries or three,
// until the budgets are empty and clients get the errors. The shares of the queries for other
// domains stay as they are.
//
// Tiers stay, too: an internal resolver that has SERVFAIL for one of its names must not lose
// the others to a public one, which has NXDOMAIN for them.
type resolvedBy struct {
	until   atomic.Pointer[time.Time] // when the latest of members is forgotten; nil: there are none
	mu      sync.Mutex
	members map[uint64]resolver // by ParentHash
}

type resolver struct {
	stats *memberStats // of the member: it outlives member sets
	since time.Time
}

// learn records that m had a result for q.
func (r *resolvedBy) learn(q wire.Query, m *member, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.members == nil || len(r.members) >= domainsMax {
		r.members = make(map[uint64]resolver)
	}
	r.members[q.ParentHash()] = resolver{m.memberStats, now}
	r.until.Store(new(now.Add(domainsFor)))
}

// empty reports whether nothing is known, as is usual: then no query waits for mu.
func (r *resolvedBy) empty() bool {
	until := r.until.Load()
	if until != nil && !time.Now().Before(*until) {
		r.until.CompareAndSwap(until, nil)
		return true
	}
	return until == nil
}

// failed records that m had no result for q, where another member had one.
func (r *resolvedBy) failed(q wire.Query, m *member) {
	if r.empty() {
		return
	}
	domain := q.ParentHash()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.members[domain].stats == m.memberStats {
		delete(r.members, domain)
	}
}

// moveFirst moves the member for the domain of q before the others of its tier, if there is
// one and it is Up. It returns whether it is the first of all members then. Levels are by
// index of the member.
func (r *resolvedBy) moveFirst(members []*member, levels []level, q wire.Query) bool {
	if r.empty() {
		return false
	}
	stats := r.of(q)
	i := slices.IndexFunc(members, func(m *member) bool { return m.memberStats == stats })
	if i < 0 || levels[members[i].index] > levelLimited {
		return false
	}
	first := members[i]
	to := slices.IndexFunc(members, func(m *member) bool { return m.Tier >= first.Tier })
	copy(members[to+1:i+1], members[to:i])
	members[to] = first
	return to == 0
}

// of returns the member for the domain of q, or nil.
func (r *resolvedBy) of(q wire.Query) *memberStats {
	domain := q.ParentHash()
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.members[domain]
	if time.Since(known.since) >= domainsFor {
		delete(r.members, domain)
		return nil
	}
	return known.stats
}

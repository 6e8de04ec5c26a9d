// Package balancer decides whom to ask, in what order, and when to ask another.
//
// A policy is an ordering of the members; failing over is walking it. Members
// that are down come last rather than never: when nobody is up, the checks may
// be what is broken.
package balancer

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

// A Member is an upstream as a balancer sees it.
type Member interface {
	// Ask sends q and has done called once with what came of it, within seconds:
	// long after the client's patience is over, a late answer tells how the
	// member is doing. It doesn't block, and neither may done. It may be called
	// concurrently, and keeps q until done is called.
	//
	// An error that wraps context.DeadlineExceeded means that no answer came.
	Ask(q wire.Query, done func(wire.Answer, error))
	// Up reports whether the member should get live queries.
	Up() bool
	// Errs reports whether a member that is not up is so for the errors that it answers
	// with, and still answers: better than nobody.
	Errs() bool
	// Suspect reports whether something seems wrong with a member that is up.
	Suspect() bool
	// Alive reports whether the member has answered anything since then. If it
	// has not, it is probed, so that asking again soon tells.
	Alive(since time.Time) bool
	// Silent returns how long a sign of life has been owed; 0 if none is.
	Silent() time.Duration
	// Latency returns how long an answer usually takes, 0 if unknown, and how
	// long to wait for one before asking somebody else too.
	Latency() (usual, patience time.Duration)
	// Blame tells that the member answered q with an error although another
	// member has a proper answer.
	Blame(q wire.Query, err error)
	String() string
}

// A Candidate is a member with its place in the configuration.
type Candidate struct {
	Member
	Weight int // share of the queries, relative to the others'; 0 means 1
	Tier   int // members of a higher tier are asked only when nobody lower is up
}

// A Balancer asks its members. Make one with New.
type Balancer struct {
	log     *slog.Logger
	roster  atomic.Pointer[roster]
	hedges  bucket
	retries bucket
	doubts  bucket
	turn    atomic.Uint64 // counts queries, for policies and for who may try a dead member
	broken  names
	clock   clock
	lastTry atomic.Int64 // in Unix nanoseconds
	counts  counters
}

// A roster is whom to ask, and how to choose. It never changes.
type roster struct {
	members []*member
	policy  policy
	tell    func(Story) // or nil
}

// member is a candidate with what the balancer itself knows about it.
type member struct {
	Candidate
	index int
	hash  uint64 // of its name
	*record
}

// A record is what the balancer learns about a member. It outlives rosters.
type record struct {
	outstanding atomic.Int32 // attempts open
	losses      share        // attempts lately that brought nothing
	comeback    comeback
}

// New checks all options and returns a Balancer over members, in the order of
// the configuration.
func New(candidates []Candidate, o Options) (*Balancer, error) {
	o = o.withDefaults()
	b := &Balancer{
		log: o.Log, hedges: newBucket(hedgeShare, hedgeBurst), retries: newBucket(retryShare, retryBurst), doubts: newBucket(doubtShare, doubtBurst),
	}
	b.roster.Store(new(roster))
	return b, b.Replace(candidates, o)
}

// Replace has other members asked from now on, or by other options. Queries
// under way end as they began. Members that were there already, the very same,
// keep what was learnt about them. On an error, nothing has changed. It may not
// be called twice at once.
func (b *Balancer) Replace(candidates []Candidate, o Options) error {
	o = o.withDefaults()
	var problems []error
	o.Check(func(option, problem string) {
		problems = append(problems, fmt.Errorf("balancer: %s %s", option, problem))
	})
	if len(candidates) == 0 {
		problems = append(problems, errors.New("balancer: there is no upstream to ask"))
	}
	old, next := b.roster.Load(), &roster{policy: policies[o.Policy], tell: o.Tell}
	for i, c := range candidates {
		if c.Weight < 0 || c.Tier < 0 {
			problems = append(problems, fmt.Errorf("upstream %s: weight and tier can't be negative", c))
		}
		c.Weight = max(c.Weight, 1)
		hash := fnv.New64a()
		hash.Write([]byte(c.String()))
		m := &member{Candidate: c, index: i, hash: hash.Sum64(), record: new(record)}
		if j := slices.IndexFunc(old.members, func(o *member) bool { return o.Member == c.Member }); j >= 0 {
			m.record = old.members[j].record
		}
		next.members = append(next.members, m)
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	b.roster.Store(next)
	return nil
}

// Ask asks as many members as it takes, and has done called once with the best
// answer: when there is one, when nobody can be expected to answer any more, or at
// the deadline; there is none if that is zero. It doesn't block, and neither may
// done, which may be called before Ask returns. Q is kept for as long as members
// keep it: attempts that are left behind end by themselves.
func (b *Balancer) Ask(q wire.Query, deadline time.Time, done func(wire.Answer, error)) {
	b.newRace(q, deadline, done).run()
}

// Exchange is Ask for those who wait. It returns when ctx is done.
func (b *Balancer) Exchange(ctx context.Context, q wire.Query) (a wire.Answer, err error) {
	deadline, _ := ctx.Deadline()
	over := make(chan struct{})
	r := b.newRace(q, deadline, func(answer wire.Answer, e error) {
		a, err = answer, e
		close(over)
	})
	r.runUntil(ctx, over)
	return a, err
}

// runUntil runs the race, whose done closes over, until that or ctx is done.
func (r *race) runUntil(ctx context.Context, over <-chan struct{}) {
	r.run()
	select {
	case <-over:
	case <-ctx.Done():
		r.news(func() { r.left = context.Cause(ctx) })
		<-over
	}
}

func (b *Balancer) newRace(q wire.Query, deadline time.Time, done func(wire.Answer, error)) *race {
	r := &race{balancer: b, query: q, deadline: deadline, done: done, begin: time.Now()}
	r.order = b.order(r.room.order[:0], q)
	r.open, r.all, r.ended = r.room.open[:0], r.room.all[:0], r.room.ended[:0]
	r.asked = append(r.room.asked[:0], make([]int8, len(r.order))...)
	return r
}

// A counters' fields count what the balancer did beyond asking once.
type counters struct {
	queries, attempts, hedges, retries, seconds, failures atomic.Uint64
}

// Counts are totals since New.
type Counts struct {
	Queries  uint64 // Ask or Exchange was called
	Attempts uint64 // members asked
	Hedges   uint64 // of these: because an answer took long
	Retries  uint64 // of these: because an attempt failed
	Seconds  uint64 // of these: for a second opinion on an error
	Failures uint64 // there was no answer
}

// Counts returns the totals.
func (b *Balancer) Counts() Counts {
	c := &b.counts
	return Counts{
		Queries: c.queries.Load(), Attempts: c.attempts.Load(), Hedges: c.hedges.Load(),
		Retries: c.retries.Load(), Seconds: c.seconds.Load(), Failures: c.failures.Load(),
	}
}

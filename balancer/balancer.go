// Package balancer fails over: it decides which upstreams get a query, in which order,
// and when a further one is asked.
//
// A Balancer has members, which are upstreams with their health, and a policy, which
// orders the members for each query. The states and losses of the members then move some
// of them down:
//
//	Up, with few losses      in the order of the policy, lower tiers first
//	Up, reduced              after these: slow start after an outage, or many losses
//	Up, at its limit         of queries a second: after these, the one with the most room
//	                         first, whatever its tier
//	Suspect                  after these
//	Erroring                 after these: an answer is better than none
//	Down                     last, not never: when no member is up, the health checks
//	                         may be at fault
//
// Where some members have errors below a domain and these do not count against them, a
// member that had a result there, and is Up, comes first of its tier for that domain's names.
//
// A query goes to the first member. The next step depends on the outcome:
//
//	        ┌────────── result: NOERROR, NXDOMAIN, YXDOMAIN ─────────▶ the answer
//	        │
//	ask ────┼─ failure ──────────────▶ retry: the next member, once free, then by budget
//	        ├─ another response code ▶ second opinion of the next member
//	        ├─ no answer in time ────▶ hedge: the next member, by budget; the first
//	        │                          answer wins
//	        └─ silence of all ───────▶ give up after 0.9 s, or later if a member is slow
//
// Function plan has the whole decision, and struct timing its constants.
//
// Limits: hedges are 5 % of all queries in the long run, further retries 20 %, third
// attempts at a name that two healthy members do not answer 2 %. If all members are
// down, one query in 250 ms is sent, to all of them, and the others fail at once.
//
// The balancer never judges whether a member is healthy: the member's State says that. It
// reports errors and missing answers to the member, which tells which of them count. It
// never changes a query, never caches, never blocks, has no goroutine for a query, and
// passes on no response code of an upstream that is about this gateway, as REFUSED is.
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
	// Ask sends q and calls done once with the answer or an error, within seconds: even
	// after the client has left, a late answer tells whether the member is healthy. Ask
	// does not block, and done must not block. Ask may be called concurrently, and keeps
	// q until it calls done. Ctx carries the trace of the query, if there is one. It is
	// not kept, and its end is not watched.
	//
	// An error that wraps context.DeadlineExceeded means that no answer came.
	Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error))
	// State returns the state of the member.
	State() State
	// LastAnswer returns when the member last answered any query; zero if it never did.
	// It is called for a query that has no answer yet: a member that has been silent for
	// longer than usual is probed, so that a later call returns something new.
	LastAnswer() time.Time
	// Silent returns for how long the member has owed a sign of life: an answer, or a
	// step of a dial. It returns 0 if the member owes none.
	Silent() time.Duration
	// Reached reports whether an answer that the member owes may be slow rather than
	// lost: a dial has taken a step since the last answer, and no connection has gone
	// silent.
	Reached() bool
	// RateWait returns how long a query would have to wait so as not to exceed a limit of
	// queries a second; 0 if it need not, or no limit is known. Ask sends it nevertheless.
	RateWait() time.Duration
	// Latency returns how long an answer usually takes, 0 if unknown, and how long to
	// wait for one before a further member is asked.
	Latency() (usual, patience time.Duration)
	// Report records that the member answered q with an error although another member
	// had a result; if err wraps wire.ErrNoAnswer, that it did not answer, or not in time;
	// or, if err is nil, that it had the result where another member had an error. It
	// returns whether that may lower the member's share of the queries: the queries of one
	// client, or for one domain, must not steer all others.
	Report(q wire.Query, err error) (counts bool)
	String() string
}

// A State is what is known of a member.
type State uint8

const (
	Up       State = iota // it gets live queries
	Suspect               // it gets them after those that are Up
	Erroring              // it is down for the errors that it answers with: better than none
	Down                  // it gets live queries only when no member is up

	states int = iota
)

var stateNames = [states]string{Up: "up", Suspect: "suspect", Erroring: "erroring", Down: "down"}

func (s State) String() string {
	if int(s) < states {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// IsUp reports whether a member in this state should get live queries.
func (s State) IsUp() bool { return s == Up || s == Suspect }

// Answers reports whether a member in this state can be expected to answer, if only
// with errors to some names.
func (s State) Answers() bool { return s != Down }

// A Candidate is a member with its place in the configuration.
type Candidate struct {
	Member
	// Outage returns the reason why the member is not up, or nil, for traces and errors.
	// A nil function means that no reason is known.
	Outage func() error
	Weight int // share of the queries, relative to the others'; 0 means 1
	// Tier: members of a higher tier get the queries for which no member of a lower tier
	// is up, those that lower members fail or do not answer in time, and the share that a
	// lower member does not get first because of losses or of its slow start.
	Tier int
}

// A Balancer spreads queries over its members. New makes one.
type Balancer struct {
	log         *slog.Logger
	epoch       time.Time // instants are counted from here
	set         atomic.Pointer[memberSet]
	hedges      bucket
	retries     bucket
	thirds      bucket
	turn        atomic.Uint64 // counts queries, for the policy round_robin
	broken      brokenNames
	resolvedBy  resolvedBy
	timers      timerWheel
	lastDownTry atomic.Pointer[time.Time] // see mayAskDown; nil before the first
	counts      counters
}

// A memberSet has the members, and the policy that orders them. It never changes.
type memberSet struct {
	members []*member
	policy  policy
	record  func(Trace) // or nil
}

// A member is a Candidate with what the balancer itself knows about it.
type member struct {
	Candidate
	index int
	hash  uint64 // of its name
	*memberStats
}

// memberStats has what the balancer learns about a member. It outlives member sets.
type memberStats struct {
	outstanding atomic.Int32 // attempts that exchanges wait for
	losses      losses       // recent attempts that gave no result
	lastGood    atomic.Int64 // instant of the last result that ended an exchange; 0: none yet
	slow        slowness
	slowStart   slowStart
}

// New checks all options and returns a Balancer over members, in the order of
// the configuration.
func New(candidates []Candidate, o Options) (*Balancer, error) {
	o = o.withDefaults()
	b := &Balancer{
		log: o.Log, epoch: time.Now(), hedges: newBucket(hedgeShare, hedgeBurst), retries: newBucket(retryShare, retryBurst), thirds: newBucket(thirdShare, thirdBurst),
	}
	b.set.Store(new(memberSet))
	return b, b.Replace(candidates, o)
}

// instant returns t as monotonic nanoseconds, above 0.
func (b *Balancer) instant(t time.Time) int64 { return max(int64(t.Sub(b.epoch)), 1) }

// Replace sets the members and options for the queries to come. Queries in progress end
// with the members that they began with. A Member that was there before keeps its
// memberStats. On an error, nothing has changed. Replace must not be called concurrently.
func (b *Balancer) Replace(candidates []Candidate, o Options) error {
	o = o.withDefaults()
	var problems []error
	o.Check(func(option, problem string, beside ...string) {
		problems = append(problems, fmt.Errorf("balancer: %s %s", option, problem))
	})
	if len(candidates) == 0 {
		problems = append(problems, errors.New("balancer: there is no upstream to ask"))
	}
	old, next := b.set.Load(), &memberSet{policy: policies[o.Policy], record: o.Record}
	for i, c := range candidates {
		if c.Weight < 0 || c.Tier < 0 {
			problems = append(problems, fmt.Errorf("upstream %s: weight and tier can't be negative", c))
		}
		c.Weight = max(c.Weight, 1)
		hash := fnv.New64a()
		hash.Write([]byte(c.String()))
		m := &member{Candidate: c, index: i, hash: hash.Sum64(), memberStats: new(memberStats)}
		if j := slices.IndexFunc(old.members, func(o *member) bool { return o.Member == c.Member }); j >= 0 {
			m.memberStats = old.members[j].memberStats
		}
		next.members = append(next.members, m)
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	b.set.Store(next)
	return nil
}

// Ask asks members until one has a result, and calls done once with the best answer, or
// with an error: when no member can be expected to answer any more, or at the deadline of
// ctx, if it has one. Ask does not block, and done must not block; done may be called
// before Ask returns. Members keep q until their attempts end, which may be later. Ctx
// also carries the trace of the query (see WithObserver). It is kept until done is called,
// and its end is not watched.
func (b *Balancer) Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	b.newExchange(ctx, q, done).run()
}

// Exchange is Ask for callers that wait. It returns at the end of ctx at the latest.
func (b *Balancer) Exchange(ctx context.Context, q wire.Query) (a wire.Answer, err error) {
	over := make(chan struct{})
	x := b.newExchange(ctx, q, func(answer wire.Answer, e error) {
		a, err = answer, e
		close(over)
	})
	x.runUntil(ctx, over)
	return a, err
}

// runUntil runs the exchange until it ends, which closes over, or until ctx ends.
func (x *exchange) runUntil(ctx context.Context, over <-chan struct{}) {
	x.run()
	select {
	case <-over:
	case <-ctx.Done():
		x.update(func() { x.abandoned = context.Cause(ctx) })
		<-over
	}
}

func (b *Balancer) newExchange(ctx context.Context, q wire.Query, done func(wire.Answer, error)) *exchange {
	x := &exchange{balancer: b, ctx: ctx, done: done, begin: time.Now()}
	x.deadline, _ = ctx.Deadline()
	x.query = q.WithCancel(&x.cancelled)
	x.order, x.resolves = b.order(x.buf.order[:0], q)
	x.open, x.all, x.ended = x.buf.open[:0], x.buf.all[:0], x.buf.ended[:0]
	x.asked = append(x.buf.asked[:0], make([]int8, len(x.order))...)
	return x
}

// counters has the totals behind Counts.
type counters struct {
	queries, attempts, hedges, retries, seconds, failures atomic.Uint64
}

// Counts are totals since New.
type Counts struct {
	Queries  uint64 `json:"queries"`  // calls of Ask and Exchange
	Attempts uint64 `json:"attempts"` // queries sent to members
	Hedges   uint64 `json:"hedges"`   // attempts made because an answer took long
	Retries  uint64 `json:"retries"`  // attempts made because another one failed
	Seconds  uint64 `json:"seconds"`  // attempts made for a second opinion on an error
	Failures uint64 `json:"failures"` // queries without an answer
}

// Counts returns the totals.
func (b *Balancer) Counts() Counts {
	c := &b.counts
	return Counts{
		Queries: c.queries.Load(), Attempts: c.attempts.Load(), Hedges: c.hedges.Load(),
		Retries: c.retries.Load(), Seconds: c.seconds.Load(), Failures: c.failures.Load(),
	}
}

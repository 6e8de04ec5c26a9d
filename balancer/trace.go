package balancer

import (
	"context"
	"fmt"
	"time"

	"dotgate/gateway/wire"
)

// A Reason is why a member was asked.
type Reason uint8

const (
	First         Reason = iota // it came first in the order
	Hedge                       // an answer took long
	Retry                       // an attempt failed
	SecondOpinion               // an answer was an error
	Outage                      // all members are down, and all are asked
	Resolves                    // it came first as others can't resolve the domain

	reasons int = iota
)

var reasonNames = [reasons]string{First: "first", Hedge: "hedge", Retry: "retry", SecondOpinion: "second opinion", Outage: "outage", Resolves: "resolves the domain"}

func (r Reason) String() string {
	if int(r) < reasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// A Trace is the record of one query.
type Trace struct {
	Query wire.Query
	Began time.Time
	Took  time.Duration
	// Candidates are all members in their order for this query, in the state that they
	// had at its end.
	Candidates []CandidateTrace
	// Attempts are in the order in which they began. Some may be open.
	Attempts []AttemptTrace
	RCode    wire.RCode // of the answer, if there is no Err
	Err      error
}

// A CandidateTrace is the record of a member that could be asked.
type CandidateTrace struct {
	Name         string
	Tier, Weight int
	State        State
	Outage       error         // why it is not up, if that is known
	Usual        time.Duration // how long its answers take; 0 if unknown
	Patience     time.Duration // how long to wait for one before a further member is asked
	RateWait     time.Duration // until a query would not exceed its limit of queries a second; 0 if it has no limit
	Losses       float64       // the share of recent attempts without a result: of the query's type, or the largest
	Outstanding  int           // open attempts
	Cost         time.Duration // what the policy latency compares
	Asked        bool
}

// An AttemptTrace is the record of an attempt.
type AttemptTrace struct {
	Name   string
	Reason Reason
	After  time.Duration // since the query began
	Ended  bool
	Took   time.Duration // if it has ended
	RCode  wire.RCode    // if there is no Err
	Err    error
}

// record calls Options.Record with the Trace of x, and adds to err what it says.
func (b *Balancer) record(x *exchange, a wire.Answer, err error) {
	record := b.set.Load().record
	if record == nil && err == nil {
		return
	}
	if s := x.trace(a, err); record != nil {
		record(s)
	}
}

// trace returns the Trace of x, and adds to err which members failed.
func (x *exchange) trace(a wire.Answer, err error) Trace {
	s := Trace{Query: x.query, Began: x.begin, Took: time.Since(x.begin), Err: err}
	if err == nil {
		s.RCode = a.RCode()
	}
	for i, m := range x.order {
		c := m.trace(m.losses.of(x.query))
		c.Asked = x.asked != nil && x.asked[i] > 0
		s.Candidates = append(s.Candidates, c)
	}
	for _, a := range x.all {
		attempt := AttemptTrace{Name: a.member.String(), Reason: a.reason, After: a.began.Sub(x.begin), Ended: a.ended}
		if a.ended { // else its member may be writing these fields
			attempt.Took, attempt.Err = a.took, a.err
			if a.err == nil {
				attempt.RCode = a.answer.RCode()
			}
		}
		s.Attempts = append(s.Attempts, attempt)
	}
	attachFailures(err, s)
	return s
}

// trace returns the record of m, with the given losses.
func (m *member) trace(loss float64) CandidateTrace {
	c := CandidateTrace{
		Name: m.String(), Tier: m.Tier, Weight: m.Weight, State: m.State(),
		RateWait: m.RateWait(), Losses: loss, Outstanding: int(m.outstanding.Load()), Cost: time.Duration(m.cost()),
	}
	c.Usual, c.Patience = m.Latency()
	if m.Outage != nil && !c.State.IsUp() {
		c.Outage = m.Outage()
	}
	return c
}

// Candidates returns the records of all members, in the order of the configuration.
func (b *Balancer) Candidates() []CandidateTrace {
	var all []CandidateTrace
	for _, m := range b.set.Load().members {
		all = append(all, m.trace(m.losses.most()))
	}
	return all
}

// An Observer is called with the outcome of a query, before the function done of Ask is.
// Function trace makes the Trace: without a call of it, there is none to pay for. The
// Observer must not block.
type Observer func(a wire.Answer, err error, trace func() Trace)

type observerKey struct{}

// WithObserver returns a context with which Ask and Exchange call observe.
func WithObserver(ctx context.Context, observe Observer) context.Context {
	return context.WithValue(ctx, observerKey{}, observe)
}

func observerOf(ctx context.Context) Observer {
	observe, _ := ctx.Value(observerKey{}).(Observer)
	return observe
}

// notifyObserver calls observe. It keeps a and err of finish from being moved to the heap.
func (x *exchange) notifyObserver(observe Observer, a wire.Answer, err error) {
	observe(a, err, func() Trace { return x.trace(a, err) })
}

// Explain is Exchange that also returns the Trace. Ctx may carry further traces for the
// members.
func (b *Balancer) Explain(ctx context.Context, q wire.Query) (a wire.Answer, s Trace) {
	a, _ = b.Exchange(WithObserver(ctx, func(_ wire.Answer, _ error, trace func() Trace) { s = trace() }), q)
	return a, s
}

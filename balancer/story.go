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
	Outage                      // nobody is up, and whoever is back first is welcome

	reasons int = iota
)

var reasonNames = [reasons]string{First: "first", Hedge: "hedge", Retry: "retry", SecondOpinion: "second opinion", Outage: "outage"}

func (r Reason) String() string {
	if int(r) < reasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// A Story is how one query went.
type Story struct {
	Query wire.Query
	Began time.Time
	Took  time.Duration
	// Candidates are all members in the order that the query had for them, as they
	// were when it was over.
	Candidates []CandidateStory
	// Attempts are in the order in which they began. One may be still open.
	Attempts []AttemptStory
	RCode    wire.RCode // of the answer, if there is no Err
	Err      error
}

// A CandidateStory is about a member that could be asked.
type CandidateStory struct {
	Name         string
	Tier, Weight int
	Up, Suspect  bool
	Outage       error         // why it is not up, if that is known
	Usual        time.Duration // how long its answers take; 0 if unknown
	Patience     time.Duration // how long they are waited for before another is asked
	Losses       float64       // the share of attempts lately that brought nothing
	Outstanding  int           // attempts open
	Cost         time.Duration // what the policy latency compares
	Asked        bool
}

// An AttemptStory is about a member that was asked.
type AttemptStory struct {
	Name   string
	Reason Reason
	After  time.Duration // since the query began
	Ended  bool
	Took   time.Duration // if it has ended
	RCode  wire.RCode    // if there is no Err
	Err    error
}

// tell passes the story of r on to who wants it, and to err.
func (b *Balancer) tell(r *race, a wire.Answer, err error) {
	tell := b.roster.Load().tell
	if tell == nil && err == nil {
		return
	}
	if s := r.story(a, err); tell != nil {
		tell(s)
	}
}

// story returns how r went. If it failed, err knows from now on who is to blame.
func (r *race) story(a wire.Answer, err error) Story {
	s := Story{Query: r.query, Began: r.begin, Took: time.Since(r.begin), Err: err}
	if err == nil {
		s.RCode = a.RCode()
	}
	for i, m := range r.order {
		c := m.story()
		c.Asked = r.asked != nil && r.asked[i] > 0
		s.Candidates = append(s.Candidates, c)
	}
	for _, a := range r.all {
		told := AttemptStory{Name: a.member.String(), Reason: a.reason, After: a.began.Sub(r.begin), Ended: a.ended}
		if a.ended { // else somebody may be writing what follows
			told.Took, told.Err = a.took, a.err
			if a.err == nil {
				told.RCode = a.answer.RCode()
			}
		}
		s.Attempts = append(s.Attempts, told)
	}
	blame(err, s)
	return s
}

func (m *member) story() CandidateStory {
	c := CandidateStory{
		Name: m.String(), Tier: m.Tier, Weight: m.Weight, Up: m.Up(),
		Losses: m.losses.value(), Outstanding: int(m.outstanding.Load()), Cost: time.Duration(m.cost()),
	}
	c.Suspect = c.Up && m.Suspect()
	c.Usual, c.Patience = m.Latency()
	if telling, ok := m.Member.(interface{ Outage() error }); ok && !c.Up {
		c.Outage = telling.Outage()
	}
	return c
}

// Candidates returns what is known of all members, in the order of the
// configuration.
func (b *Balancer) Candidates() []CandidateStory {
	var all []CandidateStory
	for _, m := range b.roster.Load().members {
		all = append(all, m.story())
	}
	return all
}

// Explain is Exchange that always tells its story. Members that can tell more
// themselves do so to what is in ctx.
func (b *Balancer) Explain(ctx context.Context, q wire.Query) (a wire.Answer, s Story) {
	deadline, _ := ctx.Deadline()
	over := make(chan struct{})
	var r *race
	r = b.newRace(q, deadline, func(answer wire.Answer, err error) {
		a, s = answer, r.story(answer, err)
		close(over)
	})
	r.explain = ctx
	r.runUntil(ctx, over)
	return a, s
}

// AskFor is Ask for who may want to know how it went, in which case story tells while
// done runs. Members that can tell more themselves do so to what is in ctx; that it
// ends is of no matter.
func (b *Balancer) AskFor(ctx context.Context, q wire.Query, deadline time.Time, done func(a wire.Answer, err error, story func() Story)) {
	var r *race
	r = b.newRace(q, deadline, func(a wire.Answer, err error) {
		done(a, err, func() Story { return r.story(a, err) })
	})
	r.explain = ctx
	r.run()
}

// askFor asks m, which tells what it does to what is in ctx, if it can.
func (m *member) askFor(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	if telling, ok := m.Member.(interface {
		AskFor(ctx context.Context, q wire.Query, done func(wire.Answer, error))
	}); ok {
		telling.AskFor(ctx, q, done)
		return
	}
	m.Ask(q, done)
}

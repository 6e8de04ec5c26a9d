package balancer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"dotgate/gateway/wire"
)

const (
	// attemptLimit is how long an attempt may stay open, whether or not anybody
	// still waits for it: its late answer tells how its upstream is doing.
	attemptLimit = 5 * time.Second
	// despair is how long a query waits while nobody it asked gives any sign of
	// life. It is below the second after which impatient clients are gone.
	despair = 900 * time.Millisecond
	// resigned is how long it waits when everybody is known to be down.
	resigned = 15 * time.Millisecond
	// sound is how many members that seem well a query is sent to. If they
	// don't answer, it is the name's fault, and a third would not either.
	sound = 2
	// hedgeShare is how many hedges there may be per query in the long run, and
	// hedgeBurst how many at once.
	hedgeShare = 0.05
	hedgeBurst = 50
	// lateHedge is how long a query waits for a hedge that the budget denies.
	lateHedge = 400 * time.Millisecond
)

// A race is one query, asked of one member after the other until one wins.
type race struct {
	balancer *Balancer
	ctx      context.Context
	query    wire.Query
	begin    time.Time
	order    []*member

	next     int // in order
	open     []*attempt
	results  chan *attempt // as many places as there can be attempts
	weak     *attempt      // the first answer that was an error, or nil
	problems []error
}

// An attempt is one query sent to one member.
type attempt struct {
	member *member
	began  time.Time
	late   bool // it outlived its patience
	answer wire.Answer
	err    error
}

// An Error is why no member gave an answer.
type Error struct {
	// Problems has what went wrong with each member that was asked.
	Problems []error
}

func (e *Error) Error() string {
	texts := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		texts[i] = p.Error()
	}
	return strings.Join(texts, "; ")
}

func (e *Error) Unwrap() []error { return e.Problems }

// EDE tells clients that no upstream could be reached (RFC 8914 section 4.23).
func (e *Error) EDE() wire.EDE {
	return wire.EDE{Code: wire.EDENoReachable, Text: "no upstream answered"}
}

func (r *race) run() (wire.Answer, error) {
	b := r.balancer
	b.counts.queries.Add(1)
	b.hedges.earn()
	nobody := !r.order[0].Up()
	r.results = make(chan *attempt, len(r.order)+1)
	if nobody && !b.mayTry() {
		return r.fail()
	}
	r.start()
	timer := time.NewTimer(r.patience(nobody))
	defer timer.Stop()
	for {
		select {
		case a := <-r.results:
			if answer, done := r.settle(a); done {
				return answer, nil
			}
			if len(r.open) == 0 {
				return r.fail()
			}
			timer.Reset(r.patience(nobody))
		case <-timer.C:
			if r.hopeless(nobody) {
				return r.fail()
			}
			r.hedge()
			timer.Reset(r.patience(nobody))
		case <-r.ctx.Done():
			r.problems = append(r.problems, fmt.Errorf("%v: %w", r.query, context.Cause(r.ctx)))
			return r.fail()
		}
	}
}

// start asks the next member.
func (r *race) start() {
	m := r.order[r.next]
	r.next++
	a := &attempt{member: m, began: time.Now()}
	r.open = append(r.open, a)
	m.outstanding.Add(1)
	r.balancer.counts.attempts.Add(1)
	results, query := r.results, r.query
	go func() {
		// Not the client's context: whoever leaves, the answer is still news.
		ctx, cancel := context.WithTimeout(context.Background(), attemptLimit)
		defer cancel()
		a.answer, a.err = m.Exchange(ctx, query)
		m.outstanding.Add(-1)
		m.losses.add(a.err != nil)
		results <- a
	}()
}

// settle takes note of an attempt that ended. It reports whether the race is won.
func (r *race) settle(a *attempt) (answer wire.Answer, won bool) {
	for i := range r.open {
		if r.open[i] == a {
			r.open = append(r.open[:i], r.open[i+1:]...)
			break
		}
	}
	switch {
	case a.err != nil:
		r.problems = append(r.problems, a.err)
		if r.another(a) && (len(r.open) == 0 || r.order[r.next].Up()) {
			r.balancer.counts.retries.Add(1)
			r.start()
		}
		return wire.Answer{}, false
	case acceptable(a.answer):
		if r.weak != nil {
			r.weak.member.blame(r.query, r.weak.answer.RCode())
		}
		return a.answer, true
	case r.weak != nil:
		return r.weak.answer, true // two members say so: it is the name's fault
	}
	r.weak = a
	if len(r.open) > 0 {
		return wire.Answer{}, false
	}
	if !r.another(a) || !r.order[r.next].Up() {
		return a.answer, true
	}
	r.balancer.counts.seconds.Add(1)
	r.start()
	return wire.Answer{}, false
}

// another reports whether somebody other than a's member is left to ask.
func (r *race) another(a *attempt) bool {
	return r.next < len(r.order) && r.order[r.next] != a.member
}

// acceptable reports whether an answer is one, or an error that another member
// may know better than. Other codes are answers, if odd ones.
func acceptable(a wire.Answer) bool {
	switch a.RCode() {
	case wire.ServFail, wire.Refused, wire.NotImp, wire.FormErr, wire.BadVers:
		return false
	}
	return true
}

func (m *member) blame(q wire.Query, rcode wire.RCode) {
	m.losses.add(true)
	m.Blame(q, fmt.Errorf("%v for %v", rcode, q))
}

// patience returns how long to wait before something is to be done.
func (r *race) patience(nobody bool) time.Duration {
	elapsed := time.Since(r.begin)
	if nobody {
		return max(resigned-elapsed, 0)
	}
	rest := despair - elapsed
	if rest <= 0 {
		rest = 100 * time.Millisecond // somebody lives; look again whether still
	}
	if len(r.open) == 0 || r.next >= len(r.order) {
		return rest
	}
	newest := r.open[len(r.open)-1]
	if newest.late { // the budget denied a hedge, so far
		return min(rest, max(lateHedge-elapsed, 10*time.Millisecond))
	}
	_, p := newest.member.Latency()
	return max(min(rest, p-time.Since(newest.began)), 0)
}

// hopeless reports whether to give up: there has been no sign of life for too
// long from anybody who was or could be asked, or just an error.
func (r *race) hopeless(nobody bool) bool {
	elapsed := time.Since(r.begin)
	if nobody {
		return elapsed >= resigned
	}
	if elapsed < despair {
		return false
	}
	for _, m := range r.balancer.members {
		if m.Up() && !m.Suspect() {
			return r.weak != nil
		}
	}
	return true
}

// hedge asks another member beside those that are still at it, if that may help
// and the budget has it.
func (r *race) hedge() {
	if r.next >= len(r.order) || len(r.open) == 0 {
		return
	}
	newest := r.open[len(r.open)-1]
	if !newest.late {
		if _, p := newest.member.Latency(); time.Since(newest.began) < p {
			return
		}
		newest.late = true
		newest.member.losses.add(true)
	}
	well := 0
	for _, a := range r.open {
		if a.member.Up() && !a.member.Suspect() {
			well++
		}
	}
	free := well == 0 || time.Since(r.begin) >= lateHedge
	if well >= sound || !free && !r.balancer.hedges.spend() {
		return
	}
	r.balancer.counts.hedges.Add(1)
	r.start()
}

// fail returns the best there is: an error with its explanation, or ours.
func (r *race) fail() (wire.Answer, error) {
	if r.weak != nil {
		return r.weak.answer, nil
	}
	r.balancer.counts.failures.Add(1)
	for _, a := range r.open {
		r.problems = append(r.problems, fmt.Errorf("%v: no answer within %v", a.member, time.Since(a.began).Round(time.Millisecond)))
	}
	if len(r.problems) == 0 {
		r.problems = append(r.problems, errNobody)
	}
	return wire.Answer{}, &Error{Problems: r.problems}
}

var errNobody = errors.New("every upstream is down")

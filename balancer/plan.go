package balancer

import (
	"context"
	"math"
	"slices"
	"time"
)

// timing has the constants of plan: when a query asks a further member, and when it is
// given up.
var timing = struct {
	// silenceLimit is how long a query waits while no member that it asked gives a sign
	// of life, unless there is reason to think that an answer takes longer. Impatient
	// clients give up after a second.
	silenceLimit time.Duration
	// allDownWait is the same when all members are known to be down.
	allDownWait time.Duration
	// signInterval is how often a query that waits for longer than silenceLimit checks
	// whether there is a sign of life.
	signInterval time.Duration
	// enoughHealthy is how many members that seem healthy a query is sent to. If they do
	// not answer, the name is the cause, and a third member would not answer either.
	enoughHealthy int
	// unbudgetedHedgeAfter is how long a query waits for a hedge that the budget denies.
	unbudgetedHedgeAfter time.Duration
	// recheckInterval is how soon a query whose hedge was denied tries again. The
	// interval grows with the age of the attempt.
	recheckInterval time.Duration
	// schedulerLag is how late a query must notice that silenceLimit is over for this
	// machine, not the members, to be the cause.
	schedulerLag time.Duration
}{
	silenceLimit:         900 * time.Millisecond,
	allDownWait:          10 * time.Millisecond,
	signInterval:         100 * time.Millisecond,
	enoughHealthy:        2,
	unbudgetedHedgeAfter: 400 * time.Millisecond,
	recheckInterval:      10 * time.Millisecond,
	schedulerLag:         50 * time.Millisecond,
}

// An action is what a query does next, while attempts are open.
type action struct {
	kind   actionKind
	member *member // to ask
	price  price   // of that; if it can't be paid, the query waits
}

type actionKind uint8

const (
	wait   actionKind = iota
	ask               // a further member, as a hedge
	giveUp            // end: no answer can be expected
	expire            // end: the client's deadline is over
)

// forever is a pause that only an outcome, or silenceLeft, ends.
const forever = time.Duration(math.MaxInt64)

// goOn carries out the plan, and sets the alarm for the next one. MayAsk is true for the
// alarm only: an attempt that ended is followed by a retry or a second opinion, and a
// hedge waits for the next alarm.
func (x *exchange) goOn(now time.Time, mayAsk bool) {
	if newest := x.open[len(x.open)-1]; mayAsk && now.Sub(newest.began) >= x.patience(newest) {
		newest.late = true
	}
	x.noticeLag(now)
	do, wakeAt := x.plan(now)
	switch do.kind {
	case expire:
		x.abandon(context.DeadlineExceeded)
		return
	case giveUp:
		x.fail()
		return
	case ask:
		if mayAsk && x.balancer.pay(do.price, x.query) {
			x.balancer.counts.hedges.Add(1)
			x.start(do.member, Hedge, now)
			_, pause := x.hedge(now)
			wakeAt = x.wakeAt(now, pause)
		}
	}
	x.balancer.timers.set(x, now, wakeAt.Sub(now))
}

// noticeLag extends silenceLimit once if this process was too busy to notice its end in
// time: signs of life may be unread.
func (x *exchange) noticeLag(now time.Time) {
	switch over := now.Sub(x.begin) - x.silenceLimit(now) - x.grace; {
	case over < 0:
	case over <= timing.schedulerLag:
		x.inTime = true
	case !x.inTime && x.grace == 0:
		x.grace = over + timing.silenceLimit/2
	}
}

// plan returns what to do now, and when to plan again if nothing happens until then or
// the action can't be paid. It changes nothing. At least one attempt is open.
//
//	deadline over                              → expire
//	all down since the begin, for allDownWait  → giveUp
//	all down by now, after silenceLimit        → giveUp
//	silence for longer than silenceLimit       → giveUp
//	an error, and silenceLimit is over         → giveUp
//	the newest attempt is within its patience  → wait for the rest of it
//	each member was asked, twice if that helps → wait
//	otherwise                                  → ask the best member, at a price
func (x *exchange) plan(now time.Time) (do action, wakeAt time.Time) {
	if !x.deadline.IsZero() && !now.Before(x.deadline) {
		return action{kind: expire}, now
	}
	if x.hopeless(now) {
		return action{kind: giveUp}, now
	}
	do, pause := x.hedge(now)
	return do, x.wakeAt(now, pause)
}

// wakeAt returns when to plan again if hedge has nothing to do for that long.
func (x *exchange) wakeAt(now time.Time, pause time.Duration) time.Time {
	at := now.Add(min(pause, x.silenceLeft(now)))
	if !x.deadline.IsZero() && x.deadline.Before(at) {
		return x.deadline
	}
	return at
}

// silenceLeft returns how long it takes until the query may be hopeless.
func (x *exchange) silenceLeft(now time.Time) time.Duration {
	elapsed := now.Sub(x.begin)
	if x.allDown {
		return timing.allDownWait - elapsed
	}
	if left := x.silenceLimit(now) - elapsed; left > 0 {
		return left
	}
	return timing.signInterval
}

// hopeless reports whether to give up: there has been no sign of life for too long from
// any member that was or could be asked, or just an error.
func (x *exchange) hopeless(now time.Time) bool {
	elapsed := now.Sub(x.begin)
	switch {
	case x.allDown:
		return elapsed >= timing.allDownWait
	case elapsed >= timing.silenceLimit && !slices.ContainsFunc(x.order, (*member).answers):
		return true // all are down by now, however slow they were before
	case elapsed < x.silenceLimit(now)+x.grace:
		return false
	case len(x.errored) > 0:
		return true
	}
	// An answer at the very begin says little. Where no patience is known yet, one that
	// came since the middle of the limit will do.
	due := x.begin.Add(min(x.minPatience, timing.silenceLimit/2))
	for _, m := range x.order {
		if m.answers() && m.LastAnswer().After(due) && m.Silent() < timing.silenceLimit/2 {
			return false
		}
	}
	return !slices.ContainsFunc(x.open, (*attempt).mayBeSlow)
}

// mayBeSlow reports whether the member of a may be far away, or the network slow, rather
// than the member dead: dials take steps. Into a black hole they take none, and the
// connections of a dead process are silent.
func (a *attempt) mayBeSlow() bool {
	m := a.member
	if !m.answers() || !m.Reached() {
		return false
	}
	if !m.hasAnswered() {
		// It has been reached, and nothing else is known. If others have answered, the
		// network is not slow for all, and the query waits no longer.
		return !slices.ContainsFunc(a.exchange.order, (*member).hasAnswered)
	}
	return true
}

// hasAnswered reports whether the time of the member's answers is known.
func (m *member) hasAnswered() bool {
	usual, _ := m.Latency()
	return usual > 0
}

// hedge returns whether to ask a further member while attempts stay open, and how long to
// wait for the next plan if not, or if the price can't be paid.
//
// Once all members have been asked, each may be asked a second time, because a dead
// connection will have been replaced by then. Two healthy members that do not answer, or
// one that does not and one error, mean that the name is the cause: a third member is
// asked once in a while only. A member that answers other queries has just lost this
// one, if it is not slow: asking it again counts as a retry.
func (x *exchange) hedge(now time.Time) (do action, pause time.Duration) {
	newest := x.open[len(x.open)-1]
	if x.allDown {
		return action{}, forever
	}
	if !newest.late {
		return action{}, max(x.patience(newest)-now.Sub(newest.began), 0)
	}
	next := x.untried()
	again := next == nil
	if again && len(x.errored) == 0 {
		next = x.askedOnce()
	}
	if next == nil {
		return action{}, forever
	}
	pause = max(now.Sub(newest.began)/4, timing.recheckInterval)
	left := timing.unbudgetedHedgeAfter - now.Sub(x.begin)
	if left > 0 {
		pause = min(pause, left)
	}
	price, allowed := x.hedgePrice(again, left > 0)
	if !allowed {
		return action{}, pause
	}
	return action{kind: ask, member: next, price: price}, pause
}

// hedgePrice returns the price of a hedge, to a member that is asked again or not, before
// unbudgetedHedgeAfter or later. It reports false if there may be none now.
func (x *exchange) hedgePrice(again, early bool) (p price, allowed bool) {
	b, newest, healthy := x.balancer, x.open[len(x.open)-1], x.healthy()
	switch {
	case healthy > 0 && len(x.open) > 1 || healthy+len(x.errored) >= timing.enoughHealthy: // the name is the cause
		if early || len(x.open) != 2 || len(x.errored) > 0 {
			return price{}, false
		}
		return price{budgets: [2]*bucket{x.thirdBudget()}, once: true}, true
	case healthy == 0:
		return price{}, true
	case again:
		return price{budgets: [2]*bucket{&b.retries}}, true
	case !early:
		return price{}, true
	case newest.member.losses.of(x.query) >= lossy: // this one is probably lost, too
		return price{budgets: [2]*bucket{&b.hedges, &b.retries}}, true
	}
	return price{budgets: [2]*bucket{&b.hedges}}, true
}

// thirdBudget returns the budget for a third attempt while two healthy members do not
// answer: that of the retries if both lost other queries lately that another member had
// an answer to.
func (x *exchange) thirdBudget() *bucket {
	for _, a := range x.open {
		if a.member.losses.of(x.query) < lossy {
			return &x.balancer.thirds
		}
	}
	return &x.balancer.retries
}

// healthy returns how many of the members that are asked seem healthy: they have answered
// other queries since they were asked this one or, if a further member was asked after
// them, since this answer was overdue. Earlier answers say less.
func (x *exchange) healthy() (n int) {
	for i, a := range x.open {
		since := a.began
		if i < len(x.open)-1 {
			since = since.Add(x.patience(a))
		}
		if a.member.answers() && a.member.LastAnswer().After(since) {
			n++
		}
	}
	return n
}

// leastPatience returns the least patience of members that are Up. If only one resolves the
// domain, that is its own: hedges to the others would bring errors, and use up the budget.
func (x *exchange) leastPatience() time.Duration {
	least, members := timing.silenceLimit, x.order
	if x.resolves {
		members = members[:1]
	}
	for _, m := range members {
		if m.State() == Up {
			_, p := m.Latency()
			least = min(least, p)
		}
	}
	return least
}

// patience returns how long an attempt may take before a further one is worth it: as
// long as its member usually takes, unless others would long have answered.
func (x *exchange) patience(a *attempt) time.Duration {
	_, p := a.member.Latency()
	return min(p, x.minPatience*3/2)
}

// silenceLimit returns how long to wait without a sign of life: longer if a member that
// is asked is so far away that an answer takes longer, or has proved to be.
func (x *exchange) silenceLimit(now time.Time) time.Duration {
	limit := timing.silenceLimit
	for _, a := range x.open {
		usual, _ := a.member.Latency()
		limit = max(limit, usual*3/2, x.balancer.slowAnswer(a.member, now)*3/2)
	}
	return limit
}

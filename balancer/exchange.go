package balancer

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

// An exchange is one query, sent to one member after the other until one has a result.
// It has no goroutine: the goroutine that delivers an answer, an error or an alarm takes
// the next step, one at a time.
type exchange struct {
	balancer    *Balancer
	query       wire.Query
	done        func(wire.Answer, error)
	ctx         context.Context // carries the trace of the query; see WithObserver
	begin       time.Time
	deadline    time.Time // the client's; zero if it has none
	order       []*member
	asked       []int8        // how often each member of order was asked
	minPatience time.Duration // the least patience of any member that is Up, or of the first if resolves
	grace       time.Duration // added to silenceLimit; see noticeLag
	resolves    bool          // the first of order alone is known to resolve the domain
	allDown     bool          // all members were down when it began
	inTime      bool          // noticeLag was called when silenceLimit was over
	gaveUp      bool          // done was called without an answer
	over        bool          // done was called
	cancelled   atomic.Bool   // the same, for members that have not sent the query yet
	alarm       alarm         // guarded by mu of the timerWheel
	all         []*attempt    // in the order in which they began
	open        []*attempt    // those without an outcome
	errored     []*attempt    // those whose answer was an error
	problems    []error

	// mu guards the events that follow. It is not held while they are handled, which may
	// cause more of them.
	mu        sync.Mutex
	busy      bool       // a goroutine handles events
	fired     bool       // the alarm has fired
	ended     []*attempt // attempts that ended
	abandoned error      // why the caller waits no longer, or nil

	// buf has space for most exchanges, so that they are one allocation.
	buf struct {
		order [usualMembers]*member
		asked [usualMembers]int8
		first attempt
		open  [2]*attempt
		all   [2]*attempt
		ended [1]*attempt
	}
}

// usualMembers is the number of members that most balancers have at most.
const usualMembers = 4

// An attempt is one query sent to one member.
type attempt struct {
	exchange *exchange
	member   *member
	began    time.Time
	reason   Reason
	late     bool        // it took longer than its patience
	ended    bool        // took, answer and err are set
	waited   atomic.Bool // it counts as outstanding at its member
	took     time.Duration
	answer   wire.Answer
	err      error
}

// An Error says why a query has no answer.
type Error struct {
	// Problems has the error of each attempt.
	Problems []error

	failures  []failure // see Detail
	aboutName bool
}

// AboutName reports whether the name is the cause rather than the upstreams: all members
// that were asked have answered with an error, or one of them has answered another query
// meanwhile and none refused this one. The failure may be cached then (RFC 9520 section
// 3.2).
func (e *Error) AboutName() bool { return e.aboutName }

func (e *Error) Error() string {
	texts := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		texts[i] = p.Error()
	}
	return strings.Join(texts, "; ")
}

func (e *Error) Unwrap() []error { return e.Problems }

// EDE returns the error for clients: no upstream could be reached (RFC 8914 section
// 4.23), with the response code if the upstreams answered with errors.
func (e *Error) EDE() wire.EDE {
	rcode := wire.NoError
	for _, p := range e.Problems {
		if coded, ok := p.(*codeError); ok {
			rcode = coded.rcode
		}
	}
	if rcode != wire.NoError {
		return wire.EDE{Code: wire.EDENoReachable, Text: "upstreams answered " + rcode.String()}
	}
	return wire.EDE{Code: wire.EDENoReachable, Text: "no upstream answered"}
}

// run begins the exchange, and handles the events that occur at once.
func (x *exchange) run() {
	x.busy = true
	x.step(x.askFirst)
	x.proceed()
}

// proceed handles events until there are none.
func (x *exchange) proceed() {
	for {
		x.mu.Lock()
		var a *attempt
		fired, left := x.fired, x.abandoned
		switch {
		case len(x.ended) > 0:
			a = x.ended[0]
			x.ended = slices.Delete(x.ended, 0, 1)
		case fired || left != nil:
			x.fired, x.abandoned = false, nil
		default:
			x.busy = false
			x.mu.Unlock()
			return
		}
		x.mu.Unlock()
		switch {
		case x.over && a != nil:
			x.noteLateAnswer(a)
		case x.over:
		case a != nil:
			x.step(func() { x.attemptEnded(a) })
		case left != nil:
			x.step(func() { x.abandon(left) })
		default:
			x.step(func() { x.goOn(time.Now(), true) })
		}
	}
}

// update calls note, which adds an event, and handles it unless another goroutine is
// handling events.
func (x *exchange) update(note func()) {
	x.mu.Lock()
	note()
	busy := x.busy
	x.busy = true
	x.mu.Unlock()
	if !busy {
		x.proceed()
	}
}

// step calls f, which handles an event. A panic ends this exchange only.
func (x *exchange) step(f func()) {
	defer func() {
		if v := recover(); v != nil {
			x.balancer.log.Error("BUG: a query caused a panic", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			if !x.over {
				x.finish(wire.Answer{}, errCrashed)
			}
		}
	}()
	f()
}

// askFirst asks the first member, or all members if all are down.
func (x *exchange) askFirst() {
	b := x.balancer
	b.counts.queries.Add(1)
	b.hedges.add()
	b.retries.add()
	b.thirds.add()
	x.allDown = !x.order[0].answers()
	if x.allDown && !b.mayAskDown() {
		x.fail()
		return
	}
	x.minPatience = x.leastPatience()
	why := First
	if x.resolves {
		why = Resolves
	}
	x.start(x.order[0], why, x.begin)
	if x.allDown { // one may be back
		for _, m := range x.order[1:] {
			x.start(m, Outage, x.begin)
		}
	}
	x.goOn(x.begin, false)
}

// attemptEnded handles the outcome of an attempt.
func (x *exchange) attemptEnded(a *attempt) {
	now := time.Now()
	a.ended, a.took = true, now.Sub(a.began)
	x.open = slices.DeleteFunc(x.open, func(o *attempt) bool { return o == a })
	switch {
	case a.err == nil && a.answer.RCode().IsResult():
		x.won(a, now)
		x.finish(a.answer, nil)
	case a.err != nil && !x.retry(a, now), a.err == nil && !x.secondOpinion(a, now):
		x.fail()
	default:
		x.goOn(now, false)
	}
}

// noteLateAnswer records the duration of an answer that came after the exchange had ended
// without one.
func (x *exchange) noteLateAnswer(a *attempt) {
	if x.gaveUp && a.err == nil && a.answer.RCode().IsResult() {
		now := time.Now()
		a.member.slow.learn(now.Sub(a.began), x.balancer.instant(now))
	}
}

// finish ends the exchange and calls done.
func (x *exchange) finish(a wire.Answer, err error) {
	x.over = true
	x.cancelled.Store(true)
	for _, a := range x.open {
		a.release()
	}
	x.balancer.timers.stop(x)
	if err != nil || len(x.all) > 1 {
		x.balancer.record(x, a, err)
	}
	if observe := observerOf(x.ctx); observe != nil {
		x.notifyObserver(observe, a, err)
	}
	done := x.done
	x.done, x.ctx = nil, context.Background() // open attempts keep x, but must not keep its caller
	done(a, err)
}

// abandon ends the exchange because its caller waits no longer.
func (x *exchange) abandon(why error) {
	x.problems = append(x.problems, fmt.Errorf("%v: %w", x.query, why))
	x.fail()
}

// start begins an attempt at m.
func (x *exchange) start(m *member, why Reason, now time.Time) {
	x.asked[slices.Index(x.order, m)]++
	a := &x.buf.first
	if a.member != nil {
		a = new(attempt)
	}
	a.exchange, a.member, a.reason, a.began = x, m, why, now
	x.open, x.all = append(x.open, a), append(x.all, a)
	a.waited.Store(true)
	m.outstanding.Add(1)
	x.balancer.counts.attempts.Add(1)
	m.Ask(x.ctx, x.query, a.onResult)
}

// release removes a from the outstanding attempts of its member. An attempt that is still
// open at the end of its exchange does not count: a lost query would, for seconds, keep
// others from an idle member.
func (a *attempt) release() {
	if a.waited.Swap(false) {
		a.member.outstanding.Add(-1)
	}
}

// onResult takes the outcome of an attempt from its member. The exchange may have ended.
func (a *attempt) onResult(answer wire.Answer, err error) {
	a.answer, a.err = answer, err
	a.release()
	switch {
	case err == nil && answer.RCode().IsResult():
		a.member.losses.add(a.exchange.query, false)
	case err == nil: // a loss only if another member has a result
	case !errors.Is(err, context.DeadlineExceeded): // a failure of the member, not a time limit
		a.member.lost(a.exchange.query, fmt.Errorf("%w: %w", wire.ErrNoAnswer, err))
	}
	a.exchange.update(func() { a.exchange.ended = append(a.exchange.ended, a) })
}

// untried returns the best member that was not asked, by what is known now, or nil.
func (x *exchange) untried() *member {
	var best *member
	for i, m := range x.order {
		if x.asked[i] == 0 && (best == nil || best.worse(m, x.query)) {
			best = m
		}
	}
	return best
}

// askedOnce returns the member of the oldest open attempt that was asked only once, or
// nil.
func (x *exchange) askedOnce() *member {
	for _, a := range x.open {
		if x.asked[slices.Index(x.order, a.member)] == 1 {
			return a.member
		}
	}
	return nil
}

// retry asks another member after a has failed, if there is one and the budget allows it.
// It reports whether an attempt is open.
func (x *exchange) retry(a *attempt, now time.Time) bool {
	x.problems = append(x.problems, a.err)
	next := x.untried()
	if next != nil && (len(x.open) == 0 || next.State().IsUp()) && x.mayRetry() {
		x.balancer.counts.retries.Add(1)
		x.start(next, Retry, now)
	}
	return len(x.open) > 0
}

// secondOpinion asks another member after a has brought an error, unless enough members
// agree. It reports whether an attempt is open.
func (x *exchange) secondOpinion(a *attempt, now time.Time) bool {
	x.errored = append(x.errored, a)
	next := x.untried()
	if next != nil && !next.answers() {
		next = nil
	}
	switch {
	case len(x.errored) > 1 && (next == nil || !x.worthAnotherOpinion()):
		return false
	case len(x.open) > 0:
		return true
	case next == nil:
		return false
	}
	x.balancer.counts.seconds.Add(1)
	x.start(next, SecondOpinion, now)
	return true
}

// mayRetry reports whether to ask another member after a failure. The first retry of a
// query is free. The budget pays for the others, so that an outage does not multiply the
// queries.
func (x *exchange) mayRetry() bool {
	return len(x.problems) == 1 || x.balancer.retries.take()
}

// won records that winner has a result. It reports winner if others had an error, and the
// members that had an error, or no answer in time, for the same query: no member is
// reported for a name that no member answers.
func (x *exchange) won(winner *attempt, now time.Time) {
	instant := x.balancer.instant(now)
	winner.member.lastGood.Store(instant)
	winner.member.slow.learn(winner.took, instant)
	for _, w := range x.errored {
		x.balancer.resolvedBy.failed(x.query, w.member)
		if !w.member.reportError(x.query, w.answer.RCode(), instant) {
			x.balancer.resolvedBy.learn(x.query, winner.member, now)
		}
	}
	for _, a := range x.open {
		if a.late {
			x.balancer.resolvedBy.failed(x.query, a.member)
			a.member.lost(x.query, wire.ErrNoAnswer)
		}
	}
	if len(x.errored) > 0 {
		winner.member.Report(x.query, nil)
	}
	if len(x.errored) > 1 {
		x.balancer.broken.forget(x.query)
	}
}

// worthAnotherOpinion reports whether to ask a further member although two or more agree
// on an error. REFUSED is most often a limit of queries a second, which another member may
// not have reached: it is worth a retry. The name is the cause of most other errors, and
// clients ask for a broken name again and again: it gets a third opinion once in
// brokenNamesFor (RFC 9520 section 3.2).
func (x *exchange) worthAnotherOpinion() bool {
	b := x.balancer
	trusted := slices.ContainsFunc(x.errored, func(w *attempt) bool { return w.member.losses.of(x.query) < lossy })
	switch {
	case slices.ContainsFunc(x.errored, func(w *attempt) bool { return w.answer.RCode() == wire.Refused }):
		return b.retries.take()
	case len(x.errored) != 2 || !b.broken.firstSeen(x.query):
		return false
	case !trusted: // both had errors lately where others had results
		return b.retries.take()
	}
	return b.hedges.take()
}

// rateWindow is for telling a limit of queries a second from a member that refuses all
// queries: the former has had a result within rateWindow.
const rateWindow = time.Second

// reportError reports that m had an error where another member has a result. A member
// that limits the rate of queries is not broken: it gets a smaller share, and is not
// reported. It returns whether the error lowers the share of m.
func (m *member) reportError(q wire.Query, rcode wire.RCode, now int64) (counts bool) {
	if good := m.lastGood.Load(); rcode == wire.Refused && good != 0 && now-good < int64(rateWindow) {
		m.losses.add(q, true)
		return true
	}
	return m.lost(q, errors.New(rcode.String())) // without the name, as the text may be shown to anyone
}

// lost reports an attempt for q without a result. It lowers the share of the member if
// the member says that this counts, and returns that.
func (m *member) lost(q wire.Query, err error) (counts bool) {
	if counts = m.Report(q, err); counts {
		m.losses.add(q, true)
	}
	return counts
}

// fail ends the exchange without a result: with a SERVFAIL of an upstream, which explains
// itself, or with an Error. Other response codes are about this gateway as a client of the
// upstream. A client that got one of them would take it to be about itself.
func (x *exchange) fail() {
	for _, w := range x.errored {
		if w.answer.RCode() == wire.ServFail {
			x.finish(w.answer, nil)
			return
		}
	}
	x.gaveUp = true
	x.balancer.counts.failures.Add(1)
	for _, w := range x.errored {
		x.problems = append(x.problems, &codeError{w.member.String(), w.answer.RCode()})
	}
	for _, a := range x.open {
		x.problems = append(x.problems, fmt.Errorf("%v: no answer within %v", a.member, time.Since(a.began).Round(time.Millisecond)))
	}
	if len(x.problems) == 0 {
		x.problems = append(x.problems, errAllDown)
	}
	x.finish(wire.Answer{}, &Error{Problems: x.problems, aboutName: x.isAboutName()})
}

// isAboutName returns what Error.AboutName does.
func (x *exchange) isAboutName() bool {
	if len(x.all) == 0 {
		return false // all members are down
	}
	if len(x.errored) == len(x.all) {
		return true // each member has answered: RFC 9520 section 3.2 requires that it is cached
	}
	if slices.ContainsFunc(x.errored, func(w *attempt) bool { return w.answer.RCode() == wire.Refused }) {
		return false // the cause may be a limit of queries a second
	}
	begin := x.balancer.instant(x.begin)
	return slices.ContainsFunc(x.all, func(a *attempt) bool { return a.member.lastGood.Load() > begin })
}

// A codeError is a response code of an upstream that is not passed on.
type codeError struct {
	upstream string
	rcode    wire.RCode
}

func (e *codeError) Error() string { return e.upstream + ": answered " + e.rcode.String() }

var (
	errAllDown = errors.New("every upstream is down")
	errCrashed = errors.New("BUG: panic")
)

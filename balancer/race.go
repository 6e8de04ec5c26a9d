package balancer

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"dotgate/gateway/wire"
)

const (
	// despair is how long a query waits while nobody it asked gives any sign of
	// life. It is below the second after which impatient clients are gone.
	despair = 900 * time.Millisecond
	// resigned is how long it waits when everybody is known to be down.
	resigned = 10 * time.Millisecond
	// sound is how many members that seem well a query is sent to. If they
	// don't answer, it is the name's fault, and a third would not either.
	sound = 2
	// hedgeShare is how many hedges there may be per query in the long run, and
	// hedgeBurst how many at once.
	hedgeShare = 0.05
	hedgeBurst = 150
	// retryShare and retryBurst are the same for second and further retries.
	retryShare = 0.2
	retryBurst = 100
	// doubtShare and doubtBurst are the same for third attempts at a name that two
	// who are well don't answer; lossy is the share of attempts lost lately from
	// which on these count as retries.
	doubtShare = 0.02
	doubtBurst = 20
	lossy      = 0.15
	// lateHedge is how long a query waits for a hedge that the budget denies.
	lateHedge = 400 * time.Millisecond
	// tardy is how late a race must be to see that it is hopeless for the machine to
	// be too busy to know.
	tardy = 50 * time.Millisecond
	// lookAgain is how soon a query that got no hedge asks again whether it may.
	lookAgain = 10 * time.Millisecond
)

// A race is one query, asked of one member after the other until one wins. It has
// no goroutine: whoever brings news of it takes the next step, one at a time.
type race struct {
	balancer *Balancer
	query    wire.Query
	done     func(wire.Answer, error)
	explain  context.Context // takes what members tell of what they do; or nil
	begin    time.Time
	deadline time.Time // the client's; zero if it has none
	nobody   bool      // answers
	order    []*member
	asked    []int8        // how often each of order was
	keenest  time.Duration // the least patience anybody deserves
	grace    time.Duration // see hopeless
	alarm    alarm         // guarded by mu of the clock
	all      []*attempt    // as they began
	open     []*attempt
	weak     []*attempt // those whose answer was an error
	problems []error
	over     bool // done was called

	// mu guards the news. It is not held while anything is done about them, which
	// may bring more.
	mu    sync.Mutex
	busy  bool       // somebody takes steps
	ended []*attempt // and not settled yet
	rang  bool       // the alarm
	left  error      // why nobody waits any more, or nil

	// Room for what nearly every race needs, so that it is made in one piece.
	room struct {
		order [few]*member
		asked [few]int8
		first attempt
		open  [2]*attempt
		all   [2]*attempt
		ended [1]*attempt
	}
}

// few is how many members most balancers have at most.
const few = 4

// An attempt is one query sent to one member.
type attempt struct {
	race   *race
	member *member
	reason Reason
	began  time.Time
	late   bool // it outlived its patience
	ended  bool // the rest is set
	took   time.Duration
	answer wire.Answer
	err    error
}

// An Error is why no member gave an answer.
type Error struct {
	// Problems has what went wrong with each member that was asked.
	Problems []error

	culprits []culprit // see Detail
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

// run begins the race, and takes all steps for which there is no need to wait.
func (r *race) run() {
	r.busy = true
	r.step(r.ready)
	r.proceed()
}

// proceed takes a step for each news, until there are none.
func (r *race) proceed() {
	for {
		r.mu.Lock()
		var a *attempt
		rang, left := r.rang, r.left
		switch {
		case len(r.ended) > 0:
			a = r.ended[0]
			r.ended = slices.Delete(r.ended, 0, 1)
		case rang || left != nil:
			r.rang, r.left = false, nil
		default:
			r.busy = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		switch {
		case r.over:
		case a != nil:
			r.step(func() { r.settled(a) })
		case left != nil:
			r.step(func() { r.leave(left) })
		default:
			r.step(r.look)
		}
	}
}

// news has note put down what happened, and takes the steps that it makes necessary
// unless somebody is at it.
func (r *race) news(note func()) {
	r.mu.Lock()
	note()
	busy := r.busy
	r.busy = true
	r.mu.Unlock()
	if !busy {
		r.proceed()
	}
}

// step takes one. A panic ends this race, and nobody else's.
func (r *race) step(f func()) {
	defer func() {
		if v := recover(); v != nil {
			r.balancer.log.Error("BUG: a query caused a panic", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			if !r.over {
				r.finish(wire.Answer{}, errCrashed)
			}
		}
	}()
	f()
}

// ready asks the first member, or all of them if none answers.
func (r *race) ready() {
	b := r.balancer
	b.counts.queries.Add(1)
	b.hedges.earn()
	b.retries.earn()
	b.doubts.earn()
	r.nobody = !r.order[0].answers()
	if r.nobody && !b.mayTry() {
		r.fail()
		return
	}
	r.keenest = keenest(r.order)
	r.start(r.order[0], First, r.begin)
	if r.nobody { // whoever is back first
		for _, m := range r.order[1:] {
			r.start(m, Outage, r.begin)
		}
	}
	r.lookLater(r.begin)
}

// lookLater has the race look again when there may be something to do.
func (r *race) lookLater(now time.Time) { r.balancer.clock.set(r, now, r.wait(now)) }

// settled goes on after an attempt that ended.
func (r *race) settled(a *attempt) {
	now := time.Now()
	if answer, won := r.settle(a, now); won {
		r.finish(answer, nil)
		return
	}
	if len(r.open) == 0 || r.hopeless(now) {
		r.fail()
		return
	}
	r.lookLater(now)
}

// look does what time makes necessary.
func (r *race) look() {
	now := time.Now()
	switch {
	case !r.deadline.IsZero() && !now.Before(r.deadline):
		r.leave(context.DeadlineExceeded)
	case r.hopeless(now):
		r.fail()
	default:
		r.hedge(now)
		r.lookLater(now)
	}
}

// finish ends the race.
func (r *race) finish(a wire.Answer, err error) {
	r.over = true
	r.balancer.clock.stop(r)
	if err != nil || len(r.all) > 1 {
		r.balancer.tell(r, a, err)
	}
	done := r.done
	r.done = nil // attempts that are left behind keep r, but not what waited for it
	done(a, err)
}

// leave ends the race because nobody waits for it any more.
func (r *race) leave(why error) {
	r.problems = append(r.problems, fmt.Errorf("%v: %w", r.query, why))
	r.fail()
}

// start asks m.
func (r *race) start(m *member, why Reason, now time.Time) {
	r.asked[slices.Index(r.order, m)]++
	a := &r.room.first
	if a.member != nil {
		a = new(attempt)
	}
	a.race, a.member, a.reason, a.began = r, m, why, now
	r.open, r.all = append(r.open, a), append(r.all, a)
	m.outstanding.Add(1)
	r.balancer.counts.attempts.Add(1)
	if r.explain != nil {
		m.askFor(r.explain, r.query, a.end)
		return
	}
	m.Ask(r.query, a.end)
}

// end takes the outcome to the race, which may be over.
func (a *attempt) end(answer wire.Answer, err error) {
	a.answer, a.err = answer, err
	a.member.outstanding.Add(-1)
	if !errors.Is(err, context.DeadlineExceeded) { // it ended by itself
		a.member.losses.add(err != nil)
	}
	a.race.news(func() { a.race.ended = append(a.race.ended, a) })
}

// other returns the member to ask next among those that were not asked, or nil.
// Much may have become known since they were put in order.
func (r *race) other() *member {
	var best *member
	least := 0.0
	for i, m := range r.order {
		if r.asked[i] > 0 {
			continue
		}
		if d := m.doubt(); best == nil || d < least {
			best, least = m, d
		}
	}
	return best
}

// again returns the member that has owed an answer for longest, unless it was
// asked twice already, or nil.
func (r *race) again() *member {
	for _, a := range r.open {
		if r.asked[slices.Index(r.order, a.member)] == 1 {
			return a.member
		}
	}
	return nil
}

// settle takes note of an attempt that ended. It reports whether the race is won.
func (r *race) settle(a *attempt, now time.Time) (answer wire.Answer, won bool) {
	a.ended, a.took = true, now.Sub(a.began)
	r.open = slices.DeleteFunc(r.open, func(o *attempt) bool { return o == a })
	next := r.other()
	switch {
	case a.err != nil:
		r.problems = append(r.problems, a.err)
		if next != nil && (len(r.open) == 0 || next.Up()) && r.mayRetry() {
			r.balancer.counts.retries.Add(1)
			r.start(next, Retry, now)
		}
		return wire.Answer{}, false
	case acceptable(a.answer):
		r.won()
		return a.answer, true
	}
	r.weak = append(r.weak, a)
	if len(r.weak) >= 2 && !r.worthAThirdOpinion() {
		return r.weak[0].answer, true // two members say so: it is the name's fault
	}
	if len(r.open) > 0 {
		return wire.Answer{}, false
	}
	if next == nil || !next.answers() {
		return r.weak[0].answer, true
	}
	r.balancer.counts.seconds.Add(1)
	r.start(next, SecondOpinion, now)
	return wire.Answer{}, false
}

// mayRetry reports whether to ask somebody else after a failure. Once per query,
// always; more often only as the budget has it, so that an outage is not
// answered with a flood.
func (r *race) mayRetry() bool {
	return len(r.problems) == 1 || r.balancer.retries.spend()
}

// won blames members that gave no answer, or an error, although there is one.
// Nobody is blamed for a name that nobody answers.
func (r *race) won() {
	for _, w := range r.weak {
		w.member.blame(r.query, w.answer.RCode())
	}
	for _, a := range r.open {
		if a.late {
			a.member.losses.add(true)
		}
	}
}

// worthAThirdOpinion reports whether to doubt what two members say of a name.
// Most often it is the name that is broken, and then it is asked for again and
// again: it gets a third opinion once in a while only (RFC 9520 section 3.2).
func (r *race) worthAThirdOpinion() bool {
	next := r.other()
	return len(r.weak) == 2 && next != nil && next.Up() &&
		r.balancer.broken.firstInAWhile(r.query) && r.balancer.hedges.spend()
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
	m.Blame(q, errors.New(rcode.String())) // without the name: it may be shown to anybody
}

// keenest returns the least patience of members that are well.
func keenest(members []*member) time.Duration {
	least := despair
	for _, m := range members {
		if m.Up() && !m.Suspect() {
			_, p := m.Latency()
			least = min(least, p)
		}
	}
	return least
}

// patience returns how long an attempt may take before another is worth it: as
// long as its member usually takes, unless others would long have answered.
func (r *race) patience(a *attempt) time.Duration {
	_, p := a.member.Latency()
	return min(p, r.keenest*3/2)
}

// despair returns how long to wait without a sign of life: longer if somebody
// who is asked is so far away that a dial takes longer.
func (r *race) despair() time.Duration {
	limit := despair
	for _, a := range r.open {
		usual, _ := a.member.Latency()
		limit = max(limit, usual*3/2)
	}
	return limit
}

// wait returns how long to wait before something is to be done.
func (r *race) wait(now time.Time) time.Duration {
	wait := r.patienceLeft(now)
	if r.deadline.IsZero() {
		return wait
	}
	return min(wait, r.deadline.Sub(now))
}

func (r *race) patienceLeft(now time.Time) time.Duration {
	elapsed := now.Sub(r.begin)
	if r.nobody {
		return max(resigned-elapsed, 0)
	}
	rest := r.despair() - elapsed
	if rest <= 0 {
		rest = 100 * time.Millisecond // somebody lives: it is worth waiting
	}
	newest := r.open[len(r.open)-1]
	if newest.late && r.other() == nil && (len(r.weak) > 0 || r.again() == nil) {
		return rest // there is nobody to ask any more
	}
	if newest.late { // there was no hedge, so far; look again, ever less often
		again := max(now.Sub(newest.began)/4, lookAgain)
		if budget := lateHedge - elapsed; budget > 0 { // it is of no matter any more then
			again = min(again, budget)
		}
		return min(rest, again)
	}
	return max(min(rest, r.patience(newest)-now.Sub(newest.began)), 0)
}

// hopeless reports whether to give up: there has been no sign of life for too
// long from anybody who was or could be asked, or just an error. When this process
// itself had no time to look, it takes another while: signs may lie unread.
func (r *race) hopeless(now time.Time) bool {
	elapsed := now.Sub(r.begin)
	if r.nobody {
		return elapsed >= resigned
	}
	over := elapsed - r.despair() - r.grace
	if over < 0 {
		return false
	}
	if over > tardy && r.grace == 0 {
		r.grace = over + despair/2
		return false
	}
	for _, m := range r.order {
		if m.answers() && m.Alive(r.begin.Add(r.keenest)) && m.Silent() < despair/2 {
			return len(r.weak) > 0
		}
	}
	return true
}

// hedge asks another member beside those that are still at it, if that may help
// and the budget has it. When all have been asked, each is asked once more: if
// only its connection is dead, it has made another by now. One that answers others
// has just lost this query, if it is not slow: there are retries for that.
func (r *race) hedge(now time.Time) {
	newest := r.open[len(r.open)-1]
	if !newest.late {
		if now.Sub(newest.began) < r.patience(newest) {
			return
		}
		newest.late = true
	}
	next := r.other()
	again := next == nil
	if again && len(r.weak) == 0 {
		next = r.again()
	}
	well := r.well()
	// Of several, one that is well does not answer, or two had errors.
	namesFault := well > 0 && len(r.open) > 1 || well+len(r.weak) >= sound
	switch {
	case next == nil:
		return
	case namesFault:
		if !r.mayDoubt(now) {
			return
		}
	case well > 0 && again && !r.balancer.retries.spend():
		return
	case well > 0 && !again && now.Sub(r.begin) < lateHedge && !r.balancer.hedges.spend():
		return
	}
	r.balancer.counts.hedges.Add(1)
	r.start(next, Hedge, now)
}

// mayDoubt reports whether to ask a third one, in case that two that are well
// lost this very query: seldom, as it is the name's fault most often, unless both
// lost others lately that somebody else had an answer to.
func (r *race) mayDoubt(now time.Time) bool {
	if len(r.open) != 2 || len(r.weak) > 0 || now.Sub(r.begin) < lateHedge || !r.balancer.broken.firstInAWhile(r.query) {
		return false
	}
	for _, a := range r.open {
		if a.member.losses.value() < lossy {
			return r.balancer.doubts.spend()
		}
	}
	return r.balancer.retries.spend()
}

// well returns how many of those that are asked seem well: they have answered
// others since they were asked this, or, once somebody else is asked too, since
// this was overdue. What they had answered at the very moment says less.
func (r *race) well() (n int) {
	for i, a := range r.open {
		since := a.began
		if i < len(r.open)-1 {
			since = since.Add(r.patience(a))
		}
		if a.member.answers() && a.member.Alive(since) {
			n++
		}
	}
	return n
}

// fail ends the race with the best there is: an error with its explanation, or ours.
func (r *race) fail() {
	if len(r.weak) > 0 {
		r.finish(r.weak[0].answer, nil)
		return
	}
	r.balancer.counts.failures.Add(1)
	for _, a := range r.open {
		r.problems = append(r.problems, fmt.Errorf("%v: no answer within %v", a.member, time.Since(a.began).Round(time.Millisecond)))
	}
	if len(r.problems) == 0 {
		r.problems = append(r.problems, errNobody)
	}
	r.finish(wire.Answer{}, &Error{Problems: r.problems})
}

var (
	errNobody  = errors.New("every upstream is down")
	errCrashed = errors.New("BUG: panic")
)

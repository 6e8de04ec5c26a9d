package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
)

// A waiter is a query that can't be answered at once. Nobody's goroutine waits for
// its answer: whoever brings that makes the reply. So what a waiting query takes is
// little more than the query.
type waiter struct {
	query  wire.Query // a clone
	client replier
	from   netip.Addr
	tally  *tally
	slot   atomic.Bool // it has one, to be given back

	coalesced atomic.Bool     // the flight that it waits for is another's
	trace     context.Context // see Tracer; or nil

	// Of clients over UDP.
	source []byte // as a control message; may be empty
	to     peer

	began    time.Time
	deadline time.Time
	answered atomic.Bool                // the reply is made, or about to be
	patience atomic.Pointer[time.Timer] // ends the wait early, for a stale answer; or nil
	flight   flight                     // if it leads one
}

// newWaiter returns a waiter for a query that has a slot.
func newWaiter(q wire.Query, client replier, from netip.Addr, t *tally) *waiter {
	w := &waiter{query: q.Clone(), client: client, from: from, tally: t}
	w.slot.Store(true)
	return w
}

// A replier is the socket or the connection that a query came by.
type replier interface {
	// reply sends a message as the reply to w. It doesn't block. The message is
	// the replier's from then on, to be given to putBuffer.
	reply(w *waiter, message *[]byte)
}

// A flight is one question to the Resolver, however many clients wait for the
// answer. The first of them leads. Nobody who leaves ends it.
type flight struct {
	key    string
	query  wire.Query
	began  time.Time
	domain *domain         // or nil
	trace  context.Context // of who leads; or nil
	room   [1]*waiter

	// Guarded by mu of the flights.
	slot    bool // it has one, to be given back
	waiters []*waiter
}

// A landing is what became of a flight: an answer and the terms to pass it on, or
// an error.
type landing struct {
	answer wire.Answer
	terms  wire.Terms
	err    error
}

// answered reports whether an upstream has said anything of use.
func (l *landing) answered() bool { return l.err == nil && l.answer.Kind() != wire.Failure }

// flights are those under way, one for each key. There are no more of them than
// there are slots, nor do more wait; who got a stale answer after the cache's patience
// is still there, until it lands.
type flights struct {
	mu      sync.Mutex // guards the rest, and who waits; not held during I/O
	open    map[string]*flight
	private uint64 // counts those for one client alone
	closed  bool
}

// join has w, if it is not nil, wait for the flight for q: the one that there is,
// or else f, which the caller leads then, and which gets the slot of w, as it may go
// on without w. It returns nil if there will be no more.
func (fs *flights) join(q wire.Query, w *waiter, f *flight) (joined *flight, leads bool) {
	var room [wire.MaxKey]byte
	var key []byte
	if !q.Scoped() {
		key = q.AppendKey(room[:0])
	}
	now := time.Now()
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.closed {
		return nil, false
	}
	if key == nil { // no label of a name is that long
		fs.private++
		key = binary.BigEndian.AppendUint64(append(room[:0], 0xff), fs.private)
	}
	joined, found := fs.open[string(key)]
	if !found {
		f.key, f.query, f.began, f.waiters = string(key), q, now, f.room[:0]
		f.slot = w == nil || w.slot.Swap(false)
		fs.open[f.key] = f
		joined = f
	}
	if w != nil {
		w.coalesced.Store(found)
		joined.waiters = append(joined.waiters, w)
	}
	return joined, !found
}

// leave has w, which came a moment ago, not wait for f.
func (fs *flights) leave(f *flight, w *waiter) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for i := len(f.waiters) - 1; i >= 0; i-- {
		if f.waiters[i] == w {
			f.waiters = slices.Delete(f.waiters, i, i+1)
			return
		}
	}
}

// underWay reports whether there is a flight for q.
func (fs *flights) underWay(q wire.Query) bool {
	var room [wire.MaxKey]byte
	key := q.AppendKey(room[:0])
	fs.mu.Lock()
	defer fs.mu.Unlock()
	_, ok := fs.open[string(key)]
	return ok
}

// land ends f and returns who waits for it, and whether it had a slot. It reports
// false if it has ended.
func (fs *flights) land(f *flight) (waiters []*waiter, slot, ok bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.open[f.key] != f {
		return nil, false, false
	}
	delete(fs.open, f.key)
	waiters, f.waiters = f.waiters, nil
	return waiters, f.slot, true
}

// close returns all who wait, and how many slots the flights had. There will be no
// more; those that there are go on for nobody.
func (fs *flights) close() (rest []*waiter, slots int) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.closed = true
	for _, f := range fs.open {
		rest = append(rest, f.waiters...)
		f.waiters = nil
		if f.slot {
			f.slot = false
			slots++
		}
	}
	return rest, slots
}

// fetch has w wait for the Resolver's answer, with one exchange for all who ask
// the same at the same time. If the cache has a stale answer, it waits no longer
// than the cache would have it; the exchange goes on then, and fills the cache.
func (g *Gateway) fetch(w *waiter) {
	f, leads := g.flights.join(w.query, w, &w.flight)
	if f == nil {
		g.conclude(w, &landing{err: errStopped})
		return
	}
	if !leads {
		w.tally.coalesced.Add(1)
	}
	found := cache.Nothing
	if !w.query.Scoped() { // not before: another flight may have landed since the read loop looked
		found = g.cache.Look(w.query)
	}
	if found == cache.Stale {
		g.hurry(w, f)
	}
	if !leads {
		return
	}
	if found != cache.Fresh || !g.landKnown(f) {
		f.trace = w.trace
		g.fly(f, w.deadline)
	}
}

// hurry has w wait no longer than is worth it for who could have a stale answer:
// counted from the begin of f, so that only those who come first wait for long.
func (g *Gateway) hurry(w *waiter, f *flight) {
	end := f.began.Add(g.cache.StaleAfter())
	if !end.Before(w.deadline) {
		return
	}
	left := time.Until(end)
	if left <= 0 { // nor does it take room among those who wait
		g.flights.leave(f, w)
		g.conclude(w, &landing{err: context.DeadlineExceeded})
		return
	}
	timer := time.AfterFunc(left, func() { g.conclude(w, &landing{err: context.DeadlineExceeded}) })
	w.patience.Store(timer)
	if w.answered.Load() {
		timer.Stop()
	}
}

// landKnown lands f with the answer that the cache has by now, if it has one.
func (g *Gateway) landKnown(f *flight) (known bool) {
	var l landing
	if l.answer, l.terms, known = g.cache.Get(f.query); known {
		g.land(f, &l)
	}
	return known
}

// fly has the Resolver asked. A panic becomes an error: a bug that one name brings
// out must not end the service for all others.
func (g *Gateway) fly(f *flight, deadline time.Time) {
	defer func() {
		if v := recover(); v != nil {
			g.panics.report(v)
			g.land(f, &landing{err: errCrashed})
		}
	}()
	domain, err := g.domains.enter(f.query)
	if err != nil {
		g.land(f, &landing{err: err})
		return
	}
	f.domain = domain
	g.ask(f, deadline, func(a wire.Answer, err error) { g.arrive(f, a, err) })
}

// arrive takes what the Resolver has for f.
func (g *Gateway) arrive(f *flight, a wire.Answer, err error) {
	defer func() {
		if v := recover(); v != nil {
			g.panics.report(v)
			g.land(f, &landing{err: errCrashed})
		}
	}()
	if err == nil && a.IsZero() {
		err = errNothing
	} else if err == nil && g.now().guard.blocks(f.query, a) {
		a, err = nothing(f.query)
	}
	l := landing{err: err}
	if err == nil {
		if !f.query.Scoped() {
			g.cache.Put(f.query, a)
		}
		l.answer, l.terms = a, g.cache.Terms(a)
	}
	g.land(f, &l)
}

// land ends f, unless it has ended, and has all who wait for it answered. Those who
// came after its leader may have time left when it has run out of it.
func (g *Gateway) land(f *flight, l *landing) {
	waiters, slot, ok := g.flights.land(f)
	if !ok { // after a panic
		return
	}
	if slot {
		g.slots.release()
	}
	if f.domain != nil {
		g.domains.leave(f.domain, l.answered())
	}
	outOfTime := errors.Is(l.err, context.DeadlineExceeded)
	for _, w := range waiters {
		if outOfTime && f != &w.flight && !w.answered.Load() && time.Until(w.deadline) >= g.now().Timeout/8 {
			g.fetch(w)
			continue
		}
		g.conclude(w, l)
	}
}

// abandon has all clients told that it is over, who still wait.
func (g *Gateway) abandon() {
	rest, slots := g.flights.close()
	for range slots {
		g.slots.release()
	}
	for _, w := range rest {
		g.conclude(w, &landing{err: errStopped})
	}
}

var errStopped = fmt.Errorf("the gateway stops: %w", context.Canceled)

// renew asks the Resolver for what the cache is about to lose, unless somebody
// does so already, or there is no slot. It doesn't wait. Q is kept.
func (g *Gateway) renew(q wire.Query, t *tally) {
	if !g.slots.take() {
		return
	}
	f, leads := g.flights.join(q, nil, new(flight))
	if !leads {
		g.slots.release()
		return
	}
	t.prefetches.Add(1)
	g.fly(f, time.Now().Add(g.now().Timeout))
}

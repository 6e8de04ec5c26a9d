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

	"dotgate/gateway/access"
	"dotgate/gateway/cache"
	"dotgate/gateway/transport"
	"dotgate/gateway/wire"
)

// A pendingQuery is a client query that waits for the Resolver. No goroutine blocks on
// it: the goroutine that delivers the answer also builds and sends the reply, so a
// pending query costs little more than its own bytes.
type pendingQuery struct {
	gateway  *Gateway
	query    wire.Query // a clone
	replyTo  transport.ReplyTo
	from     netip.Addr
	counters *counters

	// Side by side, because a few octets more make it an object of the next size.
	via       wire.Transport
	check     access.Check
	traced    bool        // trace is the Tracer's
	unknown   bool        // the cache had no answer when it was at changes
	changes   uint32      // of the cache
	slot      atomic.Bool // it holds one
	coalesced atomic.Bool // another query leads the call that it waits for
	answered  atomic.Bool // the reply is built, or being built

	trace      context.Context // never nil once the query is being resolved
	began      time.Time
	deadline   time.Time
	staleTimer atomic.Pointer[time.Timer] // ends the wait early when there is a stale answer; or nil
	call       call                       // used if this query leads one
}

// newPendingQuery returns a pendingQuery for q, which holds a slot.
func (g *Gateway) newPendingQuery(q wire.Query, from *client) *pendingQuery {
	p := &pendingQuery{
		gateway: g, query: q.Clone(), replyTo: from.ReplyTo.Clone(), from: from.Addr, via: from.Via,
		counters: g.countersFor(from), check: from.check, unknown: from.unknown, changes: from.changes,
	}
	p.slot.Store(true)
	return p
}

// A call is one question to the Resolver, shared by all clients that ask it at the same
// time. The query that starts the call leads it. A call goes on when its pending queries
// are answered otherwise.
type call struct {
	key      string
	query    wire.Query
	config   *config // the one in effect when it began
	began    time.Time
	domain   domainUse
	trace    context.Context // the leader's; never nil
	deadline time.Time
	buf      [1]*pendingQuery // the first element of pending

	// Guarded by calls.mu.
	slot    bool // it holds one
	pending []*pendingQuery
}

// A call is the context of its query, so that the Resolver costs no further one.

// Deadline returns when the Resolver must have an answer.
func (c *call) Deadline() (time.Time, bool) { return c.deadline, true }

// Done returns nil: a call never ends before its result.
func (c *call) Done() <-chan struct{} { return nil }

// Err returns nil.
func (c *call) Err() error { return nil }

// Value returns what the leader's trace carries.
func (c *call) Value(key any) any {
	return c.trace.Value(key)
}

// A result is the outcome of a call: an answer with the terms to pass it on, or an error.
type result struct {
	answer wire.Answer
	terms  wire.Terms
	err    error
	at     time.Time // when the call ended; zero if it has not
}

// answered reports whether an upstream has given a result, not a failure.
func (r *result) answered() bool { return r.err == nil && r.answer.Kind() != wire.Failure }

// calls holds the calls in progress, at most one per cache key. Slots bound their number
// and that of the queries that wait for them. A call goes on after its pending queries
// got stale answers, and stays listed until it finishes.
type calls struct {
	mu      sync.Mutex // guards the rest, and call.pending; not held during I/O
	open    map[string]*call
	private uint64 // the last private key
	closed  bool
}

// join adds p, if it is not nil, to the call for q: the one in progress, or else c, which
// the caller then leads. C takes over the slot of p, since it may outlast p. A call that
// began under a configuration by which q would have been resolved differently serves only
// the queries that wait for it already. join returns nil after close.
func (cs *calls) join(q wire.Query, p *pendingQuery, c *call, cfg *config, now time.Time) (joined *call, leads bool) {
	var buf [wire.MaxKey]byte
	var key []byte
	if !q.Scoped() {
		key = q.AppendKey(buf[:0])
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.closed {
		return nil, false
	}
	if key == nil {
		key = cs.privateKey(buf[:0])
	}
	joined, found := cs.open[string(key)]
	if found && !joined.config.resolvesSame(cfg, q) {
		delete(cs.open, joined.key)
		joined.key = string(cs.privateKey(nil))
		cs.open[joined.key] = joined
		found = false
	}
	if !found {
		c.key, c.query, c.config, c.began, c.pending = string(key), q, cfg, now, c.buf[:0]
		c.slot = p == nil || p.slot.Swap(false)
		cs.open[c.key] = c
		joined = c
	}
	if p != nil {
		p.coalesced.Store(found)
		joined.pending = append(joined.pending, p)
	}
	return joined, !found
}

// privateKey appends a key that no query has: 0xff is no valid length of a label. The
// caller holds mu.
func (cs *calls) privateKey(dst []byte) []byte {
	cs.private++
	return binary.BigEndian.AppendUint64(append(dst, 0xff), cs.private)
}

// withdraw removes p, which has just joined, from c.
func (cs *calls) withdraw(c *call, p *pendingQuery) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for i := len(c.pending) - 1; i >= 0; i-- {
		if c.pending[i] == p {
			c.pending = slices.Delete(c.pending, i, i+1)
			return
		}
	}
}

// finish removes c and returns the queries that wait for it, and whether it holds a slot.
// It reports false if c has finished before.
func (cs *calls) finish(c *call) (pending []*pendingQuery, slot, ok bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.open[c.key] != c {
		return nil, false, false
	}
	delete(cs.open, c.key)
	pending, c.pending = c.pending, nil
	return pending, c.slot, true
}

// close returns all pending queries and the number of slots that calls hold. No call can
// be joined afterwards; results of those in progress go to no client.
func (cs *calls) close() (rest []*pendingQuery, slots int) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.closed = true
	for _, c := range cs.open {
		rest = append(rest, c.pending...)
		c.pending = nil
		if c.slot {
			c.slot = false
			slots++
		}
	}
	return rest, slots
}

// await has p wait for the Resolver's answer, in one call with all clients that ask the
// same at the same time. If the cache has a stale answer, p waits no longer than the
// cache's StaleAfter; the call then goes on and fills the cache.
func (g *Gateway) await(p *pendingQuery, now time.Time) {
	c, leads := g.calls.join(p.query, p, &p.call, g.config(), now)
	if c == nil {
		g.respond(p, &result{err: errStopped})
		return
	}
	if !leads {
		p.counters.coalesced.Add(1)
	}
	found := cache.Miss
	if !p.query.Scoped() && p.check != access.LiveCheck && !(p.unknown && p.changes == g.cache.Changes()) {
		// Again: a call may have finished since the read loop looked.
		found = g.cache.Lookup(p.query)
	}
	if found == cache.Stale {
		g.limitWait(p, c)
	}
	if !leads {
		return
	}
	if found != cache.Fresh || !g.finishFromCache(c) {
		c.trace = p.trace
		g.start(c, p.deadline, p.from)
	}
}

// limitWait bounds the wait of p, for which the cache has a stale answer. The time runs
// from the begin of c, so that only the first clients of a call wait that long.
func (g *Gateway) limitWait(p *pendingQuery, c *call) {
	end := c.began.Add(g.cache.StaleAfter())
	if !end.Before(p.deadline) {
		return
	}
	left := time.Until(end)
	if left <= 0 { // it need not stay in the list either
		g.calls.withdraw(c, p)
		g.respond(p, &result{err: context.DeadlineExceeded})
		return
	}
	timer := time.AfterFunc(left, func() { g.respond(p, &result{err: context.DeadlineExceeded}) })
	p.staleTimer.Store(timer)
	if p.answered.Load() {
		timer.Stop()
	}
}

// finishFromCache finishes c with the answer in the cache, if there is a fresh one by now.
func (g *Gateway) finishFromCache(c *call) (known bool) {
	var r result
	if r.answer, r.terms, known = g.cache.Get(c.query); known {
		g.finish(c, &r)
	}
	return known
}

// start asks the Resolver for c, on behalf of a client; the zero Addr stands for a
// renewal. A panic becomes an error: a bug that one name triggers must not end the service
// for all others.
func (g *Gateway) start(c *call, deadline time.Time, client netip.Addr) {
	defer func() {
		if v := recover(); v != nil {
			g.panics.report(v)
			g.finish(c, &result{err: errCrashed})
		}
	}()
	var err error
	if c.domain, err = g.domains.begin(c.query, client, c.began); err != nil {
		g.finish(c, &result{err: err})
		return
	}
	c.deadline = deadline
	c.config.resolver.Ask(c, c.query, func(a wire.Answer, err error) { g.onResult(c, a, err) })
}

// onResult takes the Resolver's answer or error for c.
func (g *Gateway) onResult(c *call, a wire.Answer, err error) {
	defer func() {
		if v := recover(); v != nil {
			g.panics.report(v)
			g.finish(c, &result{err: errCrashed})
		}
	}()
	if err == nil && a.IsZero() {
		err = errNothing
	}
	r := result{err: err}
	if err == nil {
		r.answer = g.store(c, a)
		r.terms = g.cache.Terms(r.answer)
	}
	g.finish(c, &r)
	if err != nil && isAboutName(err) && !c.query.Scoped() {
		// Only now: queries with time left have joined another call.
		_, ede := failure(err)
		g.store(c, c.query.OwnAnswer(wire.ServFail, ede))
	}
}

// store puts the answer of c into the cache, and returns it, or the answer that the
// rebinding filter has replaced it by. The configuration does not change meanwhile. The
// answer of a call that began under a configuration by which the query would have been
// resolved differently goes only to the queries that wait for it.
func (g *Gateway) store(c *call, a wire.Answer) wire.Answer {
	g.storing.RLock()
	defer g.storing.RUnlock()
	cfg := g.config()
	a = cfg.rebind.Filter(c.query, a)
	if !c.query.Scoped() && c.config.resolvesSame(cfg, c.query) {
		g.cache.Put(c.query, a)
	}
	return a
}

// isAboutName reports whether a failure is about the name that was asked for, rather than
// the upstreams: it is cached for a moment, as an upstream's SERVFAIL is (RFC 9520 section
// 3.2). A failure that may be an outage is not cached, since it would outlive the outage.
func isAboutName(err error) bool {
	type about interface {
		error
		AboutName() bool
	}
	e, ok := errors.AsType[about](err)
	return ok && e.AboutName()
}

// finish ends c, unless it has ended, and responds to all queries that wait for it. If c
// has run out of time, queries that came later than its leader may have time left, and
// join another call.
func (g *Gateway) finish(c *call, r *result) {
	pending, slot, ok := g.calls.finish(c)
	if !ok { // a panic came after it
		return
	}
	if slot {
		g.slots.release()
	}
	r.at = time.Now()
	if c.domain.lowest != nil {
		g.domains.end(c.domain, r.answered(), r.at)
	}
	outOfTime := errors.Is(r.err, context.DeadlineExceeded)
	for _, p := range pending {
		if outOfTime && c != &p.call && !p.answered.Load() && p.deadline.Sub(r.at) >= g.config().Timeout/8 {
			g.await(p, r.at)
			continue
		}
		g.respond(p, r)
	}
}

// failPending responds to all pending queries with errStopped.
func (g *Gateway) failPending() {
	rest, slots := g.calls.close()
	for range slots {
		g.slots.release()
	}
	for _, p := range rest {
		g.respond(p, &result{err: errStopped})
	}
}

var errStopped = fmt.Errorf("the gateway stops: %w", context.Canceled)

// renew asks the Resolver for an answer that the cache is about to lose, unless a call for
// it is in progress or no slot is free. It does not wait. Q is kept.
func (g *Gateway) renew(q wire.Query, n *counters) {
	if !g.slots.take(access.NoCheck) {
		return
	}
	now := time.Now()
	c, leads := g.calls.join(q, nil, &call{trace: context.Background()}, g.config(), now)
	if !leads {
		g.slots.release()
		return
	}
	n.prefetches.Add(1)
	g.start(c, now.Add(g.config().Timeout), netip.Addr{})
}

// Package upstreams asks resolvers over DNS-over-TLS (RFC 7858).
//
// An upstream keeps a few connections, each of which carries many queries at
// once. It only does: whether it is well is for others to judge, from what
// Exchange returns, Latency and Silent. There is no way for it to ask in clear text
// or without verifying the certificate; a Plain, which is another type, asks servers
// of one's own network that speak nothing else.
package upstreams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

const (
	// busy is how many queries under way make a connection worth a second one.
	// Other resolvers allow about a hundred on one, some of which wait for names
	// that nobody answers; and bursts that share records are cheaper.
	busy = 128
	// full is how many queries under way a connection takes at all. An upstream
	// that is that far behind will not catch up within a client's patience.
	full = 4096
	// retireAfter is how long a connection may be silent, with queries under
	// way, before it is given up. Lost segments are sent again well within it.
	retireAfter = time.Second
	// retireEarly is the same for one that a middlebox seems to have forgotten:
	// the silence has then outlasted one lost segment.
	retireEarly = 400 * time.Millisecond
	// lively is how lately a connection must have brought an answer to be
	// trusted with a query whose own connection has just died.
	lively = time.Second
	// sparePeriod is how long a spare connection is kept after the upstream closed
	// one under its queries: it is likely to do so again.
	sparePeriod = 10 * time.Second
	// testMin is the least that the test of a silent connection may take.
	testMin = 20 * time.Millisecond
	// restMax is how long a connection may be idle and still be trusted as if it
	// had not been.
	restMax = 400 * time.Millisecond
	// idleLimitMin is the least that idle connections are kept, however soon
	// something on the way seems to forget them.
	idleLimitMin = 200 * time.Millisecond
	// idleLimitWhile is how long that is believed.
	idleLimitWhile = 10 * time.Minute
	// growPause is how long no further connection is tried after the upstream
	// closed one without an answer: it may allow only so many.
	growPause = 10 * time.Second
)

// ErrBusy means that more queries are under way than the upstream can answer in
// time. It is no evidence against it.
var ErrBusy error = busyError{}

type busyError struct{}

func (busyError) Error() string { return "too many queries under way" }

// Excused tells that the failure says nothing about the upstream.
func (busyError) Excused() bool { return true }

// ErrClosed means that Close was called.
var ErrClosed = errors.New("upstream closed")

// An Upstream is one resolver service with its addresses and its connections.
type Upstream struct {
	o          Options
	log        *slog.Logger
	dialer     dialer
	epoch      time.Time // what instants count from
	rtt        estimator
	waiting    atomic.Int64 // instant of the first query since the last answer, or 0
	wg         sync.WaitGroup
	ctx        context.Context // ends with Close
	stop       context.CancelFunc
	spareUntil atomic.Int64               // instant
	growAfter  atomic.Int64               // instant
	known      atomic.Pointer[knownQuery] // or nil
	lastRead   atomic.Int64               // instant of the last answer
	idleLimit  atomic.Pointer[idleLimit]  // learnt, or nil
	forgotten  atomic.Int64               // instant at which a connection seemed to be, or 0
	open       atomic.Int32               // len(conns)
	allowance  allowance
	counts     counters

	ledger

	// mu guards the pool. Nothing blocks while it is held.
	mu     sync.Mutex
	conns  []*conn
	dials  []*dial // under way, the newest last
	closed bool
}

// New checks all options and returns an Upstream that has not dialled yet.
func New(o Options) (*Upstream, error) {
	o = o.withDefaults()
	var problems []error
	o.Check(func(option, problem string) {
		problems = append(problems, fmt.Errorf("upstream %s: %s %s", o.Name, option, problem))
	})
	if o.Protocol != TLS {
		problems = append(problems, fmt.Errorf("upstream %s: protocol %s is for NewPlain", o.Name, o.Protocol))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	u := &Upstream{o: o, log: o.Log.With("upstream", o.Name), epoch: time.Now()}
	u.ctx, u.stop = context.WithCancel(context.Background())
	if err := u.dialer.init(o, u.log); err != nil {
		return nil, fmt.Errorf("upstream %s: %w", o.Name, err)
	}
	return u, nil
}

// String returns the upstream's name.
func (u *Upstream) String() string { return u.o.Name }

// Latency returns how long an answer usually takes, 0 while that is not known,
// and how long one may be waited for before something seems wrong. Both include
// a dial while no connection is open.
func (u *Upstream) Latency() (usual, patience time.Duration) {
	usual, patience = u.rtt.usual()
	if u.open.Load() == 0 { // a round trip for TCP and one for TLS 1.3 come first
		patience += 2 * usual
		usual *= 3
	} else if limit := u.allowance.limit.Load(); limit > 0 { // a share of such a dial
		dialled := 2 * usual / time.Duration(limit)
		patience += dialled
		usual += dialled
	}
	return usual, patience
}

// Silent returns how long the upstream has owed a sign of life: the time since
// the first query after its last answer. A name that nobody answers makes no
// silence while others are answered.
func (u *Upstream) Silent() time.Duration {
	since := u.waiting.Load()
	if since == 0 {
		return 0
	}
	return time.Duration(u.now() - since)
}

func (u *Upstream) now() int64 { return int64(time.Since(u.epoch)) + 1 }

// A knownQuery is one that the upstream has answered.
type knownQuery struct {
	query wire.Query
	at    int64 // instant
}

// remember keeps q as something that the upstream can answer, a new one each
// second.
func (u *Upstream) remember(q wire.Query, now int64) {
	if known := u.known.Load(); known == nil || now-known.at > int64(time.Second) {
		u.known.Store(&knownQuery{query: q, at: now})
	}
}

// idleFor returns how long a connection may be idle.
func (u *Upstream) idleFor() time.Duration {
	if learnt := u.idleLimit.Load(); learnt != nil && u.now() < learnt.until {
		return learnt.limit
	}
	return u.o.IdleTimeout
}

// An idleLimit is less than the configured one, for a while.
type idleLimit struct {
	limit time.Duration
	until int64 // instant
}

// learnIdleLimit takes note that a connection went silent after it had been idle
// for so long: a middlebox between forgets flows, as many home routers do. Once may
// be chance, or a machine that is too busy; twice is not.
func (u *Upstream) learnIdleLimit(idle time.Duration) {
	limit := max(idle/2, idleLimitMin)
	if limit >= u.idleFor() {
		return
	}
	now := u.now()
	if before := u.forgotten.Swap(now); before == 0 || now-before > int64(idleLimitWhile) {
		return
	}
	u.idleLimit.Store(&idleLimit{limit: limit, until: now + int64(idleLimitWhile)})
	u.log.Info("closing idle connections earlier: some were forgotten on the way",
		"idle", idle.Round(time.Millisecond), "limit", limit.Round(time.Millisecond), "for", idleLimitWhile)
}

// Ask sends q, and has done called with its verified answer, or with why there is
// none: once, and within seconds. Done may be called before Ask returns. It must
// not block: others' answers wait behind it. Neither does Ask block; a dial that
// it starts serves all who come. Q is kept until done is called.
//
// A connection that was in use and dies under the query says little about the
// upstream: then the query is sent once more, on a connection known to be alive,
// and if that dies too, as all do when a server restarts, on fresh ones.
func (u *Upstream) Ask(q wire.Query, done func(wire.Answer, error)) { u.ask(q, done, nil) }

func (u *Upstream) ask(q wire.Query, done func(wire.Answer, error), trace *Trace) {
	began := u.now()
	u.waiting.CompareAndSwap(0, began)
	u.send(&call{query: q, done: done, upstream: u, began: began, trace: trace}, began, 0, 0)
}

// Exchange is Ask for those who wait. It returns when ctx is done at the latest.
func (u *Upstream) Exchange(ctx context.Context, q wire.Query) (wire.Answer, error) {
	if a, err, ended := waitFor(ctx, u.Ask, q); ended {
		return a, err
	}
	if u.open.Load() == 0 {
		return wire.Answer{}, fmt.Errorf("%s: still connecting to %v: %w", u.o.Name, u.Addresses(), context.Cause(ctx))
	}
	return wire.Answer{}, fmt.Errorf("%s: %w", u.o.Name, context.Cause(ctx))
}

// waitFor asks, and returns what became of it, unless ctx is done before it ended.
func waitFor(ctx context.Context, ask func(wire.Query, func(wire.Answer, error)), q wire.Query) (a wire.Answer, err error, ended bool) {
	type outcome struct {
		answer wire.Answer
		err    error
	}
	outcomes := make(chan outcome, 1)
	ask(q, func(a wire.Answer, err error) { outcomes <- outcome{a, err} })
	select {
	case o := <-outcomes:
		return o.answer, o.err, true
	case <-ctx.Done():
		return a, nil, false
	}
}

// trusts are, for each time that a call's connection died, how lately another must
// have brought an answer to be trusted with it. A few have to die before it is
// known that each takes one query only.
var trusts = [...]time.Duration{lively, 0, 0, 0}

// send enters call on a connection: one made since the given instant, or that has
// brought an answer as lately as trust says, or else one that is yet to be made.
func (u *Upstream) send(call *call, now, since int64, trust time.Duration) {
	c, silent := u.pick(now, since, trust)
	switch {
	case c == nil:
		u.note(call.trace, "no connection is open, dialling")
		u.await(call)
	case silent:
		u.enter(c, call, now)
		u.rescue(c)
	default:
		u.enter(c, call, now)
	}
}

func (u *Upstream) enter(c *conn, call *call, now int64) {
	if call.trace != nil { // or else what is told would be made for nobody
		u.noteAt(call.trace, c.from.addr, "sent with %d more under way, %s", c.pending.Load(), c.dialled)
	}
	if err := c.enter(call, now); err != nil {
		u.fail(call, err)
	}
}

// fail takes note that call, which is in no table, got no answer. It may have
// another chance.
func (u *Upstream) fail(call *call, err error) {
	if died, ok := err.(*connError); ok && died.reused && call.resent < len(trusts) {
		trust := trusts[call.resent]
		call.resent++
		u.counts.resent.Add(1)
		u.send(call, u.now(), died.at, trust)
		return
	}
	if err == errSpent { // others were faster
		u.send(call, u.now(), 0, 0)
		return
	}
	if err == ErrBusy && u.join(call) {
		return
	}
	call.complete(wire.Answer{}, fmt.Errorf("%s: %w", u.o.Name, err))
}

// await has call entered on the next fresh connection.
func (u *Upstream) await(call *call) {
	u.mu.Lock()
	d := u.dialLocked()
	over := d.over()
	if !over {
		if call.sent == 0 {
			call.sent = u.now()
		}
		d.calls = append(d.calls, call)
	}
	u.mu.Unlock()
	if over {
		u.fail(call, d.err)
	}
}

// join has call wait for the dial under way, if there is one.
func (u *Upstream) join(call *call) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.dials) == 0 {
		return false
	}
	d := u.dials[len(u.dials)-1]
	d.calls = append(d.calls, call)
	return true
}

// overdue is after how long an answer on a connection is so late that something
// is wrong with it.
func (u *Upstream) overdue() time.Duration {
	_, patience := u.rtt.usual()
	return patience * 8 / 5
}

// rescue has the queries that c owes sent again, on a connection that answers,
// or on a fresh one as soon as there is one: c may be dead without anybody having
// said so, or just slow.
func (u *Upstream) rescue(c *conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed || c.rescue.Swap(true) {
		return
	}
	c.from.suspect() // a fresh one is to go elsewhere, if there is an elsewhere
	u.wg.Go(func() {
		defer c.rescue.Store(false)
		now := u.now()
		other, silent := u.pick(now, now, c.silentFor(now)) // one that has answered since
		if other == nil || silent {
			if u.silentSince(c) {
				return // it is not the connection
			}
			var err error
			if other, err = u.connect(u.ctx); err != nil {
				return // c goes on trying, until it is given up
			}
		}
		if c.silentFor(u.now()) > 0 {
			c.handOver(other)
		}
	})
}

// silentSince reports whether a connection made after c went silent is silent too.
func (u *Upstream) silentSince(c *conn) bool {
	overdue := u.overdue()
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, other := range u.conns {
		if other.born > c.waiting.Load() && other.silentFor(u.now()) > overdue {
			return true
		}
	}
	return false
}

// pick returns the connection for the next query: the one used last that is not
// busy, so that the others may go idle; else the least busy one. Silent is true
// if it owes answers, as all of them do. Nil means that none is open.
func (u *Upstream) pick(now, since int64, trust time.Duration) (c *conn, silent bool) {
	overdue := u.overdue()
	u.mu.Lock()
	defer u.mu.Unlock()
	var calm, crowded, mute *conn
	trusted, limit := 0, u.allowance.limit.Load()
	for _, c := range u.conns {
		switch {
		case c.spent(limit, now):
			continue
		case c.born <= since && now-c.lastRead.Load() >= int64(trust):
			continue
		case c.silentFor(now) > overdue:
			if mute == nil || c.lastRead.Load() > mute.lastRead.Load() {
				mute = c
			}
			continue
		case c.pending.Load() < busy:
			if calm == nil || c.lastSend.Load() > calm.lastSend.Load() {
				calm = c
			}
		case crowded == nil || c.pending.Load() < crowded.pending.Load():
			crowded = c
		}
		trusted++
	}
	wanted := 1
	if calm == nil && now > u.growAfter.Load() {
		wanted = u.o.Connections
	} else if limit > 0 || now < u.spareUntil.Load() {
		wanted = min(2, u.o.Connections)
	}
	switch {
	case trusted == 0:
		return mute, mute != nil
	case trusted < wanted:
		u.startDialLocked()
	}
	if calm != nil {
		return calm, false
	}
	return crowded, false
}

// remove takes c out of the pool. It may be called twice.
func (u *Upstream) remove(c *conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range u.conns {
		if u.conns[i] == c {
			u.conns = append(u.conns[:i], u.conns[i+1:]...)
			u.open.Store(int32(len(u.conns)))
			return
		}
	}
}

// Close ends all connections, fails the queries under way with ErrClosed, and
// returns when every goroutine is gone.
func (u *Upstream) Close() error {
	u.mu.Lock()
	u.closed = true
	conns := append([]*conn(nil), u.conns...)
	u.mu.Unlock()
	u.stop()
	for _, c := range conns {
		c.close(ErrClosed)
	}
	u.wg.Wait()
	return nil
}

// Addresses returns where the upstream was last known to be.
func (u *Upstream) Addresses() []netip.AddrPort { return u.dialer.addresses() }

// counters count what went wrong on connections, by reason, and what it cost.
type counters struct {
	sent, answered, resent                  atomic.Uint64
	unasked, mismatched, foreign, malformed atomic.Uint64
	stripped                                atomic.Uint64
}

// accept counts an answer.
func (c *counters) accept(a wire.Answer) {
	c.answered.Add(1)
	if a.Stripped() {
		c.stripped.Add(1)
	}
}

// drop counts a response that is no answer, by the reason that ParseAnswer gave.
func (c *counters) drop(reason error) {
	switch {
	case errors.Is(reason, wire.ErrWrongQuestion):
		c.mismatched.Add(1)
	case errors.Is(reason, wire.ErrForeign):
		c.foreign.Add(1)
	default:
		c.malformed.Add(1)
	}
}

// addTo adds what has been counted to totals.
func (c *counters) addTo(totals *Counts) {
	totals.Sent, totals.Answered, totals.Resent = c.sent.Load(), c.answered.Load(), c.resent.Load()
	totals.Unasked, totals.Mismatched, totals.Foreign = c.unasked.Load(), c.mismatched.Load(), c.foreign.Load()
	totals.Malformed, totals.Stripped = c.malformed.Load(), c.stripped.Load()
}

// Counts are totals since New, but for the one that says "now".
type Counts struct {
	Dials, Handshakes, Resumed uint64 // TCP connects tried; TLS handshakes completed, and how many of them resumed
	Sent, Answered, Resent     uint64 // queries sent, answers accepted, queries sent again after their connection died
	Unasked                    uint64 // responses to no query under way: late, duplicate, or wrong ID
	Mismatched                 uint64 // responses to another question
	Foreign                    uint64 // responses with answers about names that were not asked for
	Malformed                  uint64 // responses that are not well-formed, or truncated
	Stripped                   uint64 // answers accepted without some of their records, which had nothing to do with the question

	Open int // connections open now
}

// Counts returns the totals.
func (u *Upstream) Counts() Counts {
	c := Counts{
		Dials: u.dialer.dials.Load(), Handshakes: u.dialer.handshakes.Load(), Resumed: u.dialer.resumed.Load(),
		Open: int(u.open.Load()),
	}
	u.counts.addTo(&c)
	return c
}

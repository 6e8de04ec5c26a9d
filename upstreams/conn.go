package upstreams

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

// maxBad is how many responses in a row that answer nothing a connection may
// bring before it is given up.
const maxBad = 8

// acknowledged is how many writes are followed by a word to the system to
// acknowledge at once what comes next: session tickets, most often, behind which
// the first answer of a server waits that doesn't send small segments in a row.
const acknowledged = 2

// answerLimit is how long an answer is waited for, whether or not anybody still
// wants it: it tells how the upstream is doing, however late it comes.
const answerLimit = 5 * time.Second

var (
	// errExpired says no more about the upstream than a client's own time limit.
	errExpired = fmt.Errorf("no answer within %v: %w", answerLimit, context.DeadlineExceeded)
	errHungUp  = errors.New("read")
	errSilent  = errors.New("connection went silent")
	errIdle    = errors.New("connection idle")
	errBad     = errors.New("connection brings no proper answers")
)

// A connError is why a connection ended. Reused tells that it had brought
// answers before: its end is then no news about the upstream.
type connError struct {
	err    error
	reused bool
	at     int64 // instant
}

func (e *connError) Error() string { return e.err.Error() }
func (e *connError) Unwrap() error { return e.err }

// A conn is one connection with any number of queries under way, each with an
// ID of its own. Answers come in any order (RFC 7766 section 6.2.1.1).
//
// Whoever removes a call from the table completes it.
type conn struct {
	upstream *Upstream
	tls      *tls.Conn
	from     *endpoint
	dialled  string        // how it was made, for people
	born     int64         // instant
	wake     chan struct{} // one place: out is not empty
	gone     chan struct{} // closed with the connection

	pending  atomic.Int32 // len(calls)
	lastSend atomic.Int64 // instant
	lastRead atomic.Int64 // instant of the last answer
	waiting  atomic.Int64 // instant of the first query since the last answer, or 0
	tested   atomic.Bool  // since then, it was asked something that must have an answer
	rescue   atomic.Bool  // somebody is sending its queries again elsewhere
	rested   atomic.Int64 // how long it had been idle before that query, in nanoseconds

	// mu guards what follows. Nothing blocks while it is held.
	mu       sync.Mutex
	calls    []*call // full places; one with ID n is at n%full
	nextID   uint16
	sent     int         // queries, in all
	answered int         // of these
	out      []byte      // frames that writeLoop has not taken yet
	traced   []*Trace    // of those whose queries are in out, for who wants to know
	timer    *time.Timer // runs check
	swept    int64       // instant of the last look for calls that got too old
	err      *connError  // why it ended, or nil
}

// A call is a query under way. It moves from connection to connection, and is
// in the table of one at most.
type call struct {
	query wire.Query
	done  func(wire.Answer, error)
	// Upstream counts what becomes of it; nil: nobody does.
	upstream *Upstream
	began    int64     // instant of Ask
	from     *endpoint // where it was sent last, or nil
	trace    *Trace    // or nil
	id       uint16
	sent     int64 // instant
	resent   int   // how often its connection has died

	settled atomic.Bool // done was called

	// The same query, sent again on another connection because this one went
	// silent. It has no twin of its own.
	twinned bool  // it has one; guarded by mu of its connection
	of      *call // whose twin it is, or nil
}

// complete calls done, unless the twin did already.
func (call *call) complete(a wire.Answer, err error) {
	if call.of != nil {
		call = call.of
	}
	if call.settled.CompareAndSwap(false, true) {
		if call.upstream != nil {
			call.upstream.record(call, a, err)
		}
		call.done(a, err)
	}
}

func newConn(u *Upstream, secured *tls.Conn, from *endpoint) *conn {
	now := u.now()
	c := &conn{
		upstream: u, tls: secured, from: from, born: now,
		wake: make(chan struct{}, 1), gone: make(chan struct{}),
		calls: make([]*call, full),
	}
	c.lastSend.Store(now)
	c.lastRead.Store(now)
	c.timer = time.AfterFunc(u.idleFor(), c.check)
	return c
}

// silentFor returns how long the connection has owed a sign of life.
func (c *conn) silentFor(now int64) time.Duration {
	since := c.waiting.Load()
	if since == 0 {
		return 0
	}
	return time.Duration(now - since)
}

// enter puts call into the table and hands its frame to writeLoop. If it can't,
// the call is still the caller's.
func (c *conn) enter(call *call, now int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	call.from = c.from
	if c.err != nil {
		return c.err
	}
	if c.pending.Load() >= full {
		return ErrBusy
	}
	if c.spentLocked(c.upstream.allowance.limit.Load(), now) {
		return errSpent
	}
	c.sent++
	// A counter rests each ID longest. Guessing one is no use to anybody: the
	// answers come through TLS.
	for c.calls[c.nextID%full] != nil {
		c.nextID++
	}
	call.id, call.sent = c.nextID, now
	c.nextID++
	c.calls[call.id%full] = call
	if c.waiting.CompareAndSwap(0, now) {
		c.rested.Store(now - max(c.lastSend.Load(), c.lastRead.Load()))
	}
	if c.pending.Add(1) == 1 {
		c.timer.Reset(c.overdue())
	}
	c.lastSend.Store(now)
	frame := len(c.out)
	c.out = call.query.AppendUpstream(append(c.out, 0, 0), call.id)
	binary.BigEndian.PutUint16(c.out[frame:], uint16(len(c.out)-frame-2))
	if frame == 0 { // else it is awake already
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
	if call.trace != nil {
		c.traced = append(c.traced, call.trace)
	}
	c.upstream.counts.sent.Add(1)
	return nil
}

// take removes the call with id from the table, for the caller to complete. It
// returns nil if there is none.
func (c *conn) take(id uint16) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.findLocked(id)
	if call != nil {
		c.removeLocked(call)
		c.answered++
		c.upstream.allowance.exceeded(c.answered)
	}
	return call
}

// waitsFor returns the query under way with id, if there is one.
func (c *conn) waitsFor(id uint16) (wire.Query, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if call := c.findLocked(id); call != nil {
		return call.query, true
	}
	return wire.Query{}, false
}

func (c *conn) findLocked(id uint16) *call {
	if c.err != nil {
		return nil
	}
	call := c.calls[id%full]
	if call == nil || call.id != id {
		return nil
	}
	return call
}

func (c *conn) removeLocked(call *call) {
	c.calls[call.id%full] = nil
	c.pending.Add(-1)
}

// sweep gives up the calls that have waited for longer than anybody waits for an
// answer. It looks at all of them, and so does little more often than it has to.
func (c *conn) sweep(now int64) {
	var expired []*call
	c.mu.Lock()
	if now-c.swept >= int64(answerLimit/4) {
		c.swept = now
		for _, call := range c.calls {
			if call != nil && now-call.sent >= int64(answerLimit) {
				c.removeLocked(call)
				expired = append(expired, call)
			}
		}
	}
	c.mu.Unlock()
	for _, call := range expired {
		c.upstream.fail(call, errExpired)
	}
}

// handOver sends on another connection what this one owes. But for the oldest: if
// answers come in order, it is what holds up the others, and would again. Nor what was
// sent long before the last answer came: it has arrived, then, and is slow, as are
// thousands at once if a server of names is. Of a dubious connection, it is what was
// sent since it was idle.
func (c *conn) handOver(to *conn) {
	_, patience := c.upstream.rtt.usual()
	oldest, since := 1, c.lastRead.Load()-int64(patience)
	if c.dubious() {
		oldest, since = 0, c.waiting.Load()
		if since == 0 {
			return // answered meanwhile
		}
	}
	c.mu.Lock()
	owed := make([]*call, 0, c.pending.Load())
	for _, call := range c.calls {
		if call != nil && !call.twinned && call.of == nil && call.sent >= since {
			owed = append(owed, call)
		}
	}
	c.mu.Unlock()
	slices.SortFunc(owed, func(a, b *call) int { return cmp.Compare(a.sent, b.sent) })
	for _, old := range owed[min(oldest, len(owed)):] {
		c.mu.Lock()
		waits := c.findLocked(old.id) == old
		if waits {
			old.twinned = true
		}
		c.mu.Unlock()
		if !waits {
			continue // answered meanwhile, or failed with the connection
		}
		c.upstream.counts.resent.Add(1)
		c.upstream.enter(to, &call{query: old.query, of: old}, c.upstream.now())
	}
}

// writeLoop writes all frames that there are as one TLS record, so that a burst
// shares it and a lone query leaves at once.
func (c *conn) writeLoop() {
	var frames []byte
	for writes := 0; ; writes++ {
		select {
		case <-c.wake:
		case <-c.gone:
			if errors.Is(c.reason(), errIdle) {
				c.tls.Close() // with an alert, which may wait for the peer
			}
			return
		}
		// Whoever else is about to ask does so now, and shares the record: a
		// write costs more than all else about a query.
		runtime.Gosched()
		c.mu.Lock()
		frames, c.out = c.out, frames[:0]
		traced := c.traced
		c.traced = nil
		c.mu.Unlock()
		if len(frames) == 0 || c.drill().swallows() {
			continue
		}
		var began int64
		if traced != nil {
			began = c.upstream.now()
		}
		if _, err := c.tls.Write(frames); err != nil {
			c.close(fmt.Errorf("%w: %w", errWrite, err))
			return
		}
		for _, t := range traced {
			c.upstream.note(t, "written in %v", time.Duration(c.upstream.now()-began).Round(time.Microsecond))
		}
		if writes < acknowledged {
			acknowledgeAtOnce(c.tls.NetConn())
		}
	}
}

// readLoop completes calls. It always reads, so that a connection that the
// upstream closes while idle is out of the pool at once.
func (c *conn) readLoop() {
	r := bufio.NewReaderSize(c.tls, 2+wire.MaxSize)
	bad := 0
	for {
		frame, err := nextFrame(r)
		if err != nil {
			c.drill().conceal(c)
			c.close(fmt.Errorf("%w: %w", errHungUp, err))
			return
		}
		switch c.drill().pass(c, frame) {
		case proper:
			bad = 0
		case improper:
			bad++
		}
		if bad >= maxBad {
			c.close(errBad)
			return
		}
		if _, err := r.Discard(2 + len(frame)); err != nil {
			panic("BUG: a frame that was peeked at can't be discarded: " + err.Error())
		}
	}
}

// nextFrame returns the next message behind its length prefix. The bytes stay
// valid until the next read, and are still to be discarded.
func nextFrame(r *bufio.Reader) ([]byte, error) {
	prefix, err := r.Peek(2)
	if err != nil {
		if len(prefix) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(prefix))
	frame, err := r.Peek(2 + n)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return frame[2:], nil
}

// quality is what a message from upstream was worth.
type quality uint8

const (
	proper   quality = iota // an answer
	improper                // to be counted against the connection
	unasked                 // late, most often: nobody waits for it any more
)

// receive completes the call that message answers.
func (c *conn) receive(message []byte) quality {
	u := c.upstream
	if len(message) < 2 {
		u.counts.malformed.Add(1)
		return improper
	}
	call := c.take(wire.ID(message))
	if call == nil {
		u.counts.unasked.Add(1)
		return unasked
	}
	if call.trace != nil {
		u.note(call.trace, "%d octets came back", len(message))
	}
	answer, err := wire.ParseAnswer(call.query, message)
	if err != nil {
		u.counts.drop(err)
		u.fail(call, err)
		return improper
	}
	now := u.now()
	c.lastRead.Store(now)
	c.waiting.Store(0)
	c.tested.Store(false)
	u.waiting.Store(0)
	u.lastRead.Store(now)
	u.remember(call.query, now)
	u.rtt.sample(time.Duration(now - call.sent))
	u.counts.accept(answer)
	call.complete(answer, nil)
	return proper
}

// check closes the connection if it has been idle or silent for too long, and
// comes back when it could be.
func (c *conn) check() {
	now := c.upstream.now()
	var next time.Duration
	if c.pending.Load() > 0 {
		c.sweep(now)
		silent, overdue := c.silentFor(now), c.overdue()
		usual, _ := c.upstream.rtt.usual()
		untested := overdue + min(overdue/2, max(usual*3/2, testMin))
		switch {
		case silent >= max(retireAfter, 2*overdue), silent >= max(retireEarly, 2*overdue) && c.forgotten():
			c.retire()
			return
		case silent >= untested, silent >= overdue && c.dubious():
			c.test()
			c.upstream.rescue(c)
			next = max(retireEarly, 2*overdue) - silent
			if next <= 0 {
				next = max(retireAfter, 2*overdue) - silent
			}
		case silent >= overdue:
			next = untested - silent
			c.test()
		default:
			next = overdue - silent
		}
	} else {
		next = c.upstream.idleFor() - time.Duration(now-c.lastSend.Load())
		if next <= 0 {
			c.close(errIdle)
			return
		}
	}
	c.mu.Lock()
	if c.err == nil {
		c.timer.Reset(max(next, time.Millisecond))
	}
	c.mu.Unlock()
}

// test asks again what the upstream has answered before. Silence may be the
// fault of the names that the connection was asked; this one must be answered.
func (c *conn) test() {
	if known := c.upstream.known.Load(); known != nil && !c.tested.Swap(true) {
		_ = c.enter(&call{query: known.query, done: ignore, resent: len(trusts)}, c.upstream.now()) // an error ends the connection anyway
	}
}

func ignore(wire.Answer, error) {}

// dubious reports whether the connection was idle for so long, before what it
// owes, that a middlebox may have forgotten it.
func (c *conn) dubious() bool { return c.rested.Load() >= int64(restMax) }

// overdue is the upstream's, or sooner if the connection is dubious.
func (c *conn) overdue() time.Duration {
	if c.dubious() {
		_, patience := c.upstream.rtt.usual()
		return patience
	}
	return c.upstream.overdue()
}

// forgotten reports whether it looks as if a middlebox had forgotten the
// connection: it worked, was idle, and then went silent, while others brought
// answers.
func (c *conn) forgotten() bool {
	return c.lastRead.Load() > c.born && c.rested.Load() >= int64(idleLimitMin) &&
		c.upstream.lastRead.Load() > c.waiting.Load()
}

// retire gives up a connection that is dead although nobody has said so.
func (c *conn) retire() {
	c.from.suspect()
	if c.forgotten() {
		c.upstream.learnIdleLimit(time.Duration(c.rested.Load()))
	}
	c.close(errSilent)
}

// close ends the connection and fails the calls under way. Only the first call
// has an effect. An idle connection is left to writeLoop, which can wait.
func (c *conn) close(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	now := c.upstream.now()
	answered := c.lastRead.Load() > c.born
	c.err = &connError{err: err, reused: answered, at: now}
	calls, owed := c.calls, c.pending.Swap(0)
	answers := c.answered
	c.calls = nil
	c.timer.Stop()
	c.mu.Unlock()

	close(c.gone)
	c.upstream.remove(c)
	if errors.Is(err, errHungUp) && c.upstream.allowance.ended(answers, now-c.lastRead.Load() < int64(allowanceDelay)) {
		c.upstream.log.Info("sending fewer queries on each connection: the upstream closes it", "after", answers)
	}
	if !answered {
		c.upstream.growAfter.Store(now + int64(growPause))
	}
	for _, call := range calls {
		if call != nil && !call.twinned { // else its twin is still under way
			c.upstream.fail(call, c.err)
		}
	}
	if answered && owed > 0 && !errors.Is(err, errSilent) {
		c.upstream.spareUntil.Store(now + int64(sparePeriod))
	}
	if !errors.Is(err, errIdle) {
		c.tls.NetConn().Close()
	}
}

// reason returns why the connection ended.
func (c *conn) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

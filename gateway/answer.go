package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
)

// A step is what comes after answerNow.
type step uint8

const (
	ignore       step = iota // no reply is due
	send                     // the reply is there
	sendAndRenew             // the same, and the answer in the cache is to be renewed
	ask                      // only the Resolver knows; a slot has been taken
	pass                     // it is a query like any other, for the cache or the Resolver
)

// answerNow appends the reply to packet if it can be had at once. It doesn't
// wait, doesn't allocate and starts no goroutine: it runs in the read loops.
//
// If the next step is ask, q borrows packet, and the caller hands its clone to
// answerLater, in a waiter that has the slot. If it is sendAndRenew, the caller
// hands the clone to renew.
func (g *Gateway) answerNow(dst, packet []byte, from *client, t *tally) (reply []byte, q wire.Query, next step) {
	defer func() {
		if v := recover(); v != nil {
			g.panics.report(v)
			t.count(Crashed)
			reply, next = dst, ignore
		}
	}()
	q, refusal, outcome, ok := verify(packet, from.via)
	if !ok && refusal == nil {
		t.count(outcome)
		return dst, q, ignore
	}
	if reply, next = g.screen(dst, &q, from, refusal, t); next != pass {
		return reply, q, next
	}
	if refusal != nil {
		t.count(outcome)
		return q.AppendError(dst, refusal.RCode, explanation(refusal)), q, send
	}
	reply, found := dst, cache.Nothing
	if !q.Scoped() {
		reply, found = g.cache.Append(dst, q)
	}
	if found != cache.Nothing {
		t.cached(reply[len(dst):], found)
		g.traceNow(&q, from, reply[len(dst):], Answered, found)
		if found == cache.Due {
			return reply, q, sendAndRenew
		}
		return reply, q, send
	}
	if reply, next = g.answerHere(dst, q, t); next != pass {
		return reply, q, next
	}
	if g.returned(q, from.addr) {
		t.count(RefusedLoop)
		return q.AppendError(dst, wire.Refused, wire.EDE{Text: "forwarding loop"}), q, send
	}
	if g.slots.take() {
		t.misses.Add(1)
		return dst, q, ask
	}
	if reply, found = g.cache.AppendStale(dst, q); found != cache.Nothing {
		t.cached(reply[len(dst):], found)
		g.traceNow(&q, from, reply[len(dst):], Answered, found)
		return reply, q, send
	}
	t.count(Shed)
	reply = q.AppendError(dst, wire.ServFail, wire.EDE{Text: "too many queries under way"})
	g.traceNow(&q, from, reply[len(dst):], Shed, cache.Nothing)
	return reply, q, send
}

// answerLater has the client get its reply: the Resolver's answer, or else a stale
// one, or else an error. That takes Options.Timeout at the most, or until the
// gateway stops; no longer than the cache's patience if there is a stale answer. It
// doesn't block; w is the gateway's from now on.
func (g *Gateway) answerLater(w *waiter) {
	w.began = time.Now()
	w.deadline = w.began.Add(g.now().Timeout)
	if tracer := g.now().Tracer; tracer != nil {
		w.trace = tracer.Begin()
	}
	g.fetch(w)
}

// conclude has w's client get its reply, unless it did.
func (g *Gateway) conclude(w *waiter, l *landing) {
	if !w.answered.CompareAndSwap(false, true) {
		return
	}
	if timer := w.patience.Load(); timer != nil {
		timer.Stop()
	}
	message := buffers.Get().(*[]byte)
	var found cache.Found
	*message, found = g.appendReply((*message)[:0], w, l)
	w.tally.waited.since(w.began)
	if w.trace != nil {
		g.traceLater(w, l, *message, found)
	}
	w.client.reply(w, message)
	if w.slot.Swap(false) {
		g.slots.release()
	}
}

// appendReply appends the reply that l makes, or else the stale answer that the
// cache has, which is what was found then.
func (g *Gateway) appendReply(dst []byte, w *waiter, l *landing) (reply []byte, found cache.Found) {
	q, t := w.query, w.tally
	defer func() {
		if v := recover(); v != nil {
			g.panics.report(v)
			t.count(Crashed)
			reply, found = q.AppendError(dst, wire.ServFail, wire.EDE{Text: "internal error"}), cache.Nothing
		}
	}()
	// An error is no better than none (RFC 8767 section 5: only NOERROR and
	// NXDOMAIN renew what is known).
	if !l.answered() {
		if reply, found = g.cache.AppendStale(dst, q); found != cache.Nothing {
			t.cached(reply[len(dst):], found)
			return reply, found
		}
	}
	if l.err != nil {
		return g.appendFailure(dst, q, l.err, w.from, t), cache.Nothing
	}
	t.answered(l.answer.RCode())
	return l.answer.AppendReply(dst, q, l.terms), cache.Nothing
}

// appendFailure appends the reply to q that err makes necessary.
func (g *Gateway) appendFailure(dst []byte, q wire.Query, err error, from netip.Addr, t *tally) []byte {
	outcome, ede := failure(err)
	if g.now().access.trusted.Contains(from) {
		ede.Text = detail(err, ede.Text)
	}
	t.count(outcome)
	g.log.Debug("query failed", "query", q, "outcome", outcome, "err", err)
	return q.AppendError(dst, wire.ServFail, ede)
}

var (
	errCrashed = errors.New("BUG: panic")
	errNothing = errors.New("BUG: the resolver returned neither an answer nor an error")
)

// failure returns what became of a query that failed with err, and what the
// client is told.
func failure(err error) (Outcome, wire.EDE) {
	outcome, ede := Failed, wire.EDE{Code: wire.EDENoReachable, Text: "no upstream answered"}
	switch {
	case errors.Is(err, errDomain):
		outcome, ede.Text = Shed, "the servers of this domain don't answer"
	case errors.Is(err, errCrashed):
		outcome, ede = Crashed, wire.EDE{Text: "internal error"}
	case errors.Is(err, context.DeadlineExceeded):
		// Not EDE 23 (Network Error), which is about an error seen while
		// talking to a server: silence is the absence of one.
		outcome, ede.Text = TimedOut, "no upstream answered in time"
	case errors.Is(err, context.Canceled):
		ede = wire.EDE{Text: "shutting down"}
	}
	type explained interface {
		error
		EDE() wire.EDE
	}
	if e, ok := errors.AsType[explained](err); ok && e.EDE() != (wire.EDE{}) {
		ede = e.EDE()
	}
	return outcome, ede
}

// detail returns what those may know of err whom we trust, or else what everybody
// is told.
func detail(err error, public string) string {
	type detailed interface {
		error
		Detail() string
	}
	if e, ok := errors.AsType[detailed](err); ok {
		return cmp.Or(e.Detail(), public)
	}
	return public
}

// slots bounds the queries under way.
type slots struct {
	taken atomic.Int64
	max   atomic.Int64
	full  atomic.Bool // since a take failed, until half of them are free
	log   *slog.Logger
}

func (s *slots) take() bool {
	if s.taken.Add(1) <= s.max.Load() {
		return true
	}
	s.taken.Add(-1)
	if !s.full.Load() && s.full.CompareAndSwap(false, true) {
		s.log.Warn("too many queries under way, further ones get SERVFAIL (gateway.max_queries)", "max", s.max.Load())
	}
	return false
}

// crowded reports whether more than half of the slots are taken.
func (s *slots) crowded() bool { return s.taken.Load() > s.max.Load()/2 }

func (s *slots) release() {
	if left := s.taken.Add(-1); left <= s.max.Load()/2 && s.full.Load() && s.full.CompareAndSwap(true, false) {
		s.log.Info("queries get through again", "under_way", left)
	}
}

// A panicLog reports panics with their stacks, but not each of a thousand.
type panicLog struct {
	log  *slog.Logger
	mu   sync.Mutex
	last time.Time
}

const panicLogInterval = 10 * time.Second

func (p *panicLog) report(v any) {
	p.mu.Lock()
	again := !p.last.IsZero() && time.Since(p.last) < panicLogInterval
	if !again {
		p.last = time.Now()
	}
	p.mu.Unlock()
	if !again {
		p.log.Error("BUG: a query caused a panic", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
}

// buffers are for replies. Most replies are small; the few large ones are left
// to the collector.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, wire.MaxUDPSize); return &b }}

const maxPooled = 16 << 10

func putBuffer(b *[]byte) {
	if cap(*b) <= maxPooled {
		*b = (*b)[:0]
		buffers.Put(b)
	}
}

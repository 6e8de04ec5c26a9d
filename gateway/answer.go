package gateway

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"time"

	"dotgate/gateway/access"
	"dotgate/gateway/cache"
	"dotgate/gateway/transport"
	"dotgate/gateway/wire"
)

// A step is what follows on tryAnswer.
type step uint8

const (
	ignore step = iota // send no reply
	send               // send the reply
	ask                // resolve the query, which holds a slot
	pass               // only within decide: the decision is left to its next part
)

// tryAnswer appends the reply to packet if it is ready at once. It does not block, allocate
// or start a goroutine: it runs in the read loops.
//
// If the next step is ask, q borrows packet, and the caller makes a pendingQuery of it, which
// takes over the slot. The outcome is counted, and left in from.
func (g *Gateway) tryAnswer(dst, packet []byte, from *client) (reply []byte, q wire.Query, next step) {
	defer func() {
		if v := recover(); v != nil {
			g.panics.report(v)
			from.outcome, from.found = Crashed, cache.Miss
			g.countNow(from, nil, ignore)
			reply, next = dst, ignore
		}
	}()
	reply, next = g.decide(dst, packet, &q, from)
	g.countNow(from, reply[len(dst):], next)
	return reply, q, next
}

// countNow counts the outcome of a packet, or that it has to be resolved.
func (g *Gateway) countNow(from *client, reply []byte, next step) {
	n := g.countersFor(from)
	if n != from.counters {
		from.counters.count(Checked)
	}
	if next == ask {
		n.misses.Add(1)
		return
	}
	n.finished(from.outcome, from.found, reply)
}

// decide reads packet into q and appends the reply, or leaves it to the Resolver. If the next step is not
// ask, it sets from.outcome.
func (g *Gateway) decide(dst, packet []byte, q *wire.Query, from *client) (reply []byte, next step) {
	from.found, from.unknown, from.check = cache.Miss, false, access.NoCheck
	refusal, ok := verify(packet, q, from)
	if !ok {
		return dst, ignore
	}
	if reply, next = g.admit(dst, q, from, refusal); next != pass {
		return reply, next
	}
	if refusal != nil {
		return q.AppendError(dst, refusal.RCode, explanation(refusal)), send
	}
	from.outcome = Answered
	if !q.Scoped() && from.check != access.LiveCheck {
		reply = g.lookUp(dst, *q, from)
	}
	if from.found != cache.Miss {
		return reply, send
	}
	if reply, ok = g.config().records.Append(dst, *q); ok {
		from.outcome = AnsweredLocally
		return reply, send
	}
	if g.isLoop(*q, from.Addr) {
		from.outcome = RefusedLoop
		return q.AppendError(dst, wire.Refused, wire.EDE{Text: "forwarding loop"}), send
	}
	if g.slots.take(from.check) {
		return dst, ask
	}
	if reply, from.found = g.cache.AppendStale(dst, *q); from.found != cache.Miss {
		return reply, send
	}
	from.outcome = Overload
	return q.AppendError(dst, wire.ServFail, wire.EDE{Text: "too many queries in progress"}), send
}

// lookUp appends the reply that the cache has for q, if it has one.
func (g *Gateway) lookUp(dst []byte, q wire.Query, from *client) []byte {
	from.changes = g.cache.Changes()
	reply, found := g.cache.Append(dst, q)
	from.unknown = found == cache.Miss
	if found != cache.Expired {
		from.found = found
	}
	return reply
}

// countersFor returns where the current query of a client is counted: health checks have
// counters of their own.
func (g *Gateway) countersFor(from *client) *counters {
	if from.check != access.NoCheck {
		return &g.checks
	}
	return from.counters
}

// Resolve sends the client its reply: the Resolver's answer, or else a stale one, or else an
// error. That takes Options.Timeout at most, or until the gateway stops; if there is a stale
// answer, no longer than the cache's StaleAfter. It does not block.
func (p *pendingQuery) Resolve() {
	g := p.gateway
	p.query = p.query.WithClient(access.ClientHash(p.from))
	p.began = time.Now()
	p.deadline = p.began.Add(g.config().Timeout)
	g.observeBegin(p)
	g.await(p, p.began)
}

// respond sends p its reply, unless that has been done.
func (g *Gateway) respond(p *pendingQuery, r *result) {
	if !p.answered.CompareAndSwap(false, true) {
		return
	}
	if timer := p.staleTimer.Load(); timer != nil {
		timer.Stop()
	}
	message := transport.NewBuffer()
	var found cache.Result
	var outcome Outcome
	*message, found, outcome = g.appendReply((*message)[:0], p, r)
	p.counters.finished(outcome, found, *message)
	p.counters.waited.Add(p.waited(r))
	if g.config().observed() {
		g.observeLater(p, r, *message, found)
	}
	p.replyTo.Sender.Send(&p.replyTo, message)
	if p.slot.Swap(false) {
		g.slots.release()
	}
}

// waited returns how long the client has waited for r.
func (p *pendingQuery) waited(r *result) time.Duration {
	if r.at.IsZero() {
		return time.Since(p.began)
	}
	return r.at.Sub(p.began)
}

// appendReply appends the reply that r makes, or else the stale answer in the cache.
func (g *Gateway) appendReply(dst []byte, p *pendingQuery, r *result) (reply []byte, found cache.Result, outcome Outcome) {
	q := p.query
	defer func() {
		if v := recover(); v != nil {
			g.panics.report(v)
			reply, found, outcome = q.AppendError(dst, wire.ServFail, wire.EDE{Text: "internal error"}), cache.Miss, Crashed
		}
	}()
	// A stale answer is better than an error (RFC 8767 section 5: only NOERROR and NXDOMAIN
	// renew what is known).
	if !r.answered() && p.check != access.LiveCheck {
		if reply, found = g.cache.AppendStale(dst, q); found != cache.Miss {
			return reply, found, Answered
		}
	}
	if r.err != nil {
		reply, outcome = g.appendFailure(dst, q, r.err, p.from)
		return reply, cache.Miss, outcome
	}
	return r.answer.AppendReply(dst, q, r.terms), cache.Miss, Answered
}

// appendFailure appends the reply to q that err makes necessary.
func (g *Gateway) appendFailure(dst []byte, q wire.Query, err error, from netip.Addr) ([]byte, Outcome) {
	outcome, ede := failure(err)
	if g.config().access.Trusts(from) {
		ede.Text = detail(err, ede.Text)
	}
	g.log.Debug("query failed", "query", q, "outcome", outcome, "error", err)
	return q.AppendError(dst, wire.ServFail, ede), outcome
}

var (
	errCrashed = errors.New("BUG: panic")
	errNothing = errors.New("BUG: the resolver returned neither an answer nor an error")
)

// failure returns the outcome of a query that failed with err, and the extended error for the
// client.
func failure(err error) (Outcome, wire.EDE) {
	outcome, ede := Failed, wire.EDE{Code: wire.EDENoReachable, Text: "no upstream answered"}
	switch {
	case errors.Is(err, errSilentDomain):
		outcome, ede.Text = Overload, "the servers of this domain do not answer"
	case errors.Is(err, errCrashed):
		outcome, ede = Crashed, wire.EDE{Text: "internal error"}
	case errors.Is(err, context.DeadlineExceeded):
		// Not EDE 23 (Network Error): that is for an error in talking to a server, and no
		// answer is none.
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

// detail returns the text about err for trusted clients: the one of err if it has one, or else
// the public one.
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

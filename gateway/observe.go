package gateway

import (
	"context"
	"net/netip"
	"time"

	"dotgate/gateway/access"
	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
)

// A QueryLog records queries with their replies.
type QueryLog interface {
	// Note is called for each reply to a packet, with how long it took; 0 if it was ready at
	// once. It must not block, nor keep packet and reply.
	Note(client netip.AddrPort, via wire.Transport, packet, reply []byte, took time.Duration)
}

// A Tracer follows queries from client to reply: those that the cache answered, and those
// that needed the Resolver, or would have. Refused queries and names that are answered here
// have no trace. Its methods are called concurrently, and must not block.
type Tracer interface {
	// Begin is called for each query that waits for the Resolver, and returns a context;
	// never nil. The context that the Resolver gets for the query has its values.
	Begin() context.Context
	// End is called when the reply is ready, with the context of Begin, or one without values
	// if the reply was ready at once. It must not keep the query and the reply of t.
	End(trace context.Context, t Traced)
}

// A Traced is a finished query.
type Traced struct {
	Query     wire.Query
	Reply     []byte
	Client    netip.Addr // invalid if it is unknown
	Began     time.Time  // zero if the reply was ready at once
	Outcome   Outcome
	Found     cache.Result // what the cache had for the reply
	Coalesced bool         // it waited for a call that another query leads
	Err       error        // why the Resolver had no answer, even if a stale one was sent; or nil
	EDE       wire.EDE     // the extended error of the reply, before details for trusted clients
}

// observed reports whether finished queries have an observer besides the counters.
func (c *config) observed() bool { return c.QueryLog != nil || c.Tracer != nil }

// observeNow hands a query with a reply that was ready at once to the observers. Health
// checks have none.
//
//go:noinline
func (g *Gateway) observeNow(from *client, packet []byte, q *wire.Query, reply []byte) {
	cfg := g.config()
	if from.check != access.NoCheck {
		return
	}
	if cfg.QueryLog != nil {
		cfg.QueryLog.Note(from.ReplyTo.Peer(), from.Via, packet, reply, 0)
	}
	if cfg.Tracer != nil && (from.found != cache.Miss || from.outcome == Overload) {
		cfg.Tracer.End(context.Background(), Traced{Query: *q, Reply: reply, Client: from.Addr, Outcome: from.outcome, Found: from.found})
	}
}

// observeBegin begins the trace of a query that waits for the Resolver.
func (g *Gateway) observeBegin(p *pendingQuery) {
	p.trace = context.Background()
	if tracer := g.config().Tracer; tracer != nil && p.check == access.NoCheck {
		p.trace, p.traced = tracer.Begin(), true
	}
}

// observeLater hands a pending query with its reply to the observers. Health checks have none.
func (g *Gateway) observeLater(p *pendingQuery, r *result, reply []byte, found cache.Result) {
	cfg := g.config()
	if p.check != access.NoCheck {
		return
	}
	if cfg.QueryLog != nil {
		cfg.QueryLog.Note(p.replyTo.Peer(), p.via, p.query.Packet(), reply, time.Since(p.began))
	}
	if cfg.Tracer == nil || !p.traced {
		return
	}
	t := Traced{Query: p.query, Reply: reply, Client: p.from, Began: p.began, Found: found, Coalesced: p.coalesced.Load(), Err: r.err}
	if r.err != nil && found == cache.Miss {
		t.Outcome, t.EDE = failure(r.err)
	}
	cfg.Tracer.End(p.trace, t)
}

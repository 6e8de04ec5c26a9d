package gateway

import (
	"context"
	"net/netip"
	"time"

	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
)

// A Tracer follows queries from where they come in to where they are answered:
// those that the cache had an answer for, and those that needed the Resolver, or
// would have. What is refused, or known here, is none of them. Its methods are called
// concurrently, and must not wait.
type Tracer interface {
	// Begin is called for each query that the Resolver may have to be asked for, and
	// returns what goes with it; never nil. A Resolver with a method AskFor, which is
	// Ask with a context before all else, is asked by that, so that whoever does
	// something for the query finds what is in there. Nobody heeds the context's end.
	Begin() context.Context
	// End is told what became of a query, with what Begin returned for it; nil if it
	// was answered at once. It must not keep what t borrows: the query and the reply.
	End(trace context.Context, t Traced)
}

// A Traced is what became of a query.
type Traced struct {
	Query     wire.Query
	Reply     []byte
	Client    netip.Addr // invalid if it is unknown
	Began     time.Time  // zero if it was answered at once
	Outcome   Outcome
	Found     cache.Found // what the cache had that became the reply
	Coalesced bool        // it waited for an exchange that another client had begun
	Err       error       // why the Resolver had no answer, even if a stale one did; or nil
	EDE       wire.EDE    // what clients are told of that
}

// traceNow tells the Tracer, if there is one, of a reply that could be made at once.
// Without one, that costs no more than to look: it is small enough to be inlined.
func (g *Gateway) traceNow(q *wire.Query, from *client, reply []byte, outcome Outcome, found cache.Found) {
	if g.now().Tracer != nil {
		g.endNow(q, from, reply, outcome, found)
	}
}

//go:noinline
func (g *Gateway) endNow(q *wire.Query, from *client, reply []byte, outcome Outcome, found cache.Found) {
	if tracer := g.now().Tracer; tracer != nil { // still
		tracer.End(nil, Traced{Query: *q, Reply: reply, Client: from.addr, Outcome: outcome, Found: found})
	}
}

// traceLater tells the Tracer of the reply that w gets for what l is, or the cache
// has instead.
func (g *Gateway) traceLater(w *waiter, l *landing, reply []byte, found cache.Found) {
	tracer := g.now().Tracer
	if tracer == nil { // any more
		return
	}
	t := Traced{Query: w.query, Reply: reply, Client: w.from, Began: w.began, Found: found, Coalesced: w.coalesced.Load(), Err: l.err}
	if l.err != nil && found == cache.Nothing {
		t.Outcome, t.EDE = failure(l.err)
	}
	tracer.End(w.trace, t)
}

// ask asks the Resolver for what f wants to know, and lets it know what goes with the
// query, if anything does and it wants to.
func (g *Gateway) ask(f *flight, deadline time.Time, done func(wire.Answer, error)) {
	r := g.now().resolver
	if f.trace != nil {
		if telling, ok := r.(interface {
			AskFor(trace context.Context, q wire.Query, deadline time.Time, done func(wire.Answer, error))
		}); ok {
			telling.AskFor(f.trace, f.query, deadline, done)
			return
		}
	}
	r.Ask(f.query, deadline, done)
}

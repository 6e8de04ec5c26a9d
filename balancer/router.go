package balancer

import (
	"context"
	"fmt"
	"time"

	"dotgate/gateway/wire"
)

// A Resolver answers queries, as a Balancer does.
type Resolver interface {
	Ask(q wire.Query, deadline time.Time, done func(wire.Answer, error))
}

// A Router has the queries for some names answered by a Resolver of their own.
// Make one with NewRouter.
type Router struct {
	rest   Resolver
	routes wire.Names[Resolver]
}

// NewRouter returns a Router that asks, for a name and all below it, the Resolver
// that it stands for in routes, the longest such name; and rest for all others.
// What a route does not answer is not answered: it never falls back to another.
func NewRouter(rest Resolver, routes map[string]Resolver) (*Router, error) {
	r := &Router{rest: rest, routes: make(wire.Names[Resolver])}
	for name, resolver := range routes {
		packed, err := wire.PackName(name)
		if err != nil {
			return nil, fmt.Errorf("routes: %w", err)
		}
		if _, twice := r.routes[string(packed)]; twice {
			return nil, fmt.Errorf("routes: %s is there twice", name)
		}
		r.routes[string(packed)] = resolver
	}
	return r, nil
}

// Ask asks the Resolver that the name in q is for.
func (r *Router) Ask(q wire.Query, deadline time.Time, done func(wire.Answer, error)) {
	r.resolverFor(q).Ask(q, deadline, done)
}

// AskFor is Ask for who may want to know how it went: a Resolver that can tell does so
// to what is in ctx.
func (r *Router) AskFor(ctx context.Context, q wire.Query, deadline time.Time, done func(wire.Answer, error)) {
	resolver := r.resolverFor(q)
	telling, ok := resolver.(interface {
		AskFor(ctx context.Context, q wire.Query, deadline time.Time, done func(wire.Answer, error))
	})
	if !ok {
		resolver.Ask(q, deadline, done)
		return
	}
	telling.AskFor(ctx, q, deadline, done)
}

func (r *Router) resolverFor(q wire.Query) Resolver {
	var room [wire.MaxKey]byte
	if resolver, _, ok := r.routes.Find(q.AppendName(room[:0])); ok {
		return resolver
	}
	return r.rest
}

package balancer

import (
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
	var room [wire.MaxKey]byte
	if resolver, _, ok := r.routes.Find(q.AppendName(room[:0])); ok {
		resolver.Ask(q, deadline, done)
		return
	}
	r.rest.Ask(q, deadline, done)
}

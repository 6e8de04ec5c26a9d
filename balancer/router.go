package balancer

import (
	"context"

	"dotgate/gateway/wire"
)

// A Resolver answers queries, as a Balancer does.
type Resolver interface {
	Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error))
}

// A Route has a Resolver of its own for some names.
type Route struct {
	Resolver Resolver
	Source   string // names the upstreams of the route, for wire.Routes
}

// A Router has the queries for some names answered by a Resolver of their own. Make
// one with NewRouter. It never changes.
type Router struct {
	rest      Resolver
	resolvers []Resolver // by route
	routes    *wire.Routes
}

// NewRouter returns a Router that asks, for each name, the Resolver of the route
// with the longest pattern in names that stands for it; and rest for all others.
// Names has indexes of routes, and must not change any more. A query that the upstreams
// of a route do not answer fails: it never falls back to another Resolver.
func NewRouter(rest Resolver, names *wire.RouteNames, routes []Route) *Router {
	r := &Router{rest: rest}
	var sources []string
	for _, route := range routes {
		r.resolvers, sources = append(r.resolvers, route.Resolver), append(sources, route.Source)
	}
	r.routes = wire.NewRoutes(names, sources)
	return r
}

// Routes returns the names that have routes.
func (r *Router) Routes() *wire.Routes { return r.routes }

// ResolverFor returns the Resolver for a name, in wire format and lower case, and
// how many octets of the name come before that of its route. It reports false if the
// name has no route.
func (r *Router) ResolverFor(name []byte) (resolver Resolver, below int, routed bool) {
	if i, below, ok := r.routes.Find(name); ok {
		return r.resolvers[i], below, true
	}
	return r.rest, 0, false
}

// Ask asks the Resolver that the name in q is for.
func (r *Router) Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	var buf [wire.MaxKey]byte
	resolver, _, _ := r.ResolverFor(q.AppendName(buf[:0]))
	resolver.Ask(ctx, q, done)
}

package server

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
	"dotgate/upstreams"
)

// RecentQueries returns those of queries that failed or were sent more than once.
func (s *server) RecentQueries() *api.RecentQueries { return s.recent }

// Explain asks upstreams for a name, whatever the cache has, and tells how that
// went. The cache does not learn from it.
func (s *server) Explain(ctx context.Context, name, recordType string) (api.Explanation, error) {
	query, err := wire.NewQuery(name, strings.ToUpper(recordType))
	if err != nil {
		return api.Explanation{}, err
	}
	found := s.answers.Lookup(query)
	ctx, cancel := context.WithTimeout(ctx, explainLimit)
	defer cancel()
	e, pool := s.pools.explain(ctx, query)
	e.Policy = pool.list.Load().options.Policy
	e.Cache = map[cache.Result]string{cache.Miss: "nothing", cache.Fresh: "fresh", cache.Stale: "stale"}[found]
	return e, nil
}

// explainLimit is how long a query that is explained may take.
const explainLimit = 5 * time.Second

// Query asks the upstreams of a configuration for q, without a running gateway, and tells
// how that went.
func Query(ctx context.Context, config *settings.Config, built time.Time, q wire.Query) (api.Explanation, error) {
	pools, _, err := newPools(config, built, func(string, balancer.Trace) {}, slog.New(slog.DiscardHandler))
	if err != nil {
		return api.Explanation{}, err
	}
	defer pools.Close()
	e, _ := pools.explain(ctx, q)
	return e, nil
}

// explain asks the upstreams for q, and returns how that went, and their pool.
func (ps *pools) explain(ctx context.Context, q wire.Query) (api.Explanation, *pool) {
	trace := new(upstreams.Trace)
	route, pool := ps.routeOf(q)
	answer, exchange := pool.balancer.Explain(upstreams.WithTrace(ctx, trace), q)
	e := api.Explain(exchange, route, trace.Steps())
	if !answer.IsZero() {
		e.Answer = answer.String()
	}
	return e, pool
}

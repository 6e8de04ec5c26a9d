package server

import (
	"crypto/sha256"
	"log/slog"
	"os"
	"sync/atomic"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/peers"
	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/cmd/dotgate/internal/tracing"
	"dotgate/gateway"
	"dotgate/gateway/cache"
	"dotgate/gateway/querylog"
	"dotgate/gateway/redis"
	"dotgate/gateway/wire"
	"dotgate/health"
)

// parts are the components that answer queries, from the inside out.
type parts struct {
	log     *slog.Logger
	pools   *pools
	recent  *api.RecentQueries
	answers *cache.Cache
	queries *querylog.Log
	tracer  *tracing.Tracer
	shared  *redis.Cache // or nil
	gateway *gateway.Gateway
	peering *peering

	// In effect now: how upstreams are probed, and the digest of all settings that
	// answers depend on.
	probing atomic.Pointer[health.Options]
	digest  atomic.Pointer[[sha256.Size]byte]
}

// newParts makes all parts. It opens no socket and starts no goroutine. With share, the
// gateway's ports may be those of another process, too.
func newParts(config *settings.Config, o Options, share bool, log *slog.Logger) (p *parts, err error) {
	digest, probing := digestOf(config), healthOptions(config)
	p = &parts{log: log, recent: new(api.RecentQueries)}
	p.digest.Store(&digest)
	p.probing.Store(&probing)
	config.Cache.Log, config.QueryLog.Log, config.Tracing.Log, config.Redis.Log = log, log, log, log
	config.Tracing.Version = o.Version
	var resolver *balancer.Router
	if p.pools, resolver, err = newPools(config, o.Built, p.recent.Keep, log); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.answers, err = openCache(config.Cache, &digest, log); err != nil {
		return nil, err
	}
	if p.queries, err = querylog.New(config.QueryLog); err != nil {
		return nil, err
	}
	if p.tracer, err = tracing.New(config.Tracing); err != nil {
		return nil, err
	}
	if len(config.Redis.URL) > 0 {
		if p.shared, err = redis.New(config.Redis); err != nil {
			return nil, err
		}
	}
	options := p.gatewayOptions(config, resolver.Routes())
	options.Share = share
	if p.gateway, err = gateway.New(p.shared.Before(resolver, digest), options); err != nil {
		return nil, err
	}
	p.peering, err = newPeering(config, peers.Parts{
		Upstreams: p.pools.monitors, Changed: p.pools.changed, Cache: p.answers, Admit: p.gateway.Admits,
		Digest: func() [sha256.Size]byte { return *p.digest.Load() }, Version: o.Version, Log: log,
	})
	return p, err
}

// close releases the parts of a gateway that does not run.
func (p *parts) close() {
	p.peering.close()
	p.pools.Close()
	if p.answers != nil {
		p.answers.Close()
	}
}

// gatewayOptions returns the options of the gateway, with the parts that it uses.
func (p *parts) gatewayOptions(config *settings.Config, routes *wire.Routes) gateway.Options {
	o := config.Gateway
	o.Log, o.Cache = p.log, p.answers
	if config.QueryLog.Output != "" {
		o.QueryLog = p.queries
	}
	if config.Tracing.Endpoint != "" {
		o.Tracer = p.tracer
	}
	o.Routes = routes
	return o
}

// prepare prepares the change from one configuration to the next. On an error, nothing
// has changed.
func (p *parts) prepare(now, next *settings.Config, digest [sha256.Size]byte) (all changes, err error) {
	defer func() {
		if err != nil {
			all.Abandon()
		}
	}()
	upstreams, err := p.pools.prepare(next)
	if err != nil {
		return all, err
	}
	all = append(all, upstreams)
	keep := next.Cache
	keep.Size = cache.Size(p.answers.Usage().Size)
	if next.Cache.Size != now.Cache.Size {
		keep.Size = affordable(next.Cache.Size, p.log)
	}
	answers, err := p.answers.Prepare(keep, roomForBoth(os.DirFS("/"), p.answers.Usage(), keep.Size, p.log))
	if err != nil {
		return all, err
	}
	all = append(all, answers)
	queries, err := p.queries.Prepare(next.QueryLog)
	if err != nil {
		return all, err
	}
	all = append(all, commit(queries))
	traces, err := p.tracer.Prepare(next.Tracing)
	if err != nil {
		return all, err
	}
	all = append(all, commit(traces))
	clients, err := p.gateway.Prepare(p.shared.Before(upstreams.resolver, digest), p.gatewayOptions(next, upstreams.resolver.Routes()))
	if err != nil {
		return all, err
	}
	return append(all, clients, commit(func() { p.peering.renew(next.Peers) })), nil
}

package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"dotgate/configs/bounds"
	"dotgate/gateway/access"
	"dotgate/gateway/records"
	"dotgate/gateway/transport"
	"dotgate/gateway/wire"
)

// A config is all that another configuration may change while a Gateway serves: the
// options, and what is built from them. It is never changed, only replaced.
type config struct {
	Options
	resolver Resolver
	rebind   *access.RebindFilter // nil without Options.BlockPrivate
	access   *access.Access
	records  *records.Set
	subnet   []byte // an ECS option that all upstream queries have, or nil
}

// newConfig checks all options. Rate limits, cookies and counts of clients carry over from
// before, which may be nil, as far as the options for them are the same.
func newConfig(r Resolver, o Options, before *config) (*config, error) {
	o = o.withDefaults()
	if o.Interfaces == nil {
		o.Interfaces = access.Interfaces
	}
	err := bounds.Err("gateway.", o.Check)
	if r == nil {
		err = errors.Join(errors.New("gateway: no resolver"), err)
	}
	if err != nil {
		return nil, err
	}
	next := &config{Options: o, resolver: r}
	var accessBefore *access.Access
	var optionsBefore access.Options
	if before != nil {
		accessBefore, optionsBefore = before.access, before.accessOptions()
	}
	if next.access, err = access.New(next.accessOptions(), accessBefore, optionsBefore); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	next.records, err = records.New(records.Options{
		Forwarded: o.ForwardLocal, Routes: o.Routes, NoApplicationDNS: o.NoApplicationDNS, BlockSingleLabel: o.BlockSingleLabel,
		Version: o.Version, ID: o.ID, Hostname: o.Hostname,
	})
	if err != nil {
		return nil, fmt.Errorf("gateway.forward_local: %w", err)
	}
	if next.subnet, err = parseECS(o.ECS); err != nil {
		return nil, fmt.Errorf("gateway.ecs %w", err)
	}
	if o.BlockPrivate {
		if next.rebind, err = access.NewRebindFilter(o.AllowPrivate, o.Routes); err != nil {
			return nil, fmt.Errorf("gateway.allow_private: %w", err)
		}
	}
	return next, nil
}

func (o Options) accessOptions() access.Options {
	return access.Options{
		Allow: o.Allow, Trusted: o.Trusted, RateLimit: o.RateLimit, RateBurst: o.RateBurst,
		RateExempt: o.RateExempt, CookieSecret: o.CookieSecret,
	}
}

// resolvesSame reports whether the Resolver gets q by c as it does by other: by the same
// route, with the same client subnet.
func (c *config) resolvesSame(other *config, q wire.Query) bool {
	if c == other {
		return true
	}
	var buf [wire.MaxKey]byte
	name := q.AppendName(buf[:0])
	return c.Routes.Source(name) == other.Routes.Source(name) && bytes.Equal(c.subnet, other.subnet)
}

// answersSame reports whether clients get the same answers by c as by other, for all names.
func (c *config) answersSame(other *config) bool {
	return c.Routes.Equal(other.Routes) && bytes.Equal(c.subnet, other.subnet) &&
		c.BlockPrivate == other.BlockPrivate && slices.Equal(c.AllowPrivate, other.AllowPrivate) &&
		slices.Equal(c.ForwardLocal, other.ForwardLocal) && c.NoApplicationDNS == other.NoApplicationDNS && c.BlockSingleLabel == other.BlockSingleLabel
}

// dropOutdated drops cached answers that came by the configuration before, and would not
// come or not be passed on by cfg. A negative answer may be one that the rebinding filter
// made, and is dropped if the filter would not make it any more.
func (g *Gateway) dropOutdated(before, cfg *config) {
	if before.answersSame(cfg) {
		return
	}
	sameSubnet := bytes.Equal(before.subnet, cfg.subnet)
	n := g.cache.FlushIf(func(name []byte, a wire.Answer) bool {
		return !sameSubnet || before.Routes.Source(name) != cfg.Routes.Source(name) ||
			!cfg.rebind.Allows(name, a) || a.Kind() != wire.Positive && !before.rebind.Exempts(name) && cfg.rebind.Exempts(name) ||
			cfg.records.Has(name) && !before.records.Has(name)
	})
	if n > 0 {
		g.log.Info("dropped cached answers from before the configuration changed", "answers", n)
	}
}

// config returns the configuration in effect.
func (g *Gateway) config() *config { return g.current.Load() }

// apply puts next into effect. Queries and connections in progress may end by the
// configuration before.
func (g *Gateway) apply(next *config) {
	g.storing.Lock()
	g.current.Store(next)
	g.storing.Unlock()
	g.slots.max.Store(int64(next.MaxQueries))
	g.server.SetOptions(transport.Options{
		MaxConnections: next.MaxConnections, MaxPerClient: next.MaxPerClient, MaxPipelined: next.MaxPipelined,
		IdleTimeout: next.IdleTimeout, GatherAbove: next.GatherAbove,
	})
}

// A Change is another configuration of a Gateway that serves: ready, but not in effect.
// Either Commit or Abandon has to be called, once.
type Change struct {
	gateway *Gateway
	config  *config
	listen  *transport.Change
}

// Prepare gets a Change ready by which g serves at other addresses, with other options, and
// asks r. Sockets for new addresses are open when it returns. Addresses that stay keep
// their sockets, and so do all if they were adopted. Options.Share has no effect. A
// Gateway must serve, and may have one Change at a time. On an error, there is none.
func (g *Gateway) Prepare(r Resolver, o Options) (*Change, error) {
	o.Cache = g.config().Cache
	next, err := newConfig(r, o, g.config())
	if err != nil {
		return nil, err
	}
	listen, err := g.server.Prepare(next.Listen)
	if err != nil {
		return nil, err
	}
	return &Change{g, next, listen}, nil
}

// Commit puts the Change into effect, unless the Gateway has stopped serving. Clients of a
// removed listen address still receive replies to queries already in progress.
//
// Cached answers are dropped if the new configuration would get them elsewhere, or not
// pass them on.
func (c *Change) Commit() {
	g := c.gateway
	before := g.config()
	c.listen.Commit(func() { g.apply(c.config) })
	g.NetworkChanged() // unbound addresses are tried again
	if g.config() == c.config {
		g.dropOutdated(before, c.config)
	}
}

// Abandon closes the sockets that were opened for the Change.
func (c *Change) Abandon() { c.listen.Abandon() }

// Admits reports whether clients may get all of a, an answer to q that has not come from the
// Resolver.
func (g *Gateway) Admits(q wire.Query, a wire.Answer) bool {
	return g.config().rebind.Filter(q, a).Same(a)
}

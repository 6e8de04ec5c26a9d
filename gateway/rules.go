package gateway

import (
	"errors"
	"fmt"
	"slices"
)

// Rules are all that another configuration may change while a Gateway serves: its
// options, and what is made of them. They never change; others take their place.
type rules struct {
	Options
	resolver Resolver
	guard    *guard // or nil
	access   access
	zones    zones
	subnet   []byte            // an ECS option that all upstream queries have, or nil
	chaos    map[string]string // by name, in wire format and lower case
}

// newRules checks all options. What clients have run up under the rules of before,
// which may be nil, still counts as far as it can.
func newRules(r Resolver, o Options, before *rules) (*rules, error) {
	o = o.withDefaults()
	var problems []error
	if r == nil {
		problems = append(problems, errors.New("gateway: no resolver"))
	}
	o.Check(func(option, problem string) {
		problems = append(problems, fmt.Errorf("gateway.%s %s", option, problem))
	})
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	next := &rules{Options: o, resolver: r, chaos: newChaos(o)}
	var err error
	if next.access, err = newAccess(o); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	if before != nil {
		next.access.inherit(&before.access, o.RateLimit == before.RateLimit && o.RateBurst == before.RateBurst,
			slices.Equal(o.CookieSecret, before.CookieSecret))
	}
	if next.zones, err = newZones(o.ForwardLocal, o.NoApplicationDNS); err != nil {
		return nil, fmt.Errorf("gateway.forward_local: %w", err)
	}
	if next.subnet, err = parseECS(o.ECS); err != nil {
		return nil, fmt.Errorf("gateway.ecs %w", err)
	}
	if o.BlockPrivate {
		if next.guard, err = newGuard(o.AllowPrivate); err != nil {
			return nil, fmt.Errorf("gateway.allow_private: %w", err)
		}
	}
	return next, nil
}

// now returns the rules that hold.
func (g *Gateway) now() *rules { return g.rules.Load() }

// follow has other rules hold from now on. Queries and connections that are under
// way may end by those of before.
func (g *Gateway) follow(next *rules) {
	g.rules.Store(next)
	g.slots.max.Store(int64(next.MaxQueries))
	g.clients.limit(next.MaxConnections, next.MaxPerClient)
}

// A Change is another configuration of a Gateway that serves: ready, but not in
// effect. One of Commit and Abandon has to be called, once.
type Change struct {
	gateway     *Gateway
	rules       *rules
	stay, fresh []*station
}

// Prepare gets a Change ready that has clients served at other addresses, with
// other options, and by r. Sockets for addresses that are new are open when it
// returns; those of addresses that stay go on as they are, and so do all if they
// were adopted. Options.Share is of no matter. Only one Change may be there at a
// time, of a Gateway that serves. On an error, there is none.
func (g *Gateway) Prepare(r Resolver, o Options) (*Change, error) {
	o.Share = false
	o.Cache = g.now().Cache
	next, err := newRules(r, o, g.now())
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	have, leaving := slices.Clone(g.stations), slices.Clone(g.leaving)
	g.mu.Unlock()
	c := &Change{gateway: g, rules: next, stay: have}
	if g.adopted {
		return c, nil
	}
	c.stay, c.fresh, err = g.open(next.Options, have, leaving)
	return c, err
}

// Commit has the Change take effect, unless the Gateway does not serve any more.
// Who was served at an address that is no more gets the answers that are under way.
func (c *Change) Commit() {
	g := c.gateway
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.service.over {
		c.Abandon()
		return
	}
	g.follow(c.rules)
	before := g.stations
	g.stations = append(c.stay, c.fresh...)
	if g.service.ctx == nil { // Serve begins with them
		for _, s := range before {
			if !slices.Contains(c.stay, s) {
				s.close()
			}
		}
		return
	}
	for _, s := range c.fresh {
		g.man(s)
	}
	for _, s := range before {
		if !slices.Contains(c.stay, s) {
			g.leaving = append(g.leaving, s)
			s.leave()
		}
	}
}

// Abandon closes what was opened for the Change.
func (c *Change) Abandon() {
	for _, s := range c.fresh {
		s.close()
	}
}

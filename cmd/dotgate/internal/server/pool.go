package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/cmd/dotgate/internal/tracing"
	"dotgate/configs/bounds"
	"dotgate/gateway/statelog"
	"dotgate/gateway/wire"
	"dotgate/health"
	"dotgate/upstreams"
)

// attemptsEnd is how long queries may still be under way to an upstream after it has
// gone from all lists.
const attemptsEnd = 6 * time.Second

// warmUpLimit is how long a gateway that takes over waits for a first answer: no
// longer than clients would.
const warmUpLimit = 2 * time.Second

// A pool is a list of upstreams that stand in for each other: as the configuration
// has them, and as the operator wants them.
type pool struct {
	pools    *pools
	balancer *balancer.Balancer         // nil until the first list is followed
	list     atomic.Pointer[memberList] // never nil
	outage   time.Time                  // when no upstream was up any more; zero if one is; see noteOutage
	outages  statelog.State             // limits how often they are logged
}

// A memberList is a list of upstreams at one time. It doesn't change.
type memberList struct {
	label   string           // the first name that the list is for; empty: all that have no other
	names   *wire.RouteNames // of all lists; nil for the main one
	route   int              // its index there
	source  string           // the same for lists of the same upstreams; empty for the main one
	members []poolMember
	options balancer.Options
}

// A poolMember is an upstream's place in a list.
type poolMember struct {
	*member
	weight, tier int
}

// A member is one upstream at work.
type member struct {
	identity string
	config   settings.Upstream
	health   health.Options
	files    [sha256.Size]byte // what its files had in them
	upstream upstream
	monitor  *health.Monitor
	watch    *loopWatch

	// Guarded by pools.mu.
	names      []string // that lists have for it, its own among them
	forcedDown bool     // set to down by hand
	stop       context.CancelFunc
}

// String returns the name that it has.
func (m *member) String() string { return m.config.Name }

// make makes the upstream of m and its monitor. Nothing is dialled yet.
func (m *member) make(ps *pools) (err error) {
	c, o := m.config.Options, m.health
	c.Log, o.Log, o.Changed = ps.log, ps.log, ps.states
	c.Built, c.Patience, c.Network = ps.built, o.Patience, ps.network
	if m.upstream, err = newUpstream(c); err != nil {
		return err
	}
	m.monitor, err = health.New(m.upstream, o)
	m.watch = &loopWatch{Monitor: m.monitor, upstream: m.upstream}
	return err
}

// stays reports whether m does as well as next, which has these names and m's
// identity.
func (m *member) stays(next *member, names []string) bool {
	g, h := m.health, next.health
	g.Log, h.Log = nil, nil
	return g == h && m.files == next.files && slices.Contains(names, m.config.Name)
}

// record passes on the trace of a query.
func (p *pool) record(s balancer.Trace) {
	route, _ := p.pools.routeOf(s.Query)
	p.pools.record(route, s)
}

// Ask asks the upstreams of the list, as the balancer has it. There must be one.
func (p *pool) Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	if trace := tracing.Of(ctx); trace != nil {
		route, _ := p.pools.routeOf(q)
		trace.Asked(route)
		ctx = balancer.WithObserver(ctx, trace.Record)
	}
	p.balancer.Ask(ctx, q, done)
}

// warmUp asks all upstreams, and returns as soon as one has answered, or none did
// for warmUpLimit.
func (p *pool) warmUp(ctx context.Context) {
	places := p.list.Load().members
	answered := make(chan struct{}, len(places))
	for _, m := range places {
		query, err := wire.NewQuery(m.health.ProbeName, m.health.ProbeType)
		if err != nil {
			continue // it is checked elsewhere
		}
		m.monitor.Ask(ctx, query, func(_ wire.Answer, err error) {
			if err == nil {
				answered <- struct{}{}
			}
		})
	}
	select {
	case <-answered:
	case <-time.After(warmUpLimit):
	case <-ctx.Done():
	}
}

// candidates returns those that are not forcedDown. The caller holds pools.mu.
func (l *memberList) candidates() (all []balancer.Candidate) {
	for _, p := range l.members {
		if !p.forcedDown {
			all = append(all, balancer.Candidate{Member: p.watch, Outage: p.monitor.Outage, Weight: p.weight, Tier: p.tier})
		}
	}
	return all
}

// check returns why the list can't be asked. The caller holds pools.mu.
func (l *memberList) check() error {
	err := bounds.Err("balancer: ", l.options.Check)
	if !slices.ContainsFunc(l.members, func(p poolMember) bool { return !p.forcedDown }) {
		err = errors.Join(err, errNoUpstreamLeft)
	}
	return err
}

// follow has the balancer ask the list. The caller holds pools.mu.
func (p *pool) follow(next *memberList) (err error) {
	if p.balancer == nil {
		p.balancer, err = balancer.New(next.candidates(), next.options)
	} else {
		err = p.balancer.Replace(next.candidates(), next.options)
	}
	if err == nil {
		p.list.Store(next)
	}
	return err
}

// String returns the names.
func (p *pool) String() string {
	return joined(p.list.Load().members, func(p poolMember) string { return p.String() })
}

func joined[T any](items []T, text func(T) string) string {
	var texts []string
	for _, item := range items {
		texts = append(texts, text(item))
	}
	return strings.Join(texts, ", ")
}

// An upstream is any of those in package upstreams.
type upstream interface {
	health.Upstream
	api.Upstream
	NetworkChanged() (matters bool)
	Close() error
}

func newUpstream(o upstreams.Options) (upstream, error) {
	if o.Protocol == upstreams.UDP {
		return upstreams.NewPlain(o)
	}
	return upstreams.New(o)
}

package server

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/peers"
	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/configs/files"
	"dotgate/gateway"
	"dotgate/gateway/wire"
	"dotgate/health"
	"dotgate/upstreams"
)

// pools are all upstreams of a running gateway, and the lists of them: one for most
// names, and one for each route.
//
// An upstream that is in several lists is one: it has one set of connections, one
// state and one AdminState. Its weight and its tier belong to each list.
type pools struct {
	log   *slog.Logger
	built time.Time // see Options
	// network is what all upstreams know together.
	network *upstreams.Network
	record  func(route string, s balancer.Trace)
	main    *pool
	// States has one place: what is known of an upstream may have changed. Changed is
	// the same for other gateways, once outages are noted.
	states, changed chan struct{}
	router          atomic.Pointer[balancer.Router]
	published       atomic.Pointer[[]api.Member] // what Members returns; never nil

	mu       sync.Mutex // guards all below
	members  []*member  // those of main first
	routes   []*pool
	past     balancer.Counts // of lists that are gone
	ctx      context.Context // of Run; nil before
	running  sync.WaitGroup
	retiring sync.WaitGroup
	release  memoryRelease
}

// newPools makes the upstreams of a configuration.
func newPools(config *settings.Config, built time.Time, record func(string, balancer.Trace), log *slog.Logger) (*pools, *balancer.Router, error) {
	ps := &pools{log: log, built: built, network: upstreams.NewNetwork(log), record: record, states: make(chan struct{}, 1), changed: make(chan struct{}, 1)}
	ps.published.Store(new([]api.Member))
	ps.main = ps.newPool()
	first, err := ps.prepare(config)
	if err != nil {
		return nil, nil, err
	}
	first.Commit()
	return ps, first.resolver, nil
}

func (ps *pools) newPool() *pool {
	pool := &pool{pools: ps}
	pool.list.Store(new(memberList))
	return pool
}

// all returns the lists of now, the main one first.
func (ps *pools) all() []*pool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.allLocked()
}

// allLocked is all for a caller that holds mu.
func (ps *pools) allLocked() []*pool { return append([]*pool{ps.main}, ps.routes...) }

// now returns the upstreams of now, those of the main list first.
func (ps *pools) now() []*member {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return slices.Clone(ps.members)
}

// Run watches the upstreams, those that come later too, until ctx is done. It
// blocks.
func (ps *pools) Run(ctx context.Context) error {
	ps.mu.Lock()
	ps.ctx = ctx
	for _, m := range ps.members {
		ps.start(m)
	}
	ps.mu.Unlock()
	ps.noteOutages(ctx)
	ps.mu.Lock() // nothing is committed from here on
	defer ps.mu.Unlock()
	ps.running.Wait()
	ps.retiring.Wait()
	return nil
}

// Close closes all upstreams. Run must not be running, nor any query.
func (ps *pools) Close() {
	for _, m := range ps.now() {
		m.upstream.Close()
	}
}

// start runs the monitor of m. The caller holds mu.
func (ps *pools) start(m *member) {
	var ctx context.Context
	ctx, m.stop = context.WithCancel(ps.ctx)
	ps.running.Go(func() { _ = m.monitor.Run(ctx) })
}

// retire ends m when no query waits for it any more. The caller holds mu.
func (ps *pools) retire(m *member) {
	if m.stop != nil {
		m.stop()
	}
	over := context.Background().Done()
	if ps.ctx != nil {
		over = ps.ctx.Done()
	}
	ps.retiring.Go(func() {
		select {
		case <-time.After(attemptsEnd):
		case <-over:
		}
		m.upstream.Close()
		ps.release.later()
	})
}

// monitors returns the monitors of now, for messages of other gateways.
func (ps *pools) monitors() (all []peers.Upstream) {
	for _, m := range ps.now() {
		all = append(all, m.monitor)
	}
	return all
}

// recheck retries upstreams, as the network has changed.
func (ps *pools) recheck() {
	for _, m := range ps.now() {
		if m.upstream.NetworkChanged() {
			m.monitor.ProbeNow()
		}
	}
}

// A poolChange is other upstreams: ready, but not asked. One of Commit and
// Abandon has to be called, once.
type poolChange struct {
	pools    *pools
	members  []*member
	fresh    []*member // of these: those that are new
	names    map[*member][]string
	lists    []memberListChange // the main one first
	resolver *balancer.Router
}

// A memberListChange is another list of upstreams in a pool.
type memberListChange struct {
	pool *pool
	next *memberList
}

// prepare gets the upstreams of another configuration ready. Those that stay as
// they are go on as if nothing had happened. Only one change may be there at a time.
// It takes time in proportion to the upstreams, lists and names.
func (ps *pools) prepare(config *settings.Config) (c *poolChange, err error) {
	c = &poolChange{pools: ps, names: make(map[*member][]string)}
	defer func() {
		if err != nil {
			c.Abandon()
			c = nil
		}
	}()
	p := newPlan(config)
	byIdentity := make(map[string]*member)
	if err := c.collectMembers(p, byIdentity); err != nil {
		return c, err
	}
	pools := ps.assignPools(config, p.sources)
	routes := make([]balancer.Route, len(config.Routes))
	add := func(pool *pool, next *memberList, list []settings.Upstream, policy string) error {
		next.options = config.Balancer
		next.options.Policy, next.options.Record, next.options.Log = policy, pool.record, ps.log
		for _, u := range list {
			next.members = append(next.members, poolMember{byIdentity[u.Identity()], u.Weight, u.Tier})
		}
		c.lists = append(c.lists, memberListChange{pool, next})
		ps.mu.Lock()
		defer ps.mu.Unlock()
		return next.check()
	}
	if err := add(ps.main, new(memberList), config.Upstreams, config.Balancer.Policy); err != nil {
		return c, err
	}
	for i, r := range config.Routes {
		next := &memberList{label: r.Name, names: config.RouteNames(), route: i, source: p.sources[i]}
		if err := add(pools[i], next, r.Upstreams, r.Policy); err != nil {
			return c, fmt.Errorf("route %s: %w", r.Name, err)
		}
		routes[i] = balancer.Route{Resolver: pools[i], Source: p.sources[i]}
	}
	c.resolver = balancer.NewRouter(ps.main, config.RouteNames(), routes)
	return c, nil
}

// collectMembers makes the upstreams of a plan, or takes those that are there.
func (c *poolChange) collectMembers(p *plan, byIdentity map[string]*member) error {
	old := make(map[string]*member)
	for _, m := range c.pools.now() {
		old[m.identity] = m
	}
	for _, w := range p.wanted {
		next := &member{identity: w.identity, config: w.config, files: files.Digest(w.config.CAFile, w.config.CertFile, w.config.KeyFile)}
		m := old[w.identity]
		if m != nil && !w.main && p.config.RouteNames().IsApex(m.health.ProbeName, w.routes) {
			w.route = m.health.ProbeName // as good as any other, and known to work
		}
		next.health = w.health(healthOptions(p.config))
		if m == nil || !m.stays(next, w.names) {
			m = next
			if err := m.make(c.pools); err != nil {
				return err
			}
			c.fresh = append(c.fresh, m)
		}
		byIdentity[w.identity], c.names[m] = m, w.names
		c.members = append(c.members, m)
	}
	return nil
}

// assignPools returns the pool of each route: the one that has its list already, or the
// one that its first name had, or a new one.
func (ps *pools) assignPools(config *settings.Config, sources []string) []*pool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	bySource, byLabel, taken := make(map[string]*pool), make(map[string]*pool), make(map[*pool]bool)
	for _, pool := range ps.routes {
		list := pool.list.Load()
		bySource[list.source+list.options.Policy], byLabel[list.label] = pool, pool
	}
	all := make([]*pool, len(config.Routes))
	take := func(i int, pool *pool) {
		if pool != nil && all[i] == nil && !taken[pool] {
			all[i], taken[pool] = pool, true
		}
	}
	for i, r := range config.Routes {
		take(i, bySource[sources[i]+r.Policy])
	}
	for i, r := range config.Routes {
		take(i, byLabel[r.Name])
		if all[i] == nil {
			all[i] = ps.newPool()
		}
	}
	return all
}

// Abandon closes the upstreams that are new.
func (c *poolChange) Abandon() {
	for _, m := range c.fresh {
		m.upstream.Close()
	}
}

// Commit has the upstreams asked from now on, and ends those that are not any more.
func (c *poolChange) Commit() {
	ps := c.pools
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.ctx != nil && ps.ctx.Err() != nil { // all is about to end
		c.Abandon()
		return
	}
	routes := make([]*pool, 0, len(c.lists)-1)
	stay := make(map[any]bool)
	for _, l := range c.lists {
		if err := l.pool.follow(l.next); err != nil {
			ps.log.Error("BUG: upstreams that were prepared can't be asked", "error", err)
		}
		stay[l.pool] = true
		if l.pool != ps.main {
			routes = append(routes, l.pool)
		}
	}
	for _, pool := range ps.routes {
		if !stay[pool] { // the queries that are under way there still get an answer
			ps.past = sumOf(ps.past, pool.balancer.Counts())
		}
	}
	for _, m := range c.members {
		stay[m], m.names = true, c.names[m]
	}
	if ps.ctx != nil {
		for _, m := range c.fresh {
			ps.start(m)
		}
	}
	for _, m := range ps.members {
		if !stay[m] {
			ps.retire(m)
		}
	}
	ps.routes, ps.members = routes, c.members
	ps.router.Store(c.resolver)
	ps.published.Store(new(ps.membersLocked()))
}

// routeOf returns the route of the name in q, and the list that answers for it: the
// route is empty if it is the main one.
func (ps *pools) routeOf(q wire.Query) (route string, found *pool) {
	name := q.AppendName(nil)
	resolver, below, ok := ps.router.Load().ResolverFor(name)
	if !ok {
		return "", ps.main
	}
	return wire.NameText(name[below:]), resolver.(*pool)
}

// SetAdminState sets the AdminState of an upstream in all its lists. No change by a reload
// may be prepared meanwhile.
func (ps *pools) SetAdminState(name string, a health.AdminState) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	i := slices.IndexFunc(ps.members, func(m *member) bool { return slices.Contains(m.names, name) })
	if i < 0 {
		return fmt.Errorf("upstream: %q %w; there are %s", name, api.ErrUnknown, joined(ps.members, (*member).String))
	}
	m := ps.members[i]
	before := m.forcedDown
	m.forcedDown = a == health.ForcedDown
	var lists []*pool
	for _, pool := range ps.allLocked() {
		list := pool.list.Load()
		if !slices.ContainsFunc(list.members, func(p poolMember) bool { return p.member == m }) {
			continue
		}
		lists = append(lists, pool)
		if err := list.check(); err != nil {
			m.forcedDown = before
			return fmt.Errorf("set %s to %v: %w", m, a, err)
		}
	}
	for _, pool := range lists {
		if err := pool.follow(pool.list.Load()); err != nil {
			ps.log.Error("BUG: upstreams that were checked can't be asked", "error", err)
		}
	}
	m.monitor.SetAdminState(a)
	return nil
}

// Members returns the upstreams as operators see them, those of the main list first.
func (ps *pools) Members() []api.Member { return *ps.published.Load() }

// membersLocked makes what Members returns. The caller holds mu.
func (ps *pools) membersLocked() []api.Member {
	routes := make(map[*member][]string)
	for _, pool := range ps.allLocked() {
		list := pool.list.Load()
		for _, p := range list.members {
			routes[p.member] = append(routes[p.member], list.label)
		}
	}
	all := make([]api.Member, len(ps.members))
	for i, m := range ps.members {
		all[i] = api.Member{Routes: routes[m], Upstream: m.upstream, Monitor: m.monitor}
	}
	return all
}

// Counts returns what all lists did, those included that are gone.
func (ps *pools) Counts() balancer.Counts {
	ps.mu.Lock()
	total := ps.past
	ps.mu.Unlock()
	for _, pool := range ps.all() {
		total = sumOf(total, pool.balancer.Counts())
	}
	return total
}

func sumOf(a, b balancer.Counts) balancer.Counts {
	return balancer.Counts{
		Queries: a.Queries + b.Queries, Attempts: a.Attempts + b.Attempts, Hedges: a.Hedges + b.Hedges,
		Retries: a.Retries + b.Retries, Seconds: a.Seconds + b.Seconds, Failures: a.Failures + b.Failures,
	}
}

// Candidates returns what is known of all of them, for each list that they are in.
func (ps *pools) Candidates() (all []balancer.CandidateTrace) {
	for _, pool := range ps.all() {
		all = append(all, pool.balancer.Candidates()...)
	}
	return all
}

// loopSuspects returns the upstreams, by name, that may ask us in turn: those on this
// host and in private networks.
func (ps *pools) loopSuspects() map[string]gateway.LoopCandidate {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	zones := make(map[*member][]string)
	for _, pool := range ps.allLocked() {
		list := pool.list.Load()
		for _, p := range list.members {
			if len(zones[p.member]) < maxLoopZones {
				zones[p.member] = append(zones[p.member], list.zones()...)
			}
		}
	}
	found := make(map[string]gateway.LoopCandidate)
	for _, m := range ps.members {
		if slices.ContainsFunc(m.upstream.Addresses(), func(a netip.AddrPort) bool { return !upstreams.IsPublic(a.Addr()) }) {
			m.watch.zones.Store(new(zones[m]))
			found[m.String()] = m.watch
		}
	}
	return found
}

// maxLoopZones is about how many names an upstream is asked for, to find out whether
// its queries come back.
const maxLoopZones = 16

// String returns the names of the upstreams that most names are asked of.
func (ps *pools) String() string { return ps.main.String() }

// A plan is what a configuration has for upstreams.
type plan struct {
	config  *settings.Config
	wanted  []*wanted
	sources []string // of each route: what its list says of where answers are from
}

// A wanted is an upstream that is to be there.
type wanted struct {
	identity string
	config   settings.Upstream // as the first list has it
	names    []string          // that lists have for it
	main     bool              // it is in the main list
	route    string            // a name that it is for
	routes   []int             // the indexes of the routes that it is for
}

func newPlan(config *settings.Config) *plan {
	p := &plan{config: config}
	known := make(map[string]*wanted)
	add := func(u settings.Upstream, route string) *wanted {
		identity := u.Identity()
		w := known[identity]
		if w == nil {
			w = &wanted{identity: identity, config: u, main: route == "", route: route}
			known[identity] = w
			p.wanted = append(p.wanted, w)
		}
		if !slices.Contains(w.names, u.Name) {
			w.names = append(w.names, u.Name)
		}
		return w
	}
	for _, u := range config.Upstreams {
		add(u, "")
	}
	for i, r := range config.Routes {
		h := sha256.New()
		for _, u := range r.Upstreams {
			w := add(u, r.Name)
			w.routes = append(w.routes, i)
			fmt.Fprintf(h, "%q\n", w.identity)
		}
		p.sources = append(p.sources, string(h.Sum(nil)))
	}
	return p
}

// healthOptions returns how upstreams are watched: slow ones with the patience of the
// clients.
func healthOptions(config *settings.Config) health.Options {
	o := config.Health
	o.Patience = max(config.Gateway.Timeout, health.Defaults().Patience)
	return o
}

// labelBelow makes of an apex a name below it. The name need not exist: NXDOMAIN is an
// answer as well.
const labelBelow = "_probe."

// health returns how w is watched. Whether an upstream that is only for routes is
// well is found out with a name that it is for: servers of one's own network need
// not know any other. The apex of a route for the names below it is asked elsewhere.
func (w *wanted) health(o health.Options) health.Options {
	if !w.main {
		apex, below := wire.Apex(w.route)
		o.ProbeName, o.ProbeType = apex, "SOA"
		if name, err := wire.CleanName(labelBelow + apex); below && err == nil { // not too long
			o.ProbeName = name
		}
	}
	o.ProbeName, o.ProbeType = cmp.Or(w.config.ProbeName, o.ProbeName), cmp.Or(w.config.ProbeType, o.ProbeType)
	return o
}

var errNoUpstreamLeft = errors.New("clients would have no upstream: every one is set to down by hand")

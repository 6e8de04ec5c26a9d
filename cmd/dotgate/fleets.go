package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/control"
	"dotgate/cmd/dotgate/peers"
	"dotgate/configs"
	"dotgate/gateway"
	"dotgate/gateway/wire"
	"dotgate/health"
	"dotgate/upstreams"
)

// Fleets are all upstreams of a running gateway: those for most names, and those
// of routes.
type fleets struct {
	log  *slog.Logger
	tell func(route string, s balancer.Story)
	main *fleet
	// changed has one place: what is known of an upstream may have changed.
	changed chan struct{}

	mu     sync.Mutex // guards all below
	routes []*fleet
	past   balancer.Counts // of those of routes that are no more
	ending sync.WaitGroup  // these
	ctx    context.Context // of Run; nil before
}

// newFleets makes the upstreams of a configuration.
func newFleets(config *configs.Config, tell func(string, balancer.Story), log *slog.Logger) (*fleets, balancer.Resolver, error) {
	fs := &fleets{log: log, tell: tell, changed: make(chan struct{}, 1)}
	fs.main = fs.newFleet("")
	first, err := fs.prepare(config)
	if err != nil {
		return nil, nil, err
	}
	first.Commit()
	return fs, first.resolver, nil
}

func (fs *fleets) newFleet(route string) *fleet {
	return newFleet(route, func(s balancer.Story) { fs.tell(route, s) }, fs.changed, fs.log)
}

// all returns the fleets of now, the main one first.
func (fs *fleets) all() []*fleet {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return append([]*fleet{fs.main}, fs.routes...)
}

// Run watches the upstreams, those that come later too, until ctx is done. It
// blocks.
func (fs *fleets) Run(ctx context.Context) error {
	fs.mu.Lock()
	fs.ctx = ctx
	for _, f := range append([]*fleet{fs.main}, fs.routes...) {
		f.watch(ctx)
	}
	fs.mu.Unlock()
	<-ctx.Done()
	fs.mu.Lock() // nothing is committed from here on
	defer fs.mu.Unlock()
	for _, f := range append([]*fleet{fs.main}, fs.routes...) {
		f.wait()
	}
	fs.ending.Wait()
	return nil
}

// Close closes all upstreams. Run must not be running, nor any query.
func (fs *fleets) Close() {
	for _, f := range fs.all() {
		f.Close()
	}
}

// watched returns what knows the upstreams of now, for the words of other gateways.
func (fs *fleets) watched() (all []peers.Upstream) {
	for _, f := range fs.all() {
		for _, m := range *f.members.Load() {
			all = append(all, m.monitor)
		}
	}
	return all
}

// recheck retries upstreams, as the network has changed.
func (fs *fleets) recheck() {
	for _, f := range fs.all() {
		f.recheck()
	}
}

// A mobilization is other upstreams: ready, but not asked. One of Commit and
// Abandon has to be called, once.
type mobilization struct {
	fleets   *fleets
	mannings []*manning
	routes   []*fleet
	resolver balancer.Resolver // asks them, once they are
}

// prepare gets the upstreams of another configuration ready. Those that stay as
// they are will go on as if nothing had happened. Only one mobilization may be
// there at a time.
func (fs *fleets) prepare(config *configs.Config) (*mobilization, error) {
	all := &mobilization{fleets: fs}
	add := func(f *fleet, list []configs.Upstream, o balancer.Options, watch health.Options) error {
		m, err := f.prepare(list, o, watch)
		if err != nil {
			all.Abandon()
			return err
		}
		all.mannings = append(all.mannings, m)
		return nil
	}
	if err := add(fs.main, config.Upstreams, config.Balancer, config.Health); err != nil {
		return nil, err
	}
	for _, r := range config.Routes {
		f := fs.routed(r.Name)
		// Whether a route's upstreams are well is found out with the very name that
		// they are for: servers of one's own network need not know any other.
		o, watch := config.Balancer, config.Health
		o.Policy, watch.ProbeName, watch.ProbeType = r.Policy, r.Name, "SOA"
		if err := add(f, r.Upstreams, o, watch); err != nil {
			return nil, fmt.Errorf("route %s: %w", r.Name, err)
		}
		all.routes = append(all.routes, f)
	}
	routes := make(map[string]balancer.Resolver)
	for _, f := range all.routes {
		routes[f.route] = f
	}
	var err error
	if all.resolver, err = balancer.NewRouter(fs.main, routes); err != nil {
		all.Abandon()
		return nil, err
	}
	return all, nil
}

// routed returns the fleet of a route, or one that is new.
func (fs *fleets) routed(name string) *fleet {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if i := slices.IndexFunc(fs.routes, func(f *fleet) bool { return f.route == name }); i >= 0 {
		return fs.routes[i]
	}
	return fs.newFleet(name)
}

// Abandon closes who is new.
func (m *mobilization) Abandon() {
	for _, one := range m.mannings {
		one.Abandon()
	}
}

// Commit has the upstreams asked from now on by those who ask the fleets.
func (m *mobilization) Commit() {
	fs := m.fleets
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.ctx != nil && fs.ctx.Err() != nil { // all is about to end
		m.Abandon()
		return
	}
	for _, one := range m.mannings {
		one.Commit()
	}
	for _, f := range m.routes {
		if !slices.Contains(fs.routes, f) && fs.ctx != nil {
			f.watch(fs.ctx)
		}
	}
	for _, f := range fs.routes {
		if !slices.Contains(m.routes, f) {
			fs.past = sumOf(fs.past, f.balancer.Counts())
			f.disband() // who is on the way there still gets an answer
			fs.ending.Go(f.wait)
		}
	}
	fs.routes = m.routes
}

// fleetFor returns the fleet that answers for the name in q.
func (fs *fleets) fleetFor(q wire.Query) *fleet {
	names := make(wire.Names[*fleet])
	for _, f := range fs.all()[1:] {
		if packed, err := wire.PackName(f.route); err == nil { // it was checked
			names[string(packed)] = f
		}
	}
	if f, _, ok := names.Find(q.AppendName(nil)); ok {
		return f
	}
	return fs.main
}

// Order sets what the operator wants of an upstream. What a reload is about to
// change must not be under way.
func (fs *fleets) Order(name string, o health.Order) error {
	var names []string
	for _, f := range fs.all() {
		for _, m := range *f.members.Load() {
			if m.config.Name == name {
				return f.order(m, o)
			}
			names = append(names, m.config.Name)
		}
	}
	return fmt.Errorf("upstream: %q %w; there are %s", name, control.ErrUnknown, strings.Join(names, ", "))
}

// Members returns the upstreams as operators see them, those of routes last.
func (fs *fleets) Members() (all []control.Member) {
	for _, f := range fs.all() {
		all = append(all, f.Members()...)
	}
	return all
}

// Counts returns what all of them did, those included that are no more.
func (fs *fleets) Counts() balancer.Counts {
	fs.mu.Lock()
	total := fs.past
	fs.mu.Unlock()
	for _, f := range fs.all() {
		total = sumOf(total, f.balancer.Counts())
	}
	return total
}

func sumOf(a, b balancer.Counts) balancer.Counts {
	return balancer.Counts{
		Queries: a.Queries + b.Queries, Attempts: a.Attempts + b.Attempts, Hedges: a.Hedges + b.Hedges,
		Retries: a.Retries + b.Retries, Seconds: a.Seconds + b.Seconds, Failures: a.Failures + b.Failures,
	}
}

// Candidates returns what is known of all of them.
func (fs *fleets) Candidates() (all []balancer.CandidateStory) {
	for _, f := range fs.all() {
		all = append(all, f.balancer.Candidates()...)
	}
	return all
}

// suspects returns the upstreams, by name, that may ask us in turn: those on this
// host and in private networks.
func (fs *fleets) suspects() map[string]gateway.Suspect {
	found := make(map[string]gateway.Suspect)
	for _, f := range fs.all() {
		for _, m := range *f.members.Load() {
			if slices.ContainsFunc(m.upstream.Addresses(), func(a netip.AddrPort) bool { return !upstreams.IsPublic(a.Addr()) }) {
				found[m.config.Name] = m.upstream
			}
		}
	}
	return found
}

// String returns the names of the upstreams that most names are asked of.
func (fs *fleets) String() string { return fs.main.String() }

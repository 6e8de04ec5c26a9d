package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/control"
	"dotgate/cmd/dotgate/tracing"
	"dotgate/configs"
	"dotgate/gateway/wire"
	"dotgate/health"
	"dotgate/upstreams"
)

// attemptsEnd is how long queries may still be under way to an upstream after
// nobody is sent there any more.
const attemptsEnd = 6 * time.Second

// warmUpLimit is how long a gateway that takes over waits for a first answer: no
// longer than clients would.
const warmUpLimit = 2 * time.Second

// A fleet is upstreams that stand in for each other: as the configuration has
// them, and as the operator wants them.
type fleet struct {
	route    string // the name that they are for; empty: all that have no other
	log      *slog.Logger
	tell     func(balancer.Story)
	changed  chan<- struct{} // gets a word when what is known of an upstream may have changed
	balancer *balancer.Balancer
	members  atomic.Pointer[[]*member]

	mu       sync.Mutex // guards all below
	options  balancer.Options
	ctx      context.Context // of the watching; nil before
	running  sync.WaitGroup
	retiring sync.WaitGroup
}

// A member is one upstream at work.
type member struct {
	config   configs.Upstream
	health   health.Options
	files    [sha256.Size]byte // what its files had in them
	upstream upstream
	monitor  *health.Monitor
	barred   bool // set to down by hand; guarded by fleet.mu
	stop     context.CancelFunc
}

// newFleet returns a fleet without anybody: what is prepared makes it one.
func newFleet(route string, tell func(balancer.Story), changed chan<- struct{}, log *slog.Logger) *fleet {
	f := &fleet{route: route, tell: tell, changed: changed, log: log}
	f.members.Store(new([]*member))
	return f
}

// Ask asks them, as the balancer has it. Somebody has to be there.
func (f *fleet) Ask(q wire.Query, deadline time.Time, done func(wire.Answer, error)) {
	f.balancer.Ask(q, deadline, done)
}

// AskFor is Ask for a query whose Trace is in ctx.
func (f *fleet) AskFor(ctx context.Context, q wire.Query, deadline time.Time, done func(wire.Answer, error)) {
	trace := tracing.Of(ctx)
	trace.Asked(f.route)
	f.balancer.AskFor(ctx, q, deadline, func(a wire.Answer, err error, story func() balancer.Story) {
		trace.Tell(a, err, story)
		done(a, err)
	})
}

// watch watches the upstreams, those that come later too, until ctx is done.
func (f *fleet) watch(ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ctx = ctx
	for _, m := range *f.members.Load() {
		f.start(m)
	}
}

// wait waits until nobody watches any more. What f.watch was given has to be done,
// and nothing may be prepared.
func (f *fleet) wait() {
	f.running.Wait()
	f.retiring.Wait()
}

// disband ends a fleet that nobody is sent to any more.
func (f *fleet) disband() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range *f.members.Load() {
		f.retire(m)
	}
	f.members.Store(new([]*member))
}

// recheck retries upstreams, as the network has changed.
func (f *fleet) recheck() {
	for _, m := range *f.members.Load() {
		if m.upstream.NetworkChanged() {
			m.monitor.Recheck()
		}
	}
}

// warmUp asks all upstreams, and returns as soon as one has answered, or none did
// for long.
func (f *fleet) warmUp(ctx context.Context) {
	members := *f.members.Load()
	answered := make(chan struct{}, len(members))
	for _, m := range members {
		query, err := wire.NewQuery(m.health.ProbeName, m.health.ProbeType)
		if err != nil {
			continue // it is checked elsewhere
		}
		m.monitor.Ask(query, func(_ wire.Answer, err error) {
			if err == nil {
				answered <- struct{}{}
			}
		})
	}
	timer := time.NewTimer(warmUpLimit)
	defer timer.Stop()
	select {
	case <-answered:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Close closes all upstreams. Run must not be running, nor any query.
func (f *fleet) Close() {
	for _, m := range *f.members.Load() {
		m.upstream.Close()
	}
}

// start runs the monitor of m. The caller holds mu.
func (f *fleet) start(m *member) {
	var ctx context.Context
	ctx, m.stop = context.WithCancel(f.ctx)
	f.running.Go(func() { _ = m.monitor.Run(ctx) })
}

// A manning is other upstreams of a fleet: ready, but not asked. One of Commit and
// Abandon has to be called, once.
type manning struct {
	fleet       *fleet
	next, fresh []*member
	config      []configs.Upstream // for each of next
	options     balancer.Options
}

// prepare gets other upstreams ready. Those that stay as they are will go on as if
// nothing had happened. Only one manning may be there at a time.
func (f *fleet) prepare(list []configs.Upstream, o balancer.Options, watch health.Options) (*manning, error) {
	o.Tell, o.Log = f.tell, f.log
	p := &manning{fleet: f, config: list, options: o}
	old := *f.members.Load()
	for _, c := range list {
		m, err := f.make(c, watch)
		if err != nil {
			p.Abandon()
			return nil, err
		}
		if i := slices.IndexFunc(old, m.equals); i >= 0 {
			p.next = append(p.next, old[i])
			m.upstream.Close() // it has not dialled
			continue
		}
		p.next, p.fresh = append(p.next, m), append(p.fresh, m)
	}
	// Whoever is barred is asked for nothing: of the others there must be one.
	var problems []error
	o.Check(func(option, problem string) {
		problems = append(problems, fmt.Errorf("balancer: %s %s", option, problem))
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(candidatesOf(p.next)) == 0 {
		problems = append(problems, errNobodyLeft)
	}
	if err := errors.Join(problems...); err != nil {
		p.Abandon()
		return nil, err
	}
	return p, nil
}

// Abandon closes who is new.
func (p *manning) Abandon() {
	for _, m := range p.fresh {
		m.upstream.Close()
	}
}

// Commit has the upstreams asked from now on, and ends those that are not any more.
func (p *manning) Commit() {
	f := p.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, m := range p.next {
		m.config.Weight, m.config.Tier = p.config[i].Weight, p.config[i].Tier
	}
	if err := f.man(p.next, p.options); err != nil {
		f.log.Error("BUG: upstreams that were prepared can't be asked", "error", err)
		p.Abandon()
		return
	}
	old := *f.members.Load()
	f.members.Store(&p.next)
	if f.ctx != nil && f.ctx.Err() == nil {
		for _, m := range p.fresh {
			f.start(m)
		}
	}
	for _, m := range old {
		if !slices.Contains(p.next, m) {
			f.retire(m)
		}
	}
}

var errNobodyLeft = errors.New("clients would have nobody: every upstream is set to down by hand")

// candidatesOf returns those who are not barred.
func candidatesOf(members []*member) (all []balancer.Candidate) {
	for _, m := range members {
		if !m.barred {
			all = append(all, balancer.Candidate{Member: m.monitor, Weight: m.config.Weight, Tier: m.config.Tier})
		}
	}
	return all
}

// man has the balancer ask the members that are not barred.
func (f *fleet) man(members []*member, o balancer.Options) error {
	candidates := candidatesOf(members)
	if len(candidates) == 0 {
		return errNobodyLeft
	}
	f.options = o
	if f.balancer == nil {
		b, err := balancer.New(candidates, o)
		f.balancer = b
		return err
	}
	return f.balancer.Replace(candidates, o)
}

// retire ends m when nobody waits for it any more.
func (f *fleet) retire(m *member) {
	if m.stop != nil {
		m.stop()
	}
	over := context.Background().Done()
	if f.ctx != nil {
		over = f.ctx.Done()
	}
	f.retiring.Go(func() {
		timer := time.NewTimer(attemptsEnd)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-over:
		}
		m.upstream.Close()
	})
}

func (f *fleet) make(c configs.Upstream, o health.Options) (*member, error) {
	m := &member{config: c, health: o, files: digest(c.CAFile, c.CertFile, c.KeyFile)}
	c.Log, o.Log, o.Changed = f.log, f.log, f.changed
	var err error
	if m.upstream, err = newUpstream(c.Options); err != nil {
		return nil, err
	}
	m.monitor, err = health.New(m.upstream, o)
	return m, err
}

// equals reports whether other would be the same upstream. Its weight and tier
// are the balancer's.
func (m *member) equals(other *member) bool {
	a, b := m.config.Options, other.config.Options
	a.Log, b.Log = nil, nil
	g, h := m.health, other.health
	g.Log, h.Log = nil, nil
	return reflect.DeepEqual(a, b) && g == h && m.files == other.files
}

// digest is of what files have in them. What can't be read has nothing.
func digest(files ...string) [sha256.Size]byte {
	h := sha256.New()
	for _, name := range files {
		fmt.Fprintf(h, "%q", name)
		if file, err := os.Open(name); err == nil {
			io.Copy(h, file)
			file.Close()
		}
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// order sets what the operator wants of m, who is of f.
func (f *fleet) order(m *member, o health.Order) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := m.barred
	m.barred = o == health.ForcedDown
	if err := f.man(*f.members.Load(), f.options); err != nil {
		m.barred = before
		return fmt.Errorf("set %s to %v: %w", m.config.Name, o, err)
	}
	m.monitor.Order(o)
	return nil
}

// policy returns how the balancer chooses.
func (f *fleet) policy() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.options.Policy
}

// Members returns the upstreams as operators see them.
func (f *fleet) Members() []control.Member {
	var all []control.Member
	for _, m := range *f.members.Load() {
		all = append(all, control.Member{Route: f.route, Upstream: m.upstream, Monitor: m.monitor})
	}
	return all
}

// String returns the names.
func (f *fleet) String() string {
	return joined(*f.members.Load(), func(m *member) string { return m.config.Name })
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
	control.Upstream
	NetworkChanged() (matters bool)
	Close() error
}

func newUpstream(o upstreams.Options) (upstream, error) {
	if o.Protocol == upstreams.TLS {
		return upstreams.New(o)
	}
	return upstreams.NewPlain(o)
}

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
	"dotgate/configs"
	"dotgate/gateway/wire"
	"dotgate/health"
)

// attemptsEnd is how long queries may still be under way to an upstream after
// nobody is sent there any more.
const attemptsEnd = 6 * time.Second

// warmUpLimit is how long a gateway that takes over waits for a first answer: no
// longer than clients would.
const warmUpLimit = 2 * time.Second

// A fleet is the upstreams of a running gateway: as the configuration has them,
// and as the operator wants them.
type fleet struct {
	log      *slog.Logger
	balancer *balancer.Balancer
	members  atomic.Pointer[[]*member]

	mu       sync.Mutex // one change at a time
	options  balancer.Options
	ctx      context.Context // of Run; nil before
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

// newFleet makes the upstreams of a configuration, and the balancer over them.
func newFleet(config *configs.Config, tell func(balancer.Story), log *slog.Logger) (*fleet, error) {
	f := &fleet{log: log}
	f.members.Store(new([]*member))
	f.options.Tell, f.options.Log = tell, log
	return f, f.apply(config)
}

// Run watches the upstreams, those that come later too, until ctx is done; then
// it closes all. It blocks.
func (f *fleet) Run(ctx context.Context) error {
	f.mu.Lock()
	f.ctx = ctx
	for _, m := range *f.members.Load() {
		f.start(m)
	}
	f.mu.Unlock()
	<-ctx.Done()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running.Wait()
	f.retiring.Wait()
	return nil
}

// recheck retries upstreams, as the network has changed.
func (f *fleet) recheck() {
	for _, m := range *f.members.Load() {
		if m.upstream.NetworkChanged() {
			m.monitor.Recheck()
		}
	}
}

// upstreams returns those of now.
func (f *fleet) upstreams() []upstream {
	var all []upstream
	for _, m := range *f.members.Load() {
		all = append(all, m.upstream)
	}
	return all
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

// apply has the upstreams be as config says. Those that it has unchanged go on as
// if nothing had happened. On an error, nothing has changed.
func (f *fleet) apply(config *configs.Config) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := *f.members.Load()
	var next, fresh []*member
	abandon := func() {
		for _, m := range fresh {
			m.upstream.Close()
		}
	}
	for _, c := range config.Upstreams {
		m, err := f.make(c, config.Health)
		if err != nil {
			abandon()
			return err
		}
		if i := slices.IndexFunc(old, m.equals); i >= 0 {
			next = append(next, old[i])
			old[i].config.Weight, old[i].config.Tier = c.Weight, c.Tier
			m.upstream.Close() // it has not dialled
			continue
		}
		next, fresh = append(next, m), append(fresh, m)
	}
	options := config.Balancer
	options.Tell, options.Log = f.options.Tell, f.log
	if err := f.man(next, options); err != nil {
		abandon()
		return err
	}
	f.members.Store(&next)
	if f.ctx != nil {
		for _, m := range fresh {
			f.start(m)
		}
	}
	for _, m := range old {
		if !slices.Contains(next, m) {
			f.retire(m)
		}
	}
	return nil
}

// man has the balancer ask the members that are not barred.
func (f *fleet) man(members []*member, o balancer.Options) error {
	var candidates []balancer.Candidate
	for _, m := range members {
		if !m.barred {
			candidates = append(candidates, balancer.Candidate{Member: m.monitor, Weight: m.config.Weight, Tier: m.config.Tier})
		}
	}
	if len(candidates) == 0 {
		return errors.New("clients would have nobody: every upstream is set to down by hand")
	}
	if f.balancer == nil {
		b, err := balancer.New(candidates, o)
		f.balancer, f.options = b, o
		return err
	}
	f.options = o
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
	c.Log, o.Log = f.log, f.log
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

// Order sets what the operator wants of an upstream.
func (f *fleet) Order(name string, o health.Order) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	members := *f.members.Load()
	i := slices.IndexFunc(members, func(m *member) bool { return m.config.Name == name })
	if i < 0 {
		return fmt.Errorf("upstream: %q %w; there are %s", name, control.ErrUnknown,
			joined(members, func(m *member) string { return m.config.Name }))
	}
	m := members[i]
	before := m.barred
	m.barred = o == health.ForcedDown
	if err := f.man(members, f.options); err != nil {
		m.barred = before
		return fmt.Errorf("set %s to %v: %w", name, o, err)
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
		all = append(all, control.Member{Upstream: m.upstream, Monitor: m.monitor})
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

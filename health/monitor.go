// Package health knows which upstreams are well.
//
// A Monitor wraps one upstream and votes on it at the end of each exchange, in
// one circuit breaker. It never ejects an upstream on the word of live traffic
// alone, which anybody's broken zone can poison: live failures and silence
// raise a suspicion, and a probe for a name that has to resolve settles it.
package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/sony/gobreaker/v2"

	"dotgate/gateway/wire"
)

const (
	// verdictMin is how long an upstream must owe any sign of life before it is
	// down: longer than TCP takes to send a lost segment again, twice.
	verdictMin = 700 * time.Millisecond
	// verdictUnknown is the same for an upstream that never answered: a first
	// dial takes three round trips.
	verdictUnknown = 1200 * time.Millisecond
	// window is how long a fault that the balancer reports is remembered.
	window = 10 * time.Second
	// faultyNames is how many different names an upstream must get wrong within
	// a window, and faultyShare which part of its answers, to be down for it.
	faultyNames = 10
	faultyShare = 0.3
	// liarPause is the least time that such an upstream is down: a probe that it
	// answers properly says little.
	liarPause = 5 * time.Second
	// tardy is how late the end of a probe must be seen for this machine, and not
	// the upstream, to be what is slow. One such probe in a row does not count.
	tardy = 50 * time.Millisecond
	// settled is how long an upstream must have been up for its next outage to
	// be a new one, with the shortest wait before the first probe.
	settled = time.Minute
)

// An Upstream is what a Monitor watches.
type Upstream interface {
	// Ask sends q and has done called once with what came of it. It doesn't
	// block, and neither may done. An error with a method Excused that returns
	// true says nothing about the upstream, and neither does one that wraps a
	// context's.
	Ask(q wire.Query, done func(wire.Answer, error))
	// Exchange is Ask for those who wait. It returns when ctx is done.
	Exchange(ctx context.Context, q wire.Query) (wire.Answer, error)
	// Connect returns when there is a connection to ask on, or none can be had.
	Connect(ctx context.Context) error
	// Latency returns how long an answer usually takes, 0 if unknown, and how
	// long one may be waited for before something seems wrong.
	Latency() (usual, patience time.Duration)
	// Silent returns how long a sign of life has been owed; 0 if none is.
	Silent() time.Duration
	String() string
}

// A Monitor is an upstream that knows whether it is well.
type Monitor struct {
	upstream Upstream
	o        Options
	log      *slog.Logger
	query    wire.Query // what probes ask
	epoch    time.Time  // what instants count from
	breaker  *gobreaker.CircuitBreaker[struct{}]
	wake     chan struct{} // one place: something to settle

	up         atomic.Bool
	order      atomic.Uint32 // an Order of the operator
	failures   atomic.Int32  // in a row
	lastAnswer atomic.Int64  // instant
	answers    atomic.Int64  // in this window
	condemned  atomic.Bool   // the next failing vote opens the breaker
	liar       atomic.Bool   // it is down for what it answered, so answers don't speak for it
	recheck    atomic.Bool   // somebody has reason to think that it is back
	wasLate    bool          // the last probe's end was seen late; Run's own
	doubt      doubt         // another gateway's word against it

	// mu guards what follows.
	mu      sync.Mutex
	faulty  map[uint64]struct{} // hashes of names that the upstream got wrong in this window
	opened  time.Time           // the window
	reason  error               // why it is down, or was
	changed time.Time           // when it last went up or down
	history []Change            // of that, the latest last

	counts counters
}

var errWeakProbe = errors.New("probe was answered with an error")

// New checks all options and returns a Monitor that thinks well of upstream
// until it knows better. Run has to be called for it to learn.
func New(upstream Upstream, o Options) (*Monitor, error) {
	o = o.withDefaults()
	var problems []error
	o.Check(func(option, problem string) {
		problems = append(problems, fmt.Errorf("health: %s %s", option, problem))
	})
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	query, err := wire.NewQuery(o.ProbeName, o.ProbeType)
	if err != nil {
		return nil, fmt.Errorf("health: probe_name: %w", err)
	}
	m := &Monitor{
		upstream: upstream, o: o, log: o.Log.With("upstream", upstream.String()), query: query,
		epoch: time.Now(), wake: make(chan struct{}, 1),
		faulty: make(map[uint64]struct{}), opened: time.Now(), changed: time.Now(),
	}
	m.up.Store(true)
	m.breaker = gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Name: upstream.String(),
		// The breaker is half-open at once; when it is tried is up to probe,
		// whose waits grow, which the breaker's can't.
		Timeout:     time.Nanosecond,
		MaxRequests: 1,
		ReadyToTrip: func(gobreaker.Counts) bool { return m.condemned.Load() },
		IsExcluded:  excused,
		// Called with the breaker's mutex held: nothing here may block or ask it.
		OnStateChange: func(_ string, _, to gobreaker.State) { m.up.Store(to == gobreaker.StateClosed) },
	})
	return m, nil
}

// excused reports whether err says nothing about the upstream.
func excused(err error) bool {
	var e interface{ Excused() bool }
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &e) && e.Excused()
}

// String returns the upstream's name.
func (m *Monitor) String() string { return m.upstream.String() }

// Latency is the upstream's.
func (m *Monitor) Latency() (usual, patience time.Duration) { return m.upstream.Latency() }

// Silent is the upstream's.
func (m *Monitor) Silent() time.Duration { return m.upstream.Silent() }

// Errs reports whether the upstream is down for what it answers, and still answers:
// it may have died since.
func (m *Monitor) Errs() bool { return !m.up.Load() && m.liar.Load() && !m.overdue() }

// Alive reports whether the upstream has answered anything since then. If not, a
// probe is on its way.
func (m *Monitor) Alive(since time.Time) bool {
	if m.answeredSince(since) {
		return true
	}
	m.nudge()
	return false
}

// Up reports whether the upstream should get live queries.
func (m *Monitor) Up() bool {
	switch Order(m.order.Load()) {
	case Drained, ForcedDown:
		return false
	case ForcedUp:
		return true
	}
	return m.up.Load()
}

// Suspect reports whether something seems wrong with an upstream that is up: a
// sign of life is overdue, several exchanges failed in a row, or another gateway
// says so. A probe settles it soon.
func (m *Monitor) Suspect() bool {
	if !m.overdue() && !m.failing() && !m.doubted() {
		return false
	}
	m.nudge()
	return Order(m.order.Load()) != ForcedUp
}

func (m *Monitor) overdue() bool {
	_, patience := m.upstream.Latency()
	return m.upstream.Silent() > patience
}

func (m *Monitor) failing() bool { return m.failures.Load() >= int32(m.o.Failures) }

func (m *Monitor) nudge() {
	select {
	case m.wake <- struct{}{}:
	default: // somebody did already
	}
}

// Recheck tells that what keeps the upstream down may be over: if it is down, it
// is probed at once.
func (m *Monitor) Recheck() {
	m.recheck.Store(true)
	m.nudge()
}

func (m *Monitor) now() int64 { return int64(time.Since(m.epoch)) }

// Ask asks the upstream, and votes on the outcome before it passes it on.
func (m *Monitor) Ask(q wire.Query, done func(wire.Answer, error)) {
	m.upstream.Ask(q, func(a wire.Answer, err error) {
		m.judge(err)
		done(a, err)
	})
}

// AskFor is Ask for who wants to know: if the upstream can tell what it does, it
// does so to what is in ctx.
func (m *Monitor) AskFor(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	telling, ok := m.upstream.(interface {
		AskFor(ctx context.Context, q wire.Query, done func(wire.Answer, error))
	})
	if !ok {
		m.Ask(q, done)
		return
	}
	telling.AskFor(ctx, q, func(a wire.Answer, err error) {
		m.judge(err)
		done(a, err)
	})
}

// judge votes on the outcome of an exchange.
func (m *Monitor) judge(err error) {
	switch {
	case err == nil:
		m.answered()
	case !excused(err):
		m.failed(err)
	}
}

// answered takes note of an answer. A SERVFAIL is one: it takes a second
// opinion to know whether the name or the upstream is broken.
func (m *Monitor) answered() {
	m.lastAnswer.Store(m.now())
	m.answers.Add(1)
	if !m.up.Load() {
		if !m.liar.Load() {
			m.nudge() // a probe, not a client's query, tells whether it is back
		}
		return
	}
	if m.failures.Load() != 0 {
		m.failures.Store(0)
		m.vote(nil)
	}
}

// failed takes note of a failure of live traffic.
func (m *Monitor) failed(err error) {
	if !m.up.Load() {
		return
	}
	m.vote(err)
	m.setReason(err)
	if m.failures.Add(1) >= int32(m.o.Failures) {
		m.nudge()
	}
}

// vote casts a vote at the end of an exchange. Nothing is reserved at its start,
// so that a half-open breaker can't wait for an outcome that never comes.
func (m *Monitor) vote(err error) {
	// The error that comes back is err, or the breaker's own word that the vote
	// came too late to count.
	_, _ = m.breaker.Execute(func() (struct{}, error) { return struct{}{}, err })
}

// Blame tells that the upstream answered q with an error although another
// resolver has a proper answer. One name is no evidence, however often it is
// asked: some names are broken for some resolvers only.
func (m *Monitor) Blame(q wire.Query, err error) {
	name := q.NameHash() // collisions would only make names fewer
	m.mu.Lock()
	if time.Since(m.opened) > window {
		clear(m.faulty)
		m.opened = time.Now()
		m.answers.Store(1)
	}
	if len(m.faulty) < 1024 {
		m.faulty[name] = struct{}{}
	}
	names := len(m.faulty)
	m.mu.Unlock()
	if !m.up.Load() {
		return
	}
	share := float64(names) / float64(max(m.answers.Load(), 1))
	switch {
	case names >= faultyNames && share >= faultyShare:
		m.liar.Store(true)
		m.condemn(fmt.Errorf("%d names got an error here and an answer elsewhere, the last: %w", names, err))
	case names >= 3 && share >= faultyShare/2:
		m.setReason(err)
		m.nudge() // a probe may know sooner
	}
}

// condemn opens the breaker.
func (m *Monitor) condemn(why error) {
	m.setReason(why)
	m.condemned.Store(true)
	m.vote(why)
	m.condemned.Store(false)
	if !m.up.Load() {
		m.changedState()
		m.nudge() // so that Run starts to wait for its return
	}
}

func (m *Monitor) setReason(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reason = err
}

// changedState logs that the upstream went up or down.
func (m *Monitor) changedState() {
	m.mu.Lock()
	lasted := time.Since(m.changed)
	m.changed = time.Now()
	clear(m.faulty)
	reason := m.reason
	m.noteLocked(lasted)
	m.mu.Unlock()
	m.answers.Store(0)
	m.tell()
	if m.up.Load() {
		m.liar.Store(false)
		m.log.Info("upstream is up again", "after", lasted.Round(time.Millisecond))
	} else {
		m.doubt.borneOut()
		m.log.Warn("upstream is down", "reason", reason, "after", lasted.Round(time.Millisecond))
	}
}

// Run probes the upstream whenever its state is in question, until ctx is done.
// It sends no probe while live answers tell enough. It must run once.
func (m *Monitor) Run(ctx context.Context) error {
	wait := m.newBackOff()
	m.settle(ctx, true) // opens a connection before the first client needs it
	down, upSince := false, time.Now()
	timer := time.NewTimer(m.due())
	defer timer.Stop()
	for {
		woken := false
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
			woken = true
		case <-timer.C:
		}
		var tried time.Duration
		rechecked := m.recheck.Swap(false)
		switch {
		case m.up.Load():
			if woken {
				m.tell()
			}
			m.settle(ctx, woken)
		case down && woken && !rechecked && !m.answeredSince(m.since()):
			continue // an echo of what brought it down; the timer runs on
		case down:
			begun := time.Now()
			m.tryAgain(ctx)
			tried = time.Since(begun)
		}
		switch {
		case m.up.Load() && down:
			down, upSince = false, time.Now()
		case !m.up.Load() && !down:
			down = true
			if time.Since(upSince) > settled {
				wait.Reset()
			}
		}
		if down && m.liar.Load() {
			timer.Reset(max(wait.NextBackOff(), liarPause))
		} else if down { // what the last one took is part of the wait for the next
			timer.Reset(wait.NextBackOff() - tried)
		} else {
			timer.Reset(m.due())
		}
	}
}

// newBackOff returns waits that grow, with jitter, and never end: by default
// they would after 15 minutes.
func (m *Monitor) newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = m.o.RecoveryMin
	// The jitter comes on top of the cap.
	b.MaxInterval = time.Duration(float64(m.o.RecoveryMax) / (1 + b.RandomizationFactor))
	b.MaxElapsedTime = 0
	b.Reset()
	return b
}

// due returns how long an upstream that is up may go without a probe.
func (m *Monitor) due() time.Duration {
	if m.failures.Load() > 0 {
		return m.o.RecoveryMin // something failed: look again soon
	}
	return m.o.Interval - time.Duration(m.now()-m.lastAnswer.Load())
}

func (m *Monitor) since() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

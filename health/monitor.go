// Package health decides the state of each upstream: Up, Suspect, Erroring or Down.
//
// A Monitor wraps one upstream, sees the outcome of each query, and probes the upstream
// when the outcomes do not tell enough. Its State changes in one place, transitionLocked:
//
//	        3 failures in a row, or silent > patience, or a peer's report
//	  ┌──── Up ───────────────────────────────▶ Suspect ─────── answered ────────────▶ Up
//	  │                                            │
//	  │ ≥ 10 names wrong and ≥ 25 %                │ probe failed
//	  ▼                                            ▼
//	Erroring ─── silent ───────────────────────▶ Down ─── probe every 250 ms … 10 s ──▶ Up
//	  │    ▲                                       │
//	  │    └──────── answers, or a weak probe ─────┘
//	  └───────────── probe answered properly ───────────────────────────────────────▶ Up
//
// An upstream gets live queries if it is Up; after all others if it is Suspect; only if
// no upstream is up if it is Erroring; and last, for single tries, if it is Down. An
// operator can override the state with an AdminState. A peer is another gateway.
//
// The circuit breaker is gobreaker's, one for each upstream. It counts the outcomes of
// live queries and probes; an outcome that is excused, because a client left or this
// gateway was busy, does not count. It trips if a probe is the third failure in a row
// (Options.Failures), or at once if a probe fails while the upstream is silent, if the
// wrong answers are enough evidence, or if a probe gets an error as live traffic did. It
// half-opens for the next probe, and closes if that is answered with a result. Its
// callback makes the transitions between up (Up, Suspect) and down (Erroring, Down), and
// nothing else reads its state, except for display.
//
// Live failures are counted but trip nothing, because any client could cause them with a
// broken zone of its own: they make an upstream Suspect, and a probe for a name that has
// to resolve decides. The breaker's own timeout is a nanosecond, because its length would
// be fixed: backoff sets the times of the probes, which grow with jitter.
//
// Only a probe closes the breaker. A live answer that arrives late does not say that the
// upstream is back. Wrong and missing answers count as evidence only if they are for
// names of several registrable domains, asked by several clients, where there are
// several. They decide which losses may lower the share of an upstream, and wrong answers
// may take it out.
//
// Limits: an upstream that is idle is probed once in Options.Interval, and up to ten times
// more seldom while no query is placed; an upstream that is down once in 250 ms to 10 s
// (Options.RecoveryMin and RecoveryMax); silence takes an upstream out after 0.7 s at the
// earliest, and after Options.Patience if it may be slow. 100 changes are kept. Outages
// are logged at most once in ten seconds for each upstream.
//
// A Monitor never places a query, never answers one itself, never blocks a query (Run
// alone blocks), and never takes an upstream out on the word of a peer.
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
	// silenceMin is the least time without any sign of life after which an upstream is
	// down. TCP sends a lost segment again twice in that time.
	silenceMin = 700 * time.Millisecond
	// silenceMinUnknown is the same for an upstream that never answered and was never
	// reached: a lost SYN is sent again after a second.
	silenceMinUnknown = 1200 * time.Millisecond
	// erroringPause is the least time for which an upstream is Erroring: the answer to a
	// probe says little about the names that it got wrong.
	erroringPause = 5 * time.Second
	// schedulerLag is how late this process must notice the end of a probe for the machine,
	// not the upstream, to be slow. The first probe of that kind does not count.
	schedulerLag = 50 * time.Millisecond
	// newOutageAfter is how long an upstream must have been up for the waits between probes
	// to start again with the shortest.
	newOutageAfter = time.Minute
)

// An Upstream is what a Monitor watches.
type Upstream interface {
	// Ask sends q and calls done once with the answer or an error. Ask does not block, and
	// done must not block. Ctx carries the trace of the query, if there is one; it is not
	// kept, and its end is not watched. An error says nothing about the upstream if it has
	// a method Excused that returns true, or wraps an error of a context.
	Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error))
	// Exchange is Ask for callers that wait. It returns at the end of ctx at the latest.
	Exchange(ctx context.Context, q wire.Query) (wire.Answer, error)
	// Connect returns when a connection is open, or an error if there can be none.
	Connect(ctx context.Context) error
	// Latency returns how long an answer usually takes, 0 if unknown, and how long it may
	// take before the upstream is Suspect.
	Latency() (usual, patience time.Duration)
	// Silent returns for how long the upstream has owed a sign of life: an answer, or a
	// step of a dial. It returns 0 if the upstream owes none.
	Silent() time.Duration
	// Reached reports whether an answer that the upstream owes may be slow rather than
	// lost: a dial has taken a step since the last answer, and no connection has gone
	// silent.
	Reached() bool
	// RateWait returns how long a query would have to wait so as not to exceed a limit of
	// queries a second; 0 if it need not.
	RateWait() time.Duration
	String() string
}

// A Monitor is an upstream with a State. New makes one, and Run has to run for it. All
// methods may be called concurrently, and only Run blocks.
type Monitor struct {
	upstream Upstream
	o        Options
	log      *slog.Logger
	query    wire.Query    // the query of the probes
	epoch    time.Time     // instants are counted from here
	wake     chan struct{} // of size 1: Run has a reason to probe
	notices  notices

	// Queries and answers read and write these.
	state      atomic.Uint32 // a State, as transitionLocked has set it
	failures   atomic.Int32  // in a row, as the breaker has counted them
	adminState atomic.Uint32 // an AdminState
	lastAnswer atomic.Int64  // instant
	probeNow   atomic.Bool   // ProbeNow was called
	interest   atomic.Uint32 // an interest
	peerReport peerReport    // the latest report of a peer

	// mu guards the fields that follow, and each call of the breaker.
	mu       sync.Mutex
	breaker  *gobreaker.CircuitBreaker[struct{}]
	outcome  outcome // the one that the breaker gets
	evidence evidence
	erred    bool      // this outage began with wrong answers, so further answers do not end it
	reason   error     // why it is down, or was
	changed  time.Time // when it last went up or down
	history  []Change  // of changes, the latest last

	run    pacing // for Run only
	counts counters
}

// New checks all options and returns a Monitor of an upstream that is Up.
func New(upstream Upstream, o Options) (*Monitor, error) {
	o = o.withDefaults()
	var problems []error
	o.Check(func(option, problem string, beside ...string) {
		problems = append(problems, fmt.Errorf("health: %s %s", option, problem))
	})
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	query, err := wire.NewQuery(o.ProbeName, o.ProbeType)
	if err != nil {
		return nil, fmt.Errorf("health: probe_name: %w", err)
	}
	now := time.Now()
	m := &Monitor{
		upstream: upstream, o: o, log: o.Log.With("upstream", upstream.String()), query: query,
		epoch: now, wake: make(chan struct{}, 1), changed: now,
		run: pacing{pause: o.Interval},
	}
	m.notices.queue = make(chan notice, noticesMax)
	m.evidence.reset(now)
	m.breaker = gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Name: upstream.String(),
		// The breaker half-opens at once. Run decides when to probe, with waits that grow.
		Timeout:       time.Nanosecond,
		MaxRequests:   1,
		ReadyToTrip:   m.trips,
		IsExcluded:    excused,
		OnStateChange: m.breakerChanged,
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

// Latency returns what the upstream's Latency does.
func (m *Monitor) Latency() (usual, patience time.Duration) { return m.upstream.Latency() }

// Silent returns what the upstream's Silent does.
func (m *Monitor) Silent() time.Duration { return m.upstream.Silent() }

// Reached returns what the upstream's Reached does.
func (m *Monitor) Reached() bool { return m.upstream.Reached() }

// RateWait returns what the upstream's RateWait does.
func (m *Monitor) RateWait() time.Duration { return m.upstream.RateWait() }

// State returns the state of the upstream, or the one that the operator has set. It is
// called for a query that is about to be placed: if the upstream is Suspect, or its state
// was not asked for since the last probe, the upstream is probed.
func (m *Monitor) State() State {
	m.noteInterest()
	s := m.refresh()
	if s == Suspect {
		m.wakeProbe()
	}
	return AdminState(m.adminState.Load()).apply(s)
}

// LastAnswer returns when the upstream last answered any query; zero if it never did. An
// upstream that has been silent for longer than its patience is probed. Shorter silences
// are usual where some names are never answered.
func (m *Monitor) LastAnswer() time.Time {
	if _, patience := m.upstream.Latency(); m.upstream.Silent() > patience {
		m.wakeProbe()
	}
	return m.answeredAt()
}

func (m *Monitor) answeredAt() time.Time {
	at := m.lastAnswer.Load()
	if at == 0 {
		return time.Time{}
	}
	return m.epoch.Add(time.Duration(at))
}

func (m *Monitor) wakeProbe() {
	select {
	case m.wake <- struct{}{}:
	default: // Run has been woken already
	}
}

// ProbeNow has an upstream that is down probed at once, because the cause of the outage
// may be over.
func (m *Monitor) ProbeNow() {
	m.probeNow.Store(true)
	m.wakeProbe()
}

func (m *Monitor) now() int64 { return int64(time.Since(m.epoch)) }

// Ask asks the upstream, and records the outcome before it calls done.
func (m *Monitor) Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	m.noteInterest()
	m.upstream.Ask(ctx, q, func(a wire.Answer, err error) {
		m.onOutcome(q, err)
		done(a, err)
	})
}

// onOutcome records the outcome of a live query.
func (m *Monitor) onOutcome(q wire.Query, err error) {
	switch {
	case err == nil:
		m.answered(q)
	case !excused(err):
		m.failed(err)
	}
}

// answered records an answer, if only SERVFAIL: only a second opinion can tell whether the
// name or the upstream is broken.
func (m *Monitor) answered(q wire.Query) {
	now := m.now()
	m.lastAnswer.Store(now)
	m.evidence.answered(q, now)
	switch m.known() {
	case Up, Suspect:
		if m.failures.Load() != 0 {
			m.recordLive(nil)
		}
		m.refresh()
	case Down:
		m.answeredWhileDown()
	}
}

// failed records a failure of a live query.
func (m *Monitor) failed(err error) {
	m.recordLive(err)
	if m.failing() {
		m.wakeProbe()
	}
}

// Run probes the upstream when its state is in question and of interest, until ctx is
// done. It sends no probe while live answers tell enough. It must run once.
func (m *Monitor) Run(ctx context.Context) error {
	written := make(chan struct{})
	go func() {
		defer close(written)
		m.writeNotices(ctx)
	}()
	m.watch(ctx)
	select {
	case <-written:
	case <-time.After(noticesLimit): // the log stands still
	}
	return nil
}

func (m *Monitor) watch(ctx context.Context) {
	r := recovery{wait: m.newBackOff(), upSince: time.Now()}
	m.probeUp(ctx, true) // opens a connection before the first client needs it
	timer := time.NewTimer(m.untilProbe())
	defer timer.Stop()
	for {
		woken := false
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
			woken = true
		case <-timer.C:
		}
		var took time.Duration
		probeNow := m.probeNow.Swap(false)
		switch {
		case m.known().IsUp():
			m.probeUp(ctx, woken)
			m.setPause(woken)
		case r.down && woken && !probeNow && (m.known() == Erroring || !m.answeredAt().After(m.since())):
			// The cause of the outage has woken it, or answers that may be as wrong as those
			// before. The timer runs on.
			continue
		case r.down:
			began := time.Now()
			m.probeDown(ctx)
			took = time.Since(began)
		}
		r.update(m.known().IsUp())
		timer.Reset(m.pauseAfter(&r, took))
	}
}

// A recovery has the waits between the probes of an upstream that is down.
type recovery struct {
	down    bool
	upSince time.Time
	wait    *backoff.ExponentialBackOff
}

// update begins or ends an outage.
func (r *recovery) update(up bool) {
	switch {
	case up && r.down:
		r.down, r.upSince = false, time.Now()
	case !up && !r.down:
		r.down = true
		if time.Since(r.upSince) > newOutageAfter {
			r.wait.Reset()
		}
	}
}

// pauseAfter returns the time until the next probe. The last one took that long.
func (m *Monitor) pauseAfter(r *recovery, took time.Duration) time.Duration {
	switch {
	case !r.down:
		return m.untilProbe()
	case m.hasErred():
		return max(r.wait.NextBackOff(), erroringPause)
	}
	return r.wait.NextBackOff() - took // the wait began with the last probe
}

// newBackOff returns waits that grow, with jitter, and never end: by default
// they would after 15 minutes.
func (m *Monitor) newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = m.o.RecoveryMin
	// backoff adds the jitter to its MaxInterval.
	b.MaxInterval = time.Duration(float64(m.o.RecoveryMax) / (1 + b.RandomizationFactor))
	b.MaxElapsedTime = 0
	b.Reset()
	return b
}

func (m *Monitor) since() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

func (m *Monitor) hasErred() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.erred
}

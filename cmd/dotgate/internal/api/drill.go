package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"dotgate/balancer"
	"dotgate/gateway"
	"dotgate/health"
	"dotgate/upstreams"
)

const (
	// DrillMax bounds the duration of a fault. A drill tests a failure; "upstreams drain"
	// takes an upstream out of service.
	DrillMax = 10 * time.Minute
	// watchMax bounds the measurement before the fault.
	watchMax = time.Minute
	// lookEvery is the interval in which the states of upstreams are checked, and the
	// precision of the report.
	lookEvery = 5 * time.Millisecond
	// afterMin is the least duration of the measurement after the fault: queries that met
	// the fault may still be in progress when it ends.
	afterMin = time.Second
	// returnMax bounds the wait for the upstream's return: three times the default of
	// health.recovery_max.
	returnMax = 30 * time.Second
)

var (
	errTimeUp = errors.New("its time was up")
	errAlone  = errors.New("no other upstream is up any more")
	errEnded  = errors.New("it was ended by hand")
)

// A Request describes a drill.
type Request struct {
	Upstream string `json:"upstream"`
	Fault    string `json:"fault"`     // as upstreams.ParseDrill reads it
	For      Millis `json:"for_ms"`    // maximum duration of the fault
	Before   Millis `json:"before_ms"` // duration of the measurement before it
}

// An Event is a progress message of a drill.
type Event struct {
	Text   string  `json:"text,omitempty"`   // for people
	Report *Report `json:"report,omitempty"` // the last Event has this
	Error  string  `json:"error,omitempty"`  // or this
}

// A Report is the result of a drill.
type Report struct {
	Upstream string    `json:"upstream"`
	Fault    string    `json:"fault"`
	Began    time.Time `json:"began"`
	Ended    string    `json:"ended"` // why
	Before   Phase     `json:"before"`
	During   Phase     `json:"during"`
	// After ends when the upstream is up again, after a second at least.
	After Phase `json:"after"`
	// Suspected and Down are the times from the begin of the fault until the upstream was
	// suspect and down, Back the time from the end until it was up. Nil means never, and
	// Back 0 that it was up at the end.
	Suspected *Millis `json:"suspected_ms"`
	Down      *Millis `json:"down_ms"`
	Back      *Millis `json:"back_ms"`
}

// Lost returns the number of queries that the gateway failed since the fault began.
func (r Report) Lost() uint64 { return r.During.Lost + r.After.Lost }

// A Phase has the figures of clients in one phase.
type Phase struct {
	Lasted   Millis `json:"lasted_ms"`
	Queries  uint64 `json:"queries"`  // answered or lost
	Lost     uint64 `json:"lost"`     // of these: failed by the gateway
	ServFail uint64 `json:"servfail"` // of these: SERVFAIL of an upstream
	Cached   uint64 `json:"cached"`   // of these: answered by the cache
	P50      Millis `json:"p50_ms"`   // of queries that waited for an upstream
	P99      Millis `json:"p99_ms"`
	Max      Millis `json:"max_ms"`
	Extra    uint64 `json:"extra"` // attempts beyond one per query
	Asked    uint64 `json:"asked"` // queries sent to the drilled upstream
}

// A session is a running drill.
type session struct {
	Request
	drill  upstreams.Drill
	member Member
	end    context.CancelCauseFunc
	phase  string    // guarded by Server.mu
	ends   time.Time // guarded by Server.mu
}

func (s *Server) drillStatus() *DrillStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drill == nil {
		return nil
	}
	return &DrillStatus{Upstream: s.drill.Upstream, Fault: s.drill.Fault, Phase: s.drill.phase, Ends: s.drill.ends}
}

// endDrill ends the running drill. It reports false if there is none.
func (s *Server) endDrill() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drill == nil {
		return false
	}
	s.drill.end(errEnded)
	return true
}

// newSession checks a request.
func (s *Server) newSession(r Request) (*session, error) {
	d, err := upstreams.ParseDrill(r.Fault)
	if err != nil {
		return nil, fmt.Errorf("fault: %w", err)
	}
	if r.For <= 0 || time.Duration(r.For) > DrillMax {
		return nil, fmt.Errorf("for: %v must be above 0 and at most %v", time.Duration(r.For), DrillMax)
	}
	if r.Before < 0 || time.Duration(r.Before) > watchMax {
		return nil, fmt.Errorf("before: %v must not be below 0 nor above %v", time.Duration(r.Before), watchMax)
	}
	var names []string
	for _, m := range s.o.Members() {
		if m.String() == r.Upstream {
			return &session{Request: r, drill: d, member: m}, nil
		}
		names = append(names, m.String())
	}
	return nil, fmt.Errorf("upstream: %q does not exist; there are %s", r.Upstream, strings.Join(names, ", "))
}

// claim makes d the running drill, unless there is one.
func (s *Server) claim(d *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drill != nil {
		return fmt.Errorf("a drill of %s is running already (%s); only one can run at a time", s.drill.Upstream, s.drill.Fault)
	}
	s.drill = d
	return nil
}

func (s *Server) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drill = nil
}

// enter sets the phase of d, and the end of the fault.
func (s *Server) enter(d *session, phase string, left time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.phase, d.ends = phase, time.Now().Add(left)
}

// alone reports whether m is the only upstream of a list that is up.
func (s *Server) alone(m Member) bool {
	up := make(map[string]bool) // lists in which another is
	for _, other := range s.o.Members() {
		if other.Upstream != m.Upstream && other.Status().State.IsUp() {
			for _, route := range other.Lists() {
				up[route] = true
			}
		}
	}
	return slices.ContainsFunc(m.Lists(), func(route string) bool { return !up[route] })
}

// runDrill measures, injects the fault, and waits for the upstream's return. It blocks.
// When ctx is done the fault ends at once and runDrill returns. It does not call tell after
// it has returned.
func (s *Server) runDrill(ctx context.Context, r Request, tell func(Event)) (Report, error) {
	d, err := s.newSession(r)
	if err != nil {
		return Report{}, err
	}
	ctx, d.end = context.WithCancelCause(ctx)
	defer d.end(nil)
	if err := s.claim(d); err != nil {
		return Report{}, err
	}
	defer s.release()
	if s.alone(d.member) {
		return Report{}, fmt.Errorf("no upstream but %s is up: clients would have no upstream", r.Upstream)
	}
	say := func(format string, args ...any) { tell(Event{Text: fmt.Sprintf(format, args...)}) }

	length, before := time.Duration(r.For), time.Duration(r.Before)
	s.enter(d, "before", before+length)
	start := s.measure(d)
	if before > 0 {
		say("measuring for %v without the fault", before)
		select {
		case <-time.After(before):
		case <-ctx.Done():
			return Report{}, fmt.Errorf("the drill did not begin: %w", context.Cause(ctx))
		}
		if s.alone(d.member) {
			return Report{}, fmt.Errorf("no upstream but %s is up any more: clients would have no upstream", r.Upstream)
		}
	}
	s.enter(d, "during", length)
	say("%s: %s, for %v", r.Upstream, r.Fault, length)
	s.o.Log.Warn("drill began", "upstream", r.Upstream, "fault", r.Fault, "for", length)
	report := Report{Upstream: r.Upstream, Fault: r.Fault, Began: time.Now()}
	began := s.measure(d)
	report.Before = began.since(start)
	why, err := s.inject(ctx, d, &report, say)
	if err != nil {
		return Report{}, err
	}
	ended := s.measure(d)
	report.During, report.Ended = ended.since(began), why.Error()
	s.o.Log.Warn("drill ended", "upstream", r.Upstream, "fault", r.Fault, "reason", why,
		"duration", ended.at.Sub(began.at).Round(time.Millisecond), "queries", report.During.Queries, "lost", report.During.Lost)

	s.enter(d, "after", 0)
	say("the fault has ended: %v", why)
	report.Back = s.awaitReturn(ctx, d)
	report.After = s.measure(d).since(ended)
	return report, nil
}

// inject injects the fault and records the states of the upstream. It returns why the fault
// ended.
func (s *Server) inject(ctx context.Context, d *session, report *Report, say func(string, ...any)) (why, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(time.Duration(d.For), func() { cancel(errTimeUp) })
	defer timer.Stop()
	over := make(chan error, 1)
	go func() { over <- d.member.Drill(ctx, d.drill) }()
	look := time.Tick(lookEvery)
	began := time.Now()
	for {
		select {
		case err := <-over:
			if err == nil && ctx.Err() == nil {
				err = fmt.Errorf("%s: %w", d.Upstream, errStopping)
			}
			return context.Cause(ctx), err
		case <-look:
		}
		after := Millis(time.Since(began))
		state := d.member.Status()
		if state.State != health.Up && report.Suspected == nil {
			report.Suspected = &after
			say("%s is suspect after %v", d.Upstream, round(after))
		}
		if !state.State.IsUp() && report.Down == nil {
			report.Down = &after
			say("%s is down after %v: %s", d.Upstream, round(after), state.Reason)
		}
		if s.alone(d.member) {
			cancel(errAlone)
		}
	}
}

// awaitReturn waits until the upstream is up, and at least for afterMin. It returns the
// time until it was up, nil if it was not within returnMax.
func (s *Server) awaitReturn(ctx context.Context, d *session) *Millis {
	ended := time.Now()
	look := time.Tick(lookEvery)
	var back *Millis
	if d.member.Status().State == health.Up {
		back = new(Millis)
	}
	for {
		after := time.Since(ended)
		if back == nil && d.member.Status().State == health.Up {
			back = new(Millis(after))
		}
		if back != nil && after >= afterMin || after >= returnMax {
			return back
		}
		select {
		case <-ctx.Done():
			return back
		case <-look:
		}
	}
}

// A measurement has all counters at one moment.
type measurement struct {
	at      time.Time
	clients gateway.Counts
	latency gateway.Latency
	asked   balancer.Counts
	sent    uint64 // to the drilled upstream
}

func (s *Server) measure(d *session) measurement {
	return measurement{
		at: time.Now(), clients: s.o.Gateway.Counts(), latency: s.o.Gateway.Latency(),
		asked: s.o.Balancer.Counts(), sent: d.member.Counts().Sent,
	}
}

// since returns what happened between two measurements.
func (m measurement) since(earlier measurement) Phase {
	l := m.latency.Since(earlier.latency)
	lost := lost(m.clients) - lost(earlier.clients)
	return Phase{
		Lasted:  Millis(m.at.Sub(earlier.at)),
		Queries: answered(m.clients) - answered(earlier.clients) + lost,
		Lost:    lost, ServFail: m.clients.ServFails.Total() - earlier.clients.ServFails.Total(),
		Cached: cached(m.clients) - cached(earlier.clients),
		P50:    Millis(l.Quantile(0.5)), P99: Millis(l.Quantile(0.99)), Max: Millis(l.Quantile(1)),
		Extra: extra(m.asked) - extra(earlier.asked), Asked: m.sent - earlier.sent,
	}
}

func answered(c gateway.Counts) uint64 { return c.Outcomes[gateway.Answered].Total() }

func cached(c gateway.Counts) uint64 { return c.Cache.Hits.Total() + c.Cache.Stale.Total() }

func extra(c balancer.Counts) uint64 { return c.Hedges + c.Retries + c.Seconds }

func round(m Millis) time.Duration { return time.Duration(m).Round(time.Millisecond) }

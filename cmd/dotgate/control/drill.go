package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"dotgate/balancer"
	"dotgate/gateway"
	"dotgate/health"
	"dotgate/upstreams"
)

const (
	// DrillMax is the longest that a drill may take. It is to rehearse a failure,
	// not to take an upstream out of service.
	DrillMax = 10 * time.Minute
	// watchMax is the longest that clients are watched before.
	watchMax = time.Minute
	// lookEvery is how often the state of upstreams is looked at meanwhile, and
	// so how exact the times are.
	lookEvery = 5 * time.Millisecond
	// stragglers is how long clients are watched afterwards at least: queries
	// that met the fault may still be under way when it ends.
	stragglers = time.Second
	// returnMax is the longest that the upstream's return is waited for: three
	// times what health.recovery_max is unless somebody changes it.
	returnMax = 30 * time.Second
)

var (
	errTimeUp = errors.New("its time was up")
	errAlone  = errors.New("no other upstream is up any more")
	errEnded  = errors.New("it was ended by hand")
)

// A Request asks for a drill.
type Request struct {
	Upstream string `json:"upstream"`
	Fault    string `json:"fault"`     // as upstreams.ParseDrill reads it
	For      Millis `json:"for_ms"`    // how long the fault lasts at most
	Before   Millis `json:"before_ms"` // how long clients are watched first
}

// An Event is news of a drill.
type Event struct {
	Text   string  `json:"text,omitempty"`   // for people
	Report *Report `json:"report,omitempty"` // the last Event has this
	Error  string  `json:"error,omitempty"`  // or this
}

// A Report is what a drill brought to light.
type Report struct {
	Upstream string    `json:"upstream"`
	Fault    string    `json:"fault"`
	Began    time.Time `json:"began"`
	Ended    string    `json:"ended"` // why
	Before   Phase     `json:"before"`
	During   Phase     `json:"during"`
	// After is until the upstream was back in rotation, and at least a second.
	After Phase `json:"after"`
	// Suspected and Down are when, after the fault began, the upstream was first
	// suspect and down; Back is when, after the fault ended, it was up again and
	// not suspect. Nil means never, 0 for Back that it was all the time.
	Suspected *Millis `json:"suspected_ms"`
	Down      *Millis `json:"down_ms"`
	Back      *Millis `json:"back_ms"`
}

// Lost returns how many queries were failed by us since the fault began.
func (r Report) Lost() uint64 { return r.During.Lost + r.After.Lost }

// A Phase is what clients saw for a while.
type Phase struct {
	Lasted   Millis `json:"lasted_ms"`
	Queries  uint64 `json:"queries"`  // answered or lost; what was refused or ignored is none
	Lost     uint64 `json:"lost"`     // of these: failed by us
	ServFail uint64 `json:"servfail"` // of these: SERVFAIL, as the resolvers said
	Cached   uint64 `json:"cached"`   // of these: by the cache, be it fresh or stale
	P50      Millis `json:"p50_ms"`   // of replies that waited for an upstream
	P99      Millis `json:"p99_ms"`
	Max      Millis `json:"max_ms"`
	Extra    uint64 `json:"extra"` // upstreams asked beside or after the first
	Asked    uint64 `json:"asked"` // queries sent to the drilled upstream
}

// A session is a drill under way.
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

// endDrill ends the drill under way. It reports false if there is none.
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

// claim makes d the drill under way, if there is none.
func (s *Server) claim(d *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drill != nil {
		return fmt.Errorf("a drill of %s is under way already (%s); there is one at a time", s.drill.Upstream, s.drill.Fault)
	}
	s.drill = d
	return nil
}

func (s *Server) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drill = nil
}

// enter notes that d is in a phase whose end, or that of the fault, is known.
func (s *Server) enter(d *session, phase string, left time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.phase, d.ends = phase, time.Now().Add(left)
}

// alone reports whether nobody but m is up of those that stand in for each other.
func (s *Server) alone(m Member) bool {
	for _, other := range s.o.Members() {
		if other.Route == m.Route && other.Upstream != m.Upstream && other.Status().State != health.Down {
			return false
		}
	}
	return true
}

// rehearse runs a drill: it watches the clients, has the fault, and waits for the
// upstream's return. It blocks. When ctx is done the fault ends at once, and
// nothing is waited for. Tell gets news as it comes, never after rehearse has
// returned.
func (s *Server) rehearse(ctx context.Context, r Request, tell func(Event)) (Report, error) {
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
		return Report{}, fmt.Errorf("no upstream but %s is up: clients would have nobody", r.Upstream)
	}
	say := func(format string, args ...any) { tell(Event{Text: fmt.Sprintf(format, args...)}) }

	length, before := time.Duration(r.For), time.Duration(r.Before)
	s.enter(d, "before", before+length)
	start := s.measure(d)
	if before > 0 {
		say("watching what clients see for %v", before)
		if !sleep(ctx, before) {
			return Report{}, fmt.Errorf("the drill did not begin: %w", context.Cause(ctx))
		}
		if s.alone(d.member) {
			return Report{}, fmt.Errorf("meanwhile no upstream but %s is up: clients would have nobody", r.Upstream)
		}
	}
	s.enter(d, "during", length)
	say("%s: %s, for %v", r.Upstream, r.Fault, length)
	s.o.Log.Warn("drill begins", "upstream", r.Upstream, "fault", r.Fault, "for", length)
	report := Report{Upstream: r.Upstream, Fault: r.Fault, Began: time.Now()}
	began := s.measure(d)
	report.Before = began.since(start)
	why, err := s.strike(ctx, d, &report, say)
	if err != nil {
		return Report{}, err
	}
	ended := s.measure(d)
	report.During, report.Ended = ended.since(began), why.Error()
	s.o.Log.Warn("drill is over", "upstream", r.Upstream, "fault", r.Fault, "because", why,
		"lasted", ended.at.Sub(began.at).Round(time.Millisecond), "queries", report.During.Queries, "lost", report.During.Lost)

	s.enter(d, "after", 0)
	say("the fault has ended: %v", why)
	report.Back = s.awaitReturn(ctx, d)
	report.After = s.measure(d).since(ended)
	return report, nil
}

// strike has the fault, and notes what becomes of the upstream. It returns why
// the fault ended.
func (s *Server) strike(ctx context.Context, d *session, report *Report, say func(string, ...any)) (why, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(time.Duration(d.For), func() { cancel(errTimeUp) })
	defer timer.Stop()
	over := make(chan error, 1)
	go func() { over <- d.member.Drill(ctx, d.drill) }()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	began := time.Now()
	for {
		select {
		case err := <-over:
			if err == nil && ctx.Err() == nil {
				err = fmt.Errorf("%s: %w", d.Upstream, errStopping)
			}
			return context.Cause(ctx), err
		case <-look.C:
		}
		after := Millis(time.Since(began))
		state := d.member.Status()
		if state.State != health.Up && report.Suspected == nil {
			report.Suspected = &after
			say("%s is suspect after %v", d.Upstream, round(after))
		}
		if state.State == health.Down && report.Down == nil {
			report.Down = &after
			say("%s is down after %v: %s", d.Upstream, round(after), state.Reason)
		}
		if s.alone(d.member) {
			cancel(errAlone)
		}
	}
}

// awaitReturn waits for the upstream to be back in rotation, and for stragglers.
// It returns how long the upstream took, nil if it took too long.
func (s *Server) awaitReturn(ctx context.Context, d *session) *Millis {
	ended := time.Now()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var back *Millis
	if d.member.Status().State == health.Up {
		back = new(Millis)
	}
	for {
		after := time.Since(ended)
		if back == nil && d.member.Status().State == health.Up {
			back = new(Millis(after))
		}
		if back != nil && after >= stragglers || after >= returnMax {
			return back
		}
		select {
		case <-ctx.Done():
			return back
		case <-look.C:
		}
	}
}

// A measurement is all that is counted, at one moment.
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

// sleep reports false if ctx ended it.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

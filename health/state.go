package health

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sony/gobreaker/v2"
)

// A State says whether an upstream works.
type State uint8

const (
	Up       State = iota // gets live queries
	Suspect               // gets live queries after those that are Up: it may be failing
	Erroring              // down because of wrong answers, and still answers
	Down                  // gets live queries only when no upstream is up

	states int = iota
)

var stateNames = [states]string{Up: "up", Suspect: "suspect", Erroring: "erroring", Down: "down"}

func (s State) String() string {
	if int(s) < states {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// IsUp reports whether an upstream in this state gets live queries: its breaker is
// closed.
func (s State) IsUp() bool { return s == Up || s == Suspect }

// An outcome is that of one query or probe, as the breaker gets it.
type outcome struct {
	err    error // nil for an answer
	probe  bool  // it is that of a probe
	ejects State // the State if it trips the breaker by itself, Erroring or Down; else Up
}

// recordLive records the outcome of a live query. It neither opens nor closes the breaker.
func (m *Monitor) recordLive(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known().IsUp() {
		m.recordLocked(outcome{err: err})
	}
}

// recordProbe records the outcome of a probe. A success closes the breaker; a failure opens
// it if it is the last of Options.Failures in a row.
func (m *Monitor) recordProbe(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.recordLocked(outcome{err: err, probe: true})
}

// eject opens the breaker, if it is closed.
func (m *Monitor) eject(to State, why error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known().IsUp() {
		m.recordLocked(outcome{err: why, ejects: to})
	}
}

// recordLocked gives the breaker an outcome. It reserves nothing when a query begins, so a
// half-open breaker never waits for an outcome that does not come.
func (m *Monitor) recordLocked(o outcome) {
	m.outcome = o
	if o.err != nil {
		m.reason = o.err
	}
	// Execute returns o.err, or that the breaker takes no outcome in the nanosecond in which
	// it has opened.
	_, _ = m.breaker.Execute(func() (struct{}, error) { return struct{}{}, o.err })
	m.failures.Store(int32(m.breaker.Counts().ConsecutiveFailures))
}

// trips returns whether a failure opens the breaker. The breaker calls it, with mu and its
// own mutex held.
func (m *Monitor) trips(c gobreaker.Counts) bool {
	return m.outcome.ejects != Up || m.outcome.probe && c.ConsecutiveFailures >= uint32(m.o.Failures)
}

// breakerChanged makes the transition that follows from a change of the breaker. The
// breaker calls it, with mu and its own mutex held: it must neither block nor call the
// breaker.
func (m *Monitor) breakerChanged(_ string, from, to gobreaker.State) {
	switch {
	case to == gobreaker.StateClosed:
		m.transitionLocked(Up, m.reason)
	case from == gobreaker.StateClosed && m.outcome.ejects == Erroring:
		m.transitionLocked(Erroring, m.reason)
	case from == gobreaker.StateClosed:
		m.transitionLocked(Down, m.reason)
	}
}

// transitionLocked is the only place where the state changes. It counts outages, keeps the
// history, publishes the state atomically, and queues a line for the log. Why is the reason
// why the upstream is down, or was. transitionLocked does not block, and does not call the
// breaker, whose callback calls it.
func (m *Monitor) transitionLocked(to State, why error) {
	from := m.known()
	if from == to {
		return
	}
	m.state.Store(uint32(to))
	m.notifyChanged()
	if from.IsUp() == to.IsUp() {
		return
	}
	now := time.Now()
	lasted := now.Sub(m.changed)
	m.changed, m.erred = now, to == Erroring
	m.evidence.reset(now)
	change := Change{At: now, State: to, Lasted: lasted}
	if why != nil {
		change.Reason = why.Error()
	}
	m.history = appendChange(m.history, change)
	if to.IsUp() {
		m.notify(cameBack, slog.LevelInfo, "upstream is up again", "after", lasted.Round(time.Millisecond))
		return
	}
	m.counts.downs.Add(1)
	m.peerReport.confirmed()
	m.notify(wentDown, slog.LevelWarn, "upstream is down", "reason", why, "after", lasted.Round(time.Millisecond))
	m.wakeProbe() // so that Run starts to wait for its return
}

// known returns the state, without the AdminState.
func (m *Monitor) known() State { return State(m.state.Load()) }

// effective returns the state with the AdminState applied.
func (m *Monitor) effective() State { return AdminState(m.adminState.Load()).apply(m.known()) }

// apply returns the state that the AdminState makes of s.
func (a AdminState) apply(s State) State {
	switch a {
	case Drained, ForcedDown:
		return Down
	case ForcedUp:
		return Up
	}
	return s
}

// refresh makes the transitions that the passing of time causes, and returns the state.
func (m *Monitor) refresh() State {
	s := m.known()
	if m.stateNow(s) == s {
		return s
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.transitionLocked(m.stateNow(m.known()), m.reason)
	return m.known()
}

// stateNow returns the state that follows from s by the passing of time.
func (m *Monitor) stateNow(s State) State {
	switch s {
	case Up, Suspect:
		if m.overdue() || m.failing() || m.reportedByPeer() {
			return Suspect
		}
		return Up
	case Erroring:
		if m.overdue() {
			return Down
		}
	}
	return s
}

// answeredWhileDown records a live answer of an upstream that is Down. A probe, not a
// client's query, decides whether the upstream is back.
func (m *Monitor) answeredWhileDown() {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.known() != Down:
	case m.erred:
		m.transitionLocked(Erroring, m.reason)
	default:
		m.wakeProbe()
	}
}

// answersWrongly records that an upstream that is Down answers with errors.
func (m *Monitor) answersWrongly(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if errors.Is(err, errProbeErrored) && m.known() == Down {
		m.transitionLocked(Erroring, m.reason)
	}
}

// overdue reports whether the upstream has owed a sign of life for longer than its patience.
func (m *Monitor) overdue() bool {
	_, patience := m.upstream.Latency()
	return m.upstream.Silent() > patience
}

func (m *Monitor) failing() bool { return m.failures.Load() >= int32(m.o.Failures) }

package health

import (
	"fmt"
	"time"
)

// A State is what a Monitor thinks of its upstream.
type State uint8

const (
	Up      State = iota // gets live queries
	Suspect              // up, but something seems wrong; a probe settles it soon
	Down                 // gets none but when nobody is up

	states int = iota
)

var stateNames = [states]string{Up: "up", Suspect: "suspect", Down: "down"}

func (s State) String() string {
	if int(s) < states {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// A Status is what a Monitor knows about its upstream at one moment.
type Status struct {
	State State
	// Since is when it last went up or down, or New. If it is suspect, it is when
	// its silence began, zero if it is not silent.
	Since  time.Time
	Reason string // why it is suspect or down; empty if it is up
	// Failing is whether it is suspect or down by what the Monitor has seen itself,
	// whatever operators want and other gateways say.
	Failing  bool
	Answered time.Time     // when it last answered, zero if never
	Silent   time.Duration // how long it has owed a sign of life; 0 if it owes none
	Usual    time.Duration // how long an answer takes; 0 if unknown
	Patience time.Duration // how long one is waited for before something seems wrong

	Order   Order   // of the operator, Auto if there is none
	Breaker Breaker // what it rests upon otherwise
	Counts  Counts  // totals since New
}

// Status returns what m knows. It only looks: no probe is made for being asked.
func (m *Monitor) Status() Status {
	m.mu.Lock()
	s := Status{Since: m.changed, Order: Order(m.order.Load()), Breaker: m.breakerNow(), Counts: m.counts.now()}
	reason := m.reason
	m.mu.Unlock()
	s.Silent = m.upstream.Silent()
	s.Usual, s.Patience = m.upstream.Latency()
	if at := m.lastAnswer.Load(); at != 0 {
		s.Answered = m.epoch.Add(time.Duration(at))
	}
	s.Failing = !m.up.Load() || s.Silent > s.Patience || m.failing()
	switch {
	case s.Order == Drained || s.Order == ForcedDown:
		s.State, s.Reason = Down, "set to "+s.Order.String()+" by hand"
	case !m.Up():
		s.State = Down
		if reason != nil {
			s.Reason = reason.Error()
		}
	case s.Order == ForcedUp:
		if s.Reason = "set to up by hand"; !m.up.Load() && reason != nil {
			s.Reason += "; else it would be down: " + reason.Error()
		}
	case s.Silent > s.Patience:
		s.State, s.Since = Suspect, time.Now().Add(-s.Silent)
		s.Reason = fmt.Sprintf("no sign of life for %v", s.Silent.Round(time.Millisecond))
	case m.failing():
		s.State, s.Since = Suspect, time.Time{}
		s.Reason = fmt.Sprintf("%d failures in a row, the last: %v", m.failures.Load(), reason)
	case m.doubted():
		s.State, s.Since, s.Reason = Suspect, time.Time{}, m.doubt.text()
	}
	return s
}

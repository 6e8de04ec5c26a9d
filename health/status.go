package health

import (
	"fmt"
	"time"
)

// A Status is what a Monitor knows about its upstream at one moment.
type Status struct {
	State State // with the AdminState applied
	// Since is the time of the last change between up and down, or of New. For Suspect, it
	// is the begin of the silence; zero if the upstream is not silent.
	Since  time.Time
	Reason string // why it is suspect or down; empty if it is up
	// Failing is whether the upstream is Suspect or down by the Monitor's own evidence,
	// without the AdminState and the reports of peers.
	Failing  bool
	Answered time.Time     // the time of the last answer; zero if there was none
	Silent   time.Duration // for how long it has owed a sign of life; 0 if it owes none
	Usual    time.Duration // how long an answer takes; 0 if unknown
	Patience time.Duration // how long an answer may take before it is Suspect

	AdminState AdminState // Auto if the operator has set none
	Breaker    Breaker    // the state of the circuit breaker
	Counts     Counts     // totals since New
}

// Status returns what m knows. It causes no probe and no transition.
func (m *Monitor) Status() Status {
	m.mu.Lock()
	s := Status{Since: m.changed, AdminState: AdminState(m.adminState.Load()), Breaker: m.breakerLocked(), Counts: m.counts.now()}
	reason := m.reason
	m.mu.Unlock()
	s.Silent = m.upstream.Silent()
	s.Usual, s.Patience = m.upstream.Latency()
	s.Answered = m.answeredAt()
	known := m.stateNow(m.known())
	s.State = s.AdminState.apply(known)
	silent, failing := s.Silent > s.Patience, m.failing()
	s.Failing = !known.IsUp() || silent || failing
	switch {
	case s.AdminState == Drained || s.AdminState == ForcedDown:
		s.Reason = "set to " + s.AdminState.String() + " by hand"
	case s.AdminState == ForcedUp:
		if s.Reason = "set to up by hand"; !known.IsUp() && reason != nil {
			s.Reason += "; else it would be down: " + reason.Error()
		}
	case !known.IsUp():
		if reason != nil {
			s.Reason = reason.Error()
		}
	case silent:
		s.State, s.Since = Suspect, time.Now().Add(-s.Silent)
		s.Reason = fmt.Sprintf("no sign of life for %v", s.Silent.Round(time.Millisecond))
	case failing:
		s.State, s.Since = Suspect, time.Time{}
		s.Reason = fmt.Sprintf("%d failures in a row, the last: %v", m.failures.Load(), reason)
	case m.reportedByPeer():
		s.State, s.Since, s.Reason = Suspect, time.Time{}, m.peerReport.text()
	default:
		s.State = Up
	}
	return s
}

// An outage is the reason why an upstream gets no live queries.
type outage struct {
	lasted     time.Duration
	adminState AdminState // not Auto if the operator has set it
	reason     error      // or nil
}

func (o *outage) Error() string {
	lasted := o.lasted.Round(time.Second)
	if o.lasted < time.Second {
		lasted = o.lasted.Round(time.Millisecond)
	}
	switch {
	case o.adminState != Auto:
		return fmt.Sprintf("set to %v by hand", o.adminState)
	case o.reason == nil:
		return fmt.Sprintf("breaker open for %v", lasted)
	}
	return fmt.Sprintf("breaker open for %v: %v", lasted, o.reason)
}

func (o *outage) Unwrap() error { return o.reason }

// Outage returns why the upstream gets no live queries, and since when; nil while it is
// up.
func (m *Monitor) Outage() error {
	if m.effective().IsUp() {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return &outage{lasted: time.Since(m.changed), adminState: AdminState(m.adminState.Load()), reason: m.reason}
}

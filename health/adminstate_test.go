package health

import (
	"testing"
	"time"
)

func TestTheAdminStateOverridesTheState(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		f := func(o AdminState, up bool, state State, reason string) {
			t.Helper()
			m.SetAdminState(o)
			s := m.Status()
			if m.State().IsUp() != up || s.State != state || s.Reason != reason || s.AdminState != o {
				t.Errorf("%v: up is %v, status %v, %q", o, m.State().IsUp(), s.State, s.Reason)
			}
		}
		f(Drained, false, Down, "set to drain by hand")
		f(ForcedDown, false, Down, "set to down by hand")
		f(ForcedUp, true, Up, "set to up by hand")
		f(Auto, true, Up, "")
		u.set(broken)
		m.SetAdminState(ForcedUp)
		for range 5 {
			_ = ask("www.example.com")
		}
		until(t, 5*time.Second, "what is known goes on", func() bool { return !m.known().IsUp() })
		if !m.State().IsUp() || m.State() == Suspect {
			t.Error("it is not up although it is set to up")
		}
		m.SetAdminState(Auto)
		if s := m.Status(); m.State().IsUp() || s.State != Down || s.Breaker.State != "half-open" && s.Breaker.State != "open" {
			t.Errorf("after auto: %+v", s)
		}
		u.set(well)
		until(t, 15*time.Second, "it returns", func() bool { return m.State().IsUp() })
		var states []State
		for _, c := range m.Changes() {
			states = append(states, c.State)
		}
		if n := len(states); n < 3 || states[n-1] != Up {
			t.Errorf("history: %v", states)
		}
		if c := m.Status().Counts; c.Downs != 1 || c.Probes == 0 || c.FailedProbes == 0 || c.FailedProbes >= c.Probes {
			t.Errorf("%+v", c)
		}
	})
}

func TestAdminStatesAreReadAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	for o := range adminStates {
		if got, err := ParseAdminState(AdminState(o).String()); err != nil || got != AdminState(o) {
			t.Errorf("%v: got %v, %v", AdminState(o), got, err)
		}
	}
	if _, err := ParseAdminState("off"); err == nil {
		t.Error("off is read")
	}
}

package health

import (
	"testing"
	"time"
)

func TestAnOrderOfTheOperatorGoesOverWhatIsKnown(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		f := func(o Order, up bool, state State, reason string) {
			t.Helper()
			m.Order(o)
			s := m.Status()
			if m.Up() != up || s.State != state || s.Reason != reason || s.Order != o {
				t.Errorf("%v: up is %v, status %v, %q", o, m.Up(), s.State, s.Reason)
			}
		}
		f(Drained, false, Down, "set to drain by hand")
		f(ForcedDown, false, Down, "set to down by hand")
		f(ForcedUp, true, Up, "set to up by hand")
		f(Auto, true, Up, "")
		u.set(broken)
		m.Order(ForcedUp)
		for range 5 {
			_ = ask("www.example.com")
		}
		until(t, 5*time.Second, "what is known goes on", func() bool { return !m.up.Load() })
		if !m.Up() || m.Suspect() {
			t.Error("it is not up although it is set to up")
		}
		m.Order(Auto)
		if s := m.Status(); m.Up() || s.State != Down || s.Breaker.State != "half-open" && s.Breaker.State != "open" {
			t.Errorf("after auto: %+v", s)
		}
		u.set(well)
		until(t, 15*time.Second, "it returns", m.Up)
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

func TestOrdersAreReadAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	for o := range orders {
		if got, err := ParseOrder(Order(o).String()); err != nil || got != Order(o) {
			t.Errorf("%v: got %v, %v", Order(o), got, err)
		}
	}
	if _, err := ParseOrder("off"); err == nil {
		t.Error("off is read")
	}
}

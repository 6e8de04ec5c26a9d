package health

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestStatusTellsStateSinceWhenAndWhy(t *testing.T) {
	t.Parallel()
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		f := func(state State, reason string, answered time.Duration) {
			t.Helper()
			s := m.Status()
			if s.State != state || !strings.Contains(s.Reason, reason) || (s.Reason == "") != (state == Up) {
				t.Errorf("%v because of %q, want %v because of %q", s.State, s.Reason, state, reason)
			}
			if got := time.Since(s.Answered); got != answered {
				t.Errorf("last answer %v ago, want %v", got, answered)
			}
			if s.Usual != 10*time.Millisecond || s.Patience != 40*time.Millisecond {
				t.Errorf("usual %v, patience %v", s.Usual, s.Patience)
			}
		}
		if err := ask("www.example.com"); err != nil {
			t.Fatal(err)
		}
		f(Up, "", 0)
		began := m.Status().Since
		u.set(silent)
		go ask("www.example.com")
		time.Sleep(50 * time.Millisecond)
		probes := u.probed()
		f(Suspect, "no sign of life for 50ms", 50*time.Millisecond)
		if time.Sleep(time.Millisecond); u.probed() != probes {
			t.Error("to look at the status made a probe")
		}
		if got := time.Since(m.Status().Since); got != 51*time.Millisecond {
			t.Errorf("suspect for %v, want 51ms", got)
		}
		m.State()
		time.Sleep(2 * time.Second)
		f(Down, "probe for "+probeName, 2051*time.Millisecond)
		if got := m.Status().Since; !got.After(began) {
			t.Errorf("down since %v, up since %v", got, began)
		}
		u.set(well)
		time.Sleep(20 * time.Second)
		if s := m.Status(); s.State != Up || s.Reason != "" || s.Silent != 0 {
			t.Errorf("after its return: %+v", s)
		}
	})
}

func TestStatusTellsTheLastOfSomeFailures(t *testing.T) {
	t.Parallel()
	u := &fake{exchange: broken, begin: time.Now()}
	m, err := New(u, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range m.o.Failures {
		m.failed(m.ask(t.Context()))
		u.waiting = time.Time{}
	}
	if s := m.Status(); s.State != Suspect || s.Reason != "3 failures in a row, the last: connection refused" {
		t.Errorf("got %+v", s)
	}
}

func (m *Monitor) ask(ctx context.Context) error {
	_, err := m.upstream.Exchange(ctx, m.query)
	return err
}

func TestStatesPrintThemselves(t *testing.T) {
	t.Parallel()
	for state, want := range map[State]string{Up: "up", Suspect: "suspect", Down: "down", 9: "State(9)"} {
		if got := state.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

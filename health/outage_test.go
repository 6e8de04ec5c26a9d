package health

import (
	"regexp"
	"testing"
	"time"
)

func TestAnOutageSaysSinceWhenAndWhy(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		f := func(want string) {
			t.Helper()
			if err := m.Outage(); err == nil || !regexp.MustCompile(want).MatchString(err.Error()) {
				t.Errorf("got %v, want %s", err, want)
			}
		}
		if err := m.Outage(); err != nil {
			t.Errorf("an upstream that is up has the outage %q", err)
		}
		u.set(broken)
		for range 5 {
			_ = ask("www.example.com")
		}
		until(t, 5*time.Second, "it is down", func() bool { return !m.State().IsUp() })
		f("^breaker open for [0-9]+(ms|s): .*connection refused$")
		time.Sleep(12*time.Second - time.Since(m.since())) // fake time
		f("^breaker open for 12s: .*connection refused$")
		m.SetAdminState(ForcedDown)
		f("^set to down by hand$")
	})
}

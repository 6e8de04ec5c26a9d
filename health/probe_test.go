package health

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/wire"
)

func TestAnIdleGatewayProbesSeldomAndTheNextQueryHasItProbed(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, _ func(string) error) {
		before := u.probed()
		time.Sleep(time.Hour)
		if n := u.probed() - before; n < 12 || n > 16 {
			t.Errorf("%d probes in an idle hour, want one in five minutes after a few", n)
		}
		if age, limit := time.Since(m.Status().Answered), m.o.Recent(); age > limit {
			t.Errorf("the last answer is %v old, and counts for %v", age, limit)
		}
		before = u.probed()
		m.Status() // for an operator, and no query
		time.Sleep(time.Second)
		if u.probed() != before {
			t.Error("to look at the status made a probe")
		}
		if !m.State().IsUp() {
			t.Error("down")
		}
		synctest.Wait()
		if n := u.probed() - before; n != 1 {
			t.Errorf("%d probes as soon as a query is placed, want one", n)
		}
		before = u.probed()
		for range 300 { // five minutes of queries that others get
			m.State()
			m.State()
			time.Sleep(time.Second)
		}
		if n := u.probed() - before; n < 9 || n > 11 {
			t.Errorf("%d probes in five minutes in which its state mattered, want one each 30 s", n)
		}
	})
}

// Where some names are never answered, queries wait, and look for the last answer, all the
// time: a pause between two answers is no reason for a probe.
func TestAShortSilenceIsNotProbed(t *testing.T) {
	f := func(silence time.Duration, want int) {
		t.Helper()
		watch(t, func(t *testing.T, u *fake, m *Monitor, _ func(string) error) {
			m.State()
			synctest.Wait()
			before := u.probed()
			u.set(silent)
			q, _ := wire.NewQuery("lost.example.com", "A")
			m.Ask(t.Context(), q, func(wire.Answer, error) {})
			time.Sleep(silence)
			m.LastAnswer()
			synctest.Wait()
			if n := u.probed() - before; n != want {
				t.Errorf("%d probes after %v without an answer, want %d", n, silence, want)
			}
			time.Sleep(10 * time.Second) // fake time, for the query
		})
	}
	f(39*time.Millisecond, 0)
	f(41*time.Millisecond, 1)
}

func TestAnIdleUpstreamThatHasDiedIsFoundOutByTheFirstQuery(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, _ func(string) error) {
		time.Sleep(time.Hour)
		u.set(silent)
		m.State()
		if took := until(t, 2*time.Second, "down", func() bool { return !m.State().IsUp() }); took > silenceMin+10*time.Millisecond {
			t.Errorf("down after %v", took)
		}
		u.set(well)
		until(t, 15*time.Second, "up again", func() bool { return m.State().IsUp() })
	})
}

// TestSlownessAloneTakesNoUpstreamOut has an upstream be slow from the start, as over a
// satellite or a congested line.
func TestSlownessAloneTakesNoUpstreamOut(t *testing.T) {
	answers := func(after time.Duration) func(*fake, context.Context) error {
		return func(_ *fake, ctx context.Context) error {
			select {
			case <-time.After(after):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	steps := func(n int, each time.Duration) func(*fake, context.Context) error {
		return func(u *fake, ctx context.Context) error {
			for range n {
				if err := answers(each)(u, ctx); err != nil {
					return err
				}
				u.sign()
			}
			return nil
		}
	}
	unknown, far := [2]time.Duration{0, 200 * time.Millisecond}, [2]time.Duration{1300 * time.Millisecond, 1950 * time.Millisecond}
	for _, test := range []struct {
		name     string
		distance [2]time.Duration
		answer   func(*fake, context.Context) error
		o        Options
		up       bool
		dials    bool // a dial takes that long
	}{
		{"1.2 s an answer, not known yet", unknown, answers(1200 * time.Millisecond), Options{}, true, false},
		{"3 s an answer, not known yet", unknown, answers(3 * time.Second), Options{}, true, false},
		{"a handshake of 2 s in two steps, and 0.6 s an answer", unknown, steps(3, time.Second), Options{}, true, false},
		{"a dial of 1.5 s of an upstream that is near", [2]time.Duration{}, steps(3, 500*time.Millisecond), Options{}, true, false},
		{"1.5 s an answer of an upstream that is known to be far", far, answers(1500 * time.Millisecond), Options{}, true, false},
		{"3 s an answer of an upstream that is near", [2]time.Duration{}, answers(3 * time.Second), Options{}, false, false},
		{"3 s a dial of an upstream that is near", [2]time.Duration{}, answers(3 * time.Second), Options{}, true, true},
		{"10 s an answer", unknown, answers(10 * time.Second), Options{}, false, false},
		{"6 s an answer where clients wait 10 s", unknown, answers(6 * time.Second), Options{Patience: 10 * time.Second}, true, false},
		{"6 s an answer where clients wait 10 s and the operator 5 s", unknown, answers(6 * time.Second), Options{Patience: 10 * time.Second, ProbeTimeout: 5 * time.Second}, false, false},
		{"3 s an answer where clients wait 1 s", unknown, answers(3 * time.Second), Options{Patience: time.Second}, true, false},
		{"1.2 s an answer where the operator waits 1 s", unknown, answers(1200 * time.Millisecond), Options{ProbeTimeout: time.Second}, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := &fake{begin: time.Now(), distance: test.distance, reached: test.distance == unknown || test.dials}
				u.exchange = func(ctx context.Context, _ wire.Query) (wire.RCode, error) {
					return wire.NoError, test.answer(u, ctx)
				}
				test.o.ProbeName, test.o.ProbeType, test.o.Log = probeName, "A", slog.New(slog.DiscardHandler)
				m, err := New(u, test.o)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- m.Run(ctx) }()
				for range 600 { // a minute
					m.State()
					time.Sleep(100 * time.Millisecond)
				}
				if downs := m.Status().Counts.Downs; (downs == 0) != test.up {
					t.Errorf("it was down %d times: %v", downs, m.Outage())
				}
				cancel()
				<-done
			})
		})
	}
}

// Of an upstream that never answered, and of which no dial has taken a step, nothing
// speaks for distance.
func TestAnUpstreamThatIsNotReachedFromTheStartIsSoonDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &fake{begin: time.Now(), distance: [2]time.Duration{0, 200 * time.Millisecond}, exchange: silent}
		m, err := New(u, Options{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		if took := until(t, 2*time.Second, "down", func() bool { return !m.State().IsUp() }); took > silenceMinUnknown+10*time.Millisecond {
			t.Errorf("down after %v", took)
		}
		cancel()
		<-done
	})
}

// The first probe after the network has become slow is one of an upstream that seems
// near: it is down until a probe is answered, and not again.
func TestAnUpstreamThatBecomesSlowGoesDownOnceAtMost(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, _ func(string) error) {
		u.set(func(ctx context.Context, _ wire.Query) (wire.RCode, error) {
			select {
			case <-time.After(1800 * time.Millisecond):
				return wire.NoError, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		})
		for range 6000 { // ten minutes
			m.State()
			time.Sleep(100 * time.Millisecond)
		}
		if downs := m.Status().Counts.Downs; downs > 1 || !m.State().IsUp() {
			t.Errorf("it was down %d times: %v", downs, m.Outage())
		}
	})
}

// A probe's name that is broken for an upstream took it out for ever once it had been
// down for another reason.
func TestAWeakProbeTakesBackAnUpstreamWhoseProbesWereWeakBefore(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		weak := func(context.Context, wire.Query) (wire.RCode, error) { return wire.ServFail, nil }
		u.set(weak)
		time.Sleep(time.Minute)
		u.set(silent)
		m.ProbeNow()
		until(t, time.Minute, "down", func() bool { return !m.State().IsUp() })
		u.set(weak)
		until(t, 15*time.Second, "up again", func() bool { return m.State().IsUp() })
	})
}

func TestAWeakProbeOfADeadUpstreamSaysThatItAnswers(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(silent)
		m.ProbeNow()
		until(t, time.Minute, "down", func() bool { return m.State() == Down })
		u.set(func(context.Context, wire.Query) (wire.RCode, error) { return wire.Refused, nil })
		until(t, 15*time.Second, "erroring", func() bool { return m.State() == Erroring })
		u.set(func(context.Context, wire.Query) (wire.RCode, error) { return 0, errors.New("refused") })
		time.Sleep(time.Minute)
		u.set(well)
		until(t, 15*time.Second, "up again", func() bool { return m.State().IsUp() })
	})
}

func TestResponseCodesOfAProbe(t *testing.T) {
	for code := range wire.RCode(24) {
		synctest.Test(t, func(t *testing.T) {
			u := &fake{begin: time.Now(), exchange: func(context.Context, wire.Query) (wire.RCode, error) { return code, nil }}
			m, err := New(u, Options{Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			p := m.probe(t.Context(), func() time.Duration { return time.Second }, time.Second)
			if weak := errors.Is(p.err, errProbeErrored); weak == (code == wire.NoError || code == wire.NXDomain || code == wire.YXDomain) {
				t.Errorf("%v: weak is %v", code, weak)
			}
		})
	}
}

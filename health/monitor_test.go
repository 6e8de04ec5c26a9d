package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"dotgate/gateway/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is an upstream that does what exchange says.
type fake struct {
	reached  bool // a dial gets somewhere
	mu       sync.Mutex
	exchange func(ctx context.Context, q wire.Query) (wire.RCode, error)
	probes   []time.Duration // when probes came, from the start
	begin    time.Time
	waiting  time.Time

	connected chan struct{}    // closed when there is a connection; nil if there always is
	distance  [2]time.Duration // what Latency returns; 10 ms and 40 ms if zero
}

const probeName = "probe.example.com"

func (u *fake) set(exchange func(context.Context, wire.Query) (wire.RCode, error)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.exchange = exchange
}

func (u *fake) Exchange(ctx context.Context, q wire.Query) (wire.Answer, error) {
	u.mu.Lock()
	if q.String() == probeName+". A" {
		u.probes = append(u.probes, time.Since(u.begin))
	}
	if u.waiting.IsZero() {
		u.waiting = time.Now()
	}
	exchange := u.exchange
	u.mu.Unlock()
	rcode, err := exchange(ctx, q)
	if err != nil {
		return wire.Answer{}, err
	}
	u.mu.Lock()
	u.waiting = time.Time{}
	u.mu.Unlock()
	return wire.ParseAnswer(q, q.AppendError(nil, rcode, wire.EDE{}))
}

func (u *fake) Ask(_ context.Context, q wire.Query, done func(wire.Answer, error)) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		done(u.Exchange(ctx, q))
	}()
}

func (u *fake) Connect(ctx context.Context) error {
	u.mu.Lock()
	connected := u.connected
	u.mu.Unlock()
	if connected == nil {
		return nil
	}
	select {
	case <-connected:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connectVia makes the upstream have no connection until connected is closed.
func (u *fake) connectVia(connected chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.connected = connected
}

func (u *fake) Silent() time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.waiting.IsZero() {
		return 0
	}
	return time.Since(u.waiting)
}

func (u *fake) Reached() bool { return u.reached }

func (u *fake) RateWait() time.Duration { return 0 }

func (u *fake) Latency() (usual, patience time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.distance[1] > 0 {
		return u.distance[0], u.distance[1]
	}
	return 10 * time.Millisecond, 40 * time.Millisecond
}

// sign is a sign of life, as a dial makes that gets further.
func (u *fake) sign() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.waiting.IsZero() {
		u.waiting = time.Now()
	}
}
func (u *fake) String() string { return "fake" }

// probed returns how many probes came since the start, and since the last call.
func (u *fake) probed() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := len(u.probes)
	return n
}

func well(context.Context, wire.Query) (wire.RCode, error) {
	time.Sleep(10 * time.Millisecond) // fake time
	return wire.NoError, nil
}

func broken(context.Context, wire.Query) (wire.RCode, error) {
	return 0, errors.New("connection refused")
}

func silent(ctx context.Context, _ wire.Query) (wire.RCode, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

// watch runs story against a monitor of a fake upstream that is well at first.
func watch(t *testing.T, story func(t *testing.T, u *fake, m *Monitor, ask func(name string) error)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		u := &fake{exchange: well, begin: time.Now()}
		m, err := New(u, Options{ProbeName: probeName, ProbeType: "A", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		synctest.Wait()
		time.Sleep(time.Second)
		story(t, u, m, func(name string) error {
			q, err := wire.NewQuery(name, "A")
			if err != nil {
				t.Fatal(err)
			}
			outcome := make(chan error)
			m.Ask(t.Context(), q, func(_ wire.Answer, err error) { outcome <- err })
			return <-outcome
		})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// until returns how long it takes for condition to hold, in fake time.
func until(t *testing.T, limit time.Duration, what string, condition func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	for !condition() {
		if time.Since(begin) > limit {
			t.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(begin)
}

func TestLiveAnswersMakeProbesNeedless(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		before := u.probed()
		for range 600 { // a minute of a query every 100 ms
			if err := ask("www.example.com"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(90 * time.Millisecond)
		}
		if n := u.probed() - before; n != 0 {
			t.Errorf("%d probes of a busy upstream", n)
		}
		time.Sleep(time.Minute)
		if n := u.probed() - before; n < 1 || n > 2 {
			t.Errorf("%d probes in a quiet minute, want one per interval", n)
		}
	})
}

func TestARefusingUpstreamIsDownAfterThreeFailuresAndAProbe(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(broken)
		for i := range 2 {
			_ = ask("www.example.com")
			synctest.Wait()
			if !m.State().IsUp() || m.State() == Suspect {
				t.Fatalf("down or suspect after %d failures", i+1)
			}
		}
		_ = ask("www.example.com")
		synctest.Wait()
		if m.State().IsUp() {
			t.Error("still up after three failures and a failing probe")
		}
	})
}

func TestASilentUpstreamIsSuspectAtOnceAndDownWithinASecond(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(silent)
		go func() { _ = ask("www.example.com") }()
		if took := until(t, time.Second, "suspect", func() bool { return m.State() == Suspect }); took > 45*time.Millisecond {
			t.Errorf("suspect after %v", took)
		}
		if took := until(t, time.Second, "down", func() bool { return !m.State().IsUp() }); took > 800*time.Millisecond {
			t.Errorf("down after %v", took)
		}
		u.set(well)
		if took := until(t, time.Second, "up again", func() bool { return m.State().IsUp() }); took > time.Second {
			t.Errorf("up again after %v", took)
		}
		time.Sleep(5 * time.Second) // the query that started it ends
	})
}

func TestAShortNetworkFailureTakesNoUpstreamOut(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		end := time.Now().Add(300 * time.Millisecond)
		u.set(func(context.Context, wire.Query) (wire.RCode, error) {
			time.Sleep(time.Until(end) + 300*time.Millisecond) // TCP sends again
			return wire.NoError, nil
		})
		if err := ask("www.example.com"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !m.State().IsUp() || m.State() == Suspect {
			t.Error("a blip took the upstream out")
		}
	})
}

func TestAMachineThatStoppedForAWhileTakesNoUpstreamOut(t *testing.T) {
	// Time passes, and no goroutine runs: the end of the probe is noticed too late.
	stopped := func(ctx context.Context, _ wire.Query) (wire.RCode, error) {
		<-ctx.Done()
		time.Sleep(2 * schedulerLag)
		return 0, ctx.Err()
	}
	for _, test := range []struct {
		name string
		next func(context.Context, wire.Query) (wire.RCode, error)
		up   bool
	}{{"the next probe is answered", well, true}, {"the next is late too", stopped, false}} {
		t.Run(test.name, func(t *testing.T) {
			watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
				u.set(stopped)
				go func() { _ = ask("www.example.com") }()
				until(t, time.Second, "suspect", func() bool { return m.State() == Suspect })
				time.Sleep(silenceMin)
				u.set(test.next)
				time.Sleep(2 * silenceMin)
				if changes := len(m.Changes()); (changes == 0) != test.up {
					t.Errorf("it went up or down %d times", changes)
				}
				u.set(well)
				time.Sleep(5 * time.Second)
			})
		})
	}
}

// The owner of a zone with silent or broken servers must not be able to take upstreams
// out with it.
func TestNamesThatNoUpstreamAnswersTakeNoneOut(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(func(ctx context.Context, q wire.Query) (wire.RCode, error) {
			switch q.String() {
			case "dead.example.com. A":
				return silent(ctx, q)
			case "bad.example.com. A":
				return 0, wire.ErrMalformed
			case "bogus.example.com. A":
				time.Sleep(10 * time.Millisecond)
				return wire.ServFail, nil
			}
			return well(ctx, q)
		})
		var all sync.WaitGroup
		for range 50 {
			for _, name := range []string{"dead.example.com", "bad.example.com", "bogus.example.com"} {
				all.Go(func() { _ = ask(name) })
			}
			time.Sleep(50 * time.Millisecond)
			if !m.State().IsUp() {
				t.Fatal("down because of names")
			}
		}
		all.Wait()
		if !m.State().IsUp() {
			t.Error("down because of names")
		}
	})
}

func TestOneBogusNameIsNoEvidenceButManyNamesAre(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		report := func(name string) {
			_ = ask(name)
			q, err := wire.NewQuery(name, "A")
			if err != nil {
				t.Fatal(err)
			}
			m.Report(q, errors.New("SERVFAIL"))
			synctest.Wait()
		}
		for range 1000 {
			report("bogus.example.com")
		}
		if !m.State().IsUp() {
			t.Fatal("down because of one name")
		}
		time.Sleep(2 * window)
		for i := 0; i < 20 && m.State().IsUp(); i++ {
			_ = ask(fmt.Sprintf("good%d.example.com", i))
			report(fmt.Sprintf("n%d.example.com", i))
		}
		if m.State().IsUp() {
			t.Error("still up although half of 40 names got an error here only")
		}
	})
}

func TestAnUpstreamThatAnswersEverythingWithErrorsIsOutWithinThreeSeconds(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(func(context.Context, wire.Query) (wire.RCode, error) { return wire.ServFail, nil })
		if m.State() == Erroring {
			t.Error("errs although it is up")
		}
		begin := time.Now()
		for i := 0; m.State().IsUp() && i < 30; i++ {
			name := fmt.Sprintf("n%d.example.com", i)
			_ = ask(name)
			q, _ := wire.NewQuery(name, "A")
			m.Report(q, errors.New("SERVFAIL"))
			time.Sleep(100 * time.Millisecond)
		}
		if m.State().IsUp() || time.Since(begin) > 3*time.Second {
			t.Errorf("up %v after %v", m.State().IsUp(), time.Since(begin))
		}
		if m.State() != Erroring {
			t.Error("it answers, if only errors, and that is why it is down")
		}
		u.set(silent)
		q, _ := wire.NewQuery("last.example.com", "A")
		m.Ask(t.Context(), q, func(wire.Answer, error) {})
		time.Sleep(50 * time.Millisecond) // fake time, more than its patience
		if m.State() == Erroring {
			t.Error("it has died since")
		}
		time.Sleep(5 * time.Second) // fake time, for the query
	})
}

// An upstream that was taken out for its errors comes back early if it has results where
// the others have errors by now, unless it still gets some names wrong.
func TestErroringEndsEarlyWhereTheOthersAreWorse(t *testing.T) {
	f := func(right, wrong int, early bool) {
		t.Helper()
		watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
			n := 0
			report := func(err error) {
				n++
				name := fmt.Sprintf("n%d.example.com", n)
				_ = ask(name)
				q, _ := wire.NewQuery(name, "A")
				m.Report(q, err)
			}
			for range mismatchedNamesMin {
				report(errors.New("REFUSED"))
			}
			synctest.Wait()
			if m.State() != Erroring {
				t.Fatalf("is %v", m.State())
			}
			for range right {
				report(nil)
			}
			for range wrong {
				report(errors.New("REFUSED"))
			}
			for range right {
				report(nil)
			}
			time.Sleep(time.Second)
			if m.State().IsUp() != early {
				t.Errorf("a second after %d results, %d errors and %d results, it is %v", right, wrong, right, m.State())
			}
			time.Sleep(2 * erroringPause)
			if !m.State().IsUp() {
				t.Errorf("%v after its errors, it is %v", 2*erroringPause, m.State())
			}
		})
	}
	f(mismatchedNamesMin/2, 0, true)
	f(mismatchedNamesMin/2, 1, false)
	f(mismatchedNamesMin/2-1, 0, false)
}

// The answer to a probe that began before the upstream was taken out for its errors does
// not bring it back: erroringPause is the least time.
func TestAProbeInProgressDoesNotEndErroring(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, _ func(string) error) {
		before := u.probed()
		for i := range mismatchedNamesMin {
			q, _ := wire.NewQuery(fmt.Sprintf("n%d.example.com", i), "A")
			m.onOutcome(q, nil)
			m.Report(q, errors.New("REFUSED"))
			synctest.Wait()
		}
		if m.State() != Erroring || u.probed() != before+1 {
			t.Fatalf("is %v, %d probes", m.State(), u.probed()-before)
		}
		time.Sleep(erroringPause - time.Second)
		if m.State() != Erroring {
			t.Errorf("after %v, it is %v", erroringPause-time.Second, m.State())
		}
		time.Sleep(erroringPause)
		if !m.State().IsUp() {
			t.Errorf("it is %v in the end", m.State())
		}
	})
}

// One client, or the owner of one zone, does not bring an upstream back early, however many
// of its names the others get wrong.
func TestNoZoneEndsErroringEarly(t *testing.T) {
	f := func(names, domains, clients int, early bool) {
		t.Helper()
		watch(t, func(t *testing.T, _ *fake, m *Monitor, _ func(string) error) {
			report := func(name string, client int, err error) {
				q, _ := wire.NewQuery(name, "A")
				q = q.WithClient(uint16(client))
				m.onOutcome(q, nil)
				m.Report(q, err)
			}
			for i := range 30 {
				report(fmt.Sprintf("www.domain%d.example", i), 1+i%7, errors.New("REFUSED"))
			}
			synctest.Wait()
			if m.State() != Erroring {
				t.Fatalf("is %v", m.State())
			}
			for i := range 100 {
				report(fmt.Sprintf("n%d.domain%d.example", i%names, i%domains), 1+i%clients, nil)
			}
			time.Sleep(time.Second)
			if m.State().IsUp() != early {
				t.Errorf("a second after results for %d names of %d domains for %d clients, it is %v", names, domains, clients, m.State())
			}
		})
	}
	f(10, 10, 7, true)
	f(1, 1, 7, false)
	f(100, 1, 7, false)
	f(100, 10, 1, false)
	f(5, 5, 7, false)
}

func TestAProbeNameThatDoesNotResolveTakesNoUpstreamOut(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(func(context.Context, wire.Query) (wire.RCode, error) { return wire.ServFail, nil })
		time.Sleep(5 * time.Minute)
		if !m.State().IsUp() {
			t.Error("down because the probe's name alone gets an error")
		}
	})
}

// backoff's default ends after 15 minutes; gobreaker's open state lasts 60 s.
func TestProbesOfADeadUpstreamSlowDownButNeverEnd(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(broken)
		until(t, time.Minute, "down", func() bool { return !m.State().IsUp() || ask("www.example.com") == nil })
		if m.State() == Erroring {
			t.Error("said to answer")
		}
		before := u.probed()
		time.Sleep(30 * time.Second)
		early := u.probed() - before
		if early < 4 || early > 30 {
			t.Errorf("%d probes in the first 30 s", early)
		}
		before = u.probed()
		time.Sleep(10 * time.Minute)
		if n := u.probed() - before; n < 60 || n > 100 {
			t.Errorf("%d probes in 10 minutes, want at most 10 a minute and at least 6", n)
		}
		time.Sleep(6 * time.Hour)
		u.set(well)
		if took := until(t, time.Minute, "up again", func() bool { return m.State().IsUp() }); took > 10*time.Second {
			t.Errorf("up again %v after it was well, 6 hours later", took)
		}
	})
}

func TestALiveAnswerWhileDownIsCheckedAtOnce(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(broken)
		until(t, time.Minute, "down", func() bool { return !m.State().IsUp() || ask("www.example.com") == nil })
		time.Sleep(time.Minute) // waits have grown
		u.set(well)
		if err := ask("www.example.com"); err != nil {
			t.Fatal(err)
		}
		if took := until(t, time.Minute, "up again", func() bool { return m.State().IsUp() }); took > 20*time.Millisecond {
			t.Errorf("up again %v after it answered a client", took)
		}
	})
}

func TestProbeNowDoesNotWaitForTheNextProbe(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(broken)
		until(t, time.Minute, "down", func() bool { return !m.State().IsUp() || ask("www.example.com") == nil })
		time.Sleep(time.Minute) // waits have grown
		u.set(well)
		m.ProbeNow()
		if took := until(t, time.Minute, "up again", func() bool { return m.State().IsUp() }); took > 20*time.Millisecond {
			t.Errorf("up again after %v", took)
		}
	})
}

func TestAProbeOfADeadUpstreamWaitsForAConnection(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(broken)
		until(t, time.Minute, "down", func() bool { return !m.State().IsUp() || ask("www.example.com") == nil })
		connected := make(chan struct{})
		u.connectVia(connected)
		time.Sleep(time.Minute) // waits have grown
		u.set(well)
		before := u.probed()
		time.Sleep(15 * time.Second)
		if n := u.probed() - before; n != 0 {
			t.Errorf("%d probes without a connection", n)
		}
		close(connected)
		if took := until(t, time.Minute, "up again", func() bool { return m.State().IsUp() }); took > 5*time.Second {
			t.Errorf("up again %v after a connection was there", took)
		}
	})
}

// A client that leaves, or a full gateway, is not the upstream's failure, and no
// success either: it must not hide failures in a row.
func TestExcusedOutcomesDoNotCount(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		for _, excuse := range []error{context.Canceled, fmt.Errorf("x: %w", context.DeadlineExceeded), busy{}} {
			u.set(func(context.Context, wire.Query) (wire.RCode, error) { return 0, excuse })
			for range 100 {
				_ = ask("www.example.com")
			}
		}
		if m.failures.Load() != 0 || !m.State().IsUp() {
			t.Error("excused outcomes were counted as failures")
		}
		live := errors.New("reset")
		u.set(func(context.Context, wire.Query) (wire.RCode, error) { return 0, live })
		_ = ask("www.example.com")
		live = context.Canceled
		_ = ask("www.example.com")
		if n := m.failures.Load(); n != 1 {
			t.Errorf("%d failures in a row, want the one before the excused outcome", n)
		}
	})
}

type busy struct{}

func (busy) Error() string { return "busy" }
func (busy) Excused() bool { return true }

// A half-open breaker of gobreaker waits for ever for an outcome that does not
// come. Outcomes that are recorded at the end of a query leave none behind.
func TestHungProbesLeaveNoHalfOpenSlotBehind(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(silent)
		go func() { _ = ask("www.example.com") }()
		until(t, 2*time.Second, "down", func() bool { return !m.State().IsUp() })
		for range 20 {
			go func() { _ = ask("www.example.com") }()
		}
		time.Sleep(time.Minute)
		u.set(well)
		until(t, 15*time.Second, "up again", func() bool { return m.State().IsUp() })
	})
}

func TestOptionsThatMakeNoSenseAreReportedTogether(t *testing.T) {
	_, err := New(&fake{}, Options{Interval: -1, Failures: -1, ProbeType: "NOPE", ProbeName: "a..b"})
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 4 {
		t.Errorf("got %v, want 4 problems", err)
	}
}

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
	mu       sync.Mutex
	exchange func(ctx context.Context, q wire.Query) (wire.RCode, error)
	probes   []time.Duration // when probes came, from the start
	begin    time.Time
	waiting  time.Time

	connected chan struct{} // closed when there is a connection; nil if there always is
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

func (u *fake) Ask(q wire.Query, done func(wire.Answer, error)) {
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

func (u *fake) Latency() (usual, patience time.Duration) {
	return 10 * time.Millisecond, 40 * time.Millisecond
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
			m.Ask(q, func(_ wire.Answer, err error) { outcome <- err })
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
			if !m.Up() || m.Suspect() {
				t.Fatalf("down or suspect after %d failures", i+1)
			}
		}
		_ = ask("www.example.com")
		synctest.Wait()
		if m.Up() {
			t.Error("still up after three failures and a failing probe")
		}
	})
}

func TestASilentUpstreamIsSuspectAtOnceAndDownWithinASecond(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(silent)
		go func() { _ = ask("www.example.com") }()
		if took := until(t, time.Second, "suspect", m.Suspect); took > 45*time.Millisecond {
			t.Errorf("suspect after %v", took)
		}
		if took := until(t, time.Second, "down", func() bool { return !m.Up() }); took > 800*time.Millisecond {
			t.Errorf("down after %v", took)
		}
		u.set(well)
		if took := until(t, time.Second, "up again", m.Up); took > time.Second {
			t.Errorf("up again after %v", took)
		}
		time.Sleep(5 * time.Second) // the query that started it ends
	})
}

func TestABlipOfTheNetworkTakesNobodyOut(t *testing.T) {
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
		if !m.Up() || m.Suspect() {
			t.Error("a blip took the upstream out")
		}
	})
}

func TestAMachineThatStoppedForAWhileIsNotTheUpstreamsFault(t *testing.T) {
	// Time passes, and nobody looks: the end of the probe is seen too late.
	stopped := func(ctx context.Context, _ wire.Query) (wire.RCode, error) {
		<-ctx.Done()
		time.Sleep(2 * tardy)
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
				until(t, time.Second, "suspect", m.Suspect)
				time.Sleep(verdictMin)
				u.set(test.next)
				time.Sleep(2 * verdictMin)
				if changes := len(m.Changes()); (changes == 0) != test.up {
					t.Errorf("it went up or down %d times", changes)
				}
				u.set(well)
				time.Sleep(5 * time.Second)
			})
		})
	}
}

// Whoever owns a zone with silent or broken servers must not be able to take
// upstreams out with it.
func TestNamesThatNobodyAnswersTakeNoUpstreamOut(t *testing.T) {
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
			if !m.Up() {
				t.Fatal("down because of names")
			}
		}
		all.Wait()
		if !m.Up() {
			t.Error("down because of names")
		}
	})
}

func TestOneBogusNameIsNoEvidenceButManyFaultyNamesAre(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		blame := func(name string) {
			_ = ask(name)
			q, err := wire.NewQuery(name, "A")
			if err != nil {
				t.Fatal(err)
			}
			m.Blame(q, errors.New("SERVFAIL"))
			synctest.Wait()
		}
		for range 1000 {
			blame("bogus.example.com")
		}
		if !m.Up() {
			t.Fatal("down because of one name")
		}
		time.Sleep(2 * window)
		for i := 0; i < 20 && m.Up(); i++ {
			_ = ask(fmt.Sprintf("good%d.example.com", i))
			blame(fmt.Sprintf("n%d.example.com", i))
		}
		if m.Up() {
			t.Error("still up although half of 40 names got an error here only")
		}
	})
}

func TestAnUpstreamThatAnswersEverythingWithErrorsIsOutWithinThreeSeconds(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(func(context.Context, wire.Query) (wire.RCode, error) { return wire.ServFail, nil })
		if m.Errs() {
			t.Error("errs although it is up")
		}
		begin := time.Now()
		for i := 0; m.Up() && i < 30; i++ {
			name := fmt.Sprintf("n%d.example.com", i)
			_ = ask(name)
			q, _ := wire.NewQuery(name, "A")
			m.Blame(q, errors.New("SERVFAIL"))
			time.Sleep(100 * time.Millisecond)
		}
		if m.Up() || time.Since(begin) > 3*time.Second {
			t.Errorf("up %v after %v", m.Up(), time.Since(begin))
		}
		if !m.Errs() {
			t.Error("it answers, if only errors, and that is why it is down")
		}
		u.set(silent)
		q, _ := wire.NewQuery("last.example.com", "A")
		m.Ask(q, func(wire.Answer, error) {})
		time.Sleep(50 * time.Millisecond) // fake time, more than its patience
		if m.Errs() {
			t.Error("it has died since")
		}
		time.Sleep(5 * time.Second) // fake time, for the query
	})
}

func TestAProbeNameThatDoesNotResolveTakesNobodyOut(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(func(context.Context, wire.Query) (wire.RCode, error) { return wire.ServFail, nil })
		time.Sleep(5 * time.Minute)
		if !m.Up() {
			t.Error("down because the probe's name alone gets an error")
		}
	})
}

// backoff's default ends after 15 minutes; gobreaker's open state lasts 60 s.
func TestProbesOfADeadUpstreamSlowDownButNeverEnd(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(broken)
		until(t, time.Minute, "down", func() bool { return !m.Up() || ask("www.example.com") == nil })
		if m.Errs() {
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
		if took := until(t, time.Minute, "up again", m.Up); took > 10*time.Second {
			t.Errorf("up again %v after it was well, 6 hours later", took)
		}
	})
}

func TestALiveAnswerWhileDownIsCheckedAtOnce(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(broken)
		until(t, time.Minute, "down", func() bool { return !m.Up() || ask("www.example.com") == nil })
		time.Sleep(time.Minute) // waits have grown
		u.set(well)
		if err := ask("www.example.com"); err != nil {
			t.Fatal(err)
		}
		if took := until(t, time.Minute, "up again", m.Up); took > 20*time.Millisecond {
			t.Errorf("up again %v after it answered a client", took)
		}
	})
}

func TestWhoHasReasonToThinkThatItIsBackNeedNotWaitForTheNextProbe(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(broken)
		until(t, time.Minute, "down", func() bool { return !m.Up() || ask("www.example.com") == nil })
		time.Sleep(time.Minute) // waits have grown
		u.set(well)
		m.Recheck()
		if took := until(t, time.Minute, "up again", m.Up); took > 20*time.Millisecond {
			t.Errorf("up again after %v", took)
		}
	})
}

func TestAProbeOfADeadUpstreamWaitsForAConnection(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(broken)
		until(t, time.Minute, "down", func() bool { return !m.Up() || ask("www.example.com") == nil })
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
		if took := until(t, time.Minute, "up again", m.Up); took > 5*time.Second {
			t.Errorf("up again %v after a connection was there", took)
		}
	})
}

// A client that leaves, or a full gateway, is not the upstream's failure, and no
// success either: it must not hide failures in a row.
func TestExcusedOutcomesDoNotVote(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		for _, excuse := range []error{context.Canceled, fmt.Errorf("x: %w", context.DeadlineExceeded), busy{}} {
			u.set(func(context.Context, wire.Query) (wire.RCode, error) { return 0, excuse })
			for range 100 {
				_ = ask("www.example.com")
			}
		}
		if m.failures.Load() != 0 || !m.Up() {
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
// come. Votes at the end of an exchange can't leave one behind.
func TestHungProbesLeaveNoHalfOpenSlotBehind(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, ask func(string) error) {
		u.set(silent)
		go func() { _ = ask("www.example.com") }()
		until(t, 2*time.Second, "down", func() bool { m.Suspect(); return !m.Up() })
		for range 20 {
			go func() { _ = ask("www.example.com") }()
		}
		time.Sleep(time.Minute)
		u.set(well)
		until(t, 15*time.Second, "up again", m.Up)
	})
}

func TestOptionsThatMakeNoSenseAreReportedTogether(t *testing.T) {
	_, err := New(&fake{}, Options{Interval: -1, Failures: -1, ProbeType: "NOPE", ProbeName: "a..b"})
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 4 {
		t.Errorf("got %v, want 4 problems", err)
	}
}

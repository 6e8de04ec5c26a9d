package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/internal/peers"
	"dotgate/gateway"
	"dotgate/gateway/access"
	"dotgate/gateway/redis"
	"dotgate/gateway/wire"
	"dotgate/health"
	"dotgate/upstreams"
)

// A world is a gateway of which all that operators see is made up.
type world struct {
	*Server
	mu      sync.Mutex // guards all below
	states  map[string]health.State
	drilled string // the fault under way, with its upstream
	clients gateway.Counts
	told    []string
	ordered string // the last SetAdminState
}

func newWorld(names ...string) *world {
	w := &world{states: make(map[string]health.State)}
	var members []Member
	for _, name := range names {
		w.states[name] = health.Up
		u := &fake{w, name}
		members = append(members, Member{Upstream: u, Monitor: u})
	}
	w.Server = New(Options{
		Version: "v1", Gateway: w, Process: w, Balancer: counting{}, Members: func() []Member { return members }, Log: slog.New(slog.DiscardHandler),
		Outage: func() string { return "" }, Network: upstreams.NewNetwork(slog.New(slog.DiscardHandler)), LogDropped: func() uint64 { return 0 },
		Peers: func() peers.Status { return peers.Status{} }, Redis: func() redis.Counts { return redis.Counts{} },
	})
	return w
}

func (w *world) OnLink() []access.Link { return nil }

func (w *world) Addrs() []netip.AddrPort {
	return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}
}

func (w *world) Counts() gateway.Counts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clients
}

func (w *world) Reload() (Reloaded, error) { return Reloaded{Changed: []string{"upstreams"}}, nil }

func (w *world) Explain(_ context.Context, name, recordType string) (Explanation, error) {
	return Explanation{Query: name + " " + recordType}, nil
}

func (w *world) RecentQueries() *RecentQueries { return new(RecentQueries) }

func (w *world) Yield() {}

func (w *world) Health() Health {
	return Health{Name: "probe.example.com", Type: "A", Token: Token{15: 0xab}}
}

func (w *world) SetAdminState(upstream string, o health.AdminState) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.states[upstream]; !ok {
		return fmt.Errorf("upstream: %q %w", upstream, ErrUnknown)
	}
	if o == health.ForcedDown {
		return errors.New("it is the last one")
	}
	w.ordered = upstream + " " + o.String()
	return nil
}

func (w *world) Latency() gateway.Latency { return gateway.Latency{} }

type counting struct{}

func (counting) Counts() balancer.Counts               { return balancer.Counts{Hedges: 1, Retries: 2, Seconds: 3} }
func (counting) Candidates() []balancer.CandidateTrace { return nil }

// fake is an upstream and its monitor.
type fake struct {
	world *world
	name  string
}

func (f *fake) String() string              { return f.name }
func (f *fake) Addresses() []netip.AddrPort { return nil }
func (f *fake) Counts() upstreams.Counts    { return upstreams.Counts{Sent: 7, Open: 2} }
func (f *fake) History() upstreams.History {
	return upstreams.History{NotAfter: time.Unix(1e9, 0).UTC()}
}
func (f *fake) Changes() []health.Change {
	return []health.Change{{At: time.Unix(1e9, 0).UTC(), State: health.Down, Lasted: time.Second, Reason: "why"}}
}
func (f *fake) LastFailure() upstreams.Failure {
	return upstreams.Failure{At: time.Unix(1e9, 0).UTC(), Outcome: upstreams.TLSAlert, Err: errors.New("no")}
}

func (f *fake) Drill(ctx context.Context, d upstreams.Drill) error {
	f.world.fault(f.name + " " + d.String())
	defer f.world.fault("")
	<-ctx.Done()
	return nil
}

func (f *fake) Status() health.Status {
	f.world.mu.Lock()
	defer f.world.mu.Unlock()
	s := health.Status{State: f.world.states[f.name], Usual: 20 * time.Millisecond}
	if s.State != health.Up {
		s.Reason = "it is drilled"
	}
	return s
}

func (w *world) fault(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drilled = text
}

func (w *world) underFault() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.drilled
}

func (w *world) set(name string, s health.State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.states[name] = s
}

// serve counts what clients got.
func (w *world) serve(answered, failed uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clients.Outcomes[gateway.Answered][wire.UDP] += answered
	w.clients.Outcomes[gateway.TimedOut][wire.TCP] += failed
}

func (w *world) tell(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, e.Text)
}

func (w *world) news() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.told, "\n")
}

func request(upstream, fault string, length time.Duration) Request {
	return Request{Upstream: upstream, Fault: fault, For: Millis(length), Before: Millis(5 * time.Second)}
}

func (w *world) phase(t *testing.T, want, fault string) {
	t.Helper()
	synctest.Wait()
	got := ""
	if d := w.Status().Drill; d != nil {
		got = d.Phase
	}
	if got != want || w.underFault() != fault {
		t.Errorf("in the phase %q with %q, want %q with %q", got, w.underFault(), want, fault)
	}
}

func TestADrillReportsWhatHappened(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("one", "two")
		w.serve(1000, 50)
		var report Report
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			report, err = w.runDrill(t.Context(), request("one", "blackhole", 10*time.Second), w.tell)
		}()
		time.Sleep(time.Second)
		w.phase(t, "before", "")
		w.serve(100, 0)
		time.Sleep(4*time.Second + 43*time.Millisecond) // the drill's first 43 ms
		w.phase(t, "during", "one blackhole")
		if ends := w.Status().Drill.Ends; time.Until(ends) != 10*time.Second-43*time.Millisecond {
			t.Errorf("it ends in %v", time.Until(ends))
		}
		w.serve(200, 1)
		w.set("one", health.Suspect)
		time.Sleep(700 * time.Millisecond)
		w.set("one", health.Down)
		time.Sleep(10 * time.Second)
		w.phase(t, "after", "")
		w.serve(300, 2)
		time.Sleep(2 * time.Second)
		w.set("one", health.Up)
		<-done
		if err != nil {
			t.Fatal(err)
		}
		w.phase(t, "", "")
		near := func(what string, got *Millis, want time.Duration) {
			t.Helper()
			if got == nil || time.Duration(*got) < want || time.Duration(*got) > want+2*lookEvery {
				t.Errorf("%s: got %v, want %v", what, got, want)
			}
		}
		near("suspected", report.Suspected, 43*time.Millisecond)
		near("down", report.Down, 743*time.Millisecond)
		near("back", report.Back, 2743*time.Millisecond)
		near("lasted", &report.During.Lasted, 10*time.Second)
		if report.Ended != "its time was up" || report.Lost() != 3 || report.Before.Queries != 100 ||
			report.During.Queries != 201 || report.During.Lost != 1 || report.After.Queries != 302 || report.After.Lost != 2 {
			t.Errorf("got %+v", report)
		}
		want := "measuring for 5s without the fault\none: blackhole, for 10s\none is suspect after 45ms\n" +
			"one is down after 745ms: it is drilled\nthe fault has ended: its time was up"
		if w.news() != want {
			t.Errorf("it tells\n%s\nwant\n%s", w.news(), want)
		}
	})
}

func TestADrillEndsEarly(t *testing.T) {
	t.Parallel()
	left := errors.New("gone")
	f := func(what string, happen func(w *world, leave context.CancelCauseFunc), want string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld("one", "two")
			ctx, leave := context.WithCancelCause(t.Context())
			defer leave(nil)
			reports := make(chan Report)
			go func() {
				report, err := w.runDrill(ctx, request("one", "close", time.Minute), w.tell)
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
				reports <- report
			}()
			time.Sleep(7 * time.Second)
			w.phase(t, "during", "one close")
			happen(w, leave)
			report := <-reports
			if report.Ended != want || time.Duration(report.During.Lasted) > 2*time.Second+lookEvery {
				t.Errorf("%s: ended after %v because %s, want %s", what, report.During.Lasted, report.Ended, want)
			}
			w.phase(t, "", "")
		})
	}
	f("the caller leaves", func(_ *world, leave context.CancelCauseFunc) { leave(left) }, "gone")
	f("by hand", func(w *world, _ context.CancelCauseFunc) { w.endDrill() }, "it was ended by hand")
	f("no other is up", func(w *world, _ context.CancelCauseFunc) { w.set("two", health.Down) }, "no other upstream is up any more")
}

func TestAnUpstreamThatDoesNotReturnIsNotWaitedForForever(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("one", "two")
		time.AfterFunc(6*time.Second, func() { w.set("one", health.Down) })
		report, err := w.runDrill(t.Context(), request("one", "delay=1s", 10*time.Second), w.tell)
		if err != nil || report.Back != nil || time.Duration(report.After.Lasted) != returnMax {
			t.Errorf("%+v, %v", report, err)
		}
	})
}

func TestADrillThatEndsBeforeItBeganIsAnError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("one", "two")
		time.AfterFunc(time.Second, func() { w.endDrill() })
		_, err := w.runDrill(t.Context(), request("one", "close", time.Minute), w.tell)
		if !errors.Is(err, errEnded) {
			t.Errorf("got %v", err)
		}
		time.AfterFunc(time.Second, func() { w.set("two", health.Down) })
		_, err = w.runDrill(t.Context(), request("one", "close", time.Minute), w.tell)
		if err == nil || !strings.Contains(err.Error(), "no upstream but one is up any more") {
			t.Errorf("got %v", err)
		}
		w.phase(t, "", "")
	})
}

func TestWhatCannotBeDrilledIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld("one", "two")
	f := func(r Request, want string) {
		t.Helper()
		if _, err := w.runDrill(t.Context(), r, w.tell); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	f(request("three", "close", time.Minute), `upstream: "three" does not exist; there are one, two`)
	f(request("one", "fire", time.Minute), `fault: "fire" is no fault; there are`)
	f(request("one", "close", 0), "for: 0s must be above 0 and at most 10m0s")
	f(request("one", "close", DrillMax+1), "must be above 0 and at most 10m0s")
	f(Request{Upstream: "one", Fault: "close", For: 1, Before: Millis(time.Hour)}, "before: 1h0m0s must not be below 0 nor above 1m0s")
	w.set("two", health.Down)
	f(request("one", "close", time.Minute), "no upstream but one is up: clients would have no upstream")
	if w.news() != "" {
		t.Errorf("it tells %s", w.news())
	}
	w.set("two", health.Suspect)
	w.set("one", health.Down)
	if w.alone(w.o.Members()[0]) || !w.alone(w.o.Members()[1]) {
		t.Error("an upstream that is suspect is up, one that is down is not")
	}
}

func TestThereIsOneDrillAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("one", "two", "three")
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.runDrill(t.Context(), request("one", "close", time.Minute), w.tell)
		}()
		for _, phase := range []string{"before", "during", "after"} {
			for w.Status().Drill == nil || w.Status().Drill.Phase != phase {
				time.Sleep(100 * time.Millisecond)
			}
			_, err := w.runDrill(t.Context(), request("two", "blackhole", time.Minute), w.tell)
			if err == nil || err.Error() != "a drill of one is running already (close); only one can run at a time" {
				t.Errorf("%s: %v", phase, err)
			}
		}
		<-done
	})
}

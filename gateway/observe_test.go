package gateway

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/access"
	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
)

// A traceRecorder is a Tracer that records traces, and a Resolver that records the trace of
// each query.
type traceRecorder struct {
	Resolver

	mu    sync.Mutex
	begun int
	lines []string
}

type traceKey struct{}

func (w *traceRecorder) Begin() context.Context {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun++
	return context.WithValue(context.Background(), traceKey{}, w.begun)
}

func (w *traceRecorder) Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	if trace := ctx.Value(traceKey{}); trace != nil {
		w.note("%v is asked", trace)
	}
	w.Resolver.Ask(ctx, q, done)
}

func (w *traceRecorder) End(trace context.Context, t Traced) {
	trail, took := "at once", ""
	if trace.Value(traceKey{}) != nil {
		trail, took = fmt.Sprint(trace.Value(traceKey{})), fmt.Sprint(" after ", time.Since(t.Began))
	}
	found := map[cache.Result]string{cache.Fresh: " fresh", cache.FreshRenew: " fresh", cache.Stale: " stale"}[t.Found]
	if t.Coalesced {
		found += " coalesced"
	}
	if t.Err != nil {
		found += " for " + t.Err.Error()
	}
	if t.EDE != (wire.EDE{}) {
		found += fmt.Sprint(" ede=", t.EDE.Code)
	}
	w.note("%s %v %v%s%s", trail, t.Outcome, wire.HeaderRCode(t.Reply), found, took)
}

func (w *traceRecorder) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, fmt.Sprintf(format, args...))
}

// saw compares the records since the last call.
func (w *traceRecorder) saw(t *testing.T, want ...string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := strings.Join(w.lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("saw\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	w.lines = nil
}

// withTracer is withFakeTime with a traceRecorder.
func withTracer(t *testing.T, o Options, f func(h *fixture, w *traceRecorder)) {
	t.Helper()
	w := new(traceRecorder)
	o.Tracer = w
	withFakeTime(t, o, func(h *fixture) {
		w.Resolver = h
		h.config().resolver = w
		f(h, w)
	})
}

func TestATracerFollowsEachQueryToItsEnd(t *testing.T) {
	withTracer(t, Options{}, func(h *fixture, w *traceRecorder) {
		h.becomes(after(20*time.Millisecond, addressed))
		h.expect("NOERROR 60 after 20ms")
		w.saw(t, "1 is asked", "1 answered NOERROR after 20ms")
		h.expect("NOERROR 60 after 0s")
		w.saw(t, "at once answered NOERROR fresh")
		time.Sleep(time.Minute)
		h.becomes(failing)
		h.expect("NOERROR 30 ede=3 after 0s")
		w.saw(t, "2 is asked", "2 answered NOERROR stale for "+errTest.Error()+" after 0s")
		h.becomes(after(time.Second, addressed))
		h.expect("NOERROR 30 ede=3 after 400ms")
		w.saw(t, "3 is asked", "3 answered NOERROR stale for context deadline exceeded after 400ms")
	})
}

func TestATracerGetsFailures(t *testing.T) {
	withTracer(t, Options{MaxQueries: 1}, func(h *fixture, w *traceRecorder) {
		h.becomes(failing)
		h.expect("SERVFAIL ede=22 after 0s")
		w.saw(t, "1 is asked", "1 failed SERVFAIL for "+errTest.Error()+" ede=22 after 0s")
		h.becomes(servfail)
		h.expect("SERVFAIL after 0s")
		w.saw(t, "2 is asked", "2 answered SERVFAIL after 0s")
		h.slots.take(access.NoCheck)
		h.exchange(query("crowded.example.com."))
		h.slots.release()
		w.saw(t, "at once overload SERVFAIL")
	})
}

func TestOneQueryOfACallHasTheResolversTrace(t *testing.T) {
	withTracer(t, Options{}, func(h *fixture, w *traceRecorder) {
		h.becomes(after(20*time.Millisecond, addressed))
		var clients sync.WaitGroup
		for i := range 2 {
			clients.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				h.exchange(query("www.example.com."))
			})
		}
		clients.Wait()
		w.saw(t, "1 is asked", "1 answered NOERROR after 20ms", "2 answered NOERROR coalesced after 19ms")
	})
}

func TestRenewalsHaveNoTrace(t *testing.T) {
	withTracer(t, Options{}, func(h *fixture, w *traceRecorder) {
		hit := "at once answered NOERROR fresh"
		for range 4 {
			h.expect("NOERROR 60 after 0s")
		}
		w.saw(t, "1 is asked", "1 answered NOERROR after 0s", hit, hit, hit)
		time.Sleep(55 * time.Second)
		h.expect("NOERROR 5 after 0s")
		synctest.Wait()
		h.expectAsked(2)
		w.saw(t, hit)
	})
}

func TestRefusedQueriesAndLocalNamesHaveNoTrace(t *testing.T) {
	withTracer(t, Options{}, func(h *fixture, w *traceRecorder) {
		h.exchange(query("localhost."))
		h.exchange(query("version.bind.").SetQuestion("version.bind.", 16))
		w.saw(t, "1 is asked", "1 answered NOERROR after 0s") // the latter, which is nothing special in class IN
		h.tryAnswer(nil, unwanted["chaos"].packet, localClient(h.Gateway, &h.counters))
		h.tryAnswer(nil, []byte("rubbish"), localClient(h.Gateway, &h.counters))
		w.saw(t)
	})
}

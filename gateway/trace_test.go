package gateway

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
)

// A witness is a Tracer that writes down what it is told, and a Resolver that is told
// for which queries it is asked.
type witness struct {
	Resolver

	mu    sync.Mutex
	begun int
	lines []string
}

type witnessKey struct{}

func (w *witness) Begin() context.Context {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun++
	return context.WithValue(context.Background(), witnessKey{}, w.begun)
}

func (w *witness) AskFor(trace context.Context, q wire.Query, deadline time.Time, done func(wire.Answer, error)) {
	w.note("%v is asked", trace.Value(witnessKey{}))
	w.Ask(q, deadline, done)
}

func (w *witness) End(trace context.Context, t Traced) {
	who, took := "at once", ""
	if trace != nil {
		who, took = fmt.Sprint(trace.Value(witnessKey{})), fmt.Sprint(" after ", time.Since(t.Began))
	}
	found := map[cache.Found]string{cache.Fresh: " fresh", cache.Due: " fresh", cache.Stale: " stale"}[t.Found]
	if t.Coalesced {
		found += " coalesced"
	}
	if t.Err != nil {
		found += " for " + t.Err.Error()
	}
	if t.EDE != (wire.EDE{}) {
		found += fmt.Sprint(" ede=", t.EDE.Code)
	}
	w.note("%s %v %v%s%s", who, t.Outcome, wire.HeaderRCode(t.Reply), found, took)
}

func (w *witness) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, fmt.Sprintf(format, args...))
}

// saw checks what happened since the last time.
func (w *witness) saw(t *testing.T, want ...string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := strings.Join(w.lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("saw\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	w.lines = nil
}

// inSight is inHouse with a witness.
func inSight(t *testing.T, o Options, f func(h *house, w *witness)) {
	t.Helper()
	w := new(witness)
	o.Tracer = w
	inHouse(t, o, func(h *house) {
		w.Resolver = h
		h.now().resolver = w
		f(h, w)
	})
}

func TestATracerFollowsEachQueryToItsEnd(t *testing.T) {
	inSight(t, Options{}, func(h *house, w *witness) {
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

func TestATracerIsToldOfFailures(t *testing.T) {
	inSight(t, Options{MaxQueries: 1}, func(h *house, w *witness) {
		h.becomes(failing)
		h.expect("SERVFAIL ede=22 after 0s")
		w.saw(t, "1 is asked", "1 failed SERVFAIL for "+errTest.Error()+" ede=22 after 0s")
		h.becomes(says(wire.ServFail))
		h.expect("SERVFAIL after 0s")
		w.saw(t, "2 is asked", "2 answered SERVFAIL after 0s")
		h.slots.take()
		h.exchange(query("crowded.example.com."))
		h.slots.release()
		w.saw(t, "at once shed SERVFAIL")
	})
}

func TestOnlyOneOfThoseWhoWaitTogetherIsAskedFor(t *testing.T) {
	inSight(t, Options{}, func(h *house, w *witness) {
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

func TestWhatIsRenewedForNobodyHasNoTrace(t *testing.T) {
	inSight(t, Options{}, func(h *house, w *witness) {
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

func TestWhatIsRefusedOrKnownHereHasNoTrace(t *testing.T) {
	inSight(t, Options{}, func(h *house, w *witness) {
		h.exchange(query("localhost."))
		h.exchange(query("version.bind.").SetQuestion("version.bind.", 16))
		w.saw(t, "1 is asked", "1 answered NOERROR after 0s") // the latter, which is nothing special in class IN
		h.answerNow(nil, unwanted["chaos"].packet, localClient(), &h.tally)
		h.answerNow(nil, []byte("rubbish"), localClient(), &h.tally)
		w.saw(t)
	})
}

package upstreams

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/wire"
)

// results collects the results of queries with their times.
type results struct {
	begin time.Time

	mu   sync.Mutex
	text []string
}

// ask sends a query, and records its result.
func (r *results) ask(t *testing.T, u *Upstream, label string) {
	t.Helper()
	q, err := wire.NewQuery(label+".example.com", "A")
	if err != nil {
		t.Fatal(err)
	}
	u.Ask(t.Context(), q, func(_ wire.Answer, err error) {
		result := "answered"
		if err != nil {
			result = err.Error()
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.text = append(r.text, fmt.Sprintf("%s %s@%v", label, result, time.Since(r.begin)))
	})
}

func (r *results) expect(t *testing.T, want string) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if got := strings.Join(r.text, " | "); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestQueriesJoinTheDialInProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeServer{fakeBehaviour: fakeBehaviour{handshake: 100 * time.Millisecond}}
		u := openFake(t, s, Options{})
		r := &results{begin: time.Now()}
		r.ask(t, u, "a")
		time.Sleep(50 * time.Millisecond)
		r.ask(t, u, "b")
		time.Sleep(50 * time.Millisecond)
		r.expect(t, "a answered@100ms | b answered@100ms")
		if n := s.set(fakeBehaviour{}); n != 1 {
			t.Errorf("%d dials", n)
		}
	})
}

// A query that finds all places of the only stream taken waits for the dial in progress.
func TestAQueryWithoutAPlaceJoinsTheDialInProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(fakeServer)
		u := openFake(t, s, Options{})
		r := &results{begin: time.Now()}
		r.ask(t, u, "first")
		r.expect(t, "first answered@0s")
		q, err := wire.NewQuery("www.example.com", "A")
		if err != nil {
			t.Fatal(err)
		}
		open := u.streams[0]
		s.silence()              // an answer would make room
		open.pending.Store(busy) // so that another one is dialled
		s.set(fakeBehaviour{handshake: 30 * time.Millisecond})
		if err := open.send(&call{query: q, done: ignore}, u.now()); err != nil {
			t.Fatal(err)
		}
		u.growAfter.Store(0)
		r.ask(t, u, "second") // starts the dial
		open.pending.Store(inFlightMax)
		r.ask(t, u, "third")
		u.mu.Lock()
		if len(u.dials) != 1 || len(u.dials[0].calls) != 1 {
			t.Errorf("%d dials in progress, which one call should wait for", len(u.dials))
		}
		u.mu.Unlock()
		u.Close()
	})
}

// A connection that has gone silent is replaced, and its pending queries are sent again.
func TestASilentConnectionFailsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(fakeServer)
		u := openFake(t, s, Options{})
		r := &results{begin: time.Now()}
		r.ask(t, u, "first")
		r.expect(t, "first answered@0s")
		time.Sleep(time.Second) // it is suspect: all its queries are sent again
		s.silence()
		r = &results{begin: time.Now()}
		r.ask(t, u, "a")
		r.ask(t, u, "b")
		time.Sleep(5 * time.Second)
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, result := range r.text {
			if !strings.Contains(result, "answered@50ms") {
				t.Errorf("got %q", result)
			}
		}
		if len(r.text) != 2 {
			t.Errorf("%d of 2 queries ended", len(r.text))
		}
		if n := u.Counts().Resent; n != 3 { // with the test of the connection
			t.Errorf("%d queries were sent again", n)
		}
	})
}

// A connection that the peer closes fails over at once.
func TestQueriesOfAConnectionThatEndsAreSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(fakeServer)
		u := openFake(t, s, Options{})
		r := &results{begin: time.Now()}
		r.ask(t, u, "first")
		time.Sleep(10 * time.Millisecond)
		r.ask(t, u, "second")
		time.Sleep(10 * time.Millisecond)
		s.silence()
		r.ask(t, u, "third")
		synctest.Wait()
		s.closeAll()
		r.expect(t, "first answered@0s | second answered@10ms | third answered@20ms")
		if n := u.Counts().Resent; n != 1 {
			t.Errorf("%d queries were sent again", n)
		}
	})
}

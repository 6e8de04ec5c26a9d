package upstreams

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// A connection that brings garbage is not reliable: the query is sent again on a fresh
// one, and later queries follow it.
func TestGarbageIsTriedAgainOnAFreshConnection(t *testing.T) {
	t.Parallel()
	var bad atomic.Bool
	var s *dottest.Server
	s = dottest.NewServer(t, dottest.Options{Handler: func(dst, query []byte) ([]byte, time.Duration) {
		if bad.Load() && s.Stats().Accepted == 1 { // until there is a fresh one
			return append(dst, query[0], query[1], 0x81, 0x80, 0, 1, 0, 9), 0
		}
		return dottest.Answer(dst, query)
	}})
	u := open(t, trusting(t, s))
	if err := ask(u, "www.example.com"); err != nil {
		t.Fatal(err)
	}
	bad.Store(true)
	if err := many(u, 5, "n%d.example.com"); err != nil {
		t.Error(err)
	}
	if n := s.Stats().Accepted; n < 2 || n > 3 {
		t.Errorf("%d connections, not a second and perhaps a third one", n)
	}
}

func TestGarbageForAllQueriesIsNotAnsweredWithAFloodOfDials(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{Mangle: dottest.Garbage}}})
	u := open(t, trusting(t, s))
	began := time.Now()
	for i := range 50 {
		if err := ask(u, fmt.Sprintf("n%d.example.com", i)); err == nil {
			t.Fatal("garbage is an answer")
		}
	}
	// After improperMax in a row, a connection ends, and once a second there is another one.
	if n, most := s.Stats().Accepted, 50*2/improperMax+2+int(time.Since(began)/garbagePause); n > most {
		t.Errorf("%d connections for 50 queries", n)
	}
}

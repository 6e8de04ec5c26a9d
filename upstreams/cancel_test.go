package upstreams

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

// Queries that were cancelled during a long dial are not sent once it succeeds, except the
// newest one: after an outage, thousands would be.
func TestCancelledQueriesAreNotSentAfterALongDial(t *testing.T) {
	atBest(t, func() error {
		server := dottest.NewServer(t, dottest.Options{Handshake: 300 * time.Millisecond})
		u := open(t, trusting(t, server))
		var cancelled atomic.Bool
		var unsent, answered atomic.Int32
		var all sync.WaitGroup
		for i := range 11 {
			q, err := wire.NewQuery(fmt.Sprintf("n%d.example.com", i), "A")
			if err != nil {
				t.Fatal(err)
			}
			if i != 3 {
				q = q.WithCancel(&cancelled)
			}
			all.Add(1)
			u.Ask(t.Context(), q, func(_ wire.Answer, err error) {
				if errors.Is(err, errCancelled) {
					unsent.Add(1)
				} else if err == nil {
					answered.Add(1)
				}
				all.Done()
			})
		}
		cancelled.Store(true)
		all.Wait()
		if unsent.Load() != 9 || answered.Load() != 2 || server.Stats().Queries != 2 {
			return fmt.Errorf("%d queries were sent: %d not, %d answered", server.Stats().Queries, unsent.Load(), answered.Load())
		}
		return nil
	})
}

package gateway

import (
	"testing"
	"testing/synctest"
	"time"
)

// It waits when packets come faster than it is told to, in a steady stream, and
// neither for a few that come at once, nor when a full batch tells of more.
func TestOnlyABusySocketLetsPacketsGather(t *testing.T) {
	for _, test := range []struct {
		name    string
		above   float64
		gap     time.Duration // between packets
		packets int
		waits   bool
	}{
		{"20 000 a second", 15_000, 50 * time.Microsecond, 200, true},
		{"10 000 a second", 15_000, 100 * time.Microsecond, 200, false},
		{"a burst after a pause", 15_000, 0, 25, false},
		{"never", 0, time.Microsecond, 10_000, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := gatherer{above: test.above, begun: time.Now()}
				time.Sleep(time.Second)
				for range test.packets {
					time.Sleep(test.gap)
					g.noted(1, false)
				}
				if g.pays() != test.waits {
					t.Errorf("waits: %v", g.pays())
				}
				if g.noted(0, true); g.pays() {
					t.Error("waits although more are there")
				}
				time.Sleep(gatherWindow)
				if g.noted(1, false); g.pays() {
					t.Error("waits still, when nothing comes any more")
				}
			})
		})
	}
}

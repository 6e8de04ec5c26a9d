package transport

import (
	"testing"
	"testing/synctest"
	"time"
)

// Reads are delayed when packets arrive in a steady stream above the limit, but not for a
// short burst, and not when a full batch shows that more are waiting.
func TestOnlyABusySocketCoalescesReads(t *testing.T) {
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
				c := readCoalescer{above: test.above, begun: time.Now()}
				time.Sleep(time.Second)
				for range test.packets {
					time.Sleep(test.gap)
					c.note(1, false)
				}
				if c.pays() != test.waits {
					t.Errorf("waits: %v", c.pays())
				}
				if c.note(0, true); c.pays() {
					t.Error("waits although more are there")
				}
				time.Sleep(coalesceWindow)
				if c.note(1, false); c.pays() {
					t.Error("waits still, when nothing comes any more")
				}
			})
		})
	}
}

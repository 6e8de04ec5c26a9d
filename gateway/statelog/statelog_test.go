package statelog

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestChanges(t *testing.T) {
	// events has a letter for each second: F fails, W works. The log has, for each
	// message, a + for each failure that was not logged, F or W, and the second.
	f := func(events, want string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			var s State
			var mu sync.Mutex
			var log []string
			began := time.Now()
			add := func(what string) {
				mu.Lock()
				defer mu.Unlock()
				log = append(log, fmt.Sprint(what, int(time.Since(began).Seconds())))
			}
			for _, letter := range events {
				switch letter {
				case 'F':
					s.Fail(func(skipped int) { add(strings.Repeat("+", skipped) + "F") })
				case 'W':
					s.Work(func() { add("W") })
				}
				time.Sleep(time.Second)
			}
			time.Sleep(time.Minute)
			mu.Lock()
			defer mu.Unlock()
			if got := strings.Join(log, " "); got != want {
				t.Errorf("%s: got %s, want %s", events, got, want)
			}
		})
	}
	f("W", "")
	f("FFF", "F0")
	f("FWW", "F0 W1")
	f("FWFW", "F0 W1")
	f("FWF", "F0 W1 F10") // the failure lasts
	f("FWFWF", "F0 W1 +F10")
	f("FWFWFWFWFWFW", "F0 W1 ++++F10 W11")
	f("F..........WF", "F0 W11 F12")
}

// TestConcurrentChanges has two goroutines call Fail and Work as fast as they can.
func TestConcurrentChanges(t *testing.T) {
	var s State
	var fails, works atomic.Int32
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			for range 10_000 {
				s.Fail(func(int) { fails.Add(1) })
				s.Work(func() { works.Add(1) })
			}
		})
	}
	both.Wait()
	if fails.Load() != 1 || works.Load() != 1 {
		t.Errorf("%d and %d lines", fails.Load(), works.Load())
	}
}

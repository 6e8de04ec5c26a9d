//go:build linux && lab

package lab

import (
	"sync"
	"time"
)

// A stall is a time in which this process was runnable but did not run.
type stall struct {
	at  time.Time
	was time.Duration
}

var machine struct {
	mu     sync.Mutex
	stalls []stall
}

// watchStalls records stalls of the machine, which can be the reason of a latency
// instead of the gateway.
func watchStalls() {
	const nap = 5 * time.Millisecond
	for {
		from := time.Now()
		time.Sleep(nap)
		if was := time.Since(from) - nap; was > 15*time.Millisecond {
			machine.mu.Lock()
			machine.stalls = append(machine.stalls, stall{from, was})
			machine.mu.Unlock()
		}
	}
}

// longestStall returns the longest stall between from and to.
func longestStall(from, to time.Time) (longest time.Duration) {
	machine.mu.Lock()
	defer machine.mu.Unlock()
	for _, s := range machine.stalls {
		if s.at.After(from) && s.at.Before(to) {
			longest = max(longest, s.was)
		}
	}
	return longest
}

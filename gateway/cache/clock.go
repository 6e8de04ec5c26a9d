package cache

import (
	"sync/atomic"
	"time"
)

const (
	// clockCheck is the interval at which a clock that is read looks for time asleep. An
	// answer that expired while the machine was asleep may be sent for that long.
	clockCheck = 100 * time.Millisecond
	// clockNoise is the accuracy of the time asleep.
	clockNoise = 10 * time.Millisecond
)

// A clock counts the time since its start, including the time that the machine was
// asleep: an answer that expired meanwhile is not fresh. Steps of the wall clock change
// nothing. On systems without CLOCK_BOOTTIME, time asleep is not counted.
//
// Go's monotonic clock stands still during sleep, as CLOCK_MONOTONIC does.
// CLOCK_BOOTTIME does not, but takes a system call, which is too slow for each query.
type clock struct {
	epoch time.Time
	slept func() time.Duration // time asleep since boot; it may be too short
	base  time.Duration        // slept at the start

	asleep  atomic.Int64 // time asleep since the start, in nanoseconds
	checked atomic.Int64 // time of the last check, in nanoseconds since the epoch
}

func (c *clock) start(epoch time.Time, slept func() time.Duration) {
	c.epoch, c.slept, c.base = epoch, slept, slept()
}

// now returns the time since the epoch.
func (c *clock) now() time.Duration {
	awake := time.Since(c.epoch)
	if checked := c.checked.Load(); int64(awake)-checked >= int64(clockCheck) && c.checked.CompareAndSwap(checked, int64(awake)) {
		c.check()
	}
	return awake + time.Duration(c.asleep.Load())
}

// check updates the time asleep. On the zero clock, of a zero Cache, it does nothing.
func (c *clock) check() {
	if c.slept == nil {
		return
	}
	asleep := int64(c.slept() - c.base)
	for {
		known := c.asleep.Load()
		if asleep <= known+int64(clockNoise) || c.asleep.CompareAndSwap(known, asleep) {
			return
		}
	}
}

// A stamp is one moment by the wall clock and by a clock.
type stamp struct {
	wall time.Time
	at   time.Duration
}

func (c *clock) stamp() stamp { return stamp{time.Now().Round(0), c.now()} }

// wallAt converts another moment to the wall clock, as that was at the stamp.
func (s stamp) wallAt(at time.Duration) time.Time { return s.wall.Add(at - s.at) }

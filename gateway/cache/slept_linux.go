package cache

import (
	"time"

	"golang.org/x/sys/unix"
)

// slept returns the time that the machine was asleep since boot. It is too short if this
// goroutine is delayed between the two readings.
func slept() time.Duration {
	var boot, awake unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil || unix.ClockGettime(unix.CLOCK_MONOTONIC, &awake) != nil {
		return 0
	}
	return time.Duration(boot.Nano() - awake.Nano())
}

// Package latency counts how long things take.
//
// It has no lock, counts every event, and returns quantiles that are at most a
// sixteenth too high. It knows nothing of DNS: its user decides what is measured.
package latency

import (
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	// stepsPerDouble is the number of buckets between a latency and its double, so
	// that quantiles are at most a sixteenth too high.
	stepsPerDouble = 16
	// latencyBits sets the longest latency with a bucket of its own: 2^26 µs are 67 s,
	// longer than any client waits.
	latencyBits = 26

	buckets = stepsPerDouble * (latencyBits - 3)
)

// A Histogram counts latencies, without a lock and without losing one. The zero
// Histogram is empty.
type Histogram [buckets]atomic.Uint64

// Add counts one latency. It doesn't allocate.
func (h *Histogram) Add(d time.Duration) { h[bucketOf(d)].Add(1) }

// bucketOf returns the bucket of a latency: one for each microsecond at first,
// and then a fixed number for each time that it doubles.
func bucketOf(d time.Duration) int {
	us := uint64(max(d, 0)) / uint64(time.Microsecond)
	if us < stepsPerDouble {
		return int(us)
	}
	doubled := bits.Len64(us/stepsPerDouble) - 1
	return min(doubled*stepsPerDouble+int(us>>doubled), buckets-1)
}

// boundOf returns what the latencies of a bucket are below.
func boundOf(bucket int) time.Duration {
	if bucket < stepsPerDouble {
		return time.Duration(bucket+1) * time.Microsecond
	}
	doubled := bucket/stepsPerDouble - 1
	return time.Duration(bucket-doubled*stepsPerDouble+1) << doubled * time.Microsecond
}

// A Snapshot is what was counted up to one moment. It is a copy that does not
// change. The zero Snapshot has nothing.
type Snapshot struct {
	counts [buckets]uint64
}

// Include adds what h has counted so far.
func (s *Snapshot) Include(h *Histogram) {
	for i := range h {
		s.counts[i] += h[i].Load()
	}
}

// Since returns what came after an earlier copy was made.
func (s Snapshot) Since(earlier Snapshot) Snapshot {
	for i := range s.counts {
		s.counts[i] -= earlier.counts[i]
	}
	return s
}

// Count returns how many latencies there are.
func (s *Snapshot) Count() uint64 {
	var n uint64
	for _, count := range s.counts {
		n += count
	}
	return n
}

// Within returns how many took no longer than limit, to a sixteenth of it. It is
// exact if limit is a power of two in microseconds.
func (s *Snapshot) Within(limit time.Duration) uint64 {
	var n uint64
	for i, count := range s.counts {
		if boundOf(i) > limit {
			break
		}
		n += count
	}
	return n
}

// Sum returns how long all took together, to a thirty-second of it.
func (s *Snapshot) Sum() time.Duration {
	var sum, from time.Duration
	for i, count := range s.counts {
		bound := boundOf(i)
		sum += (from + bound) / 2 * time.Duration(count)
		from = bound
	}
	return sum
}

// Quantile returns what the given share of the latencies, above 0 and at most 1,
// are at most: 0.5 is the median, 1 the slowest. It is 0 if there are none.
func (s *Snapshot) Quantile(share float64) time.Duration {
	n := s.Count()
	if n == 0 {
		return 0
	}
	rank := max(uint64(share*float64(n)+0.5), 1)
	for i, count := range s.counts {
		if count >= rank {
			return boundOf(i)
		}
		rank -= count
	}
	return boundOf(buckets - 1)
}

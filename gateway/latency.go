package gateway

import (
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	// stepsPerDouble is how many buckets there are between a latency and its
	// double: what is told is at most a sixteenth too high.
	stepsPerDouble = 16
	// latencyBits bounds what is told apart: 2^26 µs are 67 s, more than anybody
	// waits.
	latencyBits = 26

	latencyBuckets = stepsPerDouble * (latencyBits - 3)
)

// A histogram counts latencies, without a lock and without losing one. The zero
// histogram is empty.
type histogram [latencyBuckets]atomic.Uint64

// since counts how long it has been since began.
func (h *histogram) since(began time.Time) { h[bucketOf(time.Since(began))].Add(1) }

// bucketOf returns the bucket of a latency: one for each microsecond at first,
// and then a fixed number for each time that it doubles.
func bucketOf(d time.Duration) int {
	us := uint64(max(d, 0)) / uint64(time.Microsecond)
	if us < stepsPerDouble {
		return int(us)
	}
	doubled := bits.Len64(us/stepsPerDouble) - 1
	return min(doubled*stepsPerDouble+int(us>>doubled), latencyBuckets-1)
}

// boundOf returns what the latencies of a bucket are below.
func boundOf(bucket int) time.Duration {
	if bucket < stepsPerDouble {
		return time.Duration(bucket+1) * time.Microsecond
	}
	doubled := bucket/stepsPerDouble - 1
	return time.Duration(bucket-doubled*stepsPerDouble+1) << doubled * time.Microsecond
}

// A Latency tells how long clients waited for replies, from when a query was
// read until its reply was ready to be sent. It knows of all that had to wait for
// the Resolver, whatever their outcome; replies that could be had at once, such
// as refusals, are in Counts alone.
//
// It is a copy that does not change.
type Latency struct {
	counts [latencyBuckets]uint64
}

// Latency returns the latencies of all replies so far.
func (g *Gateway) Latency() Latency {
	var l Latency
	for _, s := range g.udp {
		l.add(&s.tally.waited)
	}
	for _, t := range g.tcp {
		l.add(&t.tally.waited)
	}
	return l
}

func (l *Latency) add(h *histogram) {
	for i := range h {
		l.counts[i] += h[i].Load()
	}
}

// Since returns the latencies of the replies after an earlier copy was made.
func (l Latency) Since(earlier Latency) Latency {
	for i := range l.counts {
		l.counts[i] -= earlier.counts[i]
	}
	return l
}

// Count returns how many replies it knows of.
func (l Latency) Count() uint64 {
	var n uint64
	for _, count := range l.counts {
		n += count
	}
	return n
}

// Quantile returns what the given share of the replies, above 0 and at most 1,
// took at most: 0.5 is the median, 1 the slowest. It is 0 if there are none.
func (l Latency) Quantile(share float64) time.Duration {
	n := l.Count()
	if n == 0 {
		return 0
	}
	rank := max(uint64(share*float64(n)+0.5), 1)
	for i, count := range l.counts {
		if count >= rank {
			return boundOf(i)
		}
		rank -= count
	}
	return boundOf(latencyBuckets - 1)
}

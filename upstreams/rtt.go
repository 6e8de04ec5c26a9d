package upstreams

import (
	"sync/atomic"
	"time"
)

const (
	// patienceMin keeps a hiccup of a busy machine from looking like silence, and
	// so the 40 ms that TCP may take to acknowledge what a server needs to go on.
	patienceMin = 50 * time.Millisecond
	// patienceMax keeps one slow spell from hiding the next.
	patienceMax = 400 * time.Millisecond
	// patienceUnknown is for an upstream that has not answered yet: a dial over
	// a continent takes about so long.
	patienceUnknown = 200 * time.Millisecond
)

// An estimator knows how long answers take, as TCP estimates its round trips
// (RFC 6298 section 2). The zero estimator knows nothing.
type estimator struct {
	// smoothed in the upper half, variation in the lower, both in microseconds:
	// two numbers that are read for each query and must fit each other.
	both atomic.Uint64
}

// sample takes a measured round trip into account. Samples that race may get
// lost: each is one of many.
func (e *estimator) sample(rtt time.Duration) {
	// A few slow names, or lost segments, must not make it patient with all: a
	// sample counts for twice the patience at most. If all samples are slow, it
	// gets there by doubling.
	_, patience := e.usual()
	r := max(min(rtt, 2*max(patience, patienceUnknown/4)).Microseconds(), 1)
	old := e.both.Load()
	smoothed, variation := int64(old>>32), int64(uint32(old))
	if smoothed == 0 {
		smoothed, variation = r, r/2
	} else {
		variation += (abs(smoothed-r) - variation) / 4
		smoothed += (r - smoothed) / 8
	}
	e.both.CompareAndSwap(old, uint64(max(smoothed, 1))<<32|uint64(uint32(variation)))
}

// usual returns the smoothed round trip, 0 if there was no sample, and how long
// to wait for an answer before something seems wrong.
func (e *estimator) usual() (smoothed, patience time.Duration) {
	both := e.both.Load()
	if both == 0 {
		return 0, patienceUnknown
	}
	smoothed = time.Duration(both>>32) * time.Microsecond
	variation := time.Duration(uint32(both)) * time.Microsecond
	// The variation of a steady upstream dwindles to nothing, but a round trip
	// that takes half as long again is still nothing special.
	patience = smoothed + max(4*variation, smoothed/2)
	return smoothed, min(max(patience, patienceMin), max(patienceMax, 2*smoothed))
}

func abs(n int64) int64 { return max(n, -n) }

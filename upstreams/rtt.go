package upstreams

import (
	"sync/atomic"
	"time"
)

const (
	// patienceMin is the least patience: below it, a short stall of a busy machine would
	// look like silence, and so would the 40 ms by which TCP may delay an acknowledgement
	// that a server waits for.
	patienceMin = 50 * time.Millisecond
	// patienceMax keeps one slow period from hiding the next.
	patienceMax = 400 * time.Millisecond
	// patienceUnknown is for an upstream that has not answered yet: about the time of a
	// dial across a continent.
	patienceUnknown = 200 * time.Millisecond
)

// An estimator learns how long answers take, as TCP estimates its round trips (RFC 6298
// section 2). The zero estimator has no samples.
type estimator struct {
	// The smoothed time is in the upper half, the variation in the lower, both in
	// microseconds: two numbers that are read for each query and must fit each other.
	both atomic.Uint64
}

// sample adds a measured round trip. Of concurrent samples, some may get lost: each is
// one of many.
func (e *estimator) sample(rtt time.Duration) {
	// A few slow names or lost segments must not raise the patience with all queries: a
	// sample counts for twice the patience at most. If all samples are slow, the estimate
	// gets there by doubling.
	_, patience := e.usual()
	r := max(min(rtt, 2*max(patience, patienceUnknown/4)).Microseconds(), 1)
	old := e.both.Load()
	smoothed, variation := int64(old>>32), int64(uint32(old))
	if smoothed == 0 {
		smoothed, variation = r, r/2
	} else {
		variation += (max(smoothed-r, r-smoothed) - variation) / 4
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
	// The variation of a steady upstream goes to zero, but a round trip that takes half as
	// long again is still usual.
	patience = smoothed + max(4*variation, smoothed/2)
	return smoothed, min(max(patience, patienceMin), max(patienceMax, 2*smoothed))
}

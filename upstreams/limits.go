package upstreams

import (
	"cmp"
	"sync/atomic"
	"time"
)

const (
	// patienceLimit is how long a step of a dial, or a connection that has not answered
	// yet, is waited for at most while no limit is set: as long as a client waits by
	// default. Options.Patience raises it.
	patienceLimit = 4 * time.Second
	// connectUsual and handshakeUsual are the limits of an upstream that is near.
	connectUsual   = time.Second
	handshakeUsual = 1500 * time.Millisecond
)

// A stepLimit bounds one step of a dial, the TCP or the TLS handshake: by what the
// operator has set, or by how long the step took before. An upstream that was
// never reached gets the longest limit, as it may be far away.
type stepLimit struct {
	set, usual time.Duration // set: 0 if the operator left it open
	max        time.Duration // of a limit that is not set
	took       atomic.Int64  // by the last success, in nanoseconds; 0 before the first
	timeouts   atomic.Int32  // in a row
}

// current returns the limit of the next attempt. Each timeout doubles it: the network may
// have become slow.
func (s *stepLimit) current() time.Duration {
	took := time.Duration(s.took.Load())
	switch {
	case s.set > 0:
		return s.set
	case took == 0:
		return s.max
	}
	return min(max(s.usual, 4*took)<<min(s.timeouts.Load(), 4), s.max)
}

// longest returns the limit of an attempt that is continued although it takes longer
// than expected, because another one is made beside it.
func (s *stepLimit) longest() time.Duration { return cmp.Or(s.set, s.max) }

func (s *stepLimit) succeeded(took time.Duration) {
	s.took.Store(int64(max(took, 1)))
	s.timeouts.Store(0)
}

func (s *stepLimit) timedOut() { s.timeouts.Add(1) }

// A dialTime is how long a connection usually takes to be made.
type dialTime struct{ ns atomic.Int64 }

// sample adds the time of a dial that succeeded. A lost packet costs a second. So that a
// single dial changes little, it counts for slightly more than twice the usual time at
// most.
func (t *dialTime) sample(took time.Duration) {
	old := t.usual()
	if old > 0 {
		took = old + (min(took, 2*old+slowDialAfter)-old)/2
	}
	t.ns.Store(int64(max(took, 1)))
}

// usual returns 0 before the first dial.
func (t *dialTime) usual() time.Duration { return time.Duration(t.ns.Load()) }

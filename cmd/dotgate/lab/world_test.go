//go:build linux && lab

package lab

import (
	"net/netip"
	"testing"
	"time"
)

// upstreams is the number of upstreams in a world: a, b and c.
const upstreams = 3

// A world is the gateway and its three upstreams, with faults on request.
type world interface {
	// startFault starts a fault of upstream i, endFault ends it.
	startFault(i int, f fault)
	endFault(i int, f fault)
	// sample returns the counts of the upstreams.
	sample() sample
	// pause is the least time between two samples.
	pause() time.Duration
	// asked returns the number of queries for name at all upstreams.
	asked(name string) int
	addr(i int) netip.AddrPort
	gateway() *gateway
	truth() truth
}

// newWorld returns a running world, with the fault that s has at the start.
func newWorld(t *testing.T, s scenario) world {
	t.Helper()
	if s.network {
		return newNetwork(t, s)
	}
	return newServers(t, s)
}

// A sample has the counts of the upstreams at a time.
type sample struct {
	at         time.Time
	queries    [upstreams]int
	dials      [upstreams]int
	handshakes [upstreams]int // completed
	unroutable int            // packets, SYNs among them, that the gateway's kernel had no route for
}

func (s sample) total() (n int) {
	for _, q := range s.queries {
		n += q
	}
	return n
}

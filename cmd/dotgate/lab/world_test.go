//go:build linux && lab

package lab

import (
	"net/netip"
	"testing"
	"time"
)

// upstreams is how many there are in a world: a, b and c.
const upstreams = 3

// A world is three upstreams, the gateway before them, and what can go wrong.
type world interface {
	// strike makes upstream i go wrong, lift makes it behave again.
	strike(i int, f fault)
	lift(i int, f fault)
	// sample returns what the upstreams have seen so far.
	sample() sample
	// pause is how often it may be asked for.
	pause() time.Duration
	// asked returns how often the upstreams were asked for name.
	asked(name string) int
	addr(i int) netip.AddrPort
	gateway() *gateway
	truth() truth
}

// newWorld returns a running world, in which what s says of the start is so.
func newWorld(t *testing.T, s scenario) world {
	t.Helper()
	if s.network {
		return newNetwork(t, s)
	}
	return newServers(t, s)
}

// A sample is what the upstreams have seen by an instant.
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

package gateway

import (
	"testing"

	"dotgate/gateway/wire"
)

// Reloads that open and close sockets do not add counters for ever, and lose no count.
func TestCountersGoFromOneSocketToTheNext(t *testing.T) {
	g, err := New(addressed, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		var both [2]*counters
		for i := range both {
			both[i] = g.counts.take(wire.UDP)
			both[i].count(Answered)
		}
		if both[0] == both[1] {
			t.Error("two sockets count in one place")
		}
		for _, n := range both {
			g.counts.release(n)
		}
	}
	if n, counted := len(g.counts.udp), g.Counts().Outcomes[Answered][wire.UDP]; n != 2 || counted != 20 {
		t.Errorf("%d counters with %d queries", n, counted)
	}
}

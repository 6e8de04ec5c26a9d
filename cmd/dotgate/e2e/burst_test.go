//go:build linux && e2e

package e2e

import (
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// burstSize is the number of clients that ask at the same moment, as after an outage of
// the local network.
func burstSize() int {
	if raceDetector() {
		return 1000 // the race detector takes ten times as long
	}
	return 10_000
}

func TestTenThousandQueriesAtOnceAreAllAnswered(t *testing.T) {
	f := func(what, network string, sockets int) {
		t.Run(what, func(t *testing.T) {
			_, urls := startUnbounds(t)
			g := startGateway(t, urls)
			load{
				to: g.addr, network: network, sockets: sockets, queries: burstSize(), patience: 4 * time.Second,
				name: unboundName, address: unboundAddress,
			}.run(t).mustBeWhole(t)
		})
	}
	f("from a hundred UDP sockets", "udp", 100)
	f("over fifty TCP connections", "tcp", 50)
}

// With slow upstreams all queries are pending at once.
func TestTenThousandPendingQueriesAreAllAnswered(t *testing.T) {
	f := func(what, network string, sockets int) {
		t.Run(what, func(t *testing.T) {
			const rtt = 450 * time.Millisecond
			servers, urls := startUpstreams(t, rtt, rtt, rtt)
			g := startGateway(t, urls)
			warmUp(t, g.addr)
			before := queries(servers)
			l := dottestLoad(g.addr, "crowd", burstSize(), 0)
			l.network, l.sockets, l.patience = network, sockets, 4*time.Second
			o := l.run(t)
			o.mustBeWhole(t)
			if o.atOnce < burstSize()*9/10 {
				t.Errorf("only %d were under way at once: sending took %v", o.atOnce, o.sending)
			}
			t.Logf("%d were under way when the last was sent, after %v; upstreams got %d queries",
				o.atOnce, o.sending.Round(time.Millisecond), queries(servers)-before)
		})
	}
	f("from a hundred UDP sockets", "udp", 100)
	f("over a hundred TCP connections", "tcp", 100)
}

func queries(servers []*dottest.Server) (n int) {
	for _, s := range servers {
		n += s.Stats().Queries
	}
	return n
}

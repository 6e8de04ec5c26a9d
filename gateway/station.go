package gateway

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"dotgate/gateway/wire"
)

// A station is where clients are served at one address, or at all that were
// adopted.
type station struct {
	listen netip.AddrPort // as in the options
	family string         // see familyOf
	addrs  []netip.AddrPort
	udp    []*udpSocket
	tcp    []*tcpListener
	leave  context.CancelFunc // ends the serving; nothing before that
}

// close closes the sockets of a station where nobody is served.
func (s *station) close() {
	closeUDP(s.udp)
	for _, l := range s.tcp {
		l.ln.Close()
	}
}

// A service is a Gateway that serves. The zero service does not, yet.
type service struct {
	ctx    context.Context
	manned sync.WaitGroup // stations
	over   bool           // nobody begins any more
}

// man has clients served at s: until the service ends or s.leave is called, and
// then until those are answered whose queries had come. The caller holds mu.
func (g *Gateway) man(s *station) {
	var ctx context.Context
	ctx, s.leave = context.WithCancel(g.service.ctx)
	g.service.manned.Go(func() {
		var servers sync.WaitGroup
		for _, u := range s.udp {
			servers.Go(func() { u.serve(ctx) })
		}
		for _, l := range s.tcp {
			servers.Go(func() { l.serve(ctx) })
		}
		servers.Wait()
		s.leave()
		g.left(s)
	})
}

// left keeps what was counted at s, where nobody is served any more.
func (g *Gateway) left(s *station) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, other := range g.leaving {
		if other == s {
			s.addTo(&g.past)
			s.include(&g.pastLatency)
			g.leaving = append(g.leaving[:i:i], g.leaving[i+1:]...)
			return
		}
	}
}

// addTo adds what was counted at s.
func (s *station) addTo(c *Counts) {
	for _, u := range s.udp {
		u.tally.addTo(c, wire.UDP)
		c.Dropped += u.dropped()
	}
	for _, l := range s.tcp {
		l.tally.addTo(c, wire.TCP)
	}
}

// include adds how long clients of s have waited.
func (s *station) include(l *Latency) {
	for _, u := range s.udp {
		l.Include(&u.tally.waited.Histogram)
	}
	for _, t := range s.tcp {
		l.Include(&t.tally.waited.Histogram)
	}
}

// eachStation calls do for all stations, those included that are being left.
func (g *Gateway) eachStation(do func(*station)) {
	for _, s := range g.stations {
		do(s)
	}
	for _, s := range g.leaving {
		do(s)
	}
}

// begin begins the service that ends with ctx. It reports false if nothing is
// listening.
func (g *Gateway) begin(ctx context.Context) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.stations) == 0 {
		return false
	}
	g.service.ctx = ctx
	for _, s := range g.stations {
		g.man(s)
	}
	return true
}

// end waits until everybody has left. What is still under way is given up after
// grace, and connections are closed a moment later.
func (g *Gateway) end() {
	defer time.AfterFunc(grace, g.abandon).Stop()
	defer time.AfterFunc(grace+farewell, g.clients.closeAll).Stop()
	g.mu.Lock()
	g.service.over = true
	g.mu.Unlock()
	g.service.manned.Wait()
}

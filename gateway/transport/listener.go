package transport

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A listener is one listen address with its sockets, or all sockets that were adopted.
// Its states: open, serving (serve), draining (after drain, until the queries that had
// arrived are answered), closed.
type listener struct {
	listen netip.AddrPort // as in the options
	family string         // see familyOf
	addrs  []netip.AddrPort
	udp    []*udpSocket
	tcp    []*tcpListener
	absent bool               // no interface has its address yet; guarded by Server.mu
	drain  context.CancelFunc // begins draining; nil until serve
}

// close closes the sockets of a listener that does not serve.
func (l *listener) close() {
	closeUDP(l.udp)
	for _, t := range l.tcp {
		t.ln.Close()
	}
}

// A service is the time in which a Server serves. It begins when ctx is set.
type service struct {
	ctx     context.Context
	serving sync.WaitGroup // listeners that serve or drain
	ending  bool           // no listener begins to serve any more
}

// serve serves clients at l until the service ends or l.drain is called, and then until
// the queries that had arrived are answered. The caller holds mu.
func (s *Server) serve(l *listener) {
	var ctx context.Context
	ctx, l.drain = context.WithCancel(s.service.ctx)
	s.service.serving.Go(func() {
		var servers sync.WaitGroup
		for _, u := range l.udp {
			servers.Go(func() { u.serve(ctx) })
		}
		for _, t := range l.tcp {
			servers.Go(func() { t.serve(ctx) })
		}
		servers.Wait()
		l.drain()
		s.drained(l)
	})
}

// drained forgets l, which has closed its sockets, if it was removed.
func (s *Server) drained(l *listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.draining, l); i >= 0 {
		s.pastDropped += l.dropped()
		s.draining = slices.Delete(s.draining, i, i+1)
	}
}

// dropped returns how many packets the system has dropped because a socket of l was full.
func (l *listener) dropped() (sum uint64) {
	for _, u := range l.udp {
		sum += u.dropped()
	}
	return sum
}

// begin starts the service that ends with ctx. It reports false if there is no listener.
func (s *Server) begin(ctx context.Context) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.listeners) == 0 {
		return false
	}
	s.service.ctx = ctx
	for _, l := range s.listeners {
		s.serve(l)
	}
	for _, l := range s.draining { // removed by a Change before
		s.serve(l)
		l.drain()
	}
	return true
}

// end waits until all listeners have closed. Queries in progress are given up after
// shutdownGrace, and connections are closed shutdownFlush later.
func (s *Server) end(giveUp func()) {
	defer time.AfterFunc(shutdownGrace, giveUp).Stop()
	defer time.AfterFunc(shutdownGrace+shutdownFlush, s.clients.closeAll).Stop()
	s.mu.Lock()
	s.service.ending = true
	s.mu.Unlock()
	s.service.serving.Wait()
}

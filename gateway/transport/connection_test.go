package transport

import (
	"context"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/access"
)

// A pipe is a stream without a network, for tests in which time is fake.
type pipe struct {
	net.Conn
	opened     time.Time
	halfClosed time.Duration // when; 0: not yet
	writes     int
}

func (p *pipe) CloseWrite() error {
	p.halfClosed = time.Since(p.opened)
	return nil
}

func (p *pipe) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv6loopback, Port: 1} }

func (p *pipe) Write(b []byte) (int, error) {
	p.writes++
	return p.Conn.Write(b)
}

// serveOverPipe runs f with the client's end of a connection that is being served, in a
// bubble. It returns the server's end, why the connection ended and when. Of its limits,
// only those that are given are other than usual.
func serveOverPipe(t *testing.T, h Handler, o Options, f func(client net.Conn)) (server *pipe, end closeReason, took time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, h, o)
		ours, theirs := net.Pipe()
		server = &pipe{Conn: ours, opened: time.Now()}
		c := newConnection(s, server)
		var serving sync.WaitGroup
		serving.Go(func() {
			c.serve(t.Context())
			took = time.Since(server.opened)
		})
		f(theirs)
		serving.Wait()
		theirs.Close()
		end = c.reason
		if n := s.Connections().Unsent; n != 0 {
			t.Errorf("%d octets wait to be written", n)
		}
	})
	return server, end, took
}

func TestIdleConnectionIsHalfClosedFirst(t *testing.T) {
	for idle, want := range map[time.Duration]time.Duration{2 * time.Second: 2 * time.Second, 7 * time.Second: firstTimeout} {
		server, end, took := serveOverPipe(t, handler{}, Options{IdleTimeout: idle}, func(net.Conn) {})
		if end != closedIdle || server.halfClosed != want || took != want+halfCloseTime {
			t.Errorf("half-closed after %v, closed after %v, %d", server.halfClosed, took, end)
		}
	}
	server, end, _ := serveOverPipe(t, handler{}, Options{IdleTimeout: 7 * time.Second}, func(c net.Conn) { exchange(t, c, query("example.com.")) })
	if end != closedIdle || server.halfClosed != 7*time.Second {
		t.Errorf("after a query, half-closed after %v, %d", server.halfClosed, end)
	}
}

// When the service ends, a client must not connect to it again, just before it stops to
// listen: its connection is served until there is no listener any more.
func TestConnectionsAreReadForLongerThanTheyAreAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, handler{}, Options{})
		ours, theirs := net.Pipe()
		server := &pipe{Conn: ours, opened: time.Now()}
		c := newConnection(s, server)
		ctx, end := context.WithCancel(t.Context())
		var serving sync.WaitGroup
		serving.Go(func() { c.serve(ctx) })
		end()
		time.Sleep(shutdownRead + shutdownRead/2)
		exchange(t, theirs, query("example.com."))
		serving.Wait()
		theirs.Close()
		if server.halfClosed != shutdownConnection {
			t.Errorf("half-closed %v after the end of the service", server.halfClosed)
		}
	})
}

func TestQueryThatCrossesTheFINCausesNoReset(t *testing.T) {
	server, end, took := serveOverPipe(t, handler{}, Options{}, func(c net.Conn) {
		time.Sleep(firstTimeout + 100*time.Millisecond)
		if _, err := c.Write(numbered(1)); err != nil {
			t.Error(err)
		}
		c.Close()
	})
	if end != closedIdle || server.halfClosed != firstTimeout || took != firstTimeout+100*time.Millisecond {
		t.Errorf("half-closed after %v, closed after %v, %d", server.halfClosed, took, end)
	}
}

func TestIdleTimeStartsWithTheLastReply(t *testing.T) {
	late := handler{wait: func(string) { time.Sleep(3 * time.Second) }}
	server, end, _ := serveOverPipe(t, late, Options{IdleTimeout: 2 * time.Second}, func(c net.Conn) {
		time.Sleep(time.Second)
		exchange(t, c, query("example.com."))
	})
	if end != closedIdle || server.halfClosed != 6*time.Second {
		t.Errorf("half-closed after %v, %d", server.halfClosed, end)
	}
}

func TestMessageThatNeverBecomesComplete(t *testing.T) {
	for _, begun := range []int{1, 2, 20} {
		server, end, _ := serveOverPipe(t, handler{}, Options{IdleTimeout: time.Minute}, func(c net.Conn) {
			time.Sleep(time.Second)
			for _, b := range numbered(1)[:begun] { // octet by octet, which buys no time
				c.Write([]byte{b})
				time.Sleep(10 * time.Millisecond)
			}
		})
		if end != closedStalled || server.halfClosed != time.Second+messageTimeout {
			t.Errorf("after %d octets: half-closed after %v, %d", begun, server.halfClosed, end)
		}
	}
}

func TestAClientThatDoesNotReadIsDisconnected(t *testing.T) {
	_, end, took := serveOverPipe(t, handler{}, Options{}, func(c net.Conn) { c.Write(numbered(50)) })
	if end != closedSlow || took != writeTimeout {
		t.Errorf("closed after %v, %d", took, end)
	}
}

func TestRepliesOfABurstShareAWrite(t *testing.T) {
	const n = 50
	server, _, _ := serveOverPipe(t, handler{}, Options{}, func(c net.Conn) {
		c.Write(numbered(n))
		synctest.Wait() // the first write waits for us, all other replies for it
		for range n {
			receive(t, c)
		}
		c.Close()
	})
	if server.writes > 2 {
		t.Errorf("%d writes", server.writes)
	}
}

// Hits that a client sends in one write are answered in one write, by the read loop.
func TestHitsThatArePipelinedShareAWrite(t *testing.T) {
	f := func(n, maxPipelined, writes int) {
		t.Helper()
		server, _, _ := serveOverPipe(t, handler{hits: true}, Options{MaxPipelined: maxPipelined}, func(c net.Conn) {
			for range 2 {
				c.Write(numbered(n))
				for i := range n {
					if reply := receive(t, c); int(reply.Id) != i || len(reply.Answer) != 1 {
						t.Fatalf("odd reply: %v", reply)
					}
				}
			}
			c.Close()
		})
		if server.writes != 2*writes {
			t.Errorf("%d hits, %d at most at once: %d writes, want %d", n, maxPipelined, server.writes, 2*writes)
		}
	}
	f(1, 100, 1)
	f(50, 100, 1)
	f(50, 50, 1)
	f(50, 20, 3)
	f(3, 1, 3)
}

// A miss does not hold up hits, before or after it.
func TestHitsDoNotWaitForMisses(t *testing.T) {
	const n = 20
	release := make(chan struct{})
	slow := handler{hits: true, wait: func(string) { <-release }}
	server, _, _ := serveOverPipe(t, slow, Options{}, func(c net.Conn) {
		miss := query("miss.example.com.")
		miss.Id = n
		c.Write(slices.Concat(numbered(n), framed(packed(miss)), numbered(n)))
		for i := range 2 * n {
			if reply := receive(t, c); int(reply.Id) != i%n {
				t.Fatalf("odd reply: %v", reply)
			}
		}
		release <- struct{}{}
		if reply := receive(t, c); reply.Id != n || len(reply.Answer) != 1 {
			t.Errorf("odd reply: %v", reply)
		}
		c.Close()
	})
	if server.writes != 2 {
		t.Errorf("%d writes", server.writes)
	}
}

func TestAClientThatDoesNotReadHitsIsDisconnected(t *testing.T) {
	const n = 50
	_, end, took := serveOverPipe(t, handler{hits: true}, Options{}, func(c net.Conn) { c.Write(numbered(n)) })
	if end != closedSlow || took != writeTimeout {
		t.Errorf("closed after %v, %d", took, end)
	}
}

// A flakyListener fails for want of descriptors a few times.
type flakyListener struct {
	acceptor
	failures int
	accepts  []time.Duration
	opened   time.Time
	closed   chan struct{}
}

func (l *flakyListener) Accept() (net.Conn, error) {
	l.accepts = append(l.accepts, time.Since(l.opened))
	if len(l.accepts) <= l.failures {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *flakyListener) SetDeadline(time.Time) error { close(l.closed); return nil }
func (l *flakyListener) Close() error                { return nil }

func TestAcceptErrorsAreRetriedWithPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ln := &flakyListener{failures: 12, opened: time.Now(), closed: make(chan struct{})}
		l := &tcpListener{server: newServer(t, handler{}, Options{}), ln: ln}
		var serving sync.WaitGroup
		serving.Go(func() { l.serve(ctx) })
		time.Sleep(time.Minute)
		cancel()
		serving.Wait()
		last := ln.accepts[len(ln.accepts)-1]
		if len(ln.accepts) != ln.failures+1 || last < 3*time.Second || last > 10*time.Second {
			t.Errorf("accepted at %v", ln.accepts)
		}
	})
}

// awaitIdle returns when n connections are idle: a client may have its reply a
// little before the server has done with it.
func awaitIdle(t *testing.T, s *Server, n int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		idle := 0
		s.clients.mu.Lock()
		for c := range s.clients.open {
			if _, ok := c.idleFor(); ok {
				idle++
			}
		}
		s.clients.mu.Unlock()
		if idle == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are idle, not %d", idle, n)
		}
	}
}

func TestIdleConnectionIsEvictedAtTheLimit(t *testing.T) {
	t.Parallel()
	s, stop := start(t, handler{}, Options{MaxConnections: 2})
	oldest, busy := dial(t, s.Addrs()[0]), dial(t, s.Addrs()[0])
	exchange(t, oldest, query("example.com."))
	awaitIdle(t, s, 2)
	exchange(t, busy, query("example.com."))
	newest := dial(t, s.Addrs()[0])
	exchange(t, newest, query("example.com."))
	expectEOF(t, oldest)
	exchange(t, busy, query("example.com."))
	for _, c := range []net.Conn{oldest, busy, newest} {
		c.Close()
	}
	stop()
	if c := s.Connections(); c.Accepted != 3 || c.Evicted != 1 || c.Rejected != 0 {
		t.Errorf("counts: %+v", c)
	}
}

// dialFrom connects from an address of this host.
func dialFrom(t *testing.T, from string, to netip.AddrPort) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// TestIdleConnectionsOfOneClientHoldUpNoOther opens 10 000 connections from one
// address, and asks from another meanwhile and afterwards.
func TestIdleConnectionsOfOneClientHoldUpNoOther(t *testing.T) {
	const crowd, limit = 10_000, 100 * time.Millisecond
	s, _ := start(t, handler{}, Options{})
	once := func() time.Duration {
		t.Helper()
		began := time.Now()
		c := dialFrom(t, "127.0.0.1", s.Addrs()[0])
		defer c.Close()
		if reply := exchange(t, c, query("example.com.")); len(reply.Answer) != 1 {
			t.Errorf("got %v", reply)
		}
		return time.Since(began)
	}
	ask := func() {
		t.Helper()
		// The other connections would slow down all three queries; a busy machine does not.
		if took := min(once(), once(), once()); took > limit {
			t.Errorf("a query took %v", took)
		}
	}
	for i := range crowd {
		dialFrom(t, "127.0.0.2", s.Addrs()[0])
		if i%500 == 0 {
			ask()
		}
	}
	ask()
	s.clients.mu.Lock()
	open := s.clients.clients[access.ClientPrefix(netip.MustParseAddr("127.0.0.2"))]
	s.clients.mu.Unlock()
	if c := s.Connections(); open > 256 || c.Evicted == 0 {
		t.Errorf("%d connections of one client are open, got %+v", open, c)
	}
}

func TestConnectionsOfOneClientAreBounded(t *testing.T) {
	t.Parallel()
	asked, release := make(chan struct{}, 4), make(chan struct{})
	s, _ := start(t, handler{wait: func(string) {
		asked <- struct{}{}
		<-release
	}}, Options{MaxPerClient: 2})
	addr := s.Addrs()[0]
	busy := func() net.Conn {
		c := dialFrom(t, "127.0.0.2", addr)
		if _, err := c.Write(numbered(1)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	first, second := busy(), busy()
	<-asked
	<-asked
	third := busy() // has no room, as none of its own is idle
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Error("a third connection was served")
	}
	third.Close()
	close(release)
	receive(t, first)
	receive(t, second)
	exchange(t, dialFrom(t, "127.0.0.1", addr), query("example.com."))
	awaitIdle(t, s, 3)
	exchange(t, dialFrom(t, "127.0.0.2", addr), query("example.com.")) // now there is room
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		c := s.Connections()
		if c.Evicted == 1 && c.Rejected == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %+v", c)
		}
	}
}

// TestSocketBuffersOfConnectionsAreBounded looks at the buffers behind a connection: a
// client that does not read could have megabytes there.
func TestSocketBuffersOfConnectionsAreBounded(t *testing.T) {
	s, _ := start(t, handler{}, Options{})
	exchange(t, dial(t, s.Addrs()[0]), query("example.com."))
	s.clients.mu.Lock()
	defer s.clients.mu.Unlock()
	for c := range s.clients.open {
		raw, err := c.nc.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			for _, option := range []int{syscall.SO_SNDBUF, syscall.SO_RCVBUF} {
				// Linux keeps as much again for its own ends.
				if size, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, option); err != nil || size > 2*connectionBuffer {
					t.Errorf("buffer %d has %d octets, %v", option, size, err)
				}
			}
		})
	}
	if len(s.clients.open) != 1 {
		t.Errorf("%d connections are open", len(s.clients.open))
	}
}

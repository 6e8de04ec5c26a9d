package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
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

// piped runs f with the client's end of a connection that is being served, in a
// bubble. It returns the server's end, why the connection ended and when.
func piped(t *testing.T, r Resolver, o Options, f func(client net.Conn)) (server *pipe, end ending, took time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		o.Log = slog.New(slog.DiscardHandler)
		g, err := New(r, o)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		server = &pipe{Conn: ours, opened: time.Now()}
		var count tally
		c := newConnection(g, server, &count)
		var serving sync.WaitGroup
		serving.Go(func() {
			c.serve(t.Context())
			took = time.Since(server.opened)
		})
		f(theirs)
		serving.Wait()
		theirs.Close()
		end = c.end
		var counts Counts
		count.addTo(&counts, wire.TCP)
		checkCounts(t, counts)
	})
	return server, end, took
}

func TestSilentConnectionIsClosedPolitely(t *testing.T) {
	for idle, want := range map[time.Duration]time.Duration{2 * time.Second: 2 * time.Second, 7 * time.Second: firstTimeout} {
		server, end, took := piped(t, addressed, Options{IdleTimeout: idle}, func(net.Conn) {})
		if end != wasIdle || server.halfClosed != want || took != want+linger {
			t.Errorf("half-closed after %v, closed after %v, %d", server.halfClosed, took, end)
		}
	}
	server, end, _ := piped(t, addressed, Options{IdleTimeout: 7 * time.Second}, func(c net.Conn) { exchange(t, c, query("example.com.")) })
	if end != wasIdle || server.halfClosed != 7*time.Second {
		t.Errorf("after a query, half-closed after %v, %d", server.halfClosed, end)
	}
}

func TestQueryThatCrossesTheEndIsNotResetAndEndsTheWait(t *testing.T) {
	server, end, took := piped(t, addressed, Options{}, func(c net.Conn) {
		time.Sleep(firstTimeout + 100*time.Millisecond)
		if _, err := c.Write(numbered(1)); err != nil {
			t.Error(err)
		}
		c.Close()
	})
	if end != wasIdle || server.halfClosed != firstTimeout || took != firstTimeout+100*time.Millisecond {
		t.Errorf("half-closed after %v, closed after %v, %d", server.halfClosed, took, end)
	}
}

func TestIdleTimeStartsWithTheLastReply(t *testing.T) {
	late := resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
		time.Sleep(3 * time.Second)
		return addressed(ctx, q)
	})
	server, end, _ := piped(t, late, Options{IdleTimeout: 2 * time.Second}, func(c net.Conn) {
		time.Sleep(time.Second)
		exchange(t, c, query("example.com."))
	})
	if end != wasIdle || server.halfClosed != 6*time.Second {
		t.Errorf("half-closed after %v, %d", server.halfClosed, end)
	}
}

func TestMessageThatDoesNotComeWhole(t *testing.T) {
	for _, begun := range []int{1, 2, 20} {
		server, end, _ := piped(t, addressed, Options{IdleTimeout: time.Minute}, func(c net.Conn) {
			time.Sleep(time.Second)
			for _, b := range numbered(1)[:begun] { // octet by octet, which buys no time
				c.Write([]byte{b})
				time.Sleep(10 * time.Millisecond)
			}
		})
		if end != wasStalled || server.halfClosed != time.Second+messageTimeout {
			t.Errorf("after %d octets: half-closed after %v, %d", begun, server.halfClosed, end)
		}
	}
}

func TestClientThatDoesNotReadIsCutOff(t *testing.T) {
	_, end, took := piped(t, addressed, Options{}, func(c net.Conn) { c.Write(numbered(50)) })
	if end != wasSlow || took != writeTimeout {
		t.Errorf("closed after %v, %d", took, end)
	}
}

func TestRepliesOfABurstShareAWrite(t *testing.T) {
	const n = 50
	server, _, _ := piped(t, addressed, Options{}, func(c net.Conn) {
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

// knowing returns a cache that has the answers to numbered(n).
func knowing(t *testing.T, n int) *cache.Cache {
	t.Helper()
	c := newCache(t, nil)
	for i := range n {
		q, err := wire.ParseQuery(packed(query(fmt.Sprintf("q%d.example.com.", i)), nil), wire.TCP)
		if err != nil {
			t.Fatal(err)
		}
		a, err := addressed(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		c.Put(q, a)
	}
	return c
}

// What a client has sent at once and the cache knows is answered at once, too: in
// one write, by the loop that has read it.
func TestHitsThatArePipelinedShareAWrite(t *testing.T) {
	f := func(n, maxPipelined, writes int) {
		t.Helper()
		o := Options{Cache: knowing(t, n), MaxPipelined: maxPipelined}
		server, _, _ := piped(t, failing, o, func(c net.Conn) {
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

// Who has to wait does not hold up others, before or behind.
func TestHitsDoNotWaitForMisses(t *testing.T) {
	const n = 20
	release := make(chan struct{})
	slow := resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
		<-release
		return addressed(ctx, q)
	})
	server, _, _ := piped(t, slow, Options{Cache: knowing(t, n)}, func(c net.Conn) {
		miss := query("miss.example.com.")
		miss.Id = n
		c.Write(slices.Concat(numbered(n), framed(packed(miss, nil)), numbered(n)))
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

func TestAClientThatDoesNotReadHitsIsCutOff(t *testing.T) {
	const n = 50
	_, end, took := piped(t, failing, Options{Cache: knowing(t, n)}, func(c net.Conn) { c.Write(numbered(n)) })
	if end != wasSlow || took != writeTimeout {
		t.Errorf("closed after %v, %d", took, end)
	}
}

// From the socket to the socket: nothing is allocated for a hit.
func TestAHitOverTCPAllocatesNothing(t *testing.T) {
	g, _ := start(t, failing, Options{Cache: knowing(t, 10)})
	c := dial(t, "tcp", g.Addrs()[0])
	queries, replies := numbered(10), make([]byte, 2048)
	exchange := func() {
		if _, err := c.Write(queries); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < 10*(len(queries)/10+16); {
			n, err := c.Read(replies)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
	}
	if allocations := testing.AllocsPerRun(1000, exchange); allocations != 0 {
		t.Errorf("%v allocations for ten", allocations)
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

func TestAcceptErrorsNeitherSpinNorEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, err := New(addressed, Options{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ln := &flakyListener{failures: 12, opened: time.Now(), closed: make(chan struct{})}
		l := &tcpListener{gateway: g, ln: ln}
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

package upstreams

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/upstreams/dottest"
)

// counted has dials refused, unless refuse returns nil, and counts those.
func counted(u *Upstream, refuse func(addr netip.AddrPort) error) *atomic.Int64 {
	dials, network := new(atomic.Int64), u.dialer.tcp.network
	u.dialer.tcp.network = func(ctx context.Context, addr netip.AddrPort, limit time.Duration, small bool) (net.Conn, error) {
		if err := refuse(addr); err != nil {
			dials.Add(1)
			return nil, err
		}
		return network(ctx, addr, limit, small)
	}
	return dials
}

// Connections over HTTPS that are made while a better transport is tried start no further
// series of tries.
func TestBetterTransportsAreTriedInOneSeries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := open(t, Options{
			Name: "test", ServerName: dottest.ServerName,
			Addresses:    []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:853")},
			DoHAddresses: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:443")},
		})
		dials := counted(u, func(netip.AddrPort) error {
			time.Sleep(time.Second)
			return syscall.ECONNREFUSED
		})
		doh := u.dialer.ordered()[1]
		for range 600 {
			near, far := net.Pipe()
			u.mu.Lock()
			s := u.addStreamLocked(newLink(near, near, true), doh)
			u.mu.Unlock()
			u.counts.sent.Add(1)
			time.Sleep(200 * time.Millisecond)
			s.close(errors.New("test"))
			far.Close()
		}
		if n := dials.Load(); n < 10 || n > 16 {
			t.Errorf("%d dials in two minutes, want one each %v", n, climbInterval)
		}
		time.Sleep(3 * climbInterval)
		before := dials.Load()
		time.Sleep(time.Minute)
		if n := dials.Load() - before; n > 0 {
			t.Errorf("%d dials of an upstream that is not asked", n)
		}
	})
}

// fallen returns an upstream that is asked over HTTPS, as connections over TLS are refused.
func fallen(t *testing.T) (*dottest.Server, *dottest.HTTPSServer, *Upstream) {
	t.Helper()
	dot, doh, u := ladder(t)
	dot.Stop()
	if err := ask(u, "first.example.com"); err != nil || doh.Requests() == 0 {
		t.Fatalf("%v; %d over HTTPS", err, doh.Requests())
	}
	return dot, doh, u
}

// The way back is tried although each connection over HTTPS ends at once, with an error.
func TestTheWayBackFromAnHTTPSServerThatOnlyFails(t *testing.T) {
	t.Parallel()
	dot, doh, u := fallen(t)
	doh.Set(dottest.HTTPSFault{Status: 503})
	if err := ask(u, "fails.example.com"); err == nil {
		t.Fatal("answered")
	}
	dot.Restart()
	end := time.Now().Add(2 * climbInterval)
	for n := 0; ; n++ {
		if ask(u, fmt.Sprintf("n%d.example.com", n)) == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal("still asked over HTTPS")
		}
		time.Sleep(time.Second)
	}
}

// A better transport is tried again when its connection has ended and that of a worse one
// is still open.
func TestTheWayBackIsTriedAgainAfterTheBetterConnectionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := open(t, Options{
			Name: "test", ServerName: dottest.ServerName, IdleTimeout: time.Hour,
			Addresses:    []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:853")},
			DoHAddresses: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:443")},
		})
		dials := counted(u, func(netip.AddrPort) error { return syscall.ECONNREFUSED })
		var better *stream
		for _, e := range []*endpoint{u.dialer.ordered()[1], u.dialer.ordered()[0]} {
			near, far := net.Pipe()
			defer far.Close()
			u.mu.Lock()
			better = u.addStreamLocked(newLink(near, near, true), e)
			u.mu.Unlock()
		}
		time.Sleep(3 * climbInterval)
		if n := dials.Load(); n > 0 {
			t.Errorf("%d dials with the best transport in use", n)
		}
		better.close(errors.New("test"))
		time.Sleep(3 * climbInterval)
		if n := dials.Load(); n < 2 {
			t.Errorf("%d dials after its end", n)
		}
	})
}

// Addresses that the system has no route to, as those of IPv6 often are, do not delay the
// way back.
func TestAddressesWithoutARouteDoNotDelayTheWayBack(t *testing.T) {
	t.Parallel()
	dot := dottest.NewServer(t, dottest.Options{})
	o := trusting(t, dot)
	o.DoHAddresses = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:443")}
	for i := range 3 {
		o.Addresses = append(o.Addresses, netip.MustParseAddrPort(fmt.Sprintf("[2001:db8::%d]:853", i)))
	}
	u := open(t, o)
	counted(u, func(addr netip.AddrPort) error {
		if strings.HasPrefix(addr.String(), "[") {
			return syscall.ENETUNREACH
		}
		return nil
	})
	u.dialer.ordered()[0].suspect() // as after an outage
	l, to, err := u.dialer.climb(t.Context(), 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	l.abort()
	if to.addr != dot.Addr() {
		t.Errorf("connected to %v", to.addr)
	}
}

// Queries do not move to a connection that is made and brings no answer, as where DNS over
// TLS is recognized and dropped after its handshake.
func TestQueriesDoNotMoveToAConnectionWithoutAnswers(t *testing.T) {
	t.Parallel()
	dot, doh, u := fallen(t)
	dot.Set(dottest.Fault{Never: true})
	dot.Restart()
	before := dot.Stats()
	asked := 0
	for end := time.Now().Add(2*climbInterval + 4*time.Second); time.Now().Before(end); asked++ {
		if err := ask(u, fmt.Sprintf("n%d.example.com", asked)); err != nil {
			t.Error(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	after := dot.Stats()
	tries := after.Accepted - before.Accepted
	if tries < 1 || tries > 4 {
		t.Errorf("tried %d times", tries)
	}
	if n := after.Queries - before.Queries; n > asked/4 { // one tests each connection
		t.Errorf("%d of %d queries moved", n, asked)
	}
	if n := doh.Requests(); n < asked {
		t.Errorf("%d of %d over HTTPS", n, asked)
	}
	dot.Set()
	answered := dot.Stats().Answers
	eventually(t, "the way back", func() bool {
		if err := ask(u, "later.example.com"); err != nil {
			t.Error(err)
		}
		return dot.Stats().Answers > answered+2
	})
}

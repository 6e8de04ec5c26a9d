package upstreams

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"dotgate/gateway/wire"
)

// piped returns connections of an upstream that lead nowhere.
func piped(t *testing.T) (u *Upstream, from, to *conn) {
	t.Helper()
	u = open(t, Options{Name: "test", ServerName: "dns.example", Addresses: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}})
	connection := func() *conn {
		client, server := net.Pipe()
		t.Cleanup(func() { client.Close(); server.Close() })
		return newConn(u, tls.Client(client, new(tls.Config)), new(endpoint))
	}
	return u, connection(), connection()
}

// What was sent long before a connection brought its last answer has arrived: it is
// slow, and not lost. The oldest of what came after may be what holds up the rest.
func TestWhatHasArrivedIsNotHandedOver(t *testing.T) {
	u, from, to := piped(t)
	q, err := wire.NewQuery("www.example.com", "A")
	if err != nil {
		t.Fatal(err)
	}
	now := u.now() + int64(time.Minute)
	for i := range 10 {
		at := now - int64(5*time.Second)
		if i >= 6 {
			at = now
		}
		if err := from.enter(&call{query: q, done: ignore}, at); err != nil {
			t.Fatal(err)
		}
	}
	from.lastRead.Store(now)
	from.rested.Store(0) // it was busy
	from.handOver(to)
	if got := to.pending.Load(); got != 3 {
		t.Errorf("%d queries were handed over, want 3", got)
	}
}

// A connection may end while its queries are being sent on another one: the rest of
// them fails with it, each once.
func TestAConnectionMayEndWhileItHandsOver(t *testing.T) {
	u, from, to := piped(t)
	to.close(errBad) // so what is sent there fails at once
	failed := 0
	for range 5 {
		q, err := wire.NewQuery("www.example.com", "A")
		if err != nil {
			t.Fatal(err)
		}
		if err := from.enter(&call{query: q, upstream: u, resent: len(trusts), done: func(_ wire.Answer, err error) {
			if !errors.Is(err, errBad) {
				t.Errorf("got %v", err)
			}
			failed++
			from.close(errBad)
		}}, u.now()); err != nil {
			t.Fatal(err)
		}
	}
	from.handOver(to)
	if failed != 5 {
		t.Errorf("%d of 5 queries failed", failed)
	}
}

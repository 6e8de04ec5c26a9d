package upstreams

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"testing"

	"dotgate/gateway/wire"
)

// A connection may end while its queries are being sent on another one: the rest of
// them fails with it, each once.
func TestAConnectionMayEndWhileItHandsOver(t *testing.T) {
	u := open(t, Options{Name: "test", ServerName: "dns.example", Addresses: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}})
	connection := func() *conn {
		client, server := net.Pipe()
		t.Cleanup(func() { client.Close(); server.Close() })
		return newConn(u, tls.Client(client, new(tls.Config)), new(endpoint))
	}
	from, to := connection(), connection()
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

package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

// change has o take effect.
func change(t *testing.T, g *Gateway, r Resolver, o Options) {
	t.Helper()
	o.Log = g.log
	c, err := g.Prepare(r, o)
	if err != nil {
		t.Fatal(err)
	}
	c.Commit()
}

// named answers with a text.
func named(text string) resolver {
	return func(_ context.Context, q wire.Query) (wire.Answer, error) {
		return answer(q, record("%s 0 IN TXT %q", nameOf(q), text))
	}
}

// textFor returns the text that c gets.
func textFor(t *testing.T, c net.Conn) string {
	t.Helper()
	m := new(dns.Msg).SetQuestion("example.com.", dns.TypeTXT)
	reply := exchange(t, c, m)
	if len(reply.Answer) == 0 {
		return dns.RcodeToString[reply.Rcode]
	}
	return reply.Answer[0].(*dns.TXT).Txt[0]
}

func TestOtherRulesHoldFromNowOn(t *testing.T) {
	eachTransport(t, func(t *testing.T, network string) {
		g, _ := start(t, named("first"), Options{})
		addr := g.Addrs()[0]
		c := dial(t, network, addr)
		f := func(r Resolver, o Options, want string) {
			t.Helper()
			o.Listen = []netip.AddrPort{loopback}
			change(t, g, r, o)
			if got := textFor(t, c); got != want {
				t.Errorf("%+v: got %s, want %s", o, got, want)
			}
		}
		f(named("second"), Options{}, "second")
		f(named("third"), Options{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, "REFUSED")
		f(named("fourth"), Options{}, "fourth")
		f(resolver(func(context.Context, wire.Query) (wire.Answer, error) { return wire.Answer{}, errTest }), Options{}, "SERVFAIL")
		f(named("last"), Options{MaxQueries: 1, MaxConnections: 1, MaxPerClient: 1}, "last")
		if got := g.Addrs(); len(got) != 1 || got[0] != addr {
			t.Errorf("it serves at %v, not where it did, %v", got, addr)
		}
		if network == "tcp" { // the limits are those of now: there is room for one
			textFor(t, dial(t, network, addr))
			if n := g.Counts().Connections.Evicted; n != 1 {
				t.Errorf("%d connections made room", n)
			}
		}
	})
}

func TestWhatClientsHaveRunUpOutlivesAChange(t *testing.T) {
	first, err := newRules(addressed, Options{RateLimit: 10}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f := func(o Options, refusals, limits, cookies bool) {
		t.Helper()
		next, err := newRules(addressed, o, first)
		if err != nil {
			t.Fatal(err)
		}
		if got := next.access.refusals == first.access.refusals; got != refusals {
			t.Errorf("%+v: keeps refusals: %v", o, got)
		}
		if got := next.access.limits == first.access.limits; got != limits {
			t.Errorf("%+v: keeps limits: %v", o, got)
		}
		if got := next.access.cookies.secrets[0] == first.access.cookies.secrets[0]; got != cookies {
			t.Errorf("%+v: keeps cookies: %v", o, got)
		}
	}
	f(Options{RateLimit: 10, NSID: "n"}, true, true, true)
	f(Options{RateLimit: 11}, true, false, true)
	f(Options{RateLimit: 10, RateBurst: 7}, true, false, true)
	f(Options{RateLimit: 10, CookieSecret: []string{"00112233445566778899aabbccddeeff"}}, true, true, false)
}

func TestAddressesComeAndGo(t *testing.T) {
	g, stop := start(t, addressed, Options{})
	first := g.Addrs()[0]
	stays := dial(t, "tcp", first)
	exchange(t, stays, query("example.com."))

	// A second address; the first one's socket and connection stay.
	another := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), first.Port())
	change(t, g, addressed, Options{Listen: []netip.AddrPort{loopback, another}})
	for _, network := range []string{"udp", "tcp"} {
		exchange(t, dial(t, network, another), query("example.com."))
	}
	exchange(t, stays, query("example.com."))

	// Only the second: who waits at the first is still answered.
	asked, release := make(chan struct{}), make(chan struct{})
	change(t, g, resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
		close(asked)
		<-release
		return addressed(ctx, q)
	}), Options{Listen: []netip.AddrPort{loopback, another}})
	sendQuery(t, stays, query("slow.example.com."))
	<-asked
	change(t, g, addressed, Options{Listen: []netip.AddrPort{another}})
	if got := g.Addrs(); len(got) != 1 || got[0] != another {
		t.Errorf("it serves at %v", got)
	}
	close(release)
	if reply := receive(t, stays); len(reply.Answer) != 1 {
		t.Errorf("who waited got %v", reply)
	}
	stays.Close()
	exchange(t, dial(t, "udp", another), query("example.com."))
	// Back again, and gone again, while the last have hardly left.
	for _, listen := range [][]netip.AddrPort{{first, another}, {another}, {first, another}, {another}} {
		change(t, g, addressed, Options{Listen: listen})
	}
	for deadline := time.Now().Add(patience); ; {
		c, err := net.Dial("tcp", first.String())
		if errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
		if err == nil {
			c.Close()
		}
		if time.Now().After(deadline) {
			t.Fatalf("there is still somebody at %v: %v", first, err)
		}
	}
	stop()
	if n := g.Counts().Received.Total(); n != 6 {
		t.Errorf("counted %d queries, want all 6", n)
	}
	if l := g.Latency(); l.Count() != 6 {
		t.Errorf("counted %d latencies", l.Count())
	}
}

func TestWhatCannotBeHadChangesNothing(t *testing.T) {
	g, _ := start(t, named("first"), Options{})
	addr := g.Addrs()[0]
	taken, err := net.Listen("tcp4", "127.0.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	there := taken.Addr().(*net.TCPAddr).AddrPort()
	free := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.4"), there.Port())
	for _, o := range []Options{
		{Listen: []netip.AddrPort{free, there}},
		{Listen: []netip.AddrPort{free}, ECS: "some"},
	} {
		if _, err := g.Prepare(named("second"), o); err == nil {
			t.Errorf("%+v can be had", o)
		}
	}
	c, err := g.Prepare(named("second"), Options{Listen: []netip.AddrPort{free}})
	if err != nil {
		t.Fatal(err)
	}
	c.Abandon()
	if conn, err := net.Dial("tcp", free.String()); err == nil {
		conn.Close()
		t.Error("what was abandoned still listens")
	}
	if got := g.Addrs(); len(got) != 1 || got[0] != addr || textFor(t, dial(t, "udp", addr)) != "first" {
		t.Errorf("it serves at %v", got)
	}
}

// TestNothingIsLostWhenAWildcardTakesOver changes from one address to all, and back,
// while queries come to that address.
func TestNothingIsLostWhenAWildcardTakesOver(t *testing.T) {
	g, _ := start(t, addressed, Options{})
	addr := g.Addrs()[0]
	all := netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
	done := make(chan error)
	end := make(chan struct{})
	go func() {
		defer close(done)
		c, err := net.Dial("udp", addr.String())
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		client := dns.Client{Timeout: patience}
		for n := 0; ; n++ {
			select {
			case <-end:
				return
			default:
			}
			if _, _, err := client.ExchangeWithConn(query(fmt.Sprintf("n%d.example.com.", n)), &dns.Conn{Conn: c}); err != nil {
				done <- fmt.Errorf("query %d: %w", n, err)
				return
			}
		}
	}()
	for range 5 {
		for _, listen := range []netip.AddrPort{all, addr} {
			change(t, g, addressed, Options{Listen: []netip.AddrPort{listen}})
			// A connection that was made at the very end may be lost with its socket.
			c, err := net.Dial("tcp", addr.String())
			if err == nil {
				c.Close()
			} else if c, err = net.Dial("tcp", addr.String()); err == nil {
				c.Close()
			}
			if err != nil {
				t.Error("twice:", err)
			}
		}
	}
	close(end)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

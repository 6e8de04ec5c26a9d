package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/access"
	"dotgate/gateway/cache"
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

func TestANewConfigurationIsInEffectAtOnce(t *testing.T) {
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
		f(named("third"), Options{Allow: []access.Range{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}}}, "REFUSED")
		f(named("fourth"), Options{}, "fourth")
		f(resolver(func(context.Context, wire.Query) (wire.Answer, error) { return wire.Answer{}, errTest }), Options{}, "SERVFAIL")
		f(named("last"), Options{MaxQueries: 1, MaxConnections: 1, MaxPerClient: 1}, "last")
		if got := g.Addrs(); len(got) != 1 || got[0] != addr {
			t.Errorf("it serves at %v, not where it did, %v", got, addr)
		}
		if network == "tcp" { // the limits are those of now: there is room for one
			eventually(t, func() bool { // once the other connection is idle
				again := &dns.Conn{Conn: dial(t, network, addr)}
				_ = again.WriteMsg(query("example.com.")) // it may be closed already
				_, err := again.ReadMsg()
				return err == nil
			})
			if n := g.Counts().Connections.Evicted; n != 1 {
				t.Errorf("%d connections made room", n)
			}
		}
	})
}

func TestAChangeAddsAndRemovesListenAddresses(t *testing.T) {
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

	// Only the second: a pending query at the first is still answered.
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
		t.Errorf("the pending query got %v", reply)
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
			t.Fatalf("%v still accepts connections: %v", first, err)
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

func TestAFailedChangeChangesNothing(t *testing.T) {
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

// Queries that have come before Serve are answered, although their address is not served any
// more when it begins.
func TestAChangeBeforeServeLosesNoQuery(t *testing.T) {
	g, err := New(addressed, Options{Listen: []netip.AddrPort{loopback}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Listen(); err != nil {
		t.Fatal(err)
	}
	early := &dns.Conn{Conn: dial(t, "udp", g.Addrs()[0])}
	if err := early.WriteMsg(query("early.example.com.")); err != nil {
		t.Fatal(err)
	}
	change(t, g, addressed, Options{Listen: []netip.AddrPort{netip.AddrPortFrom(loopback.Addr().Next(), 0)}})
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- g.Serve(ctx) }()
	early.SetReadDeadline(time.Now().Add(patience))
	if _, err := early.ReadMsg(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestNoQueryIsLostWhenAWildcardReplacesAddresses changes from one address to all, and back,
// while queries come to that address.
func TestNoQueryIsLostWhenAWildcardReplacesAddresses(t *testing.T) {
	all := freeEverywhere(t)
	addr := netip.AddrPortFrom(loopback.Addr(), all.Port())
	g, _ := start(t, addressed, Options{Listen: []netip.AddrPort{addr}})
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

// freeEverywhere returns a port at all addresses that no socket has. It is not one of those
// that systems give to sockets by themselves, so that none gets it meanwhile.
func freeEverywhere(t *testing.T) netip.AddrPort {
	t.Helper()
	for range 100 {
		all := netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(20_000+rand.IntN(10_000)))
		l, err := net.Listen("tcp4", all.String())
		if err != nil {
			continue
		}
		l.Close()
		c, err := net.ListenPacket("udp4", all.String())
		if err != nil {
			continue
		}
		c.Close()
		return all
	}
	t.Fatal("no port is free at all addresses")
	return netip.AddrPort{}
}

// changeOptions puts o into effect, except its addresses.
func changeOptions(t *testing.T, g *Gateway, r Resolver, o Options) {
	t.Helper()
	o.Log, o.Cache = g.log, g.cache
	next, err := newConfig(r, o, g.config())
	if err != nil {
		t.Fatal(err)
	}
	before := g.config()
	g.apply(next)
	g.dropOutdated(before, next)
}

// routesFor makes routes from lists of names by source.
func routesFor(t *testing.T, bySource map[string]string) *wire.Routes {
	t.Helper()
	names, sources := new(wire.RouteNames), []string{}
	for source, name := range bySource {
		if _, _, err := names.Add(name, len(sources)); err != nil {
			t.Fatal(err)
		}
		sources = append(sources, source)
	}
	names.Pack()
	return wire.NewRoutes(names, sources)
}

// The answer of a call that began under the old configuration goes to the queries that wait
// for it. It is not cached, and new queries do not join that call.
func TestAnswersByTheOldConfigurationAreNotCached(t *testing.T) {
	t.Parallel()
	var answers = []struct{ name, want string }{{"www.corp.example.", "new"}, {"www.example.org.", "old"}}
	held, asked := make(chan struct{}), make(chan struct{}, 8)
	from := func(text string, wait bool) resolver {
		return func(_ context.Context, q wire.Query) (wire.Answer, error) {
			asked <- struct{}{}
			if wait {
				<-held
			}
			return answer(q, record("%s 300 IN TXT %q", nameOf(q), text))
		}
	}
	g, _ := start(t, from("old", true), Options{Cache: newCache(t, nil)})
	textOf := func(c net.Conn, name string) string {
		reply := exchange(t, c, new(dns.Msg).SetQuestion(name, dns.TypeTXT))
		if len(reply.Answer) != 1 {
			t.Errorf("%s: got %v", name, reply)
			return ""
		}
		return reply.Answer[0].(*dns.TXT).Txt[0]
	}
	var early sync.WaitGroup
	for _, a := range answers {
		c := dial(t, "udp", g.Addrs()[0])
		early.Go(func() {
			if got := textOf(c, a.name); got != "old" {
				t.Errorf("%s: the client that asked before the change gets %s", a.name, got)
			}
		})
		<-asked
	}
	changeOptions(t, g, from("new", false), Options{Routes: routesFor(t, map[string]string{"corp": "corp.example"})})
	c := dial(t, "udp", g.Addrs()[0])
	if got := textOf(c, "www.corp.example."); got != "new" {
		t.Errorf("a client that asks after the change waits for the old upstream: %s", got)
	}
	close(held)
	early.Wait()
	for _, a := range answers {
		if got := textOf(c, a.name); got != a.want {
			t.Errorf("%s: the cache has the answer from %s, want %s", a.name, got, a.want)
		}
	}
}

// Cached answers are dropped if the new configuration is stricter or asks elsewhere, and blocked
// ones if it is less strict.
func TestCachedAnswersFollowANewConfiguration(t *testing.T) {
	t.Parallel()
	f := func(before, after Options, dropped ...string) {
		t.Helper()
		c := newCache(t, nil)
		before.Cache = c
		g, err := New(addressed, before)
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]string{
			"www.example.com.": "10.0.0.1", "public.example.com.": "192.0.2.1", "a.corp.example.": "10.0.0.2",
			"host.test.": "192.0.2.2", "printer.": "192.0.2.3",
		}
		for name, address := range all {
			q, err := wire.NewQuery(name, "A")
			if err != nil {
				t.Fatal(err)
			}
			a, err := answer(q, record("%s 300 IN A %s", name, address))
			if err != nil {
				t.Fatal(err)
			}
			c.Put(q, a)
		}
		for name, private := range map[string]bool{"blocked.example.com.": true, "blocked.corp.example.": true, "nodata.example.com.": false} {
			q, err := wire.NewQuery(name, "A")
			if err != nil {
				t.Fatal(err)
			}
			a := q.OwnAnswer(wire.NoError, wire.EDE{})
			if private {
				if a, err = answer(q, record("%s 300 IN A 10.0.0.9", name)); err != nil {
					t.Fatal(err)
				}
			}
			c.Put(q, g.config().rebind.Filter(q, a))
			all[name] = ""
		}
		changeOptions(t, g, addressed, after)
		for name := range all {
			q, err := wire.NewQuery(name, "A")
			if err != nil {
				t.Fatal(err)
			}
			if gone := c.Lookup(q) == cache.Miss; gone != slices.Contains(dropped, name) {
				t.Errorf("%+v to %+v: %s is gone: %v", before, after, name, gone)
			}
		}
	}
	corp := routesFor(t, map[string]string{"1": "corp.example"})
	again := routesFor(t, map[string]string{"1": "corp.example"})
	other := routesFor(t, map[string]string{"2": "corp.example"})
	starred := routesFor(t, map[string]string{"1": "*.corp.example"})
	f(Options{}, Options{})
	f(Options{Routes: corp}, Options{Routes: again})
	f(Options{}, Options{Routes: corp}, "a.corp.example.", "blocked.corp.example.")
	f(Options{Routes: corp}, Options{}, "a.corp.example.", "blocked.corp.example.")
	f(Options{Routes: corp}, Options{Routes: other}, "a.corp.example.", "blocked.corp.example.")
	f(Options{Routes: corp}, Options{Routes: starred})
	f(Options{}, Options{BlockPrivate: true}, "www.example.com.", "a.corp.example.", "blocked.example.com.", "blocked.corp.example.")
	f(Options{Routes: corp}, Options{Routes: again, BlockPrivate: true}, "www.example.com.", "blocked.example.com.")
	f(Options{BlockPrivate: true, AllowPrivate: []string{"example.com"}}, Options{BlockPrivate: true}, "www.example.com.", "a.corp.example.", "blocked.example.com.")
	// The first two have a negative answer that the filter made.
	f(Options{BlockPrivate: true}, Options{}, "blocked.example.com.", "blocked.corp.example.", "nodata.example.com.")
	f(Options{BlockPrivate: true}, Options{BlockPrivate: true, AllowPrivate: []string{"blocked.example.com"}}, "www.example.com.", "a.corp.example.", "blocked.example.com.")
	f(Options{ForwardLocal: []string{"test"}}, Options{}, "host.test.")
	f(Options{}, Options{BlockSingleLabel: true}, "printer.")
	f(Options{}, Options{ECS: "192.0.2.0/24"}, "www.example.com.", "public.example.com.", "a.corp.example.", "host.test.", "printer.",
		"blocked.example.com.", "blocked.corp.example.", "nodata.example.com.")
}

// Answers come and rules change at once: none that came by other rules stays.
func TestAnswersArriveWhileTheConfigurationChanges(t *testing.T) {
	t.Parallel()
	c := newCache(t, nil)
	g, err := New(addressed, Options{Cache: c, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	routes := routesFor(t, map[string]string{"corp": "corp.example"})
	q, err := wire.NewQuery("www.corp.example", "A")
	if err != nil {
		t.Fatal(err)
	}
	a, err := addressed(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		call := &call{query: q, config: g.config()}
		var both sync.WaitGroup
		both.Go(func() { g.store(call, a) })
		both.Go(func() {
			o := Options{}
			if i%2 == 0 {
				o.Routes = routes
			}
			changeOptions(t, g, addressed, o)
		})
		both.Wait()
		if c.Lookup(q) != cache.Miss {
			t.Fatalf("change %d: what came by the rules of before is cached", i)
		}
	}
}

package gateway

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/access"
	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
)

// checkFor returns a health check as a message.
func checkFor(t testing.TB, name string, c wire.HealthCheck) *dns.Msg {
	t.Helper()
	q, err := wire.NewQuery(name, "A")
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(q.AppendHealthCheck(nil, dns.Id(), c)); err != nil {
		t.Fatal(err)
	}
	return m
}

// noteCounter is a QueryLog and a Tracer that only count.
type noteCounter struct{ notes, traces atomic.Int64 }

func (n *noteCounter) Note(netip.AddrPort, wire.Transport, []byte, []byte, time.Duration) {
	n.notes.Add(1)
}
func (n *noteCounter) Begin() context.Context      { n.traces.Add(1); return context.Background() }
func (n *noteCounter) End(context.Context, Traced) { n.traces.Add(1) }

func TestAHealthCheckHasNoLimitsAndIsInNoCountLogOrTrace(t *testing.T) {
	eachTransport(t, func(t *testing.T, network string) {
		var noted noteCounter
		var asked atomic.Int64
		store, err := cache.New(cache.Defaults())
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		r := resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
			asked.Add(1)
			return addressed(ctx, q)
		})
		g, stop := start(t, r, Options{
			Allow: []access.Range{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}}, RateLimit: 1, RateBurst: 1,
			QueryLog: &noted, Tracer: &noted, Cache: store,
		})
		token := g.CheckToken()
		c := dial(t, network, g.Addrs()[0])
		f := func(name string, check wire.HealthCheck, want string) {
			t.Helper()
			if got := dns.RcodeToString[exchange(t, c, checkFor(t, name, check)).Rcode]; got != want {
				t.Errorf("%s: got %s, want %s", name, got, want)
			}
		}
		for range 30 {
			f("example.com", wire.HealthCheck{Token: token[:]}, "NOERROR")
		}
		f("localhost", wire.HealthCheck{Token: token[:]}, "NOERROR")
		if n := asked.Load(); n != 1 {
			t.Errorf("the resolver was asked %d times, not once", n)
		}
		f("example.com", wire.HealthCheck{Token: token[:], Live: true}, "NOERROR")
		f("example.com", wire.HealthCheck{Token: token[:], Live: true}, "NOERROR")
		if n := asked.Load(); n != 3 {
			t.Errorf("the resolver was asked %d times, not 3 times", n)
		}
		if n := noted.notes.Load() + noted.traces.Load(); n != 0 {
			t.Errorf("%d notes and traces", n)
		}
		wrong := token
		wrong[15] ^= 1
		f("example.com", wire.HealthCheck{Token: wrong[:]}, "REFUSED")
		f("example.com", wire.HealthCheck{}, "REFUSED")
		stop()
		counts, via := g.Counts(), wire.UDP
		if network == "tcp" {
			via = wire.TCP
		}
		if counts.Outcomes[Checked][via] != 33 || counts.Outcomes[RefusedClient][via] != 2 || counts.Outcomes[Answered][via]+counts.Outcomes[AnsweredLocally][via] != 0 {
			t.Errorf("outcomes %v", counts.Outcomes)
		}
		if total := counts.Cache.Hits.Total() + counts.Cache.Misses.Total() + counts.Cache.Stale.Total() + counts.Cache.Prefetches.Total(); total != 0 {
			t.Errorf("cache %+v", counts.Cache)
		}
		if l := g.Latency(); l.Quantile(1) != 0 {
			t.Errorf("latency %v", l.Quantile(1))
		}
	})
}

func TestAHealthCheckComesFromThisMachine(t *testing.T) {
	g, err := New(addressed, Options{
		Allow:      []access.Range{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}},
		Interfaces: func() ([]access.Interface, error) { return interfacesOf("eth0 198.51.100.7/24"), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	token := g.CheckToken()
	packet := packed(checkFor(t, "example.com", wire.HealthCheck{Token: token[:]}), nil)
	f := func(from string, want step) {
		t.Helper()
		if _, _, next := g.tryAnswer(nil, packet, clientAt(g, from, new(counters))); next != want {
			t.Errorf("%s: got %v, want %v", from, next, want)
		}
	}
	f("127.0.0.1", ask)
	f("198.51.100.7", ask)
	f("198.51.100.8", send) // refused
	f("10.0.0.1", send)
	other, err := New(addressed, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if other.CheckToken() == token {
		t.Error("two gateways have one token")
	}
}

// A live check fails with the upstream, even if the cache has an answer.
func TestALiveCheckFailsWithTheUpstream(t *testing.T) {
	store, err := cache.New(cache.Defaults())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var broken atomic.Bool
	g, _ := start(t, resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
		if broken.Load() {
			return wire.Answer{}, errTest
		}
		return addressed(ctx, q)
	}), Options{Cache: store})
	token := g.CheckToken()
	c := dial(t, "udp", g.Addrs()[0])
	f := func(live bool, want int) {
		t.Helper()
		if got := exchange(t, c, checkFor(t, "example.com", wire.HealthCheck{Token: token[:], Live: live})).Rcode; got != want {
			t.Errorf("live %t: got %d, want %d", live, got, want)
		}
	}
	f(true, dns.RcodeSuccess)
	broken.Store(true)
	f(true, dns.RcodeServerFailure)
	f(false, dns.RcodeSuccess)
}

// Clients that take all slots and connections do not make the gateway look dead.
func TestAHealthCheckIsAnsweredAtTheConnectionLimit(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	r := resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
		if nameOf(q) == "slow.example.com." {
			<-release
		}
		return addressed(ctx, q)
	})
	g, _ := start(t, r, Options{MaxQueries: 2, MaxConnections: 2, MaxPerClient: 2, Timeout: time.Minute})
	defer close(release)
	addr := g.Addrs()[0]
	for range 2 { // each holds a connection, and the first one a slot
		c := dial(t, "tcp", addr)
		send := &dns.Conn{Conn: c}
		if err := send.WriteMsg(query("slow.example.com.")); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() bool { return g.slots.taken.Load() == 2 })
	if reply := exchange(t, dial(t, "udp", addr), query("example.com.")); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("a client got %v", reply)
	}
	token := g.CheckToken()
	for _, network := range []string{"udp", "tcp"} {
		if reply := exchange(t, dial(t, network, addr), checkFor(t, "example.com", wire.HealthCheck{Token: token[:]})); reply.Rcode != dns.RcodeSuccess {
			t.Errorf("a health check over %s got %v", network, reply)
		}
	}
	// Others of this machine are turned away as ever.
	c := dial(t, "tcp", addr)
	if err := (&dns.Conn{Conn: c}).WriteMsg(query("localhost.")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("a client got %d octets", n)
	}
	if counts := g.Counts(); counts.Outcomes[Overload][wire.TCP] != 1 || counts.Outcomes[AnsweredLocally][wire.TCP] != 0 {
		t.Errorf("a query without a reply is counted as %v", counts.Outcomes)
	}
	var all []net.Conn
	for range 8 + 3 { // the transport admits 8 beyond the limits
		all = append(all, dial(t, "tcp", addr))
	}
	eventually(t, func() bool { return g.Counts().Connections.Evicted > 0 })
	for _, c := range all {
		c.Close()
	}
	eventually(t, func() bool { return g.Counts().Connections.Open == 2 })
	if reply := exchange(t, dial(t, "tcp", addr), checkFor(t, "example.com", wire.HealthCheck{Token: token[:]})); reply.Rcode != dns.RcodeSuccess {
		t.Errorf("a health check after the crowd got %v", reply)
	}
}

// eventually waits until it is so.
func eventually(t testing.TB, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not become so")
		}
	}
}

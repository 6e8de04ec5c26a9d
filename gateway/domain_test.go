package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

func newDomains(scarce bool) *domains {
	return &domains{log: slog.New(slog.DiscardHandler), scarce: func() bool { return scarce }, known: make(map[string]*domain)}
}

func TestWhichSuffixesAreOneDomain(t *testing.T) {
	f := func(name, want string) {
		t.Helper()
		q, err := wire.NewQuery(name, "A")
		if err != nil {
			t.Fatal(err)
		}
		if got := wire.NameText(wire.RegistrableDomain(q.AppendName(nil))); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	f("a.b.Example.com", "example.com")
	f("a.example.co.uk", "example.co.uk")
	f("user.github.io", "user.github.io")
	f("com", "com")
	f(".", "")
	f("x.corp", "x.corp")
	f(`a\000b.c\.d.example.org`, "example.org")
	f("a.b.c.d.kawasaki.jp", "kawasaki.jp") // *.kawasaki.jp is a suffix: a shorter domain, whose sub-zones are told apart
}

// TestADomainWithSilentServersHoldsUpNoOther asks for 5000 new names a second under one
// domain whose servers are silent, and for other names beside.
func TestADomainWithSilentServersHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var inProgress, most, victims atomic.Int64
		world := resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
			if !strings.HasSuffix(nameOf(q), ".victim.example.") {
				time.Sleep(20 * time.Millisecond)
				return addressed(ctx, q)
			}
			victims.Add(1)
			n := inProgress.Add(1)
			defer inProgress.Add(-1)
			most.Store(max(n, most.Load()))
			return silent(ctx, q)
		})
		g, err := New(world, Options{Log: slog.New(slog.DiscardHandler), Timeout: 4 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		var count counters
		var clients sync.WaitGroup
		asked := func(name string, want int, within time.Duration) {
			clients.Go(func() {
				began := time.Now()
				reply, q, next := g.tryAnswer(nil, packed(withEDNS(query(name), 1232), nil), localClient(g, &count))
				if next == ask {
					reply = later(g, q, &count)
				}
				var m dns.Msg
				if err := m.Unpack(reply); err != nil || m.Rcode != want {
					t.Errorf("%s: got %v, %v", name, &m, err)
				}
				if took := time.Since(began); took > within {
					t.Errorf("%s took %v", name, took)
				}
			})
		}
		for ms := range 10_000 {
			for i := range 5 {
				asked(fmt.Sprintf("x%d-%d.victim.example.", ms, i), dns.RcodeServerFailure, 4*time.Second)
			}
			asked(fmt.Sprintf("www.example%d.org.", ms), dns.RcodeSuccess, 25*time.Millisecond)
			time.Sleep(time.Millisecond)
		}
		if n := most.Load(); n > 3000 {
			t.Errorf("%d queries for the domain were in progress at once", n)
		}
		if n := victims.Load(); n > 5000 {
			t.Errorf("upstreams were asked %d times for the domain, of 50 000", n)
		}
		clients.Wait()
	})
}

// 400 queries a second below one dead sub-zone hold up no other name of the domain,
// and no client with few queries there.
func TestADeadSubZoneHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		world := resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
			if strings.HasSuffix(nameOf(q), ".dead.victim.example.") {
				return silent(ctx, q)
			}
			time.Sleep(20 * time.Millisecond)
			return addressed(ctx, q)
		})
		for _, slots := range []int{12_000, 2_000} { // enough for all, and scarce
			g, err := New(world, Options{Log: slog.New(slog.DiscardHandler), Timeout: 4 * time.Second, MaxQueries: slots})
			if err != nil {
				t.Fatal(err)
			}
			var count counters
			var clients sync.WaitGroup
			var overload atomic.Int64
			asked := func(name string, dead bool) {
				clients.Go(func() {
					reply, q, next := g.tryAnswer(nil, packed(withEDNS(query(name), 1232), nil), localClient(g, &count))
					if next == ask {
						reply = later(g, q, &count)
					}
					var m dns.Msg
					if err := m.Unpack(reply); err != nil || !dead && m.Rcode != dns.RcodeSuccess {
						t.Errorf("%d slots, %s: got %v, %v", slots, name, &m, err)
					}
				})
			}
			for i := range 4000 {
				asked(fmt.Sprintf("x%d.y%d.dead.victim.example.", i, i), true)
				if i%40 == 0 {
					asked(fmt.Sprintf("new%d.victim.example.", i), false)
					asked(fmt.Sprintf("new%d.other.victim.example.", i), false)
					asked(fmt.Sprintf("www.example%d.org.", i), false)
				}
				time.Sleep(2500 * time.Microsecond)
			}
			overload.Store(int64(count.outcomes[Overload].Load()))
			if n := overload.Load(); slots == 12_000 && n > 0 || slots == 2_000 && n < 1000 {
				t.Errorf("%d slots: %d queries were held back", slots, n)
			}
			clients.Wait()
			if n := len(g.domains.known); n > 20 {
				t.Errorf("%d slots: %d domains are remembered", slots, n)
			}
		}
	})
}

// A client with few queries below a suffix that another client floods is not refused.
func TestASilentDomainIsHeldBackByClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ds := newDomains(true)
		flood, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		q, err := wire.NewQuery("x.dead.example.com", "A")
		if err != nil {
			t.Fatal(err)
		}
		fine, err := wire.NewQuery("www.example.org", "A")
		if err != nil {
			t.Fatal(err)
		}
		refused := 0
		for range 2 * domainMax {
			if c, err := ds.begin(fine, other, time.Now()); err == nil {
				ds.end(c, true, time.Now())
			}
			if _, err := ds.begin(q, flood, time.Now()); err != nil {
				refused++
			}
			time.Sleep(10 * time.Millisecond)
		}
		if refused < domainMax/4 {
			t.Errorf("%d queries of the flood were refused", refused)
		}
		for i := range domainClientMax {
			if _, err := ds.begin(q, other, time.Now()); err != nil {
				t.Errorf("query %d of another client: %v", i, err)
			}
		}
		if _, err := ds.begin(q, other, time.Now()); err == nil {
			t.Error("a client over its share is not refused")
		}
	})
}

// The counts of domains add up, in whatever order queries end.
func TestWhatCountsForDomainsAddsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ds := newDomains(false)
		ds.lastAnswer = time.Now()
		var all sync.WaitGroup
		for client := range 4 {
			random := rand.New(rand.NewPCG(1, uint64(client)))
			all.Go(func() {
				var open []domainUse
				for range 5000 {
					name := []string{"a.d1.v.example", "a.b.d1.v.example", "c.d2.v.example", "v.example", "a.b.c.d.e.d1.v.example"}[random.IntN(5)]
					q, err := wire.NewQuery(name, "A")
					if err != nil {
						t.Error(err)
						return
					}
					if c, err := ds.begin(q, netip.AddrFrom4([4]byte{192, 0, 2, byte(client)}), time.Now()); err == nil {
						open = append(open, c)
					}
					ds.mu.Lock()
					ds.lastAnswer = time.Now()
					ds.mu.Unlock()
					for len(open) > 200 || len(open) > 0 && random.IntN(3) == 0 {
						i := random.IntN(len(open))
						ds.end(open[i], random.IntN(100) == 0, time.Now())
						open[i] = open[len(open)-1]
						open = open[:len(open)-1]
					}
					time.Sleep(time.Millisecond)
				}
				for _, c := range open {
					ds.end(c, true, time.Now())
				}
			})
		}
		all.Wait()
		for name, d := range ds.known {
			if d.inProgress != 0 || d.excluded != 0 {
				t.Errorf("%s has %d in progress, %d excluded", name, d.inProgress, d.excluded)
			}
		}
	})
}

// Many queries for a domain whose servers answer, and some that don't, are no reason
// to hold back any.
func TestADomainWithServersIsNotHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ds := newDomains(true)
		q, err := wire.NewQuery("www.example.com", "A")
		if err != nil {
			t.Fatal(err)
		}
		var queries sync.WaitGroup
		for i := range 10_000 {
			d, err := ds.begin(q, netip.Addr{}, time.Now())
			if err != nil {
				t.Fatalf("query %d: %v", i, err)
			}
			queries.Go(func() {
				slow := i%10 == 0 // one in ten is never answered
				if time.Sleep(200 * time.Millisecond); slow {
					time.Sleep(4 * time.Second)
				}
				ds.end(d, !slow, time.Now())
			})
			if i%10 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		queries.Wait()
		if len(ds.known) > 1 {
			t.Errorf("%d domains are remembered", len(ds.known))
		}
	})
}

// While no upstream answers anything, it is not the domain.
func TestADomainIsNotHeldBackInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ds := newDomains(true)
		q, err := wire.NewQuery("www.example.com", "A")
		if err != nil {
			t.Fatal(err)
		}
		for i := range 10 * domainMax {
			if _, err := ds.begin(q, netip.Addr{}, time.Now()); err != nil {
				t.Fatalf("query %d: %v", i, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

func TestDomainsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ds := newDomains(true)
		for i := range 4 * maxDomains {
			q, err := wire.NewQuery(fmt.Sprintf("www.example%d.com", i), "A")
			if err != nil {
				t.Fatal(err)
			}
			d, err := ds.begin(q, netip.Addr{}, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			ds.end(d, false, time.Now())
			time.Sleep(time.Millisecond)
		}
		if n := len(ds.known); n > maxDomains {
			t.Errorf("%d are remembered", n)
		}
	})
}

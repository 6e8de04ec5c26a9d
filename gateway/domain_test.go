package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

func TestWhatIsOneDomain(t *testing.T) {
	f := func(name, want string) {
		t.Helper()
		q, err := wire.NewQuery(name, "A")
		if err != nil {
			t.Fatal(err)
		}
		if got := registrable(q.AppendName(nil)); got != want {
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
}

// TestADomainWithoutServersHoldsUpNobody asks for 5000 new names a second under one
// domain whose servers are silent, and for other names beside.
func TestADomainWithoutServersHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var underWay, most, victims atomic.Int64
		world := resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
			if !strings.HasSuffix(nameOf(q), ".victim.example.") {
				time.Sleep(20 * time.Millisecond)
				return addressed(ctx, q)
			}
			victims.Add(1)
			n := underWay.Add(1)
			defer underWay.Add(-1)
			most.Store(max(n, most.Load()))
			return silent(ctx, q)
		})
		g, err := New(world, Options{Log: slog.New(slog.DiscardHandler), Timeout: 4 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		var count tally
		var clients sync.WaitGroup
		asked := func(name string, want int, within time.Duration) {
			clients.Go(func() {
				began := time.Now()
				reply, q, next := g.answerNow(nil, packed(withEDNS(query(name), 1232), nil), localClient(), &count)
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
			t.Errorf("%d queries for the domain were under way at once", n)
		}
		if n := victims.Load(); n > 5000 {
			t.Errorf("upstreams were asked %d times for the domain, of 50 000", n)
		}
		clients.Wait()
	})
}

// Many queries for a domain whose servers answer, and some that don't, are no reason
// to hold back any.
func TestADomainWithServersIsNotHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ds := domains{log: slog.New(slog.DiscardHandler), known: make(map[string]*domain)}
		q, err := wire.NewQuery("www.example.com", "A")
		if err != nil {
			t.Fatal(err)
		}
		var queries sync.WaitGroup
		for i := range 10_000 {
			d, err := ds.enter(q)
			if err != nil {
				t.Fatalf("query %d: %v", i, err)
			}
			queries.Go(func() {
				slow := i%10 == 0 // one in ten is never answered
				if time.Sleep(200 * time.Millisecond); slow {
					time.Sleep(4 * time.Second)
				}
				ds.leave(d, !slow)
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
		ds := domains{log: slog.New(slog.DiscardHandler), known: make(map[string]*domain)}
		q, err := wire.NewQuery("www.example.com", "A")
		if err != nil {
			t.Fatal(err)
		}
		for i := range 10 * domainShare {
			if _, err := ds.enter(q); err != nil {
				t.Fatalf("query %d: %v", i, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

func TestDomainsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ds := domains{log: slog.New(slog.DiscardHandler), known: make(map[string]*domain)}
		for i := range 4 * maxDomains {
			q, err := wire.NewQuery(fmt.Sprintf("www.example%d.com", i), "A")
			if err != nil {
				t.Fatal(err)
			}
			d, err := ds.enter(q)
			if err != nil {
				t.Fatal(err)
			}
			ds.leave(d, false)
			time.Sleep(time.Millisecond)
		}
		if n := len(ds.known); n > maxDomains {
			t.Errorf("%d are remembered", n)
		}
	})
}

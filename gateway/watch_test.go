package gateway

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/access"
)

// interfacesOf reads "eth0 192.0.2.7/24 2001:db8::7/64; ppp0* 100.70.0.1/32": an
// interface with a star has a default route.
func interfacesOf(text string) (all []access.Interface) {
	for one := range strings.SplitSeq(text, ";") {
		words := strings.Fields(one)
		if len(words) == 0 {
			continue
		}
		name, route := strings.CutSuffix(words[0], "*")
		i := access.Interface{Name: name, Loopback: name == "lo", DefaultRoute: route}
		for _, w := range words[1:] {
			i.Addresses = append(i.Addresses, netip.MustParsePrefix(w))
		}
		all = append(all, i)
	}
	return all
}

func TestOnLinkClientsAreServed(t *testing.T) {
	f := func(interfaces string, o Options, from string, want step) {
		t.Helper()
		o.Interfaces = func() ([]access.Interface, error) { return interfacesOf(interfaces), nil }
		o.Log = slog.New(slog.DiscardHandler)
		g, err := New(addressed, o)
		if err != nil {
			t.Fatal(err)
		}
		_, _, next := g.tryAnswer(nil, packed(query("example.com."), nil), clientAt(g, from, new(counters)))
		if next != want {
			t.Errorf("%s from %s: got %v, want %v", interfaces, from, next, want)
		}
	}
	const lan = "eth0* 198.51.100.7/24 2001:db8:1::7/64; eth1 203.0.113.1/20; tailscale0 100.101.1.1/32"
	for _, from := range []string{"198.51.100.200", "2001:db8:1::99", "203.0.113.1", "100.99.1.1", "10.0.0.1"} {
		f(lan, Options{}, from, ask)
	}
	for _, from := range []string{"198.51.101.1", "2001:db8:2::1", "203.0.113.2", "8.8.8.8"} {
		f(lan, Options{}, from, send) // refused
	}
	own := Options{Allow: []access.Range{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}}}
	f(lan, own, "198.51.100.200", send)
	f(lan, own, "192.0.2.1", ask)
	f("wwan0* 100.70.1.2/30", Options{}, "100.70.1.1", send)
	f("eth0 10.1.0.1/24", Options{Allow: []access.Range{{OnLink: true}}}, "10.1.0.9", ask)
	f("eth0 10.1.0.1/24", Options{Allow: []access.Range{{OnLink: true}}}, "10.2.0.9", send)
}

func TestPublicClientsAreLimitedWhereNoLimitIsSet(t *testing.T) {
	f := func(o Options, from string, limited bool) {
		t.Helper()
		o.RateBurst = cmp.Or(o.RateBurst, 10)
		o.Interfaces = func() ([]access.Interface, error) {
			return interfacesOf("eth0 198.51.100.7/24; eth1 100.64.1.1/24"), nil
		}
		o.Log = slog.New(slog.DiscardHandler)
		g, err := New(addressed, o)
		if err != nil {
			t.Fatal(err)
		}
		count := new(counters)
		for range 50 {
			g.tryAnswer(nil, packed(query("localhost."), nil), clientAt(g, from, count))
		}
		got := count.outcomes[RefusedRate].Load()+count.outcomes[IgnoredRate].Load() > 0
		if got != limited {
			t.Errorf("%+v from %s: limited %t, want %t", o, from, got, limited)
		}
	}
	everyone := []access.Range{{Prefix: netip.MustParsePrefix("0.0.0.0/0")}}
	f(Options{}, "198.51.100.9", true)
	f(Options{Allow: everyone}, "8.8.8.8", true)
	f(Options{Allow: everyone, RateExempt: []netip.Prefix{netip.MustParsePrefix("8.8.8.0/24")}}, "8.8.8.8", false)
	f(Options{Allow: everyone, RateLimit: 1, RateBurst: 1000}, "8.8.8.8", false)
	f(Options{Allow: everyone}, "10.0.0.1", false)
	f(Options{}, "127.0.0.1", false)
	f(Options{RateLimit: 1}, "127.0.0.1", false)
	f(Options{RateLimit: 1, RateExempt: []netip.Prefix{}}, "127.0.0.1", true)
	f(Options{RateLimit: 1}, "10.0.0.1", true)
	f(Options{}, "100.64.1.2", false)
	f(Options{}, "198.51.100.7", false) // this machine's own address
}

func TestOnLinkFollowsTheInterfaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, problem := "eth0 198.51.100.7/24", error(nil)
		set := func(interfaces string, err error) {
			mu.Lock()
			defer mu.Unlock()
			now, problem = interfaces, err
		}
		var said buffer
		g, err := New(addressed, Options{Log: slog.New(slog.NewTextHandler(&said, nil)), Interfaces: func() ([]access.Interface, error) {
			mu.Lock()
			defer mu.Unlock()
			return interfacesOf(now), problem
		}})
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = g.WatchClients(t.Context()) }()
		f := func(from string, want access.Permission) {
			t.Helper()
			synctest.Wait()
			if got := g.config().access.Permission(netip.MustParseAddr(from), g.network.Load()); got != want {
				t.Errorf("%s: got %v, want %v", from, got, want)
			}
		}
		f("198.51.100.9", access.AllowedPublic)
		set("eth0 192.0.2.7/24", nil)
		g.NetworkChanged()
		f("198.51.100.9", access.NotAllowed)
		f("192.0.2.9", access.AllowedPublic)
		set("", errors.New("out of memory"))
		g.NetworkChanged()
		f("192.0.2.9", access.AllowedPublic) // what was known stays
		set("eth0 203.0.113.7/24", nil)
		time.Sleep(networkInterval) // no change is reported everywhere
		f("203.0.113.9", access.AllowedPublic)
		f("192.0.2.9", access.NotAllowed)
		if got := said.String(); strings.Count(got, "have changed") != 2 || !strings.Contains(got, "on_link=203.0.113.0/24") || !strings.Contains(got, "error=\"out of memory\"") {
			t.Errorf("it said:\n%s", got)
		}
	})
}

func TestRefusedClientsAreCountedAndLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said buffer
		g, err := New(addressed, Options{
			Log:        slog.New(slog.NewTextHandler(&said, nil)),
			Allow:      []access.Range{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}},
			Interfaces: func() ([]access.Interface, error) { return interfacesOf("eth0 203.0.113.7/20; eth1 10.1.1.1/24"), nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = g.WatchClients(t.Context()) }()
		refuse := func(times int, from string) {
			for range times {
				g.tryAnswer(nil, packed(query("example.com."), nil), clientAt(g, from, new(counters)))
			}
		}
		lines := func(want int) (last string) {
			t.Helper()
			all := strings.Split(strings.TrimSpace(said.String()), "\n")
			if all[0] == "" {
				all = nil
			}
			if len(all) != want {
				t.Fatalf("%d lines, want %d:\n%s", len(all), want, said.String())
			}
			if want > 0 {
				last = all[want-1]
			}
			return last
		}
		refuse(2, "192.168.7.9")
		refuse(3, "192.168.7.10")
		refuse(1, "203.0.113.9")
		synctest.Wait()
		lines(0)
		time.Sleep(2 * access.RefusedDelay)
		synctest.Wait()
		for _, want := range []string{"level=WARN", "gateway.allow", "queries=6", "192.168.7.0/24 (private, 5)", "203.0.113.0/24 (203.0.112.0/20 of eth0 is not on_link: public and shorter than /24, 1)"} {
			if got := lines(1); !strings.Contains(got, want) {
				t.Errorf("%q is not in %s", want, got)
			}
		}
		for i := range 40 { // many forged addresses are one line
			refuse(1, fmt.Sprintf("8.%d.8.8", i))
		}
		time.Sleep(access.RefusedInterval - 3*access.RefusedDelay)
		synctest.Wait()
		lines(1) // not yet
		time.Sleep(5 * access.RefusedDelay)
		synctest.Wait()
		for _, want := range []string{"level=INFO", "queries=40", "8.0.8.0/24 (public, 1)", "others (24)"} {
			if got := lines(2); !strings.Contains(got, want) {
				t.Errorf("%q is not in %s", want, got)
			}
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		lines(2)
		refuse(1, "8.8.8.8") // after a quiet time, the first is logged soon
		time.Sleep(2 * access.RefusedDelay)
		synctest.Wait()
		lines(3)
		refuse(1, "203.0.113.7")
		refuse(1, "10.1.1.9")
		refuse(1, "100.64.0.1")
		if got, want := g.Counts().Refused, ([access.ClientClasses]uint64{access.ThisHost: 1, access.Linked: 2, access.Private: 5, access.Shared: 1, access.Public: 41}); got != want {
			t.Errorf("counted %v, want %v", got, want)
		}
	})
}

// buffer is for a log that is read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

//go:build linux && e2e

package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestNoQueryFailsWhenAnUpstreamIsKilled(t *testing.T) {
	all, urls := startUnbounds(t)
	losesOne(t, urls, all[1].kill)
}

func TestNoQueryFailsWhenAnUpstreamGoesSilent(t *testing.T) {
	all, urls := startUnbounds(t)
	losesOne(t, urls, all[1].freeze)
}

func losesOne(t *testing.T, urls []string, lose func()) {
	t.Helper()
	g := startGateway(t, urls)
	l := unboundLoad(g, 10_000, 1000)
	l.halfway = lose
	l.run(t).mustBeWhole(t)
}

func TestNoQueryFailsWhenAnUpstreamIsFlapping(t *testing.T) {
	all, urls := startUnbounds(t)
	g := startGateway(t, urls)
	const turns = 3
	for i := range turns {
		l := unboundLoad(g, 2000, 1000)
		l.name = func(n int) string { return "turn" + string(rune('0'+i)) + "-" + unboundName(n) }
		l.halfway = all[i].kill
		l.run(t).mustBeWhole(t)
		all[i].start(t)
	}
}

// A busy machine, a garbage collector or a lost segment delays an upstream for a moment.
// No query may fail although there is no other upstream.
func TestNoQueryFailsWhenTheOnlyUpstreamStalls(t *testing.T) {
	for _, pause := range []time.Duration{50 * time.Millisecond, 150 * time.Millisecond, 400 * time.Millisecond} {
		t.Run(pause.String(), func(t *testing.T) {
			u := newUnbound(t, unboundAddrs[0])
			u.start(t)
			g := startGateway(t, []string{url(u.addr)})
			l := unboundLoad(g, 2000, 1000)
			l.halfway = func() {
				u.freeze()
				time.AfterFunc(pause, u.thaw)
			}
			l.run(t).mustBeWhole(t)
		})
	}
}

func TestAnOutageIsReportedAtOnce(t *testing.T) {
	for what, lose := range map[string]func(*unbound){"killed": (*unbound).kill, "silent": (*unbound).freeze} {
		t.Run(what, func(t *testing.T) {
			all, urls := startUnbounds(t)
			g := startGateway(t, urls)
			if r, _ := ask(t, g.addr, "www.example.com"); r.Rcode != dns.RcodeSuccess {
				t.Fatal(r)
			}
			for _, u := range all {
				lose(u)
			}
			mustFail := func(name string) time.Duration {
				t.Helper()
				r, took := ask(t, g.addr, name)
				if r.Rcode != dns.RcodeServerFailure || ede(r) != dns.ExtendedErrorCodeNoReachableAuthority {
					t.Errorf("%s: want SERVFAIL with EDE 22, got\n%v", name, r)
				}
				return took
			}
			first := mustFail("first.w0.example.com")
			if first > 1100*time.Millisecond {
				t.Errorf("the first SERVFAIL takes %v", first)
			}
			begin := time.Now()
			within(t, 5*time.Second, "SERVFAIL in no time", func() bool { return mustFail("soon.w0.example.com") < 50*time.Millisecond })
			known := time.Since(begin)
			var slowest time.Duration
			for range 50 {
				slowest = max(slowest, mustFail("known.w0.example.com"))
			}
			if slowest > 100*time.Millisecond {
				t.Errorf("once it is known, SERVFAIL still takes %v", slowest)
			}
			all[2].kill()
			all[2].start(t)
			begin = time.Now()
			within(t, 5*time.Second, "an answer again", func() bool {
				r, _ := ask(t, g.addr, "again.w0.example.com")
				return r.Rcode == dns.RcodeSuccess
			})
			back := time.Since(begin)
			if back > 3*time.Second {
				t.Errorf("it took %v to notice that an upstream is back", back)
			}
			t.Logf("first SERVFAIL after %v; known %v later, then within %v; first answer %v after the restart",
				first.Round(time.Millisecond), known.Round(time.Millisecond), slowest.Round(100*time.Microsecond), back.Round(time.Millisecond))
		})
	}
}

// ask sends one query of type A over UDP, and waits as long as clients do.
func ask(t *testing.T, addr netip.AddrPort, name string) (*dns.Msg, time.Duration) {
	t.Helper()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	q.SetEdns0(1232, false)
	c := dns.Client{Timeout: 5 * time.Second}
	r, took, err := c.Exchange(q, addr.String())
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return r, took
}

// ede returns the code of the Extended DNS Error in r (RFC 8914), or 0xffff.
func ede(r *dns.Msg) uint16 {
	if opt := r.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				return e.InfoCode
			}
		}
	}
	return 0xffff
}

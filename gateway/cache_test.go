package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/access"
	"dotgate/gateway/cache"
	"dotgate/gateway/transport"
	"dotgate/gateway/wire"
)

func newCache(t testing.TB, change func(*cache.Options)) *cache.Cache {
	t.Helper()
	o := cache.Defaults()
	if change != nil {
		change(&o)
	}
	c, err := cache.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// A fixture is a gateway with a cache and without sockets, in a bubble where time
// is fake.
type fixture struct {
	*testing.T
	*Gateway
	asked    atomic.Int64 // calls of Ask
	resolve  atomic.Pointer[Resolver]
	counters counters
}

// withFakeTime runs f, with a Resolver that works until f changes it.
func withFakeTime(t *testing.T, o Options, f func(h *fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := &fixture{T: t}
		h.becomes(addressed)
		if o.Cache == nil {
			o.Cache = newCache(t, nil)
		}
		o.Log = slog.New(slog.DiscardHandler)
		g, err := New(h, o)
		if err != nil {
			t.Fatal(err)
		}
		h.Gateway = g
		f(h)
		g.failPending()
		time.Sleep(g.config().Timeout) // until the Resolver is done, too
		synctest.Wait()
		if n := g.slots.taken.Load(); n != 0 {
			t.Errorf("%d slots are taken", n)
		}
		if n := len(g.calls.open); n != 0 {
			t.Errorf("%d calls have not finished", n)
		}
	})
}

func (h *fixture) becomes(r Resolver) { h.resolve.Store(&r) }

func (h *fixture) Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	h.asked.Add(1)
	(*h.resolve.Load()).Ask(ctx, q, done)
}

// later returns the reply to q, for which there is a slot.
func (h *fixture) later(q wire.Query) []byte { return later(h.Gateway, q, &h.counters) }

// later returns g's reply to q, for which there is a slot.
func later(g *Gateway, q wire.Query, n *counters) []byte {
	replies := make(inbox, 1)
	from := localClient(g, n)
	from.ReplyTo.Sender = replies
	g.newPendingQuery(q, from).Resolve()
	return <-replies
}

// An inbox gets replies.
type inbox chan []byte

func (in inbox) Peer(*transport.ReplyTo) netip.AddrPort { return loopback }

func (in inbox) Send(_ *transport.ReplyTo, message *[]byte) { in <- *message }

// after returns a Resolver that answers as r does, later.
func after(d time.Duration, r resolver) resolver {
	return func(ctx context.Context, q wire.Query) (wire.Answer, error) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return r(ctx, q)
		case <-ctx.Done():
			return wire.Answer{}, ctx.Err()
		}
	}
}

// failing answers nothing.
var failing = resolver(func(context.Context, wire.Query) (wire.Answer, error) { return wire.Answer{}, errTest })

// servfail answers SERVFAIL to all queries.
var servfail = resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
	return wire.ParseAnswer(q, q.AppendError(nil, wire.ServFail, wire.EDE{}))
})

// exchange returns the reply to m, as a transport gets it.
func (h *fixture) exchange(m *dns.Msg) *dns.Msg {
	from, replies := localClient(h.Gateway, &h.counters), make(inbox, 1)
	from.ReplyTo.Sender = replies
	reply, p := from.Answer(nil, packed(m, nil))
	if p != nil {
		p.Resolve()
		reply = <-replies
	}
	var r dns.Msg
	if err := r.Unpack(reply); err != nil {
		h.Error(err)
	}
	if r.Id != m.Id || r.Question[0] != m.Question[0] {
		h.Errorf("%v is a reply to another query than %v", &r, m)
	}
	return &r
}

// expect asks for www.example.com and checks the reply: the code, the TTL, the
// EDE, and after how long.
func (h *fixture) expect(want string) {
	h.Helper()
	began := time.Now()
	r := h.exchange(withEDNS(query("www.example.com."), 1232))
	got := dns.RcodeToString[r.Rcode]
	if len(r.Answer) > 0 {
		got += fmt.Sprint(" ", r.Answer[0].Header().Ttl)
	}
	if code, _ := edeOf(r); code >= 0 {
		got += fmt.Sprint(" ede=", code)
	}
	if got += fmt.Sprint(" after ", time.Since(began)); got != want {
		h.Errorf("got %s, want %s", got, want)
	}
}

func (h *fixture) expectAsked(want int64) {
	h.Helper()
	if n := h.asked.Load(); n != want {
		h.Errorf("the Resolver was asked %d times, want %d", n, want)
	}
}

func TestCachedNamesAreNotAskedAgain(t *testing.T) {
	withFakeTime(t, Options{}, func(h *fixture) {
		h.becomes(after(20*time.Millisecond, addressed))
		h.expect("NOERROR 60 after 20ms")
		h.expect("NOERROR 60 after 0s")
		time.Sleep(59 * time.Second)
		h.expect("NOERROR 1 after 0s")
		h.expectAsked(1)
		time.Sleep(time.Minute)
		h.expect("NOERROR 60 after 20ms") // and not what is stale
		h.expectAsked(2)
		if h.counters.hits.Load() != 2 || h.counters.misses.Load() != 2 || h.counters.stale.Load() != 0 || h.counters.outcomes[Answered].Load() != 4 {
			t.Errorf("counted %d hits, %d misses, %d stale", h.counters.hits.Load(), h.counters.misses.Load(), h.counters.stale.Load())
		}
	})
}

func TestTermsAreTheSameForMissesAndHits(t *testing.T) {
	c := newCache(t, func(o *cache.Options) { o.MinTTL, o.MaxTTL = 100*time.Second, time.Hour })
	g, _ := start(t, addressed, Options{Cache: c})
	conn := dial(t, "udp", g.Addrs()[0])
	for range 2 {
		if ttl := exchange(t, conn, query("www.example.com.")).Answer[0].Header().Ttl; ttl < 99 || ttl > 100 {
			t.Errorf("TTL %d", ttl)
		}
	}
}

func TestOnlyTheFirstClientsWaitForAStaleAnswer(t *testing.T) {
	withFakeTime(t, Options{}, func(h *fixture) {
		h.expect("NOERROR 60 after 0s")
		time.Sleep(time.Minute)
		h.becomes(after(900*time.Millisecond, addressed))
		var clients sync.WaitGroup
		for wait, want := range map[time.Duration]string{
			0:                      "NOERROR 30 ede=3 after 400ms",
			100 * time.Millisecond: "NOERROR 30 ede=3 after 300ms",
			400 * time.Millisecond: "NOERROR 30 ede=3 after 0s",
			899 * time.Millisecond: "NOERROR 30 ede=3 after 0s",
			901 * time.Millisecond: "NOERROR 60 after 0s", // the exchange went on behind them
		} {
			clients.Go(func() {
				time.Sleep(wait)
				h.expect(want)
			})
		}
		clients.Wait()
		h.expectAsked(2)
	})
}

func TestAStaleAnswerIsSentWhenTheResolverFails(t *testing.T) {
	withFakeTime(t, Options{}, func(h *fixture) {
		h.expect("NOERROR 60 after 0s")
		time.Sleep(time.Minute)
		h.becomes(after(15*time.Millisecond, failing))
		h.expect("NOERROR 30 ede=3 after 15ms")
		h.expect("NOERROR 30 ede=3 after 15ms") // our own failures are not remembered
		h.expectAsked(3)
		h.becomes(after(300*time.Millisecond, addressed))
		h.expect("NOERROR 60 after 300ms") // in time: the Resolver's answer is preferred
		time.Sleep(time.Minute + 24*time.Hour)
		h.becomes(failing)
		h.expect("SERVFAIL ede=22 after 0s")
		if n := h.counters.stale.Load(); n != 2 {
			t.Errorf("counted %d stale answers", n)
		}
	})
}

func TestAStaleAnswerIsBetterThanAnUpstreamsError(t *testing.T) {
	withFakeTime(t, Options{}, func(h *fixture) {
		h.expect("NOERROR 60 after 0s")
		time.Sleep(time.Minute)
		h.becomes(after(20*time.Millisecond, servfail))
		h.expect("NOERROR 30 ede=3 after 20ms")
		h.expect("NOERROR 30 ede=3 after 0s") // RFC 9520
		h.expectAsked(2)
		time.Sleep(5 * time.Second)
		h.becomes(after(20*time.Millisecond, addressed))
		h.expect("NOERROR 60 after 20ms")
	})
}

func TestErrorsOfUpstreamsAreCachedAndOwnOnesAreNot(t *testing.T) {
	withFakeTime(t, Options{}, func(h *fixture) {
		h.becomes(servfail)
		h.expect("SERVFAIL after 0s")
		h.expect("SERVFAIL after 0s")
		h.expectAsked(1)
		if n := h.counters.servFails.Load(); n != 2 {
			t.Errorf("counted %d times SERVFAIL", n)
		}
		time.Sleep(time.Second)
		h.becomes(failing)
		h.expect("SERVFAIL ede=22 after 0s")
		h.becomes(silent)
		h.expect("SERVFAIL ede=22 after 4s")
		h.becomes(crashing{})
		h.expect("SERVFAIL ede=0 after 0s")
		h.becomes(addressed)
		h.expect("NOERROR 60 after 0s")
		h.expectAsked(5)
	})
}

func TestPopularAnswersAreRenewedBeforeTheyExpire(t *testing.T) {
	withFakeTime(t, Options{}, func(h *fixture) {
		for range 4 {
			h.expect("NOERROR 60 after 0s")
		}
		time.Sleep(55 * time.Second)
		h.becomes(after(2*time.Second, addressed))
		for range 10 {
			h.expect("NOERROR 5 after 0s")
		}
		synctest.Wait()
		h.expectAsked(2)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		h.expect("NOERROR 60 after 0s")
		time.Sleep(58 * time.Second)
		h.expect("NOERROR 2 after 0s") // not popular any more
		h.expectAsked(2)
		if n := h.counters.prefetches.Load(); n != 1 {
			t.Errorf("counted %d prefetches", n)
		}
	})
}

func TestAFailedRenewalKeepsTheAnswer(t *testing.T) {
	for name, r := range map[string]Resolver{"failing": failing, "servfail": servfail, "silent": silent,
		"panic": crashing{}} {
		t.Run(name, func(t *testing.T) {
			withFakeTime(t, Options{}, func(h *fixture) {
				for range 4 {
					h.expect("NOERROR 60 after 0s")
				}
				time.Sleep(59 * time.Second)
				h.becomes(r)
				h.expect("NOERROR 1 after 0s")
				synctest.Wait()
				h.expect("NOERROR 1 after 0s")
				h.expectAsked(2)
			})
		})
	}
}

// A thousand clients that ask one name at once cause one exchange. Each gets
// its own reply: ID, spelling, EDNS.
func TestAThousandClientsShareOneCall(t *testing.T) {
	for name, c := range map[string]*cache.Cache{"with a cache": newCache(t, nil), "without": {}} {
		t.Run(name, func(t *testing.T) {
			withFakeTime(t, Options{Cache: c}, func(h *fixture) {
				h.becomes(after(20*time.Millisecond, addressed))
				var clients sync.WaitGroup
				for i := range 1000 {
					clients.Go(func() {
						m := query("wwW.example.cOm.")
						if i%2 == 0 {
							m = withEDNS(query("www.Example.com."), 1232)
						}
						m.Id, m.CheckingDisabled = uint16(i), i%4 == 0
						if r := h.exchange(m); len(r.Answer) != 1 || (r.IsEdns0() != nil) != (i%2 == 0) {
							t.Errorf("odd reply: %v", r)
						}
					})
				}
				clients.Wait()
				h.expectAsked(2) // with CD, and without
				if n := h.counters.coalesced.Load(); n != 998 {
					t.Errorf("%d were coalesced", n)
				}
				synctest.Wait()
			})
		})
	}
}

// Between the read loop's look at the cache and resolve, another query's call may
// finish.
func TestACallThatHasJustFinishedIsNotRepeated(t *testing.T) {
	withFakeTime(t, Options{}, func(h *fixture) {
		packet := packed(query("www.EXAMPLE.com."), nil)
		_, q, next := h.tryAnswer(nil, packet, localClient(h.Gateway, &h.counters))
		if next != ask {
			t.Fatal(next)
		}
		h.expect("NOERROR 60 after 0s")
		var m dns.Msg
		if err := m.Unpack(h.later(q)); err != nil || len(m.Answer) != 1 || m.Question[0].Name != "www.EXAMPLE.com." {
			t.Errorf("odd reply: %v, %v", &m, err)
		}
		h.expectAsked(1)
	})
}

func TestALaterQueryOfACallKeepsItsOwnTime(t *testing.T) {
	withFakeTime(t, Options{}, func(h *fixture) {
		h.becomes(silent)
		var clients sync.WaitGroup
		clients.Go(func() { h.expect("SERVFAIL ede=22 after 4s") })
		clients.Go(func() {
			time.Sleep(3 * time.Second)
			h.expect("NOERROR 60 after 1.5s") // of an exchange that begins when the first has ended
		})
		clients.Go(func() {
			time.Sleep(3500 * time.Millisecond)
			h.expect("NOERROR 60 after 1s")
		})
		time.Sleep(3900 * time.Millisecond)
		h.becomes(after(500*time.Millisecond, addressed))
		clients.Wait()
		h.expectAsked(2)
	})
	withFakeTime(t, Options{}, func(h *fixture) {
		h.becomes(silent)
		var clients sync.WaitGroup
		for i := range 4 {
			clients.Go(func() {
				time.Sleep(time.Duration(i) * time.Second)
				h.expect("SERVFAIL ede=22 after 4s")
			})
		}
		clients.Wait()
	})
}

// Clients that come after the cache's StaleAfter leave nothing behind, for as
// long as the exchange goes on.
func TestALateClientGetsTheStaleAnswerAtOnce(t *testing.T) {
	withFakeTime(t, Options{}, func(h *fixture) {
		h.expect("NOERROR 60 after 0s")
		time.Sleep(time.Minute)
		h.becomes(silent)
		h.expect("NOERROR 30 ede=3 after 400ms")
		for range 100 {
			h.expect("NOERROR 30 ede=3 after 0s")
		}
		h.calls.mu.Lock()
		defer h.calls.mu.Unlock()
		for _, f := range h.calls.open {
			if n := len(f.pending); n > 1 {
				t.Errorf("%d wait", n)
			}
		}
	})
}

// A stale answer is sent as well when no slot is free.
func TestAStaleAnswerIsSentWhenSlotsAreFull(t *testing.T) {
	withFakeTime(t, Options{MaxQueries: 1}, func(h *fixture) {
		h.expect("NOERROR 60 after 0s")
		time.Sleep(time.Minute)
		h.slots.take(access.NoCheck)
		h.expect("NOERROR 30 ede=3 after 0s")
		h.slots.release()
		h.expect("NOERROR 60 after 0s")
		if h.counters.outcomes[Overload].Load() != 0 {
			t.Error("counted as overload")
		}
	})
}

// onceOnly is a Resolver that says nothing any more after its first answer, not even
// at the deadline.
type onceOnly struct {
	Resolver
	calls atomic.Int64
}

func (r *onceOnly) Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	if r.calls.Add(1) == 1 {
		r.Resolver.Ask(ctx, q, done)
	}
}

var addressedBriefly = resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
	return answer(q, record("%s 1 IN A 192.0.2.1", nameOf(q)))
})

// Nothing that goes on behind the clients' backs outlives the gateway.
func TestServeEndsWithCallsInProgress(t *testing.T) {
	r := &onceOnly{Resolver: addressedBriefly}
	g, stop := start(t, r, Options{Timeout: time.Minute, Cache: newCache(t, func(o *cache.Options) { o.StaleAfter = time.Millisecond })})
	c := dial(t, "udp", g.Addrs()[0])
	exchange(t, c, query("www.example.com."))
	for r.calls.Load() < 2 { // until it is stale, and the Resolver is asked
		if len(exchange(t, c, query("www.example.com.")).Answer) != 1 {
			t.Fatal("no answer")
		}
		time.Sleep(10 * time.Millisecond)
	}
	began := time.Now()
	stop()
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
}

func TestHitsAreAnsweredOverBothTransports(t *testing.T) {
	var calls atomic.Int64
	counting := resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
		calls.Add(1)
		return addressed(ctx, q)
	})
	g, stop := start(t, counting, Options{Cache: newCache(t, nil)})
	udp, tcp := dial(t, "udp", g.Addrs()[0]), dial(t, "tcp", g.Addrs()[0])
	for _, c := range []net.Conn{udp, tcp, udp, tcp} {
		if r := exchange(t, c, query("WWW.example.com.")); len(r.Answer) != 1 || r.Question[0].Name != "WWW.example.com." {
			t.Errorf("odd reply: %v", r)
		}
	}
	udp.Close()
	tcp.Close()
	stop()
	c := g.Counts()
	if calls.Load() != 1 || c.Cache.Hits != (PerTransport{1, 2}) || c.Cache.Misses != (PerTransport{1, 0}) || c.Outcomes[Answered] != (PerTransport{2, 2}) {
		t.Errorf("asked %d times, %+v", calls.Load(), c)
	}
}

// hitClient returns a client whose gateway has example.com in its cache, and a packet that
// asks for it.
func hitClient(t testing.TB) (c *client, packet []byte) {
	t.Helper()
	g, err := New(addressed, Options{Cache: newCache(t, nil), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	packet = packed(withEDNS(query("www.example.com."), 1232), nil)
	q, err := wire.ParseQuery(packet, wire.UDP)
	if err != nil {
		t.Fatal(err)
	}
	a, err := answer(q, record("www.example.com. 3600 IN A 192.0.2.1"))
	if err != nil {
		t.Fatal(err)
	}
	g.cache.Put(q, a)
	return localClient(g, new(counters)), packet
}

// From the socket to the socket: nothing is allocated for a hit.
func TestAHitAllocatesNothing(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0"} {
		g, _ := start(t, addressed, Options{Cache: newCache(t, nil), Listen: []netip.AddrPort{netip.MustParseAddrPort(listen)}})
		client := dial(t, "udp", netip.AddrPortFrom(loopback.Addr(), g.Addrs()[0].Port()))
		packet, reply := packed(withEDNS(query("www.example.com."), 1232), nil), make([]byte, 2048)
		exchange(t, client, query("www.example.com.")) // a miss
		if n := testing.AllocsPerRun(1000, func() {
			client.Write(packet)
			client.Read(reply)
		}); n != 0 {
			t.Errorf("%s: %v allocations", listen, n)
		}
		if c := g.Counts(); c.Cache.Hits[wire.UDP] != 1001 || c.Undelivered.Total() != 0 {
			t.Errorf("%s: %d hits, %d undelivered", listen, c.Cache.Hits[wire.UDP], c.Undelivered.Total())
		}
	}
}

// aboutName is a failure as the balancer has it.
type aboutName bool

func (a aboutName) Error() string   { return "no answer" }
func (a aboutName) AboutName() bool { return bool(a) }
func (a aboutName) EDE() wire.EDE {
	return wire.EDE{Code: wire.EDENoReachable, Text: "no upstream answered"}
}

// RFC 9520 section 3.2: a failure is cached for a second, unless it may be an outage, which
// ends for clients when it ends.
func TestFailuresOfANameAreCachedForAMoment(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	f := func(o Options, failure error, want int64) {
		t.Helper()
		g, _ := start(t, resolver(func(context.Context, wire.Query) (wire.Answer, error) {
			asked.Add(1)
			return wire.Answer{}, failure
		}), o)
		before := asked.Load()
		c := dial(t, "tcp", g.Addrs()[0])
		for n := range 3 {
			reply := exchange(t, c, withEDNS(query("dead.example.com."), 1232))
			if code, text := edeOf(reply); reply.Rcode != dns.RcodeServerFailure || code != 22 || text != "no upstream answered" {
				t.Errorf("%v: got %v", failure, reply)
			}
			if n == 0 && want == 1 { // the failure is cached after the reply was sent
				eventually(t, func() bool { return o.Cache.Usage().Answers == 1 })
			}
		}
		if n := asked.Load() - before; n != want {
			t.Errorf("about the name %v: asked %d times, want %d", failure, n, want)
		}
	}
	f(Options{Cache: newCache(t, nil)}, aboutName(true), 1)
	f(Options{Cache: newCache(t, nil)}, aboutName(false), 3)
	f(Options{}, aboutName(true), 3)
}

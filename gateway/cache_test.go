package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/cache"
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

// A house is a gateway with a cache and without sockets, in a bubble where time
// is fake.
type house struct {
	*testing.T
	*Gateway
	asked   atomic.Int64 // exchanges so far
	resolve atomic.Pointer[Resolver]
	tally   tally
}

// inHouse runs f, with a Resolver that works until f changes it.
func inHouse(t *testing.T, o Options, f func(h *house)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := &house{T: t}
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
		g.abandon()
		time.Sleep(g.now().Timeout) // until the Resolver is done, too
		synctest.Wait()
		if n := g.slots.taken.Load(); n != 0 {
			t.Errorf("%d slots are taken", n)
		}
		if n := len(g.flights.open); n != 0 {
			t.Errorf("%d flights have not landed", n)
		}
	})
}

func (h *house) becomes(r Resolver) { h.resolve.Store(&r) }

func (h *house) Ask(q wire.Query, deadline time.Time, done func(wire.Answer, error)) {
	h.asked.Add(1)
	(*h.resolve.Load()).Ask(q, deadline, done)
}

// later returns the reply to q, for which there is a slot.
func (h *house) later(q wire.Query) []byte { return later(h.Gateway, q, &h.tally) }

// later returns g's reply to q, for which there is a slot.
func later(g *Gateway, q wire.Query, t *tally) []byte {
	replies := make(inbox, 1)
	g.answerLater(newWaiter(q, replies, loopback.Addr(), t))
	return <-replies
}

// An inbox gets replies.
type inbox chan []byte

func (in inbox) reply(_ *waiter, message *[]byte) { in <- *message }

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

// says returns a Resolver that says nothing but a code.
func says(rcode wire.RCode) resolver {
	return func(_ context.Context, q wire.Query) (wire.Answer, error) {
		return wire.ParseAnswer(q, q.AppendError(nil, rcode, wire.EDE{}))
	}
}

// exchange returns the reply to m, as both read loops and all goroutines make it.
func (h *house) exchange(m *dns.Msg) *dns.Msg {
	reply, q, next := h.answerNow(nil, packed(m, nil), localClient(), &h.tally)
	switch next {
	case ask:
		reply = h.later(q)
	case sendAndRenew:
		h.renew(q.Clone(), &h.tally)
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

// expect asks for www.example.com and checks what comes: the code, the TTL, the
// EDE, and after how long.
func (h *house) expect(want string) {
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

func (h *house) expectAsked(want int64) {
	h.Helper()
	if n := h.asked.Load(); n != want {
		h.Errorf("the Resolver was asked %d times, want %d", n, want)
	}
}

func TestWhatIsKnownIsNotAskedAgain(t *testing.T) {
	inHouse(t, Options{}, func(h *house) {
		h.becomes(after(20*time.Millisecond, addressed))
		h.expect("NOERROR 60 after 20ms")
		h.expect("NOERROR 60 after 0s")
		time.Sleep(59 * time.Second)
		h.expect("NOERROR 1 after 0s")
		h.expectAsked(1)
		time.Sleep(time.Minute)
		h.expect("NOERROR 60 after 20ms") // and not what is stale
		h.expectAsked(2)
		if h.tally.hits.Load() != 2 || h.tally.misses.Load() != 2 || h.tally.stale.Load() != 0 || h.tally.outcomes[Answered].Load() != 4 {
			t.Errorf("counted %d hits, %d misses, %d stale", h.tally.hits.Load(), h.tally.misses.Load(), h.tally.stale.Load())
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

func TestOnlyThoseWhoComeFirstWaitForAStaleAnswer(t *testing.T) {
	inHouse(t, Options{}, func(h *house) {
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

func TestWhenTheResolverFailsTheStaleAnswerComesAtOnce(t *testing.T) {
	inHouse(t, Options{}, func(h *house) {
		h.expect("NOERROR 60 after 0s")
		time.Sleep(time.Minute)
		h.becomes(after(15*time.Millisecond, failing))
		h.expect("NOERROR 30 ede=3 after 15ms")
		h.expect("NOERROR 30 ede=3 after 15ms") // our own failures are not remembered
		h.expectAsked(3)
		h.becomes(after(300*time.Millisecond, addressed))
		h.expect("NOERROR 60 after 300ms") // in time: who answers is not passed over
		time.Sleep(time.Minute + 24*time.Hour)
		h.becomes(failing)
		h.expect("SERVFAIL ede=22 after 0s")
		if n := h.tally.stale.Load(); n != 2 {
			t.Errorf("counted %d stale answers", n)
		}
	})
}

func TestAnUpstreamsErrorIsNoBetterThanAStaleAnswer(t *testing.T) {
	inHouse(t, Options{}, func(h *house) {
		h.expect("NOERROR 60 after 0s")
		time.Sleep(time.Minute)
		h.becomes(after(20*time.Millisecond, says(wire.ServFail)))
		h.expect("NOERROR 30 ede=3 after 20ms")
		h.expect("NOERROR 30 ede=3 after 0s") // RFC 9520
		h.expectAsked(2)
		time.Sleep(5 * time.Second)
		h.becomes(after(20*time.Millisecond, addressed))
		h.expect("NOERROR 60 after 20ms")
	})
}

func TestErrorsOfUpstreamsAreRememberedAndOursAreNot(t *testing.T) {
	inHouse(t, Options{}, func(h *house) {
		h.becomes(says(wire.ServFail))
		h.expect("SERVFAIL after 0s")
		h.expect("SERVFAIL after 0s")
		h.expectAsked(1)
		if n := h.tally.servFails.Load(); n != 2 {
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

func TestThePopularIsRenewedBeforeItsEnd(t *testing.T) {
	inHouse(t, Options{}, func(h *house) {
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
		if n := h.tally.prefetches.Load(); n != 1 {
			t.Errorf("counted %d prefetches", n)
		}
	})
}

func TestARenewalThatFailsHarmsNothing(t *testing.T) {
	for name, r := range map[string]Resolver{"failing": failing, "servfail": says(wire.ServFail), "silent": silent,
		"panic": crashing{}} {
		t.Run(name, func(t *testing.T) {
			inHouse(t, Options{}, func(h *house) {
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
func TestAThousandClientsAndOneExchange(t *testing.T) {
	for name, c := range map[string]*cache.Cache{"with a cache": newCache(t, nil), "without": {}} {
		t.Run(name, func(t *testing.T) {
			inHouse(t, Options{Cache: c}, func(h *house) {
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
				if n := h.tally.coalesced.Load(); n != 998 {
					t.Errorf("%d were coalesced", n)
				}
				synctest.Wait()
			})
		})
	}
}

// Between the read loop's look at the cache and the goroutine that asks, somebody
// else's exchange may end.
func TestAnExchangeThatHasJustEndedIsNotRepeated(t *testing.T) {
	inHouse(t, Options{}, func(h *house) {
		packet := packed(query("www.EXAMPLE.com."), nil)
		_, q, next := h.answerNow(nil, packet, localClient(), &h.tally)
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

func TestWhoWaitsWithOthersHasTimeOfItsOwn(t *testing.T) {
	inHouse(t, Options{}, func(h *house) {
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
	inHouse(t, Options{}, func(h *house) {
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

// Those who come after the patience of the cache is over leave nothing behind, for as
// long as the exchange goes on.
func TestWhoGetsAStaleAnswerAtOnceDoesNotWait(t *testing.T) {
	inHouse(t, Options{}, func(h *house) {
		h.expect("NOERROR 60 after 0s")
		time.Sleep(time.Minute)
		h.becomes(silent)
		h.expect("NOERROR 30 ede=3 after 400ms")
		for range 100 {
			h.expect("NOERROR 30 ede=3 after 0s")
		}
		h.flights.mu.Lock()
		defer h.flights.mu.Unlock()
		for _, f := range h.flights.open {
			if n := len(f.waiters); n > 1 {
				t.Errorf("%d wait", n)
			}
		}
	})
}

// What is stale is better than nothing, too, when there is no room to ask.
func TestWhoIsShedGetsAStaleAnswer(t *testing.T) {
	inHouse(t, Options{MaxQueries: 1}, func(h *house) {
		h.expect("NOERROR 60 after 0s")
		time.Sleep(time.Minute)
		h.slots.take()
		h.expect("NOERROR 30 ede=3 after 0s")
		h.slots.release()
		h.expect("NOERROR 60 after 0s")
		if h.tally.outcomes[Shed].Load() != 0 {
			t.Error("counted as shed")
		}
	})
}

// onceOnly is a Resolver that says nothing any more after its first answer, not even
// at the deadline.
type onceOnly struct {
	Resolver
	calls atomic.Int64
}

func (r *onceOnly) Ask(q wire.Query, deadline time.Time, done func(wire.Answer, error)) {
	if r.calls.Add(1) == 1 {
		r.Resolver.Ask(q, deadline, done)
	}
}

var addressedBriefly = resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
	return answer(q, record("%s 1 IN A 192.0.2.1", nameOf(q)))
})

// Nothing that goes on behind the clients' backs outlives the gateway.
func TestServeEndsWhatGoesOnBehind(t *testing.T) {
	r := &onceOnly{Resolver: addressedBriefly}
	g, stop := start(t, r, Options{Timeout: time.Hour, Cache: newCache(t, func(o *cache.Options) { o.StaleAfter = time.Millisecond })})
	c := dial(t, "udp", g.Addrs()[0])
	exchange(t, c, query("www.example.com."))
	for r.calls.Load() < 2 { // until it is stale, and somebody asks
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

// hitSocket returns a socket whose cache knows example.com, and a packet that
// asks for it.
func hitSocket(t testing.TB, listen string) (s *udpSocket, packet []byte) {
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
	network := "udp4"
	if strings.HasPrefix(listen, "[") {
		network = "udp"
	}
	s, err = newUDPSocket(g, net.ListenConfig{}, network, netip.MustParseAddrPort(listen))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close() })
	return s, packet
}

// From the socket to the socket: nothing is allocated for a hit.
func TestAHitAllocatesNothing(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0"} {
		s, packet := hitSocket(t, listen)
		port := s.conn.LocalAddr().(*net.UDPAddr).Port
		client := dial(t, "udp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)))
		reply := make([]byte, 2048)
		handle := func(in []datagram) bool { s.handle(in); return false }
		if n := testing.AllocsPerRun(1000, func() {
			client.Write(packet)
			if err := s.batch.read(s.in, handle); err != nil {
				t.Fatal(err)
			}
			client.Read(reply)
		}); n != 0 {
			t.Errorf("%s: %v allocations", listen, n)
		}
		if hits := s.tally.hits.Load(); hits != 1001 || s.tally.undelivered.Load() != 0 {
			t.Errorf("%s: %d hits, %d undelivered", listen, hits, s.tally.undelivered.Load())
		}
	}
}

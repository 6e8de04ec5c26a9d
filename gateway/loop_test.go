package gateway

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

// A lockedBuffer is for a log that several goroutines write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A candidate is a Resolver that may bring queries back, and is asked for a zone.
type candidate struct {
	resolver
	zone string

	mu    sync.Mutex // guards asked
	asked map[uint64]int
}

func newCandidate(r resolver, zone string) *candidate {
	return &candidate{resolver: r, zone: zone, asked: make(map[uint64]int)}
}

func (s *candidate) Exchange(ctx context.Context, q wire.Query) (wire.Answer, error) {
	return s.resolver(ctx, q)
}

func (s *candidate) Zones() []string { return []string{s.zone} }

func (s *candidate) Track(bool) {}

func (s *candidate) Asked(q wire.Query) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[q.NameHash()] > 0
}

func (s *candidate) count(q wire.Query, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[q.NameHash()] += n
}

func (s *candidate) Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	s.count(q, 1)
	s.resolver.Ask(ctx, q, func(a wire.Answer, err error) {
		s.count(q, -1)
		done(a, err)
	})
}

// forwardTo asks the gateway at to, with an ID, a spelling and options of its own,
// as every forwarder does.
func forwardTo(to func() netip.AddrPort) resolver {
	return func(ctx context.Context, q wire.Query) (wire.Answer, error) {
		m := new(dns.Msg).SetQuestion(strings.ToUpper(nameOf(q)), uint16(q.Type()))
		client := dns.Client{Timeout: patience}
		reply, _, err := client.ExchangeContext(ctx, m, to().String())
		if err != nil {
			return wire.Answer{}, err
		}
		packet, err := reply.Pack()
		if err != nil {
			return wire.Answer{}, err
		}
		return wire.ParseAnswer(q, packet)
	}
}

// TestALoopIsFoundAndItsQueriesAreRefused makes rings of one to three gateways.
func TestALoopIsFoundAndItsQueriesAreRefused(t *testing.T) {
	for hops := 1; hops <= 3; hops++ {
		var log lockedBuffer
		ring, closed := make([]*Gateway, hops), make(chan struct{})
		var first *candidate
		for i := range ring {
			next := forwardTo(func() netip.AddrPort { <-closed; return ring[(i+1)%hops].Addrs()[0] })
			o := Options{}
			if i == 0 {
				o.Log = slog.New(slog.NewTextHandler(&log, nil))
			}
			if i == 0 {
				first = newCandidate(next, ".")
				ring[i], _ = start(t, first, o)
				continue
			}
			ring[i], _ = start(t, next, o)
		}
		close(closed)
		g := ring[0]
		ctx, cancel := context.WithCancel(t.Context())
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			g.WatchLoops(ctx, just("next", first))
		}()
		for g.loops.known.Load() == nil {
			if t.Context().Err() != nil {
				t.Fatal("no loop was found")
			}
			time.Sleep(time.Millisecond)
		}
		c := dial(t, "udp", g.Addrs()[0])
		for range 5 {
			began := time.Now()
			reply := exchange(t, c, withEDNS(query("www.example.com."), 1232))
			if took := time.Since(began); reply.Rcode != dns.RcodeServerFailure || took > 3*time.Second { // in a loop, it would take 4 s
				t.Errorf("%d hops: after %v, got %v", hops, took, reply)
			}
		}
		cancel()
		<-watched
		if n := g.Counts().Outcomes[RefusedLoop].Total(); n < 6 { // the probe, and five queries
			t.Errorf("%d hops: %d queries were refused", hops, n)
		}
		for _, once := range []string{"forwarding loop: this upstream", "refused a query because of a forwarding loop"} {
			if n := strings.Count(log.String(), once); n != 1 {
				t.Errorf("%d hops: %q is there %d times in\n%s", hops, once, n, log.String())
			}
		}
	}
}

// Where there is no loop, clients that ask the same at the same time are not taken
// for one.
func TestNoLoopIsSeenWhereThereIsNone(t *testing.T) {
	var log lockedBuffer
	slow := resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
		return addressed(ctx, q)
	})
	g, _ := start(t, slow, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var watching sync.WaitGroup
	watching.Go(func() { g.WatchLoops(ctx, just("slow", newCandidate(slow, "."))) })
	var clients sync.WaitGroup
	for range 10 {
		c := dial(t, "udp", g.Addrs()[0])
		clients.Go(func() {
			if reply := exchange(t, c, query("www.example.com.")); len(reply.Answer) != 1 {
				t.Errorf("got %v", reply)
			}
		})
	}
	clients.Wait()
	watching.Wait()
	if strings.Contains(log.String(), "come back") {
		t.Error(log.String())
	}
}

// just candidates one, and does so all the time.
func just(name string, r LoopCandidate) func() map[string]LoopCandidate {
	return func() map[string]LoopCandidate { return map[string]LoopCandidate{name: r} }
}

// A server of a company's own network that forwards the world to the gateway, which
// asks it for the company's names, makes no loop.
func TestSplitDNSIsNoLoop(t *testing.T) {
	t.Parallel()
	f := func(serves, wantLoop bool) {
		t.Helper()
		var log lockedBuffer
		closed := make(chan struct{})
		var g *Gateway
		forward := forwardTo(func() netip.AddrPort { <-closed; return g.Addrs()[0] })
		internal := newCandidate(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
			if serves && strings.HasSuffix(strings.ToLower(nameOf(q)), "corp.example.") {
				return answer(q)
			}
			return forward(ctx, q)
		}, "corp.example")
		held := make(chan struct{})
		public := resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
			select {
			case <-held:
			case <-ctx.Done():
			}
			return addressed(ctx, q)
		})
		g, _ = start(t, routing{internal, public}, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		close(closed)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		g.loops.probe(ctx, just("internal", internal)())
		if found := g.loops.known.Load() != nil; found != wantLoop {
			t.Errorf("serves its names %v: a loop was found: %v\n%s", serves, found, log.String())
		}
		// Another client waits for a public name, and the server asks for the same.
		c, d := dial(t, "udp", g.Addrs()[0]), dial(t, "udp", g.Addrs()[0])
		var clients sync.WaitGroup
		clients.Go(func() { exchange(t, c, query("www.example.com.")) })
		for g.slots.taken.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		clients.Go(func() {
			if reply := exchange(t, d, query("www.example.com.")); len(reply.Answer) != 1 {
				t.Errorf("serves its names %v: got %v", serves, reply)
			}
		})
		for g.Counts().Cache.Coalesced.Total() == 0 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		close(held)
		clients.Wait()
		reply := exchange(t, c, query("www.corp.example."))
		// A query that comes back is refused, and its client gets SERVFAIL.
		if failed := reply.Rcode == dns.RcodeServerFailure && g.Counts().Outcomes[RefusedLoop].Total() > 0; failed != wantLoop {
			t.Errorf("serves its names %v: got %v", serves, reply)
		}
	}
	f(true, false)
	f(false, true)
}

// routing asks internal for names below corp.example, and public for all others.
type routing struct {
	internal *candidate
	public   resolver
}

func (r routing) Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	if strings.HasSuffix(strings.ToLower(nameOf(q)), "corp.example.") {
		r.internal.Ask(ctx, q, done)
		return
	}
	r.public.Ask(ctx, q, done)
}

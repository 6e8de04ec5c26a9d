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

// A lockedBuffer takes what several goroutines log.
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

func (r resolver) Exchange(ctx context.Context, q wire.Query) (wire.Answer, error) { return r(ctx, q) }

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

// TestALoopIsFoundAndCut makes rings of one to three gateways.
func TestALoopIsFoundAndCut(t *testing.T) {
	for hops := 1; hops <= 3; hops++ {
		var log lockedBuffer
		ring, closed := make([]*Gateway, hops), make(chan struct{})
		for i := range ring {
			next := forwardTo(func() netip.AddrPort { <-closed; return ring[(i+1)%hops].Addrs()[0] })
			o := Options{}
			if i == 0 {
				o.Log = slog.New(slog.NewTextHandler(&log, nil))
			}
			ring[i], _ = start(t, next, o)
		}
		close(closed)
		g := ring[0]
		ctx, cancel := context.WithCancel(t.Context())
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			g.WatchLoops(ctx, just("next", g.now().resolver.(Suspect)))
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
			if took := time.Since(began); reply.Rcode != dns.RcodeRefused || took > time.Second {
				t.Errorf("%d hops: after %v, got %v", hops, took, reply)
			}
		}
		cancel()
		<-watched
		if n := g.Counts().Outcomes[RefusedLoop].Total(); n < 6 { // the probe, and five queries
			t.Errorf("%d hops: %d queries were refused", hops, n)
		}
		for _, once := range []string{"our queries come back to us", "refused a query that came back"} {
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
	watching.Go(func() { g.WatchLoops(ctx, just("slow", slow)) })
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

// just suspects one, and does so all the time.
func just(name string, r Suspect) func() map[string]Suspect {
	return func() map[string]Suspect { return map[string]Suspect{name: r} }
}

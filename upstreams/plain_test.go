package upstreams_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
	"dotgate/upstreams"
	"dotgate/upstreams/dottest"
)

// A plainServer answers over UDP and TCP on one port, as handle says.
type plainServer struct {
	addr   netip.AddrPort
	mu     sync.Mutex
	seen   []*dns.Msg
	over   []string
	conns  map[string]bool
	tcp    func() // stops answering over TCP
	handle func(network string, m *dns.Msg) []*dns.Msg
}

func startPlain(t *testing.T, handle func(network string, m *dns.Msg) []*dns.Msg) *plainServer {
	t.Helper()
	s := &plainServer{handle: handle, conns: make(map[string]bool)}
	// At an address of its own, so that no client has the same port for UDP.
	ln, err := net.Listen("tcp", netip.AddrPortFrom(dottest.Loopback(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s.addr = netip.MustParseAddrPort(ln.Addr().String())
	s.serve(t, &dns.Server{PacketConn: pc, Handler: s.on("udp")})
	s.tcp = s.serve(t, &dns.Server{Listener: ln, Handler: s.on("tcp")})
	return s
}

// serve runs server, and returns a function that ends it.
func (s *plainServer) serve(t *testing.T, server *dns.Server) (stop func()) {
	ready, done := make(chan struct{}), make(chan struct{})
	server.NotifyStartedFunc = func() { close(ready) }
	go func() { defer close(done); server.ActivateAndServe() }()
	<-ready
	stop = sync.OnceFunc(func() { server.Shutdown(); <-done })
	t.Cleanup(stop)
	return stop
}

func (s *plainServer) on(network string) dns.HandlerFunc {
	return func(w dns.ResponseWriter, m *dns.Msg) {
		s.mu.Lock()
		s.seen, s.over = append(s.seen, m.Copy()), append(s.over, network)
		s.conns[network+w.RemoteAddr().String()] = true
		s.mu.Unlock()
		for _, reply := range s.handle(network, m) {
			w.WriteMsg(reply)
		}
	}
}

// way returns the networks over which the server was asked so far.
func (s *plainServer) way() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.over, " ")
}

func addressed(m *dns.Msg) *dns.Msg {
	reply := new(dns.Msg).SetReply(m)
	rr, err := dns.NewRR(m.Question[0].Name + " 60 IN A 192.0.2.1")
	if err != nil {
		panic(err)
	}
	reply.Answer = []dns.RR{rr}
	return reply
}

func honest(_ string, m *dns.Msg) []*dns.Msg { return []*dns.Msg{addressed(m)} }

// A plain is an upstream that is asked in clear text.
type plain interface {
	Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error))
	Exchange(ctx context.Context, q wire.Query) (wire.Answer, error)
	Latency() (usual, patience time.Duration)
	Silent() time.Duration
	Counts() upstreams.Counts
	History() upstreams.History
	NetworkChanged() bool
	Close() error
}

func newPlain(t *testing.T, protocol string, addrs ...netip.AddrPort) (p plain) {
	t.Helper()
	o := upstreams.Options{Name: "plain", Protocol: protocol, Addresses: addrs, Log: slog.New(slog.DiscardHandler)}
	var err error
	if p, err = upstreams.New(o); protocol == upstreams.UDP {
		p, err = upstreams.NewPlain(o)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func askPlain(t *testing.T, p plain, name string) (wire.Answer, error) {
	t.Helper()
	q, err := wire.NewQuery(name, "A")
	if err != nil {
		t.Fatal(err)
	}
	return p.Exchange(t.Context(), q)
}

func mustAskPlain(t *testing.T, p plain, name string) {
	t.Helper()
	if a, err := askPlain(t, p, name); err != nil || a.Kind() != wire.Positive {
		t.Fatalf("got %v, %v", a, err)
	}
}

// atBest tries f a few times, until it returns no error: on a busy machine, a query may
// be sent again or a connection be dialled twice.
func atBest(t *testing.T, f func() error) {
	t.Helper()
	var err error
	for range 4 {
		if err = f(); err == nil {
			return
		}
	}
	t.Error(err)
}

const longName = "a-name-with-many-letters.of-which-each-has-a-case.example.com"

func TestPlainQueriesAreHardToForge(t *testing.T) {
	s := startPlain(t, honest)
	p := newPlain(t, upstreams.UDP, s.addr)
	spellings, ids := make(map[string]bool), make(map[uint16]bool)
	for range 50 {
		mustAskPlain(t, p, longName)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.seen {
		spellings[m.Question[0].Name], ids[m.Id] = true, true
		if opt := m.IsEdns0(); opt == nil || opt.UDPSize() != wire.MaxUDPSize || len(opt.Option) > 0 || !m.RecursionDesired {
			t.Errorf("asked %v", m) // nothing to pad: RFC 7830 section 6
		}
	}
	if len(spellings) < 49 || len(ids) < 45 || len(s.conns) < 45 {
		t.Errorf("50 queries had %d spellings, %d IDs and %d ports", len(spellings), len(ids), len(s.conns))
	}
	if usual, _ := p.Latency(); usual == 0 || p.Silent() != 0 {
		t.Errorf("usually it takes %v; silent for %v", usual, p.Silent())
	}
}

// An error has the name of its upstream once, also if it comes from TCP.
func TestAnErrorNamesItsUpstreamOnce(t *testing.T) {
	s := startPlain(t, func(_ string, m *dns.Msg) []*dns.Msg {
		reply := addressed(m)
		reply.Question[0].Name = "www.example.org."
		return []*dns.Msg{reply}
	})
	p := newPlain(t, upstreams.UDP, s.addr)
	_, err := askPlain(t, p, longName)
	if err == nil || strings.Count(err.Error(), "plain: ") != 1 {
		t.Errorf("got %v", err)
	}
}

func TestQueriesThatFailOverUDPAreSentOverTCP(t *testing.T) {
	g := func(want string, overUDP func(m *dns.Msg, queries int32) []*dns.Msg) {
		t.Helper()
		atBest(t, func() error {
			var queries atomic.Int32
			s := startPlain(t, func(network string, m *dns.Msg) []*dns.Msg {
				if network == "udp" {
					return overUDP(m, queries.Add(1))
				}
				return honest(network, m)
			})
			mustAskPlain(t, newPlain(t, upstreams.UDP, s.addr), longName)
			if got := s.way(); got != want {
				return fmt.Errorf("asked over %s, want %s", got, want)
			}
			return nil
		})
	}
	f := func(want string, overUDP func(m *dns.Msg) []*dns.Msg) {
		t.Helper()
		g(want, func(m *dns.Msg, _ int32) []*dns.Msg { return overUDP(m) })
	}
	changed := func(m *dns.Msg, change func(*dns.Msg)) *dns.Msg {
		reply := addressed(m)
		change(reply)
		return reply
	}
	f("udp", func(m *dns.Msg) []*dns.Msg { return []*dns.Msg{addressed(m)} })
	f("udp tcp", func(m *dns.Msg) []*dns.Msg { // RFC 1035 section 4.2.1
		return []*dns.Msg{changed(m, func(r *dns.Msg) { r.Truncated, r.Answer = true, nil })}
	})
	f("udp tcp", func(m *dns.Msg) []*dns.Msg { // it does not keep the case of letters, or is forged
		return []*dns.Msg{changed(m, func(r *dns.Msg) { r.Question[0].Name = strings.ToLower(r.Question[0].Name) })}
	})
	f("udp", func(m *dns.Msg) []*dns.Msg { // forged ones with wrong IDs, and then the answer
		return []*dns.Msg{
			changed(m, func(r *dns.Msg) { r.Id++ }),
			changed(m, func(r *dns.Msg) { r.Response = false }),
			addressed(m),
		}
	})
	f("udp tcp", func(m *dns.Msg) []*dns.Msg { // with the right ID, to another question
		return []*dns.Msg{changed(m, func(r *dns.Msg) { r.Question[0].Name = "www.example.org." })}
	})
	f("udp tcp", func(m *dns.Msg) (all []*dns.Msg) { // a flood of them
		for range 100 {
			all = append(all, changed(m, func(r *dns.Msg) { r.Id++ }))
		}
		return all
	})
	g("udp udp", func(m *dns.Msg, queries int32) []*dns.Msg { // networks lose packets
		if queries == 1 {
			return nil
		}
		return honest("", m)
	})
}

// Packets from an address that was not asked do not reach a connected socket.
func TestPlainAnswersOfOthersAreIgnored(t *testing.T) {
	other, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	asked, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer asked.Close()
	go func() {
		buffer := make([]byte, 2048)
		n, from, err := asked.ReadFrom(buffer)
		var m dns.Msg
		if err != nil || m.Unpack(buffer[:n]) != nil {
			return
		}
		forged := addressed(&m)
		forged.Answer[0].(*dns.A).A = net.IPv4(192, 0, 2, 66)
		packet, _ := forged.Pack()
		other.WriteTo(packet, from)
		packet, _ = addressed(&m).Pack()
		asked.WriteTo(packet, from)
	}()
	p := newPlain(t, upstreams.UDP, netip.MustParseAddrPort(asked.LocalAddr().String()))
	a, err := askPlain(t, p, longName)
	if err != nil || !strings.Contains(a.String(), "192.0.2.1") {
		t.Errorf("got %v, %v", a, err)
	}
}

func TestPlainTCPKeepsItsConnection(t *testing.T) {
	atBest(t, func() error {
		s := startPlain(t, honest)
		p := newPlain(t, upstreams.TCP, s.addr)
		for range 10 {
			mustAskPlain(t, p, longName)
		}
		way := s.way()
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.conns) != 1 || strings.Contains(way, "udp") {
			return fmt.Errorf("10 queries had %d connections, over %s", len(s.conns), way)
		}
		if c := p.Counts(); c.Dials != 1 || c.Answered != 10 || c.Open != 1 {
			return fmt.Errorf("got %+v", c)
		}
		return nil
	})
}

func TestPlainFailures(t *testing.T) {
	closed := netip.AddrPortFrom(dottest.Loopback(), 9)
	for _, protocol := range []string{upstreams.UDP, upstreams.TCP} {
		atBest(t, func() error {
			began := time.Now()
			if _, err := askPlain(t, newPlain(t, protocol, closed), longName); err == nil || time.Since(began) > time.Second {
				return fmt.Errorf("%s: a closed port: %v after %v", protocol, err, time.Since(began))
			}
			return nil
		})
	}
	mute := startPlain(t, func(string, *dns.Msg) []*dns.Msg { return nil })
	p := newPlain(t, upstreams.UDP, mute.addr)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	q, _ := wire.NewQuery("example.com", "A")
	if _, err := p.Exchange(ctx, q); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if p.Silent() == 0 {
		t.Error("a silent server is not silent")
	}
	failed := make(chan error, 1)
	p.Ask(t.Context(), q, func(_ wire.Answer, err error) { failed <- err })
	p.Close()
	if err := <-failed; !errors.Is(err, upstreams.ErrClosed) {
		t.Errorf("after Close, got %v", err)
	}
}

// A server that says nothing to the names of one zone, of which clients ask for more than
// there are sockets, answers all others as before: queries that were sent again in vain
// make room for new ones.
func TestSilentNamesTakeNoPlaceOfOthers(t *testing.T) {
	const places = 1000
	s := startPlain(t, func(_ string, m *dns.Msg) []*dns.Msg {
		if strings.HasSuffix(strings.ToLower(m.Question[0].Name), "dead.example.") {
			return nil
		}
		return honest("", m)
	})
	p, err := upstreams.NewPlain(upstreams.Options{
		Name: "plain", Protocol: upstreams.UDP, Addresses: []netip.AddrPort{s.addr}, Log: slog.New(slog.DiscardHandler),
		Patience: time.Minute, // so that no query ends because its time is up
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	mustAskPlain(t, p, "first.example.com")
	ended := make(chan error, 2*places)
	for i := range places {
		q, err := wire.NewQuery(fmt.Sprintf("n%d.dead.example", i), "A")
		if err != nil {
			t.Fatal(err)
		}
		p.Ask(t.Context(), q, func(_ wire.Answer, err error) { ended <- err })
	}
	for deadline := time.Now().Add(30 * time.Second); p.Counts().Resent < places/2 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	for i := range 20 { // one after the other, so that one place is enough
		mustAskPlain(t, p, fmt.Sprintf("n%d.example.com", i))
	}
	if err := <-ended; !errors.Is(err, upstreams.ErrBusy) {
		t.Errorf("the query that made room got %v", err)
	}
	if n := len(ended); n > 0 {
		t.Errorf("%d more queries ended", n)
	}
}

func TestPublicServersInClearTextCauseAWarning(t *testing.T) {
	f := func(addr string, want bool) {
		t.Helper()
		var log strings.Builder
		p, err := upstreams.NewPlain(upstreams.Options{
			Name: "x", Protocol: upstreams.UDP, Addresses: []netip.AddrPort{netip.MustParseAddrPort(addr)},
			Log: slog.New(slog.NewTextHandler(&log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
		if got := strings.Contains(log.String(), "clear text"); got != want {
			t.Errorf("%s: log has %s", addr, log.String())
		}
	}
	f("9.9.9.9:53", true)
	f("[2620:fe::fe]:53", true)
	for _, addr := range []string{"127.0.0.1:53", "10.0.0.53:53", "192.168.1.1:53", "[fd00::1]:53", "[fe80::1]:53", "[::1]:53"} {
		f(addr, false)
	}
}

func TestEachProtocolHasItsType(t *testing.T) {
	plain := upstreams.Options{Name: "x", Protocol: upstreams.UDP, Addresses: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:53")}}
	if _, err := upstreams.New(plain); err == nil || !strings.Contains(err.Error(), "protocol") {
		t.Errorf("got %v", err)
	}
	plain.ServerName, plain.Pins = "dns.example", []string{fmt.Sprint(1)}
	_, err := upstreams.NewPlain(plain)
	for _, want := range []string{"server_name", "pins"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is missing from %v", want, err)
		}
	}
	plain.Protocol = "quic"
	if _, err := upstreams.NewPlain(plain); err == nil || !strings.Contains(err.Error(), `"quic" does not exist`) {
		t.Errorf("got %v", err)
	}
}

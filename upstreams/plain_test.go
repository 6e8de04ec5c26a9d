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
)

// A plainServer answers over UDP and TCP on one port, as handle says.
type plainServer struct {
	addr   netip.AddrPort
	mu     sync.Mutex
	seen   []*dns.Msg
	over   []string
	conns  map[string]bool
	handle func(network string, m *dns.Msg) []*dns.Msg
}

func startPlain(t *testing.T, handle func(network string, m *dns.Msg) []*dns.Msg) *plainServer {
	t.Helper()
	s := &plainServer{handle: handle, conns: make(map[string]bool)}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s.addr = netip.MustParseAddrPort(ln.Addr().String())
	for _, server := range []*dns.Server{{Listener: ln, Handler: s.on("tcp")}, {PacketConn: pc, Handler: s.on("udp")}} {
		ready, done := make(chan struct{}), make(chan struct{})
		server.NotifyStartedFunc = func() { close(ready) }
		go func() { defer close(done); server.ActivateAndServe() }()
		<-ready
		t.Cleanup(func() { server.Shutdown(); <-done })
	}
	return s
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

// way returns over what the server was asked so far.
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

func newPlain(t *testing.T, protocol string, addrs ...netip.AddrPort) *upstreams.Plain {
	t.Helper()
	p, err := upstreams.NewPlain(upstreams.Options{Name: "plain", Protocol: protocol, Addresses: addrs, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func askPlain(t *testing.T, p *upstreams.Plain, name string) (wire.Answer, error) {
	t.Helper()
	q, err := wire.NewQuery(name, "A")
	if err != nil {
		t.Fatal(err)
	}
	return p.Exchange(t.Context(), q)
}

func mustAskPlain(t *testing.T, p *upstreams.Plain, name string) {
	t.Helper()
	if a, err := askPlain(t, p, name); err != nil || a.Kind() != wire.Positive {
		t.Fatalf("got %v, %v", a, err)
	}
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

func TestWhatUDPWontDoForIsAskedOverTCP(t *testing.T) {
	f := func(want string, overUDP func(m *dns.Msg) []*dns.Msg) {
		t.Helper()
		s := startPlain(t, func(network string, m *dns.Msg) []*dns.Msg {
			if network == "udp" {
				return overUDP(m)
			}
			return honest(network, m)
		})
		mustAskPlain(t, newPlain(t, upstreams.UDP, s.addr), longName)
		if got := s.way(); got != want {
			t.Errorf("asked over %s, want %s", got, want)
		}
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
	f("udp tcp", func(m *dns.Msg) []*dns.Msg { // it does not keep spellings, or it is not it
		return []*dns.Msg{changed(m, func(r *dns.Msg) { r.Question[0].Name = strings.ToLower(r.Question[0].Name) })}
	})
	f("udp", func(m *dns.Msg) []*dns.Msg { // forged ones that miss, and then the answer
		return []*dns.Msg{
			changed(m, func(r *dns.Msg) { r.Id++ }),
			changed(m, func(r *dns.Msg) { r.Question[0].Name = "www.example.org." }),
			changed(m, func(r *dns.Msg) { r.Response = false }),
			addressed(m),
		}
	})
	f("udp tcp", func(m *dns.Msg) (all []*dns.Msg) { // a flood of them
		for range 100 {
			all = append(all, changed(m, func(r *dns.Msg) { r.Id++ }))
		}
		return all
	})
	var lost atomic.Bool
	f("udp udp", func(m *dns.Msg) []*dns.Msg { // networks lose packets
		if lost.CompareAndSwap(false, true) {
			return nil
		}
		return honest("", m)
	})
}

// The address that answers is not the one that was asked: such packets don't even
// reach us.
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
	s := startPlain(t, honest)
	p := newPlain(t, upstreams.TCP, s.addr)
	for range 10 {
		mustAskPlain(t, p, longName)
	}
	way := s.way()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) != 1 || strings.Contains(way, "udp") {
		t.Errorf("10 queries had %d connections, over %s", len(s.conns), way)
	}
	if c := p.Counts(); c.Dials != 1 || c.Answered != 10 || c.Open != 1 {
		t.Errorf("got %+v", c)
	}
}

func TestPlainFailures(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := netip.MustParseAddrPort(ln.Addr().String())
	ln.Close()
	for _, protocol := range []string{upstreams.UDP, upstreams.TCP} {
		began := time.Now()
		if _, err := askPlain(t, newPlain(t, protocol, nobody), longName); err == nil || time.Since(began) > time.Second {
			t.Errorf("%s: nobody answered %v after %v", protocol, err, time.Since(began))
		}
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
	p.Ask(q, func(_ wire.Answer, err error) { failed <- err })
	p.Close()
	if err := <-failed; !errors.Is(err, upstreams.ErrClosed) {
		t.Errorf("after Close, got %v", err)
	}
}

func TestPublicServersInClearTextAreWarnedOf(t *testing.T) {
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

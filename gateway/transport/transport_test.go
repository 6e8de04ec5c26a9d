package transport

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for what happens at once, but on a busy machine. Only failing tests wait
// for all of it.
const patience = 30 * time.Second

// A handler is a Handler that answers every query with one address.
type handler struct {
	hits bool              // at once, except names that begin with "miss"
	wait func(name string) // an answer that is not ready at once is when it returns; nil: it is
}

func (h handler) NewResponder(c *Client) Responder { return &responder{handler: h, client: c} }

func (handler) IsOwn(netip.Addr) bool { return false }

type responder struct {
	handler
	client   *Client
	counters Counters
}

func (s *responder) Counters() *Counters { return &s.counters }

func (s *responder) Close() {}

func (s *responder) Answer(dst, packet []byte) ([]byte, PendingQuery) {
	var m dns.Msg
	if m.Unpack(packet) != nil || len(m.Question) != 1 {
		return dst, nil
	}
	name := m.Question[0].Name
	address, _ := dns.NewRR(name + " 60 IN A 192.0.2.1")
	m.SetReply(&m).Answer = []dns.RR{address}
	if s.hits && !strings.HasPrefix(name, "miss") {
		return append(dst, packed(&m)...), nil
	}
	return dst, &pendingQuery{packed(&m), s.client.ReplyTo.Clone(), func() {
		if s.wait != nil {
			s.wait(name)
		}
	}}
}

type pendingQuery struct {
	reply   []byte
	replyTo ReplyTo
	wait    func()
}

func (p *pendingQuery) Resolve() {
	go func() {
		p.wait()
		message := NewBuffer()
		*message = append(*message, p.reply...)
		p.replyTo.Sender.Send(&p.replyTo, message)
	}()
}

// newServer returns a Server that logs nothing, with usual values in place of zero ones.
func newServer(t testing.TB, h Handler, o Options) *Server {
	t.Helper()
	s := NewServer(h, slog.New(slog.DiscardHandler))
	s.SetOptions(Options{
		MaxConnections: cmp.Or(o.MaxConnections, 1024), MaxPerClient: cmp.Or(o.MaxPerClient, 256), MaxPipelined: cmp.Or(o.MaxPipelined, 100),
		IdleTimeout: cmp.Or(o.IdleTimeout, 10*time.Second), GatherAbove: cmp.Or(o.GatherAbove, 15_000),
	})
	t.Cleanup(func() { closeSockets(s) })
	return s
}

// closeSockets closes those of a server that doesn't serve.
func closeSockets(s *Server) {
	for _, l := range s.listeners {
		l.close()
	}
	s.listeners = nil
}

// addrs reads addresses.
func addrs(texts ...string) (all []netip.AddrPort) {
	for _, text := range texts {
		all = append(all, netip.MustParseAddrPort(text))
	}
	return all
}

// start serves at a port of 127.0.0.1 until the test ends, or until stop is called.
func start(t testing.TB, h Handler, o Options) (s *Server, stop func()) {
	t.Helper()
	s = newServer(t, h, o)
	if err := s.Listen(addrs("127.0.0.1:0"), false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := s.Serve(ctx, func() {}); err != nil {
			t.Error(err)
		}
	})
	stop = func() {
		cancel()
		serving.Wait()
	}
	t.Cleanup(stop)
	return s, stop
}

// dial connects to addr over TCP. Everything on the connection fails if it takes longer
// than patience.
func dial(t testing.TB, addr netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func query(name string) *dns.Msg { return new(dns.Msg).SetQuestion(name, dns.TypeA) }

func packed(m *dns.Msg) []byte {
	packet, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return packet
}

// framed returns a message as it travels over TCP.
func framed(message []byte) []byte {
	return append([]byte{byte(len(message) >> 8), byte(len(message))}, message...)
}

// numbered returns n queries in one piece, each with its number for an ID.
func numbered(n int) (all []byte) {
	for i := range n {
		m := query(fmt.Sprintf("q%d.example.com.", i))
		m.Id = uint16(i)
		all = append(all, framed(packed(m))...)
	}
	return all
}

// exchange sends m over c and returns the next message that comes.
func exchange(t testing.TB, c net.Conn, m *dns.Msg) *dns.Msg {
	t.Helper()
	if err := (&dns.Conn{Conn: c}).WriteMsg(m); err != nil {
		t.Fatal(err)
	}
	return receive(t, c)
}

func receive(t testing.TB, c net.Conn) *dns.Msg {
	t.Helper()
	m, err := (&dns.Conn{Conn: c, UDPSize: dns.MaxMsgSize}).ReadMsg()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func expectEOF(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("expected the end, got %d octets and %v", n, err)
	}
}

// A Buffer is a log that can be read meanwhile.
type Buffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"dotgate/gateway/transport"
	"dotgate/gateway/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for what happens at once, but on a busy machine. Only failing tests wait
// for all of it.
const patience = 30 * time.Second

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// clientAt returns a client of g, whose queries are counted in n.
func clientAt(g *Gateway, addr string, n *counters) *client {
	return &client{Client: &transport.Client{Addr: netip.MustParseAddr(addr).Unmap()}, gateway: g, counters: n}
}

// localClient is one on this host.
func localClient(g *Gateway, n *counters) *client { return clientAt(g, "127.0.0.1", n) }

// A resolver is a Resolver that takes its time, for each query in a goroutine. Its
// context ends at the deadline.
type resolver func(context.Context, wire.Query) (wire.Answer, error)

func (r resolver) Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	deadline, _ := ctx.Deadline()
	go func() {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		done(r(ctx, q))
	}()
}

// holding returns a Resolver that answers when release has been called.
func holding() (r Resolver, release func()) {
	released := make(chan struct{})
	return resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
		<-released
		return answer(q)
	}), func() { close(released) }
}

// crashing is a Resolver with a bug.
type crashing struct{}

func (crashing) Ask(context.Context, wire.Query, func(wire.Answer, error)) { panic("oops") }

// forgetful is a Resolver that never says anything, not even at the deadline. It
// tells of the first query.
type forgetful chan struct{}

func (f forgetful) Ask(context.Context, wire.Query, func(wire.Answer, error)) { close(f) }

// answer makes the answer to q that has these records.
func answer(q wire.Query, records ...dns.RR) (wire.Answer, error) {
	var asked, m dns.Msg
	if err := asked.Unpack(q.AppendUpstream(nil, 1)); err != nil {
		return wire.Answer{}, err
	}
	m.SetReply(&asked)
	m.RecursionAvailable = true
	m.Answer = records
	packet, err := m.Pack()
	if err != nil {
		return wire.Answer{}, err
	}
	return wire.ParseAnswer(q, packet)
}

func record(format string, args ...any) dns.RR {
	rr, err := dns.NewRR(fmt.Sprintf(format, args...))
	if err != nil {
		panic(err)
	}
	return rr
}

// nameOf returns the name that q asks for, in lower case.
func nameOf(q wire.Query) string {
	name, _, err := dns.UnpackDomainName(q.AppendName(nil), 0)
	if err != nil {
		panic(err)
	}
	return name
}

// addressed answers every query with one address.
var addressed = resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
	return answer(q, record("%s 60 IN A 192.0.2.1", nameOf(q)))
})

// silent never answers.
var silent = resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
	<-ctx.Done()
	return wire.Answer{}, ctx.Err()
})

// start serves until the test ends, or until stop is called. It then checks
// that everything that came in is accounted for.
func start(t testing.TB, r Resolver, o Options) (g *Gateway, stop func()) {
	t.Helper()
	if o.Listen == nil {
		o.Listen = []netip.AddrPort{loopback}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	g, err := New(r, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() {
		defer close(served)
		served <- g.Serve(ctx)
	}()
	stop = func() {
		cancel()
		if err, first := <-served; !first {
			return
		} else if err != nil {
			t.Errorf("Serve returned %v", err)
		}
		checkCounts(t, g.Counts())
	}
	t.Cleanup(stop)
	return g, stop
}

// checkCounts checks that each packet had one outcome, and nothing is left.
func checkCounts(t testing.TB, c Counts) {
	t.Helper()
	for _, via := range []wire.Transport{wire.UDP, wire.TCP} {
		var sum uint64
		for _, o := range c.Outcomes {
			sum += o[via]
		}
		if sum != c.Received[via] {
			t.Errorf("%v: received %d, accounted for %d: %v", via, c.Received[via], sum, c.Outcomes)
		}
	}
	if c.InProgress != 0 || c.Connections.Open != 0 || c.Connections.Unsent != 0 {
		t.Errorf("after Serve, %d queries are in progress, %d connections open, and %d octets wait to be written", c.InProgress, c.Connections.Open, c.Connections.Unsent)
	}
}

// dial connects to where g listens. Everything on the connection fails if it
// takes longer than patience.
func dial(t testing.TB, network string, addr netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.DialTimeout(network, addr.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func query(name string) *dns.Msg { return new(dns.Msg).SetQuestion(name, dns.TypeA) }

func withEDNS(m *dns.Msg, size uint16) *dns.Msg { return m.SetEdns0(size, false) }

// exchange sends m over c and returns the next message that comes.
func exchange(t testing.TB, c net.Conn, m *dns.Msg) *dns.Msg {
	t.Helper()
	sendQuery(t, c, m)
	return receive(t, c)
}

func sendQuery(t testing.TB, c net.Conn, m *dns.Msg) {
	t.Helper()
	if err := (&dns.Conn{Conn: c}).WriteMsg(m); err != nil {
		t.Fatal(err)
	}
}

func receive(t testing.TB, c net.Conn) *dns.Msg {
	t.Helper()
	m, err := (&dns.Conn{Conn: c, UDPSize: dns.MaxMsgSize}).ReadMsg()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func edeOf(m *dns.Msg) (code int, text string) {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				return int(e.InfoCode), e.ExtraText
			}
		}
	}
	return -1, ""
}

// eachTransport runs f over UDP and over TCP.
func eachTransport(t *testing.T, f func(t *testing.T, network string)) {
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			f(t, network)
		})
	}
}

func TestReplyEchoesIDAndSpelling(t *testing.T) {
	eachTransport(t, func(t *testing.T, network string) {
		g, _ := start(t, addressed, Options{})
		c := dial(t, network, g.Addrs()[0])
		for _, name := range []string{"example.com.", "eXaMPle.COM.", "WWW.example.ORG."} {
			m := query(name)
			reply := exchange(t, c, m)
			if reply.Id != m.Id || reply.Question[0] != m.Question[0] {
				t.Errorf("asked %d %v, got %d %v", m.Id, m.Question[0], reply.Id, reply.Question[0])
			}
			if len(reply.Answer) != 1 || !reply.RecursionAvailable || reply.Authoritative || reply.IsEdns0() != nil {
				t.Errorf("odd reply: %v", reply)
			}
		}
	})
}

func TestReplyThatDoesNotFitIsTruncatedAndWholeOverTCP(t *testing.T) {
	t.Parallel()
	large := resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
		var records []dns.RR
		for range 200 {
			records = append(records, record("%s 60 IN TXT %s", nameOf(q), strings.Repeat("x", 100)))
		}
		if strings.HasPrefix(nameOf(q), "medium") {
			records = records[:6] // above 512, below 1232
		}
		return answer(q, records...)
	})
	g, _ := start(t, large, Options{})
	udp, tcp := dial(t, "udp", g.Addrs()[0]), dial(t, "tcp", g.Addrs()[0])
	for _, test := range []struct {
		client net.Conn
		m      *dns.Msg
		want   int // records
	}{
		{udp, query("medium.example.com."), 4},
		{udp, withEDNS(query("medium.example.com."), 512), 4},
		{udp, withEDNS(query("medium.example.com."), 1232), 6},
		{udp, withEDNS(query("large.example.com."), 1232), 10},
		{udp, withEDNS(query("large.example.com."), 65535), 10},
		{tcp, query("large.example.com."), 200},
		{tcp, withEDNS(query("large.example.com."), 512), 200},
	} {
		test.m.Question[0].Qtype = dns.TypeTXT
		reply := exchange(t, test.client, test.m)
		if len(reply.Answer) != test.want || reply.Truncated != (test.want != 6 && test.want != 200) {
			t.Errorf("%s: %d records, TC %v; want %d records", test.m.Question[0].Name, len(reply.Answer), reply.Truncated, test.want)
		}
		if (reply.IsEdns0() != nil) != (test.m.IsEdns0() != nil) {
			t.Errorf("%s: OPT in the reply is %v", test.m.Question[0].Name, reply.IsEdns0())
		}
	}
}

func TestShutdownAnswersQueriesInProgress(t *testing.T) {
	eachTransport(t, func(t *testing.T, network string) {
		asked, release := make(chan struct{}), make(chan struct{})
		g, stop := start(t, resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
			close(asked)
			<-release
			return addressed(ctx, q)
		}), Options{})
		c, witness := dial(t, network, g.Addrs()[0]), dial(t, "tcp", g.Addrs()[0])
		sendQuery(t, c, query("example.com."))
		<-asked
		stopped := make(chan struct{})
		go func() { stop(); close(stopped) }()
		expectEOF(t, witness) // stopping has begun
		witness.Close()
		close(release)
		if reply := receive(t, c); len(reply.Answer) != 1 {
			t.Errorf("odd reply: %v", reply)
		}
		c.Close()
		<-stopped
	})
}

func TestShutdownDoesNotWaitForever(t *testing.T) {
	eachTransport(t, func(t *testing.T, network string) {
		asked := make(chan struct{})
		g, stop := start(t, forgetful(asked), Options{Timeout: time.Minute})
		c := dial(t, network, g.Addrs()[0])
		sendQuery(t, c, withEDNS(query("example.com."), 1232))
		<-asked
		began := time.Now()
		stop()
		if took := time.Since(began); took > 2100*time.Millisecond {
			t.Errorf("took %v", took)
		}
		reply := receive(t, c)
		if _, text := edeOf(reply); reply.Rcode != dns.RcodeServerFailure || text != "shutting down" {
			t.Errorf("odd reply: %v", reply)
		}
	})
}

// TestShutdownAnswersQueriesThatHadArrived stops a gateway that has not looked at its
// sockets yet.
func TestShutdownAnswersQueriesThatHadArrived(t *testing.T) {
	g, err := New(addressed, Options{Listen: []netip.AddrPort{loopback}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Listen(); err != nil {
		t.Fatal(err)
	}
	var clients []net.Conn
	for _, network := range []string{"udp", "udp", "udp", "tcp", "tcp"} {
		c := dial(t, network, g.Addrs()[0])
		sendQuery(t, c, query("example.com."))
		clients = append(clients, c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	served := make(chan error)
	go func() { served <- g.Serve(ctx) }()
	for _, c := range clients {
		if reply := receive(t, c); len(reply.Answer) != 1 {
			t.Errorf("odd reply: %v", reply)
		}
		c.Close()
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	checkCounts(t, g.Counts())
}

func TestServeWithoutListen(t *testing.T) {
	g, err := New(addressed, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Serve(t.Context()); err == nil {
		t.Error("no error")
	}
}

func TestNewReportsEveryProblem(t *testing.T) {
	_, err := New(nil, Options{Listen: []netip.AddrPort{}, Timeout: -1, MaxQueries: -1, MaxPipelined: -1})
	for _, want := range []string{"resolver", "gateway.listen ", "gateway.timeout ", "gateway.max_queries ", "gateway.max_pipelined "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing from: %v", want, err)
		}
	}
	if _, err := New(addressed, Options{Listen: []netip.AddrPort{{}}}); err == nil {
		t.Error("an invalid address passed")
	}
	for listen, ok := range map[string]bool{
		"127.0.0.1:53 [::1]:53":   true,
		"0.0.0.0:53 [::]:53":      true,
		"127.0.0.1:53 [::]:53":    true,
		"0.0.0.0:53 127.0.0.1:5":  true,
		"0.0.0.0:53 127.0.0.1:53": false,
		"[::1]:53 [::]:53":        false,
		"[::1]:53 [::1]:53":       false,
	} {
		var o Options
		for addr := range strings.FieldsSeq(listen) {
			o.Listen = append(o.Listen, netip.MustParseAddrPort(addr))
		}
		if _, err := New(addressed, o); (err == nil) != ok {
			t.Errorf("%s: %v", listen, err)
		}
	}
}

var errTest = errors.New("broken")

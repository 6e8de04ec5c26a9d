package dottest

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"dotgate/gateway/wire"

	"github.com/miekg/dns"
)

func TestServerAnswers(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{CountNames: true})
	c := dial(t, s)
	if got := c.ConnectionState().NegotiatedProtocol; got != "dot" {
		t.Errorf("negotiated %q, want dot", got)
	}
	c.ask("a.example.com")
	c.ask("A.example.com")
	padded, err := wire.NewQuery("b.example.com", "A")
	if err != nil {
		t.Fatal(err)
	}
	c.Write(framed(padded.AppendUpstream(nil, 9)))
	checkAnswer(t, c.receive(), 9, "b.example.com")

	got := s.Stats()
	if got.Accepted != 1 || got.Open != 1 || got.Handshakes != 1 || got.Queries != 3 || got.Answers != 3 ||
		got.MaxOutstanding != 1 || got.DuplicateIDs != 0 || got.Unpadded != 2 ||
		got.ServerNames[ServerName] != 1 || got.Protocols["dot"] != 1 || got.Versions["TLS 1.3"] != 1 ||
		got.Names["a.example.com."] != 2 || got.Names["b.example.com."] != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestPipelinedAnswersComeInAnyOrderAndBelongToTheirQueries(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{})
	c := dial(t, s)
	names := []string{"d60.example.com", "d40.example.com", "d20.example.com", "a.example.com", "b.example.com"}
	c.send(names...)
	for _, want := range []uint16{4, 5, 3, 2, 1} {
		m := c.receive()
		checkAnswer(t, m, want, names[want-1])
	}
	if got := s.Stats().MaxOutstanding; got != 5 {
		t.Errorf("at most %d queries outstanding, want 5", got)
	}
}

func TestQueriesMayCrossRecords(t *testing.T) {
	t.Parallel()
	c := dial(t, NewServer(t, Options{}))
	frames := append(framed(newQuery(1, "a.example.com", dns.TypeA)), framed(newQuery(2, "b.example.com", dns.TypeA))...)
	for _, octet := range frames {
		if _, err := c.Write([]byte{octet}); err != nil {
			t.Fatal(err)
		}
	}
	checkAnswer(t, c.receive(), 1, "a.example.com")
	checkAnswer(t, c.receive(), 2, "b.example.com")
}

func TestStoppedServerRefuses(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{})
	c := dial(t, s)
	for range 2 {
		for range 2 { // twice is as good as once
			if err := s.Stop(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := net.Dial("tcp", s.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v, want it refused", err)
		}
		c.ask("established.example.com")
		for range 2 {
			if err := s.Restart(); err != nil {
				t.Fatal(err)
			}
		}
		dial(t, s).ask("new.example.com")
	}
}

func TestBlackholedServerIsSilent(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{})
	c := dial(t, s)
	if err := s.Blackhole(); err != nil {
		t.Fatal(err)
	}
	if _, err := net.DialTimeout("tcp", s.Addr().String(), silence); !isTimeout(err) {
		t.Errorf("dial: %v, want a time-out", err)
	}
	c.ask("established.example.com")
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("tcp", s.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v, want it refused", err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	dial(t, s).ask("new.example.com")
}

func TestServerOverIPv6(t *testing.T) {
	t.Parallel()
	s, err := Start(Options{Addr: "[::1]:0"})
	if err != nil {
		t.Skip("no IPv6 here: ", err)
	}
	defer s.Close()
	dial(t, s).ask("a.example.com")
	if err := s.Blackhole(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	dial(t, s).ask("b.example.com")
}

func TestStartFailsWhereItCannotListen(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{})
	if _, err := Start(Options{Addr: s.Addr().String()}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v", err)
	}
}

func TestCAFile(t *testing.T) {
	t.Parallel()
	ca := NewCA()
	path, err := ca.WriteFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !slices.Equal(got, ca.PEM()) {
		t.Errorf("read %q and %v", got, err)
	}
}

// A client that sends and does not read must not cost the server memory, nor
// keep it from closing.
func TestClientThatDoesNotReadIsHeldUp(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{})
	raw, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, clientConfig(s))
	query := slices.Repeat(framed(newQuery(1, "big60000.example.com", dns.TypeA)), 10)
	raw.SetDeadline(time.Now().Add(patience))
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	raw.SetDeadline(time.Now().Add(2 * silence))
	for err == nil {
		_, err = c.Write(query)
	}
	if !isTimeout(err) {
		t.Errorf("writing ended with %v, want a time-out", err)
	}
	s.Close()
}

func TestCloseEndsConnectionsInEveryState(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{RTT: time.Millisecond})
	connect := func(faults ...Fault) {
		s.Set(faults...)
		raw, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { raw.Close() })
		accepted := s.Stats().Accepted
		eventually(t, "it is accepted", func() bool { return s.Stats().Accepted >= accepted })
	}
	connect()
	connect(Fault{Greeting: Silence})
	connect(Fault{Greeting: HandshakeStalls})
	connect(Fault{Greeting: HandshakeClosed})
	s.Set()
	a, b, c := dial(t, s), dial(t, s), dial(t, s)
	a.send("d3600000.example.com")
	b.ask("b.example.com")
	s.FreezeConnections()
	s.Set(Fault{Drip: time.Hour})
	c.send("c.example.com")
	dial(t, s).send("d.example.com")
	s.Close()
	s.Close()
	if got := s.Stats().Open; got != 0 {
		t.Errorf("%d connections open, want none", got)
	}
	if s.Restart() == nil || s.Stop() == nil || s.Blackhole() == nil {
		t.Error("a closed server obeys")
	}
	s.Set(Fault{Delay: time.Second})
	s.CloseConnections(FIN)
}

// Everything at once, for the race detector.
func TestFaultsSwitchUnderLoad(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{})
	stop := make(chan struct{})
	stopped := func() bool {
		select {
		case <-stop:
			return true
		default:
			return false
		}
	}
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for !stopped() {
				raw, err := net.Dial("tcp", s.Addr().String())
				if err != nil {
					continue
				}
				raw.SetDeadline(time.Now().Add(50 * time.Millisecond))
				c := tls.Client(raw, clientConfig(s))
				go c.Write(slices.Repeat(framed(newQuery(1, "d1.example.com", dns.TypeA)), 100))
				io.Copy(io.Discard, c)
				raw.Close()
			}
		})
	}
	certificate := s.CA().Issue(CertOptions{Names: []string{ServerName}})
	for i := range 100 {
		s.Set(Fault{
			Share:      rand.Float64(),
			Greeting:   Greeting(rand.IntN(2) * rand.IntN(greetingsEnd)),
			CloseAfter: rand.IntN(50),
			CloseIdle:  time.Duration(rand.IntN(3)) * time.Millisecond,
			Closing:    Closing(rand.IntN(closingsEnd)),
			ForgetIdle: time.Duration(rand.IntN(3)) * time.Millisecond,
			InOrder:    rand.IntN(2) == 0,
			Reverse:    time.Duration(rand.IntN(2)) * time.Millisecond,
			Delay:      time.Duration(rand.IntN(2)) * time.Millisecond,
			RCode:      wire.RCode(rand.IntN(3)),
			Mangle:     Mangle(1) << rand.IntN(manglesEnd),
			Drip:       time.Duration(rand.IntN(2)) * time.Millisecond,
		}, Fault{Never: true, Share: 0.1})
		switch i % 40 {
		case 0:
			s.FreezeConnections()
		case 10:
			s.CloseConnections(Closing(rand.IntN(closingsEnd)))
		case 20:
			s.SetCertificate(certificate)
		case 30:
			s.Stop()
			s.Restart()
		}
		s.Stats()
		time.Sleep(2 * time.Millisecond)
	}
	s.Set()
	close(stop)
	clients.Wait()
	dial(t, s).ask("healed.example.com")
	s.CloseConnections(RST)
	eventually(t, "all are gone", func() bool { return s.Stats().Open == 0 })
}

func BenchmarkServer(b *testing.B) {
	run := func(name string, connections, window int, o Options) {
		b.Run(name, func(b *testing.B) {
			s := NewServer(b, o)
			var clients sync.WaitGroup
			conns := make([]client, connections)
			for i := range conns {
				conns[i] = dial(b, s)
				conns[i].SetDeadline(time.Time{})
			}
			b.ReportAllocs()
			b.ResetTimer()
			for _, c := range conns {
				clients.Go(func() { pipeline(b, c, b.N/connections+1, window) })
			}
			clients.Wait()
			b.ReportMetric(float64(s.Stats().Queries)/b.Elapsed().Seconds(), "queries/s")
		})
	}
	run("window=1", 4, 1, Options{})
	run("window=16", 4, 16, Options{})
	run("window=256", 4, 256, Options{})
	run("window=1024,rtt=20ms", 4, 1024, Options{RTT: 20 * time.Millisecond})
}

// pipeline asks n queries, of which up to window are outstanding.
func pipeline(tb testing.TB, c client, n, window int) {
	query := framed(newQuery(0, "www.example.com", dns.TypeA))
	r := bufio.NewReaderSize(c, 1<<16)
	var out []byte
	for sent, received := 0, 0; received < n; {
		out = out[:0]
		for ; sent < n && sent-received < window; sent++ {
			binary.BigEndian.PutUint16(query[2:], uint16(sent))
			out = append(out, query...)
		}
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				tb.Error(err)
				return
			}
		}
		for first := true; received < n && (first || r.Buffered() > 2); first = false {
			prefix, err := r.Peek(2)
			if err != nil {
				tb.Error(err)
				return
			}
			if _, err := r.Discard(2 + int(binary.BigEndian.Uint16(prefix))); err != nil {
				tb.Error(err)
				return
			}
			received++
		}
	}
}

package dottest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dotgate/gateway/wire"

	"github.com/miekg/dns"
)

func TestGreetings(t *testing.T) {
	t.Parallel()
	check := func(greeting Greeting, within time.Duration, ok func(error) bool) {
		t.Run(greeting.String(), func(t *testing.T) {
			t.Parallel()
			s := NewServer(t, Options{Faults: []Fault{{Greeting: greeting}}})
			raw, err := net.Dial("tcp", s.Addr().String())
			if err != nil {
				t.Fatalf("TCP: %v", err)
			}
			defer raw.Close()
			raw.SetDeadline(time.Now().Add(within))
			if err := tls.Client(raw, clientConfig(s)).Handshake(); !ok(err) {
				t.Fatalf("handshake: %v", err)
			}
			s.Set()
			dial(t, s).ask("healed.example.com")
		})
	}
	closed := func(err error) bool { return errors.Is(err, io.EOF) }
	reset := func(err error) bool { return errors.Is(err, syscall.ECONNRESET) }
	check(Handshake, patience, func(err error) bool { return err == nil })
	check(Silence, silence, isTimeout)
	check(HandshakeStalls, silence, isTimeout)
	check(HandshakeClosed, patience, closed)
	check(HandshakeReset, patience, reset)
	check(ClosedWhenNew, patience, func(err error) bool { return closed(err) || reset(err) || errors.Is(err, syscall.EPIPE) })
	check(HandshakeAlert, patience, isAlert)
	check(PlainText, patience, func(err error) bool {
		var plain tls.RecordHeaderError
		return errors.As(err, &plain) && string(plain.RecordHeader[:]) == "HTTP/"
	})
}

// isAlert reports whether err is an alert of the other side.
func isAlert(err error) bool {
	var alert *net.OpError
	return errors.As(err, &alert) && alert.Op == "remote error"
}

func TestStalledHandshakeHasBegun(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{Faults: []Fault{{Greeting: HandshakeStalls}}})
	raw, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	meter := &wireMeter{Conn: raw}
	raw.SetReadDeadline(time.Now().Add(silence))
	tls.Client(meter, clientConfig(s)).Handshake()
	raw.SetReadDeadline(time.Now().Add(patience)) // a busy server sends it later
	for meter.octets == 0 {
		if _, err := meter.Read(make([]byte, 1)); err != nil {
			t.Fatal("nothing of the server's flight arrived")
		}
	}
}

func TestConnectionsClose(t *testing.T) {
	t.Parallel()
	for _, how := range []Closing{CloseNotify, FIN, RST} {
		t.Run("after answers/"+how.String(), func(t *testing.T) {
			t.Parallel()
			s := NewServer(t, Options{Faults: []Fault{{CloseAfter: 2, Closing: how}}})
			c := dial(t, s)
			c.ask("one.example.com")
			c.send("two.example.com", "three.example.com", "four.example.com")
			if how != RST { // which may overtake the answer
				checkAnswer(t, c.receive(), 1, "two.example.com")
			}
			c.expectEnd(how)
			dial(t, s).ask("again.example.com")
			if got := s.Stats().Answers; got < 3 {
				t.Errorf("%d answers counted, want at least 3", got)
			}
		})
		t.Run("when idle/"+how.String(), func(t *testing.T) {
			t.Parallel()
			// It is long enough for a client on a busy machine to read the answer before a
			// reset, which would discard it.
			const idle = 500 * time.Millisecond
			s := NewServer(t, Options{})
			c := dial(t, s)
			start := time.Now()
			c.send("d700.example.com") // a query under way is not idleness
			eventually(t, "the query arrives", func() bool { return s.Stats().Queries == 1 })
			s.Set(Fault{CloseIdle: idle, Closing: how})
			checkAnswer(t, c.receive(), 1, "d700.example.com")
			c.expectEnd(how)
			if took := time.Since(start); took < 700*time.Millisecond+idle {
				t.Errorf("closed after %v, of which the answer took 700 ms, want %v of idleness", took, idle)
			}
			eventually(t, "it counts as closed", func() bool { return s.Stats().Open == 0 })
		})
		t.Run("now/"+how.String(), func(t *testing.T) {
			t.Parallel()
			s := NewServer(t, Options{})
			a, b := dial(t, s), dial(t, s)
			a.ask("a.example.com")
			b.ask("b.example.com")
			s.CloseConnections(how)
			a.expectEnd(how)
			b.expectEnd(how)
			dial(t, s).ask("again.example.com")
		})
	}
}

func TestClosedConnectionResetsWhatComesLater(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{})
	c := dial(t, s)
	c.ask("a.example.com")
	s.CloseConnections(FIN)
	c.expectEnd(FIN)
	c.send("late.example.com")
	eventually(t, "writing fails", func() bool {
		_, err := c.Write(framed(newQuery(1, "later.example.com", dns.TypeA)))
		return err != nil
	})
}

func TestFrozenConnectionsAreSilentWhileNewOnesWork(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{})
	c := dial(t, s)
	c.ask("a.example.com")
	s.FreezeConnections()
	s.Set(Fault{CloseIdle: time.Millisecond})
	c.send("b.example.com")
	c.expectSilence()
	s.Set(Fault{CloseAfter: 1})
	c.send("c.example.com")
	c.expectSilence()
	s.Set()
	dial(t, s).ask("d.example.com")
	s.Set(Fault{Greeting: Silence})
	raw, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	raw.Close()
	s.CloseConnections(RST)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %v, want a reset", err)
	}
}

func TestMiddleboxForgetsIdleFlow(t *testing.T) {
	t.Parallel()
	const idle = time.Second // with time for a busy machine between two queries
	s := NewServer(t, Options{Faults: []Fault{{ForgetIdle: idle}}})
	c := dial(t, s)
	for range 4 { // longer than idle altogether
		c.ask("d300.example.com")
	}
	time.Sleep(2 * idle)
	c.send("b.example.com")
	c.expectSilence()
	dial(t, s).ask("c.example.com")
}

func TestMaxConnections(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{Faults: []Fault{{MaxConnections: 1}}})
	c := dial(t, s)
	c.ask("a.example.com")
	if _, err := tryDial(t, s, clientConfig(s)); err == nil {
		t.Error("a second connection was let in")
	}
	c.ask("b.example.com")
	c.Close()
	eventually(t, "there is room again", func() bool { return s.Stats().Open == 0 })
	dial(t, s).ask("c.example.com")
	if stats := s.Stats(); stats.TurnedAway != 1 || stats.MaxOpen != 1 {
		t.Errorf("got %+v", stats)
	}
}

func TestInOrder(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{})
	c := dial(t, s)
	receive := func(want ...uint16) {
		t.Helper()
		for _, id := range want {
			if got := c.receive().Id; got != id {
				t.Errorf("got answer %d, want %d", got, id)
			}
		}
	}
	c.send("d50.example.com", "a.example.com", "b.example.com")
	receive(2, 3, 1)
	s.Set(Fault{InOrder: true})
	c.send("d50.example.com", "a.example.com", "d20.example.com", "b.example.com")
	receive(1, 2, 3, 4)
	c.send("never.example.com", "a.example.com")
	c.expectSilence()
}

func TestReverse(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{Faults: []Fault{{Reverse: 50 * time.Millisecond}}})
	c := dial(t, s)
	for range 2 {
		start := time.Now()
		c.send("a.example.com", "b.example.com", "c.example.com")
		for _, id := range []uint16{3, 2, 1} {
			if got := c.receive().Id; got != id {
				t.Errorf("got answer %d, want %d", got, id)
			}
		}
		if took := time.Since(start); took < 50*time.Millisecond {
			t.Errorf("the window took %v, want 50 ms", took)
		}
	}
}

func TestTLSVersions(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{Faults: []Fault{{MaxVersion: tls.VersionTLS11}}})
	config := clientConfig(s)
	if _, err := tryDial(t, s, config); err == nil {
		t.Error("TLS 1.2 was spoken")
	}
	config.MinVersion = tls.VersionTLS10
	c, err := tryDial(t, s, config)
	if err != nil {
		t.Fatal(err)
	}
	c.ask("old.example.com")
	s.Set(Fault{MinVersion: tls.VersionTLS13})
	dial(t, s).ask("new.example.com")
	s.Set(Fault{MaxVersion: tls.VersionTLS12})
	dial(t, s).ask("fair.example.com")
	eventually(t, "the failed one is counted", func() bool { return s.Stats().Failed > 0 })
	stats := s.Stats()
	for _, version := range []string{"TLS 1.1", "TLS 1.2", "TLS 1.3"} {
		if stats.Versions[version] != 1 {
			t.Errorf("versions seen: %v, want %s once", stats.Versions, version)
		}
	}
	if stats.Failed != 1 || stats.Handshakes != 3 {
		t.Errorf("%d handshakes failed and %d did not, want 1 and 3", stats.Failed, stats.Handshakes)
	}
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{})
	right := CertOptions{Names: []string{ServerName}, IPs: []netip.Addr{s.Addr().Addr()}}
	check := func(what string, certificate tls.Certificate, ok func(error) bool) {
		t.Helper()
		s.SetCertificate(certificate)
		if _, err := tryDial(t, s, clientConfig(s)); !ok(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	with := func(change func(*CertOptions)) tls.Certificate {
		o := right
		change(&o)
		return s.CA().Issue(o)
	}
	because := func(reason x509.InvalidReason) func(error) bool {
		return func(err error) bool {
			var invalid x509.CertificateInvalidError
			return errors.As(err, &invalid) && invalid.Reason == reason
		}
	}
	untrusted := func(err error) bool { return errors.As(err, new(x509.UnknownAuthorityError)) }
	none := func(err error) bool { return err == nil }
	expired := with(func(o *CertOptions) { o.NotAfter = time.Now().Add(-time.Minute) })
	early := with(func(o *CertOptions) { o.NotBefore = time.Now().Add(time.Minute) })
	check("expired", expired, because(x509.Expired))
	check("not yet valid", early, because(x509.Expired))
	check("self-signed", with(func(o *CertOptions) { o.SelfSigned = true }), untrusted)
	check("untrusted", NewCA().Issue(right), untrusted)
	check("other name", with(func(o *CertOptions) { o.Names = []string{"other.example.com"} }),
		func(err error) bool { return errors.As(err, new(x509.HostnameError)) })
	check("for clients", with(func(o *CertOptions) { o.Usages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }),
		because(x509.IncompatibleUsage))
	check("right", s.CA().Issue(right), none)
	if !expired.Leaf.NotAfter.Before(time.Now()) || !early.Leaf.NotBefore.After(time.Now()) {
		t.Error("expired and not yet valid are not what they say")
	}

	config := clientConfig(s)
	config.ServerName = s.Addr().Addr().String()
	if _, err := tryDial(t, s, config); err != nil {
		t.Errorf("by address: %v", err)
	}
}

func TestTickets(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{})
	config := clientConfig(s)
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	check := func(what string, resumed bool) {
		t.Helper()
		c, err := tryDial(t, s, config)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		c.ask("a.example.com") // tickets come with the first answer
		if got := c.ConnectionState().DidResume; got != resumed {
			t.Errorf("%s: resumed is %t, want %t", what, got, resumed)
		}
	}
	check("first", false)
	check("second", true)
	s.Set(Fault{Tickets: TicketsRefused})
	check("refused", false)
	s.Set()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	check("first again", false)
	check("second again", true)
	s.Set(Fault{Tickets: TicketsFatal})
	if _, err := tryDial(t, s, config); err == nil {
		t.Error("a handshake with a ticket did not fail")
	}
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	check("without a ticket", false)
	s.Set()
	s.SetCertificate(s.CA().Issue(CertOptions{Names: []string{ServerName}}))
	check("after a new certificate", false)
	s.Set(Fault{Tickets: TicketsNotIssued})
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	check("none issued", false)
	check("none accepted", false)
	if got := s.Stats().Resumed; got != 2 {
		t.Errorf("%d handshakes resumed, want 2", got)
	}
}

func TestClientCertificate(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{})
	s.Set(Fault{ClientCAs: s.CA().Pool()})
	config := clientConfig(s)
	if c, err := tryDial(t, s, config); err == nil { // in TLS 1.3 the client learns later
		if _, err := c.Read(make([]byte, 1)); !isAlert(err) {
			t.Errorf("without a certificate: %v, want an alert", err)
		}
	}
	config.Certificates = []tls.Certificate{s.CA().Issue(CertOptions{Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})}
	c, err := tryDial(t, s, config)
	if err != nil {
		t.Fatal(err)
	}
	c.ask("a.example.com")
	if got := s.Stats().ClientCertificates; got != 1 {
		t.Errorf("%d client certificates counted, want 1", got)
	}
}

func TestMangledAnswers(t *testing.T) {
	t.Parallel()
	const name = "www.example.com"
	query := newQuery(1, name, dns.TypeA)
	good, _ := Answer(nil, query)
	check := func(m Mangle, ok func(stream []byte) bool) {
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			// The end of the connection tells the end of what was sent.
			s := NewServer(t, Options{Faults: []Fault{{CloseAfter: 1}, {Mangle: m}}})
			c := dial(t, s)
			c.send(name)
			stream, err := io.ReadAll(c)
			if want := m&CutRecord == 0; (err == nil) != want {
				t.Errorf("the stream ended with %v", err)
			}
			if !ok(stream) {
				t.Errorf("got %d octets: %.64x", len(stream), stream)
			}
			s.Set()
			dial(t, s).ask(name)
		})
	}
	// whole returns the message if it is the only one in stream.
	whole := func(stream []byte) []byte {
		if len(stream) < 2 || int(stream[0])<<8|int(stream[1]) != len(stream)-2 {
			return nil
		}
		return stream[2:]
	}
	parsed := func(ok func(*dns.Msg) bool) func([]byte) bool {
		return func(stream []byte) bool {
			m := new(dns.Msg)
			return m.Unpack(whole(stream)) == nil && ok(m)
		}
	}
	is := func(want ...byte) func([]byte) bool {
		return func(stream []byte) bool { return slices.Equal(stream, want) }
	}
	withLength := func(n int) func([]byte) bool { return is(append([]byte{byte(n >> 8), byte(n)}, good...)...) }

	check(WrongID, parsed(func(m *dns.Msg) bool { return m.Id != 1 && m.Question[0].Name == dns.Fqdn(name) }))
	check(WrongQuestion, parsed(func(m *dns.Msg) bool {
		return m.Id == 1 && m.Question[0].Name == "xww.example.com." && m.Answer[0].Header().Name == "xww.example.com."
	}))
	check(Garbage, func(stream []byte) bool {
		message := whole(stream)
		return len(message) == len(good) && new(dns.Msg).Unpack(message) != nil && slices.Equal(message[:4], good[:4])
	})
	check(Echo, is(framed(query)...))
	check(Truncated, parsed(func(m *dns.Msg) bool { return m.Truncated && len(m.Answer) == 0 }))
	check(Huge, func(stream []byte) bool {
		ok := parsed(func(m *dns.Msg) bool { return len(m.Answer) > 4000 })
		return len(stream) > 65500 && ok(stream)
	})
	check(LengthLong, withLength(len(good)+10))
	check(LengthShort, withLength(len(good)-10))
	check(LengthZero, is(0, 0))
	check(Duplicate, is(slices.Repeat(framed(good), 2)...))
	check(Duplicate|LengthZero, is(0, 0, 0, 0))
	check(WrongID|WrongQuestion, parsed(func(m *dns.Msg) bool {
		return m.Id != 1 && m.Question[0].Name == "xww.example.com."
	}))
	check(CutRecord, is())
	check(Foreign, parsed(func(m *dns.Msg) bool {
		return len(m.Answer) == 1 && m.Answer[0].Header().Name == "stray.invalid."
	}))
	check(Stray, parsed(func(m *dns.Msg) bool {
		return len(m.Answer) == 1 && len(m.Extra) > 0 && m.Extra[0].Header().Name == "stray.invalid."
	}))
}

func TestCutRecordIsOnTheWire(t *testing.T) {
	t.Parallel()
	for _, how := range []Closing{CloseNotify, FIN, RST} {
		s := NewServer(t, Options{})
		c := dial(t, s)
		c.ask("a.example.com")
		s.Set(Fault{Mangle: CutRecord, Closing: how})
		c.send("a.example.com")
		n, err := io.Copy(io.Discard, c)
		if how == RST {
			if !errors.Is(err, syscall.ECONNRESET) { // which may overtake what was sent
				t.Errorf("%s: the connection ended with %v", how, err)
			}
			continue
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) || n > 0 || !c.wire.inRecord() {
			t.Errorf("%s: the connection ended with %v after %d octets, want it within a record", how, err, n)
		}
	}
}

func TestHugeTextIsAsLongAsAMessageCanBe(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{Faults: []Fault{{Mangle: Huge}}})
	c := dial(t, s)
	c.Write(framed(newQuery(1, "a.example.com", dns.TypeTXT)))
	message, err := c.receiveFrame()
	if err != nil || len(message) != wire.MaxSize {
		t.Fatalf("got %d octets and %v", len(message), err)
	}
	if err := new(dns.Msg).Unpack(message); err != nil {
		t.Error(err)
	}
}

func TestRCode(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{})
	c := dial(t, s)
	for _, rcode := range []wire.RCode{wire.FormErr, wire.ServFail, wire.NotImp, wire.Refused, wire.BadVers} {
		s.Set(Fault{RCode: rcode})
		c.send("a.example.com")
		if m := c.receive(); m.Id != 1 || m.Rcode != int(rcode) || len(m.Question) != 1 || len(m.Answer) != 0 {
			t.Errorf("want %s, got %v", rcode, m)
		}
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	took := func(c client) time.Duration {
		t.Helper()
		start := time.Now()
		c.ask("a.example.com")
		return time.Since(start)
	}
	atLeast := func(got, want time.Duration) {
		t.Helper()
		if got < want || got > want+2*time.Second {
			t.Errorf("took %v, want %v", got, want)
		}
	}
	s := NewServer(t, Options{Faults: []Fault{{Delay: 30 * time.Millisecond}, {Delay: 20 * time.Millisecond, Share: 1}}})
	c := dial(t, s)
	atLeast(took(c), 50*time.Millisecond)
	s.Set(Fault{Delay: 0, DelayTo: 200 * time.Millisecond, Over: 200 * time.Millisecond})
	p, query := s.plan.Load(), newQuery(1, "a.example.com", dns.TypeA)
	for ms, want := range map[time.Duration]time.Duration{0: 0, 50: 50, 100: 100, 200: 200, 1000: 200} {
		if got := p.draw(p.set+ms*time.Millisecond, s.dice, query).Delay; got != want*time.Millisecond {
			t.Errorf("after %d ms, a delay that creeps is %v, want %d ms", ms, got, want)
		}
	}
	time.Sleep(100 * time.Millisecond)
	atLeast(took(c), 100*time.Millisecond)
	c.ask("d100.example.com")
	atLeast(took(c), 200*time.Millisecond)

	s = NewServer(t, Options{RTT: 20 * time.Millisecond})
	start := time.Now()
	c = dial(t, s)
	atLeast(time.Since(start), 40*time.Millisecond)
	atLeast(took(c), 20*time.Millisecond)
}

func TestDrip(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{Faults: []Fault{{Drip: time.Millisecond}}})
	c := dial(t, s)
	start := time.Now()
	c.ask("a.example.com")
	if took := time.Since(start); took < 50*time.Millisecond {
		t.Errorf("an answer of more than 50 octets took %v, want 1 ms for each", took)
	}
	s.Set(Fault{Drip: time.Hour})
	c.send("b.example.com")
	c.expectSilence()
	s.Set()
	checkAnswer(t, c.receive(), 1, "b.example.com")
	s.Set(Fault{Drip: time.Hour})
	c.send("c.example.com")
	eventually(t, "the query arrives", func() bool { return s.Stats().Queries == 3 })
	s.CloseConnections(RST)
}

func TestShares(t *testing.T) {
	t.Parallel()
	const n = 1000
	refused := func(seed uint64) (ids []uint16) {
		s := NewServer(t, Options{Seed: seed, Faults: []Fault{{RCode: wire.Refused, Share: 0.1}}})
		c := dial(t, s)
		go c.send(slices.Repeat([]string{"a.example.com"}, n)...)
		for range n {
			if m := c.receive(); m.Rcode == dns.RcodeRefused {
				ids = append(ids, m.Id)
			}
		}
		return ids
	}
	once, twice, other := refused(1), refused(1), refused(2)
	if len(once) < 60 || len(once) > 140 {
		t.Errorf("%d of %d were refused, want 10 %%", len(once), n)
	}
	if !slices.Equal(once, twice) {
		t.Error("the same seed struck other queries")
	}
	if slices.Equal(once, other) {
		t.Error("another seed struck the same queries")
	}
}

func TestNever(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{Faults: []Fault{{Never: true}}})
	c := dial(t, s)
	c.send("a.example.com", "b.example.com")
	c.expectSilence()
	s.Set()
	c.ask("c.example.com") // which has the ID of the first
	stats := s.Stats()
	if stats.MaxOutstanding != 3 || stats.DuplicateIDs != 1 || stats.Queries != 3 || stats.Answers != 1 {
		t.Errorf("got %+v", stats)
	}
}

func TestSetPanicsOnAnImpossibleShare(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{})
	defer func() {
		if recover() == nil {
			t.Error("it did not")
		}
	}()
	s.Set(Fault{Share: 50})
}

func TestFaultsHaveNames(t *testing.T) {
	t.Parallel()
	var f Fault
	text := `{"Greeting": "handshake-stalls", "Closing": "rst", "Tickets": "refused", "Mangle": "wrong-id,duplicate"}`
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		t.Fatal(err)
	}
	want := Fault{Greeting: HandshakeStalls, Closing: RST, Tickets: TicketsRefused, Mangle: WrongID | Duplicate}
	if f != want {
		t.Errorf("got %+v, want %+v", f, want)
	}
	got := strings.Join([]string{f.Greeting.String(), f.Closing.String(), f.Tickets.String(), f.Mangle.String()}, " ")
	if want := "handshake-stalls rst refused wrong-id,duplicate"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := json.Unmarshal([]byte(`{"Closing": "bang"}`), &f); err == nil {
		t.Error("no error for a name that is none")
	}
	if got, want := Greeting(99).String(), "Greeting(99)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFaultsOfOneTypeAndAboveARate(t *testing.T) {
	t.Parallel()
	s := NewServer(t, Options{Faults: []Fault{
		{RCode: wire.Refused, Only: wire.TypeAAAA},
		{RCode: wire.ServFail, PerSecond: 2},
	}})
	p := s.plan.Load()
	f := func(at time.Duration, name, recordType string, want wire.RCode) {
		t.Helper()
		query, err := wire.NewQuery(name, recordType)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.draw(p.set+at, s.dice, query.Packet()).RCode; got != want {
			t.Errorf("%s after %v: %v, want %v", recordType, at, got, want)
		}
	}
	f(0, "example.com", "A", wire.NoError)
	f(0, "example.com", "AAAA", wire.Refused)
	f(time.Second-1, "example.com", "A", wire.ServFail)
	f(time.Second, "example.com", "A", wire.NoError)
}

package upstreams

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

// overQUIC returns a server, and the options of an upstream that asks it over QUIC.
func overQUIC(t *testing.T, o dottest.QUICOptions) (*dottest.QUICServer, Options) {
	t.Helper()
	ca := dottest.NewCA()
	file, err := ca.WriteFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if o.Certificate.Certificate == nil {
		o.Certificate = ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}})
	}
	s := dottest.NewQUICServer(t, o)
	return s, Options{
		Name: "test", ServerName: dottest.ServerName, CAFile: file, Log: slog.New(slog.DiscardHandler),
		Transports: []string{DoQ}, Addresses: []netip.AddrPort{s.Addr()},
	}
}

// fewDials is how many dials a busy machine may need for one connection.
const fewDials = 4

func TestQueriesOverQUIC(t *testing.T) {
	t.Parallel()
	s, o := overQUIC(t, dottest.QUICOptions{})
	u := open(t, o)
	if err := ask(u, "www.example.com"); err != nil {
		t.Fatal(err)
	}
	if err := many(u, 90, "n%d.example.com"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"big4000.example.com", "nxdomain.example.com", "d50.example.com"} {
		if err := ask(u, name); err != nil && !strings.HasPrefix(name, "nxdomain") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := s.Connections(); n > fewDials { // a second one is made if the first takes long
		t.Errorf("%d connections for %d queries", n, s.Queries())
	}
	if s.Misbehaved() != 0 {
		t.Errorf("%d queries are against RFC 9250", s.Misbehaved())
	}
	if h := u.History(); h.Addresses[0].Transport != DoQ || h.Addresses[0].Attempts[GotNoError] == 0 || h.NotAfter.IsZero() {
		t.Errorf("counted as %+v", h)
	}
	if c := u.Counts(); c.Dials > fewDials || c.Handshakes == 0 || c.Transport != DoQ {
		t.Errorf("counted as %+v", c)
	}
}

func TestQueriesOverHTTP3(t *testing.T) {
	t.Parallel()
	s, o := overHTTPS(t, dottest.HTTPSOptions{HTTP3: true})
	o.DoHPath, o.Transports = "/some/path", []string{DoH3}
	u := open(t, o)
	if err := ask(u, "www.example.com"); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%s:%d/some/path", dottest.ServerName, s.Addr().Port()); s.Last() != want {
		t.Errorf("the request was for %s, want %s", s.Last(), want)
	}
	if err := many(u, 30, "n%d.example.com"); err != nil {
		t.Error(err)
	}
	s.Set(dottest.HTTPSFault{Pieces: true})
	if err := ask(u, "big4000.example.com"); err != nil {
		t.Error(err)
	}
	if s.Connections() != 0 || u.Counts().Dials > fewDials {
		t.Errorf("%d connections over TCP, %d over QUIC", s.Connections(), u.Counts().Dials)
	}
}

func TestErrorsOfHTTP3(t *testing.T) {
	t.Parallel()
	f := func(fault dottest.HTTPSFault, want Outcome, text string) {
		t.Helper()
		s, o := overHTTPS(t, dottest.HTTPSOptions{HTTP3: true})
		o.Transports = []string{DoH3}
		u := open(t, o)
		s.Set(fault)
		err := ask(u, "www.example.com")
		if err == nil || OutcomeOf(err) != want || !strings.Contains(err.Error(), text) {
			t.Errorf("%+v: got %v", fault, err)
		}
		s.Set(dottest.HTTPSFault{})
		if err := ask(u, "later.example.com"); err != nil {
			t.Errorf("%+v: later: %v", fault, err)
		}
	}
	f(dottest.HTTPSFault{Status: 503}, HTTPFailed, "HTTP status 503")
	f(dottest.HTTPSFault{Status: 429, RetryAfter: "5"}, HTTPLimited, "HTTP status 429, retry after 5s")
	f(dottest.HTTPSFault{ContentType: "text/html"}, HTTPNotDNS, "no DNS message")
	f(dottest.HTTPSFault{Reset: true}, Reset, "H3_INTERNAL_ERROR")
}

func TestErrorsOfQUIC(t *testing.T) {
	t.Parallel()
	f := func(fault dottest.QUICFault, want Outcome, text string) {
		t.Helper()
		s, o := overQUIC(t, dottest.QUICOptions{})
		u := open(t, o)
		s.Set(fault)
		err := ask(u, "www.example.com")
		if err == nil || OutcomeOf(err) != want || !strings.Contains(err.Error(), text) {
			t.Errorf("%+v: got %v (%v)", fault, err, OutcomeOf(err))
		}
		s.Set(dottest.QUICFault{})
		if err := ask(u, "later.example.com"); err != nil {
			t.Errorf("%+v: later: %v", fault, err)
		}
	}
	f(dottest.QUICFault{Reset: true, Code: 4}, Reset, "error code 4")
	f(dottest.QUICFault{Cut: true}, ShortFrame, "ended within its answer")
}

// An answer counts before the stream has ended.
func TestAnAnswerWithoutItsEnd(t *testing.T) {
	t.Parallel()
	s, o := overQUIC(t, dottest.QUICOptions{})
	s.Set(dottest.QUICFault{Open: true})
	if err := many(open(t, o), 20, "n%d.example.com"); err != nil {
		t.Error(err)
	}
}

// Servers that prove addresses, allow one query at a time, close connections, or forget
// them, cost no query.
func TestServersOverQUIC(t *testing.T) {
	t.Parallel()
	f := func(options dottest.QUICOptions, fault dottest.QUICFault, queries int) {
		t.Helper()
		s, o := overQUIC(t, options)
		u := open(t, o)
		s.Set(fault)
		for i := range queries {
			if err := ask(u, fmt.Sprintf("n%d.example.com", i)); err != nil {
				t.Errorf("%+v: query %d: %v", fault, i, err)
			}
		}
		time.Sleep(2 * options.Idle) // until the server has forgotten the connection
		if err := many(u, queries, "later%d.example.com"); err != nil && fault.Close == 0 {
			t.Errorf("%+v: later: %v", fault, err)
		}
	}
	f(dottest.QUICOptions{Retry: true}, dottest.QUICFault{}, 10)
	f(dottest.QUICOptions{Streams: 1}, dottest.QUICFault{Delay: 5 * time.Millisecond}, 20)
	f(dottest.QUICOptions{Idle: 100 * time.Millisecond}, dottest.QUICFault{}, 10)
	f(dottest.QUICOptions{}, dottest.QUICFault{Close: 5}, 20)
	f(dottest.QUICOptions{}, dottest.QUICFault{Close: 2, Code: 2}, 10)
}

// A server that was restarted resets the connection, and the query goes over a new one,
// which resumes the session.
func TestARestartOverQUIC(t *testing.T) {
	t.Parallel()
	s, o := overQUIC(t, dottest.QUICOptions{})
	u := open(t, o)
	if err := ask(u, "first.example.com"); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if err := ask(u, "none.example.com"); err == nil {
		t.Error("an answer of a server that has ended")
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := ask(u, "later.example.com"); err != nil {
		t.Error(err)
	}
}

// Dials that fail say why.
func TestDialsOverQUICFail(t *testing.T) {
	t.Parallel()
	f := func(o Options, want Outcome, text string) {
		t.Helper()
		u := open(t, o)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := u.Connect(ctx)
		if err == nil || OutcomeOf(err) != want || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v (%v), want %v", err, OutcomeOf(err), want)
		}
	}
	_, o := overQUIC(t, dottest.QUICOptions{})
	silent, err := net.ListenPacket("udp", netip.AddrPortFrom(dottest.Loopback(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	other := o
	other.Addresses, other.HandshakeTimeout = []netip.AddrPort{silent.LocalAddr().(*net.UDPAddr).AddrPort()}, 100*time.Millisecond
	f(other, DialTimedOut, "no reply over UDP within 100ms")
	silent.Close()
	other.HandshakeTimeout = 0
	f(other, DialRefused, "connection refused")
	other = o
	other.ServerName = "another.example.com"
	f(other, TLSCertificate, "another.example.com")
	other = o
	other.Pins = []string{"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}
	f(other, TLSCertificate, "pinned")
	_, other = overQUIC(t, dottest.QUICOptions{Protocols: []string{"h3"}})
	f(other, TLSAlert, "no application protocol")
}

// A connection after another one resumes its session.
func TestSessionsAreResumedOverQUIC(t *testing.T) {
	t.Parallel()
	s, o := overQUIC(t, dottest.QUICOptions{})
	u := open(t, o)
	s.Set(dottest.QUICFault{Close: 2})
	for i := range 4 {
		if err := ask(u, fmt.Sprintf("n%d.example.com", i)); err != nil {
			t.Error(err)
		}
	}
	if s.Resumed() == 0 || u.Counts().Resumed == 0 {
		t.Errorf("%d of %d connections were resumed, counted are %d", s.Resumed(), s.Connections(), u.Counts().Resumed)
	}
}

func TestProbeOverQUIC(t *testing.T) {
	t.Parallel()
	_, o := overQUIC(t, dottest.QUICOptions{})
	_, over := overHTTPS(t, dottest.HTTPSOptions{HTTP3: true})
	over.Transports = []string{DoH3}
	q, err := wire.NewQuery("www.example.com", "A")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []Options{o, over} {
		reports, err := Probe(t.Context(), o, q, 200*time.Millisecond)
		if err != nil || len(reports) != 1 {
			t.Fatal(err, reports)
		}
		x := reports[0]
		if x.Err != nil || x.Answered != x.Asked || x.Pipelined != burst || !x.Resumes || x.Version != "TLS 1.3" || !x.IdleLimitReached {
			t.Errorf("%+v", x)
		}
	}
	o.ServerName = "another.example.com"
	if reports, err := Probe(t.Context(), o, q, 0); err != nil || OutcomeOf(reports[0].Err) != TLSCertificate || len(reports[0].Chain) == 0 {
		t.Error(err, reports)
	}
}

package upstreams

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

// overHTTPS returns a server, and the options of an upstream that asks it over HTTPS.
func overHTTPS(t *testing.T, o dottest.HTTPSOptions) (*dottest.HTTPSServer, Options) {
	t.Helper()
	ca := dottest.NewCA()
	file, err := ca.WriteFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if o.Certificate.Certificate == nil {
		o.Certificate = ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}})
	}
	s := dottest.NewHTTPSServer(t, o)
	return s, Options{
		Name: "test", ServerName: dottest.ServerName, CAFile: file, Log: slog.New(slog.DiscardHandler),
		Transports: []string{DoH}, DoHAddresses: []netip.AddrPort{s.Addr()},
	}
}

func TestQueriesOverHTTPS(t *testing.T) {
	t.Parallel()
	s, o := overHTTPS(t, dottest.HTTPSOptions{})
	o.DoHPath = "/some/path"
	u := open(t, o)
	if err := ask(u, "www.example.com"); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%s:%d/some/path", dottest.ServerName, s.Addr().Port()); s.Last() != want {
		t.Errorf("the request was for %s, want %s", s.Last(), want)
	}
	// Many at once share a connection, and longer answers come in several frames.
	if err := many(u, 100, "n%d.example.com"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"big4000.example.com", "nxdomain.example.com", "d50.example.com"} {
		if err := ask(u, name); err != nil && !strings.HasPrefix(name, "nxdomain") {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.Set(dottest.HTTPSFault{Pieces: true})
	if err := ask(u, "pieces.example.com"); err != nil {
		t.Error(err)
	}
	if n := s.Connections(); n != 1 {
		t.Errorf("%d connections for %d requests", n, s.Requests())
	}
	if h := u.History().Addresses[0]; h.Transport != DoH || h.Attempts[GotNoError] == 0 {
		t.Errorf("counted as %+v", h)
	}
}

// A server that allows few requests at once is asked as many at once, and no more.
func TestTheLimitOfRequestsIsKept(t *testing.T) {
	t.Parallel()
	for _, streams := range []int{1, 3} {
		s, o := overHTTPS(t, dottest.HTTPSOptions{Streams: streams})
		u := open(t, o)
		if err := ask(u, "first.example.com"); err != nil {
			t.Fatal(err)
		}
		s.Set(dottest.HTTPSFault{Delay: 20 * time.Millisecond})
		if err := many(u, 30, "n%d.example.com"); err != nil && !errors.Is(err, ErrBusy) {
			t.Errorf("%d at once: %v", streams, err)
		}
	}
}

// What is no DNS message is an error that says what came instead, and the connection ends.
func TestErrorsOfHTTP(t *testing.T) {
	t.Parallel()
	f := func(fault dottest.HTTPSFault, want Outcome, text string) {
		t.Helper()
		s, o := overHTTPS(t, dottest.HTTPSOptions{})
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
	f(dottest.HTTPSFault{Status: 403}, HTTPFailed, "HTTP status 403")
	f(dottest.HTTPSFault{Status: 429}, HTTPLimited, "limits the rate")
	f(dottest.HTTPSFault{ContentType: "text/html"}, HTTPNotDNS, "no DNS message")
}

// A query that the server fails costs no other one anything, nor the connection.
func TestAnErrorOfHTTPCostsOneQuery(t *testing.T) {
	t.Parallel()
	s, o := overHTTPS(t, dottest.HTTPSOptions{})
	u := open(t, o)
	if err := ask(u, "first.example.com"); err != nil {
		t.Fatal(err)
	}
	s.Set(dottest.HTTPSFault{Status: 502, For: "bad", Delay: 5 * time.Millisecond})
	for round := range 20 {
		var failing sync.WaitGroup
		failing.Go(func() {
			if err := ask(u, fmt.Sprintf("bad%d.example.com", round)); OutcomeOf(err) != HTTPFailed {
				t.Errorf("bad: %v", err)
			}
		})
		if err := many(u, 20, fmt.Sprintf("n%%d.r%d.example.com", round)); err != nil {
			t.Error(err)
		}
		failing.Wait()
	}
	if n := s.Connections(); n > 3 {
		t.Errorf("%d connections", n)
	}
	if n := u.Counts().Resent; n > 3 {
		t.Errorf("%d queries were sent again", n)
	}
}

// A limit of queries a second says nothing about the server, as long as it answers some, and
// no query is sent again because of it.
func TestALimitOfTheRateIsNoOutage(t *testing.T) {
	t.Parallel()
	s, o := overHTTPS(t, dottest.HTTPSOptions{})
	u := open(t, o)
	excused := func(err error) bool {
		var e interface{ Excused() bool }
		return errors.As(err, &e) && e.Excused()
	}
	if err := ask(u, "first.example.com"); err != nil {
		t.Fatal(err)
	}
	s.Set(dottest.HTTPSFault{Status: 429, For: "beyond"})
	for range 30 {
		time.Sleep(10 * time.Millisecond) // in all, longer than a connection may be silent
		if err := ask(u, "beyond.example.com"); OutcomeOf(err) != HTTPLimited || !excused(err) {
			t.Errorf("got %v", err)
		}
	}
	if n := s.Requests(); n != 31 || s.Connections() != 1 {
		t.Errorf("%d requests on %d connections", n, s.Connections())
	}
	if wait := u.RateWait(); wait != 0 {
		t.Errorf("queries have to wait for %v without a Retry-After", wait)
	}
	s.Set(dottest.HTTPSFault{Status: 429, For: "beyond", RetryAfter: "1"})
	time.Sleep(limitedWindow)
	if err := ask(u, "beyond.example.com"); OutcomeOf(err) != HTTPLimited || !excused(err) {
		t.Errorf("with a Retry-After: %v", err)
	}
	if wait := u.RateWait(); wait < time.Second/2 || wait > time.Second {
		t.Errorf("queries have to wait for %v", wait)
	}
	time.Sleep(limitedWindow)
	if err := ask(u, "beyond.example.com"); OutcomeOf(err) != HTTPLimited || excused(err) {
		t.Errorf("of a server that answers nothing: %v", err)
	}
}

// A server that responds with errors only is out of reach to the limit of dials, though
// connections can be made.
func TestAnHTTPSServerThatOnlyFailsIsDialledSeldom(t *testing.T) {
	t.Parallel()
	s, o := overHTTPS(t, dottest.HTTPSOptions{})
	u := open(t, o)
	s.Set(dottest.HTTPSFault{Status: 503})
	for range 20 {
		if err := ask(u, "www.example.com"); OutcomeOf(err) != HTTPFailed {
			t.Errorf("got %v", err)
		}
	}
	throttle, later := &u.dialer.throttle, time.Now().Add(unthrottledFor+throttleInterval)
	if !throttle.allow(later) || throttle.allow(later) {
		t.Error("dialled any number of times")
	}
	s.Set(dottest.HTTPSFault{})
	if err := ask(u, "www.example.com"); err != nil {
		t.Error(err)
	}
	if first, second := throttle.allow(later), throttle.allow(later); !first || !second {
		t.Error("dialled seldom although it answers")
	}
}

// Close does not wait for queries that wait for their turn at a server that has been given up.
func TestCloseWhileQueriesWaitForRoom(t *testing.T) {
	t.Parallel()
	s, o := overHTTPS(t, dottest.HTTPSOptions{Streams: 1, Handler: func(_, query []byte) ([]byte, time.Duration) { return query, 0 }})
	u := open(t, o)
	for range 5 {
		if many(u, 50, "n%d.example.com") == nil {
			t.Error("answered")
		}
	}
	closed := make(chan struct{})
	go func() {
		u.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(2 * goodbyeLimit):
		t.Fatalf("still closing, after %d connections", s.Connections())
	}
}

// A request that the server resets is lost, and no other one.
func TestAResetRequestIsLostAlone(t *testing.T) {
	t.Parallel()
	s, o := overHTTPS(t, dottest.HTTPSOptions{})
	u := open(t, o)
	if err := ask(u, "first.example.com"); err != nil {
		t.Fatal(err)
	}
	s.Set(dottest.HTTPSFault{Reset: true})
	if err := askWithin(u, "lost.example.com", 300*time.Millisecond); err == nil {
		t.Error("answered")
	}
	s.Set(dottest.HTTPSFault{})
	if err := ask(u, "next.example.com"); err != nil {
		t.Error(err)
	}
}

// GOAWAY costs a connection, and no query.
func TestGoAwayLosesNoQuery(t *testing.T) {
	t.Parallel()
	f := func(each int64, clients int) {
		t.Helper()
		s, o := overHTTPS(t, dottest.HTTPSOptions{})
		u := open(t, o)
		s.Set(dottest.HTTPSFault{GoAway: each, Delay: 5 * time.Millisecond})
		var asking sync.WaitGroup
		for i := range clients {
			asking.Go(func() {
				for j := range 20 {
					if err := ask(u, fmt.Sprintf("n%d-%d.example.com", i, j)); err != nil {
						t.Errorf("after %d: %v", each, err)
					}
				}
			})
		}
		asking.Wait()
		if s.Connections() < 3 {
			t.Errorf("%d connections", s.Connections())
		}
	}
	f(1, 1)
	f(20, 10)
}

// Nothing is sent to a server whose certificate is for another name, nor to one that does
// not speak HTTP/2.
func TestHTTPSIsVerified(t *testing.T) {
	t.Parallel()
	ca := dottest.NewCA()
	s, o := overHTTPS(t, dottest.HTTPSOptions{Certificate: ca.Issue(dottest.CertOptions{Names: []string{"other.example"}})})
	file, err := ca.WriteFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	o.CAFile = file
	if err := ask(open(t, o), "www.example.com"); OutcomeOf(err) != TLSCertificate {
		t.Errorf("another name: %v", err)
	}
	o.DoHName = "other.example"
	if err := ask(open(t, o), "www.example.com"); err != nil {
		t.Errorf("doh_name: %v", err)
	}
	if s.Requests() != 1 {
		t.Errorf("%d requests", s.Requests())
	}
	s, o = overHTTPS(t, dottest.HTTPSOptions{Protocols: []string{"http/1.1"}})
	if err := ask(open(t, o), "www.example.com"); err == nil || s.Requests() > 0 {
		t.Errorf("HTTP/1.1: %v, %d requests", err, s.Requests())
	}
}

// ladder returns servers of one provider over TLS and over HTTPS, and an upstream with both.
func ladder(t *testing.T) (*dottest.Server, *dottest.HTTPSServer, *Upstream) {
	t.Helper()
	ca := dottest.NewCA()
	dot := dottest.NewServer(t, dottest.Options{CA: ca})
	doh := dottest.NewHTTPSServer(t, dottest.HTTPSOptions{Certificate: ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}})})
	o := trusting(t, dot)
	o.DoHAddresses = []netip.AddrPort{doh.Addr()}
	return dot, doh, open(t, o)
}

// While connections over TLS fail, in whichever way, HTTPS is used. The way back costs no
// query either.
func TestHTTPSStandsInForTLS(t *testing.T) {
	t.Parallel()
	f := func(what string, block, unblock func(*dottest.Server)) {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dot, doh, u := ladder(t)
			if err := ask(u, "before.example.com"); err != nil || doh.Requests() > 0 {
				t.Fatalf("%v; %d over HTTPS", err, doh.Requests())
			}
			block(dot)
			began := time.Now()
			for i := range 20 {
				if err := ask(u, fmt.Sprintf("n%d.example.com", i)); err != nil {
					t.Error(err)
				}
			}
			if doh.Requests() < 19 {
				t.Errorf("%d over HTTPS, after %v", doh.Requests(), time.Since(began))
			}
			unblock(dot)
			answered := dot.Stats().Answers
			eventually(t, "the way back", func() bool {
				if err := ask(u, "later.example.com"); err != nil {
					t.Error(err)
				}
				return dot.Stats().Answers > answered+1 // the first one is to the test of the connection
			})
			before := doh.Requests()
			if err := ask(u, "after.example.com"); err != nil || doh.Requests() != before {
				t.Errorf("%v; it was asked over HTTPS", err)
			}
		})
	}
	f("refused", func(s *dottest.Server) { s.Stop(); s.CloseConnections(dottest.RST) }, func(s *dottest.Server) { s.Restart() })
	f("silent", func(s *dottest.Server) { s.Blackhole(); s.FreezeConnections() }, func(s *dottest.Server) { s.Restart() })
	f("another certificate", func(s *dottest.Server) {
		s.SetCertificate(dottest.NewCA().Issue(dottest.CertOptions{Names: []string{dottest.ServerName}}))
		s.CloseConnections(dottest.FIN)
	}, func(s *dottest.Server) {
		s.SetCertificate(s.CA().Issue(dottest.CertOptions{Names: []string{dottest.ServerName}}))
	})
}

func TestTransportsTakeTurns(t *testing.T) {
	t.Parallel()
	a, b, c := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:1"), netip.MustParseAddrPort("192.0.2.3:1")
	f := func(want string, places ...[]netip.AddrPort) {
		t.Helper()
		var got []string
		for rung, addr := range alternating(places) {
			got = append(got, fmt.Sprintf("%d:%v", rung, addr.Addr().As4()[3]))
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("got %s, want %s", text, want)
		}
	}
	f("")
	f("0:1 0:2", []netip.AddrPort{a, b})
	f("0:1 1:2 0:2 1:1", []netip.AddrPort{a, b}, []netip.AddrPort{a, b})
	f("0:1 1:2 1:3 1:1", []netip.AddrPort{a}, []netip.AddrPort{a, b, c})
}

func TestOptionsOfTransports(t *testing.T) {
	t.Parallel()
	addr := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:853")}
	f := func(o Options, want string) {
		t.Helper()
		o.Name = "test"
		_, err := o.checked("")
		if got := fmt.Sprint(err); !strings.Contains(got, want) {
			t.Errorf("%+v: got %q, want %q", o, got, want)
		}
	}
	f(Options{Addresses: addr, Transports: []string{"dot", "doh"}}, "<nil>")
	f(Options{DoHAddresses: addr}, "<nil>")
	f(Options{Addresses: addr, Transports: []string{"dox"}}, `"dox" does not exist; there are dot, doh, doq, doh3`)
	f(Options{Addresses: addr, Transports: []string{"dot", "dot"}}, "dot twice")
	f(Options{Addresses: addr, DoHAddresses: addr, Transports: []string{"dot"}}, "does not have doh")
	f(Options{DoHAddresses: addr, Transports: []string{"doh", "doh3"}}, "<nil>")
	f(Options{DoHAddresses: addr, Transports: []string{"doq"}}, "no host to resolve")
	f(Options{Addresses: addr, DoQPort: 8853}, "does not have doq")
	f(Options{Addresses: addr, Protocol: UDP, DoQPort: 8853}, "doq_port has no effect")
	f(Options{Addresses: addr, DoHPath: "/q"}, "does not have doh")
	f(Options{Addresses: addr, DoHPort: 8443}, "does not have doh")
	f(Options{Protocol: UDP, Addresses: addr, DoHPath: "/q"}, "doh_path")
	f(Options{DoHAddresses: addr, Transports: []string{"dot", "doh"}}, "addresses")
	f(Options{DoHAddresses: addr, DoHPath: "dns-query"}, "doh_path")
	f(Options{Protocol: UDP, Addresses: addr, DoHAddresses: addr}, "clear text")
}

// An answer from a cache of HTTP is as old as that says.
func TestTheAgeOfResponses(t *testing.T) {
	t.Parallel()
	f := func(transport, age string, want uint32) {
		t.Helper()
		s, o := overHTTPS(t, dottest.HTTPSOptions{HTTP3: true})
		o.Transports = []string{transport}
		s.Set(dottest.HTTPSFault{Age: age})
		q, err := wire.NewQuery("www.example.com", "A")
		if err != nil {
			t.Fatal(err)
		}
		a, err := open(t, o).Exchange(t.Context(), q)
		if err != nil || a.TTL() != want {
			t.Errorf("%s, age %q: a TTL of %d, %v; want %d", transport, age, a.TTL(), err, want)
		}
	}
	for _, transport := range []string{DoH, DoH3} {
		f(transport, "", 300)
		f(transport, "120", 180)
		f(transport, "99999999999999999999", 0)
		f(transport, "-1", 300)
		f(transport, "now", 300)
	}
}

// A body that has no ID fails its query at once.
func TestShortBodiesOverHTTPS(t *testing.T) {
	t.Parallel()
	_, o := overHTTPS(t, dottest.HTTPSOptions{Handler: func(dst, _ []byte) ([]byte, time.Duration) { return append(dst, 0), 0 }})
	if err := askWithin(open(t, o), "www.example.com", 3*time.Second); err == nil || OutcomeOf(err) != Unparsable {
		t.Errorf("got %v", err)
	}
}

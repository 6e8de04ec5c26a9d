package upstreams

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// helloOf returns what is left out of ClientHellos for the only address of u.
func helloOf(u *Upstream) helloOmissions {
	known, _ := u.dialer.endpoints[0].hello.get()
	return known.without
}

func TestAPlainerClientHelloIsTriedWhereItHelps(t *testing.T) {
	t.Parallel()
	f := func(name string, want helloOmissions, limit time.Duration, faults ...dottest.Fault) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			atBest(t, func() error {
				s := dottest.NewServer(t, dottest.Options{Faults: faults})
				u := open(t, trusting(t, s))
				if err := askWithin(u, "www.example.com", limit); err != nil {
					return err
				}
				if got := helloOf(u); got != want {
					return fmt.Errorf("left out: %q, want %q", got, want)
				}
				// The plainer ClientHello is used from now on: no handshake fails any more.
				failed := s.Stats().Failed
				s.CloseConnections(dottest.CloseNotify)
				eventually(t, "the connection is closed", func() bool { return u.open.Load() == 0 })
				if err := askWithin(u, "www.example.com", helloLate-100*time.Millisecond); err != nil {
					return err
				}
				if n := s.Stats().Failed - failed; n > 1 { // an earlier one may be counted late
					return fmt.Errorf("%d more handshakes failed", n)
				}
				c := u.Counts()
				if got := c.WithoutALPN > 0; got != (want&withoutALPN != 0) {
					return fmt.Errorf("without ALPN: %d handshakes", c.WithoutALPN)
				}
				if got := c.WithoutKeyShare > 0; got != (want&withoutKeyShare != 0) {
					return fmt.Errorf("without the large key share: %d handshakes", c.WithoutKeyShare)
				}
				if got := u.History().Addresses[0].Without; got != want.String() {
					return fmt.Errorf("shown is %q", got)
				}
				return nil
			})
		})
	}
	noDot := dottest.Fault{Protocols: "h2,http/1.1"}
	lossy := dottest.Fault{MTU: 1000}
	f("all is well", omitNothing, time.Second)
	f("a terminator that knows no dot", withoutALPN, time.Second, noDot)
	f("a path that loses large packets", withoutKeyShare, 2*time.Second, lossy)
	f("both", withoutALPN|withoutKeyShare, 2*time.Second, noDot, lossy)
}

// No part of the verification is left out, whatever fails.
func TestAPlainerClientHelloIsVerifiedTheSame(t *testing.T) {
	t.Parallel()
	ca := dottest.NewCA()
	s := dottest.NewServer(t, dottest.Options{CA: ca, Faults: []dottest.Fault{{Protocols: "h2"}},
		Certificate: ca.Issue(dottest.CertOptions{Names: []string{"other.example"}})})
	u := open(t, trusting(t, s))
	for range 2 {
		var wrong *tls.CertificateVerificationError
		if err := ask(u, "www.example.com"); !errors.As(err, &wrong) && !refusedALPN(err) {
			t.Errorf("got %v", err)
		}
	}
	if s.Stats().Queries > 0 || helloOf(u) != omitNothing {
		t.Errorf("%d queries, left out %q", s.Stats().Queries, helloOf(u))
	}
	plain, full := new(tls.Config), u.dialer.dot.config.Clone()
	*plain = *full.Clone()
	(withoutALPN | withoutKeyShare).apply(plain)
	if plain.InsecureSkipVerify || plain.ServerName != full.ServerName || plain.RootCAs != full.RootCAs || plain.MinVersion != full.MinVersion {
		t.Error("verification is changed")
	}
}

// A server that never completes a handshake is not dialled twice as often for ever, and
// nothing is learnt about it.
func TestAPlainerClientHelloThatDoesNotHelpIsNotRepeated(t *testing.T) {
	t.Parallel()
	for _, helloProgress := range []dottest.Greeting{dottest.HandshakeReset, dottest.HandshakeClosed, dottest.HandshakeAlert} {
		s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{Greeting: helloProgress}}})
		u := open(t, trusting(t, s))
		for range 5 {
			_ = ask(u, "www.example.com")
		}
		if n := s.Stats().Accepted; n > 6 {
			t.Errorf("%v: 5 queries made %d connections", helloProgress, n)
		}
		s.Set()
		if err := ask(u, "www.example.com"); err != nil || helloOf(u) != omitNothing {
			t.Errorf("%v: then %v, left out %q", helloProgress, err, helloOf(u))
		}
	}
}

func TestAServerThatCannotTakeALargeClientHelloGetsASmallOne(t *testing.T) {
	t.Parallel()
	var g helloProgress
	g.connected.Store(true)
	ended := errors.Join(errHandshake, io.EOF)
	f := func(known helloMemory, replied bool, want helloOmissions) {
		t.Helper()
		g.replied.Store(replied)
		if got := g.remedy(ended, known); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	f(helloMemory{}, false, omitNothing) // it may just have been restarted
	f(helloMemory{cut: true}, false, withoutKeyShare)
	f(helloMemory{cut: true}, true, omitNothing) // it accepted the ClientHello
}

func TestWhatAClientHelloLeavesOutIsForgotten(t *testing.T) {
	e := &endpoint{addr: netip.MustParseAddrPort("192.0.2.1:853")}
	e.hello.learn(helloMemory{without: withoutALPN}, -time.Second)
	if got, _ := e.hello.get(); got.without != omitNothing {
		t.Errorf("after its time: %q", got.without)
	}
	var all sync.WaitGroup // dials of one address, at once
	var log strings.Builder
	r := helloRace{transport: &tlsTransport{tlsIdentity: tlsIdentity{log: slog.New(slog.NewTextHandler(&log, nil))}}, endpoint: e}
	for range 8 {
		all.Go(func() { r.won(handshakeResult{without: withoutALPN}); e.hello.get() })
	}
	all.Wait()
	if known, _ := e.hello.get(); known.without != withoutALPN || !strings.Contains(log.String(), "plainer ClientHello") {
		t.Errorf("%+v; log: %s", known, log.String())
	}
}

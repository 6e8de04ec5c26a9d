package upstreams

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// trusting returns options for an upstream that is s.
func trusting(t testing.TB, servers ...*dottest.Server) Options {
	t.Helper()
	file, err := servers[0].CA().WriteFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Name: "test", ServerName: dottest.ServerName, CAFile: file, Log: slog.New(slog.DiscardHandler)}
	for _, s := range servers {
		o.Addresses = append(o.Addresses, s.Addr())
	}
	return o
}

func open(t testing.TB, o Options) *Upstream {
	t.Helper()
	u, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	return u
}

// ask asks u for the address of name and checks that the answer is name's own.
func ask(u *Upstream, name string) error {
	return askWithin(u, name, 5*time.Second)
}

func askWithin(u *Upstream, name string, limit time.Duration) error {
	q, err := wire.NewQuery(name, "A")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	a, err := u.Exchange(ctx, q)
	if err != nil {
		return err
	}
	if want := dottest.Address(name).String(); !strings.Contains(a.String(), want) {
		return fmt.Errorf("%s: no %s in %v", name, want, a)
	}
	return nil
}

// many asks for n different names at once and returns the first error.
func many(u *Upstream, n int, format string) error {
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- ask(u, fmt.Sprintf(format, i)) }()
	}
	var first error
	for range n {
		if err := <-errs; first == nil {
			first = err
		}
	}
	return first
}

func TestManyQueriesShareAConnectionAndComeBackInAnyOrder(t *testing.T) {
	t.Parallel()
	atBest(t, func() error {
		s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{Reverse: 20 * time.Millisecond}}})
		u := open(t, trusting(t, s))
		if err := many(u, 60, "n%d.example.com"); err != nil {
			t.Fatal(err)
		}
		stats := s.Stats()
		if stats.Accepted != 1 || stats.Queries != 60 {
			return fmt.Errorf("%d connections for %d queries, want one", stats.Accepted, stats.Queries)
		}
		if c := u.Counts(); c.Mismatched+c.Malformed+c.Unsolicited != 0 {
			t.Errorf("odd answers: %+v", c)
		}
		return nil
	})
}

// How many connections a server accepts says little about the limit: a handshake that
// takes long, as on a busy machine, is begun a second time.
func TestABurstOnAColdPoolDialsOnceAndGrowsToItsLimit(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{RTT: 20 * time.Millisecond})
	u := open(t, trusting(t, s))
	u.mu.Lock()
	first := u.dialLocked()
	for range 500 {
		if u.dialLocked() != first {
			t.Error("there is a dial beside the first")
		}
	}
	u.mu.Unlock()
	<-first.done
	for n := 1; n <= u.o.Connections+2; n++ {
		if got, want := int(u.open.Load()), min(n, u.o.Connections); got != want {
			t.Fatalf("%d connections are open, want %d", got, want)
		}
		u.mu.Lock()
		for _, c := range u.streams {
			c.pending.Store(busy)
		}
		u.mu.Unlock()
		var all sync.WaitGroup
		for range 8 { // at once; there is one dial for all of them
			all.Go(func() { u.pick(u.now(), 0, 0) })
		}
		all.Wait()
		u.mu.Lock()
		dials := slices.Clone(u.dials)
		u.mu.Unlock()
		for _, d := range dials {
			<-d.done
		}
	}
	u.mu.Lock()
	for _, c := range u.streams {
		c.pending.Store(0)
	}
	u.mu.Unlock()
	if err := many(u, 500, "n%d.example.com"); err != nil {
		t.Fatal(err)
	}
}

func TestQueriesArePaddedAndNameDoT(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{})
	u := open(t, trusting(t, s))
	if err := many(u, 20, strings.Repeat("x", 40)+"%d.example.com"); err != nil {
		t.Fatal(err)
	}
	stats := s.Stats()
	if stats.Unpadded != 0 {
		t.Errorf("%d queries are not padded", stats.Unpadded)
	}
	if stats.Protocols["dot"] == 0 || stats.ServerNames[dottest.ServerName] == 0 {
		t.Errorf("ALPN %v, SNI %v", stats.Protocols, stats.ServerNames)
	}
}

// When a server closes connections, no query fails: not even the one that is in
// progress.
func TestAReusedConnectionThatEndsFailsNoQuery(t *testing.T) {
	t.Parallel()
	for _, how := range []dottest.Closing{dottest.CloseNotify, dottest.FIN, dottest.RST} {
		t.Run(how.String(), func(t *testing.T) {
			t.Parallel()
			s := dottest.NewServer(t, dottest.Options{RTT: time.Millisecond})
			u := open(t, trusting(t, s))
			for round := range 20 {
				var all sync.WaitGroup
				errs := make(chan error, 10)
				for i := range 10 {
					all.Go(func() { errs <- ask(u, fmt.Sprintf("r%dn%d.example.com", round, i)) })
				}
				s.CloseConnections(how)
				all.Wait()
				for range 10 {
					if err := <-errs; err != nil && !isFirst(err) {
						t.Errorf("round %d: %v", round, err)
					}
				}
			}
		})
	}
}

// isFirst tells that a connection died before it brought any answer, or while it was made,
// which is the upstream's failure: the test closes blindly and may hit one.
func isFirst(err error) bool {
	var died *connError
	var call *os.SyscallError
	return errors.As(err, &died) && !died.reused || errors.Is(err, errHandshake) ||
		errors.As(err, &call) && call.Syscall == "connect" && call.Err == syscall.ECONNRESET
}

func TestAServerMayCloseAfterEachAnswer(t *testing.T) {
	t.Parallel()
	for _, after := range []int{1, 10} {
		s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{CloseAfter: after}}})
		u := open(t, trusting(t, s))
		for i := range 30 {
			if err := ask(u, fmt.Sprintf("n%d.example.com", i)); err != nil {
				t.Fatalf("closing after %d: query %d: %v", after, i, err)
			}
		}
	}
}

func TestAConnectionIsSentNoMoreQueriesThanItsServerAnswers(t *testing.T) {
	t.Parallel()
	for _, after := range []int{1, 10} {
		s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{CloseAfter: after}}, RTT: 2 * time.Millisecond})
		u := open(t, trusting(t, s))
		for round := range 20 {
			// On a busy machine, a query may wait too long for its connection.
			if err := many(u, 10, fmt.Sprintf("r%d-n%%d.example.com", round)); err != nil && !errors.Is(err, ErrBusy) {
				t.Fatalf("closing after %d: %v", after, err)
			}
		}
		atBest(t, func() error {
			before := u.Counts().Resent
			if err := many(u, 20, "n%d.example.com"); err != nil {
				return fmt.Errorf("closing after %d: %w", after, err)
			}
			if n := u.Counts().Resent - before; n > 0 {
				return fmt.Errorf("closing after %d: %d of 20 queries were sent again", after, n)
			}
			return nil
		})
		s.Set()
		eventually(t, "connections are used for longer again", func() bool {
			return ask(u, "www.example.com") == nil && u.queriesPerConn.limit.Load() == 0
		})
	}
}

func TestAConnectionThatTheServerClosesLeavesThePoolAtOnce(t *testing.T) {
	t.Parallel()
	atBest(t, func() error {
		s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{CloseIdle: 300 * time.Millisecond}}})
		u := open(t, trusting(t, s))
		if err := ask(u, "www.example.com"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the closed connection is gone", func() bool { return u.open.Load() == 0 })
		if err := ask(u, "www.example.com"); err != nil {
			t.Fatal(err)
		}
		if n := u.Counts().Resent; n != 0 {
			return fmt.Errorf("%d queries went to a closed connection first", n)
		}
		return nil
	})
}

// eventually waits for condition, polling: what it waits for happens on sockets. Only
// failing tests wait for half a minute, which a busy machine may need a part of.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func TestIdleConnectionsAreClosedByUs(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{})
	o := trusting(t, s)
	o.IdleTimeout = 100 * time.Millisecond
	u := open(t, o)
	if err := ask(u, "www.example.com"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "our side closes", func() bool { return u.open.Load() == 0 && s.Stats().Open == 0 })
}

func TestReconnectsResumeTheirSession(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{CloseAfter: 1}}})
	u := open(t, trusting(t, s))
	for i := range 20 {
		if err := ask(u, fmt.Sprintf("n%d.example.com", i)); err != nil {
			t.Fatal(err)
		}
	}
	if c := u.Counts(); c.Handshakes < 20 || c.Resumed < 18 {
		t.Errorf("%d of %d handshakes resumed", c.Resumed, c.Handshakes)
	}
}

func TestAHandshakeThatFailsOverItsSessionIsTriedWithoutOne(t *testing.T) {
	t.Parallel()
	first := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{CloseAfter: 1}}})
	u := open(t, trusting(t, first))
	if err := ask(u, "a.example.com"); err != nil {
		t.Fatal(err)
	}
	for _, tickets := range []dottest.Tickets{dottest.TicketsRefused, dottest.TicketsFatal} {
		first.Set(dottest.Fault{CloseAfter: 1}, dottest.Fault{Tickets: tickets})
		for i := range 3 {
			if err := ask(u, fmt.Sprintf("n%d.example.com", i)); err != nil {
				t.Errorf("%v: %v", tickets, err)
			}
		}
	}
}

// Established connections accept queries and never answer, as after the withdrawal of an
// anycast node or a change of routes.
func TestAHalfOpenConnectionIsReplacedByAFreshOne(t *testing.T) {
	t.Parallel()
	atBest(t, func() error {
		s := dottest.NewServer(t, dottest.Options{RTT: 5 * time.Millisecond})
		u := open(t, trusting(t, s))
		for i := range 10 { // the time of answers is learnt
			if err := ask(u, fmt.Sprintf("w%d.example.com", i)); err != nil {
				t.Fatal(err)
			}
		}
		s.FreezeConnections()
		begin := time.Now()
		stuck := make(chan error, 1)
		go func() { stuck <- ask(u, "stuck.example.com") }()
		eventually(t, "the upstream owes a sign of life", func() bool { return u.Silent() > 60*time.Millisecond })
		if err := askWithin(u, "next.example.com", time.Second); err != nil {
			return fmt.Errorf("the query after: %w", err)
		}
		if took := time.Since(begin); took > 600*time.Millisecond {
			return fmt.Errorf("the query after the silence began was answered %v after it began", took)
		}
		if err := <-stuck; err != nil {
			t.Errorf("the query that got stuck: %v", err)
		}
		if took := time.Since(begin); took > 2*time.Second {
			return fmt.Errorf("the query that got stuck took %v", took)
		}
		return nil
	})
}

func TestASlowNameOnAServerThatAnswersInOrderDelaysFewQueries(t *testing.T) {
	t.Parallel()
	atBest(t, func() error {
		s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{InOrder: true}}})
		u := open(t, trusting(t, s))
		if err := many(u, 20, "w%d.example.com"); err != nil {
			t.Fatal(err)
		}
		slow := make(chan error, 1)
		go func() { slow <- ask(u, "d900.example.com") }()
		eventually(t, "the slow one holds up", func() bool { return u.Silent() > 60*time.Millisecond })
		begin := time.Now()
		for i := range 10 {
			if err := ask(u, fmt.Sprintf("n%d.example.com", i)); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begin); took > 500*time.Millisecond {
			return fmt.Errorf("ten others took %v", took)
		}
		if err := <-slow; err != nil {
			t.Error(err)
		}
		return nil
	})
}

func TestWrongAnswersAreNoAnswers(t *testing.T) {
	t.Parallel()
	for _, mangle := range []dottest.Mangle{
		dottest.WrongID, dottest.WrongQuestion, dottest.Garbage, dottest.Echo, dottest.Truncated,
		dottest.LengthLong, dottest.LengthShort, dottest.LengthZero, dottest.CutRecord, dottest.Foreign,
	} {
		t.Run(mangle.String(), func(t *testing.T) {
			t.Parallel()
			s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{Mangle: mangle}}})
			u := open(t, trusting(t, s))
			for i := range 3 {
				if err := askWithin(u, fmt.Sprintf("n%d.example.com", i), 200*time.Millisecond); err == nil {
					t.Fatal("was taken for an answer")
				}
			}
			s.Set()
			eventually(t, "it answers properly again", func() bool { return ask(u, "fine.example.com") == nil })
		})
	}
}

// TestDropsAreCountedByTheirReason has answers dropped, or stripped of records.
func TestDropsAreCountedByTheirReason(t *testing.T) {
	t.Parallel()
	f := func(mangle dottest.Mangle, wants bool, count func(Counts) uint64) {
		t.Helper()
		s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{Mangle: mangle}}})
		u := open(t, trusting(t, s))
		if err := askWithin(u, "www.example.com", time.Second); (err == nil) != wants {
			t.Errorf("%v: got error %v", mangle, err)
		}
		c := u.Counts()
		want := c.Sent // it is asked again on a fresh connection
		if sum := c.Unsolicited + c.Mismatched + c.OutOfBailiwick + c.Malformed + c.Stripped; count(c) != want || sum != want {
			t.Errorf("%v: counted as %+v", mangle, c)
		}
	}
	f(dottest.WrongID, false, func(c Counts) uint64 { return c.Unsolicited })
	f(dottest.WrongQuestion, false, func(c Counts) uint64 { return c.Mismatched })
	f(dottest.Foreign, false, func(c Counts) uint64 { return c.OutOfBailiwick })
	f(dottest.Echo, false, func(c Counts) uint64 { return c.Malformed })
	f(dottest.Truncated, false, func(c Counts) uint64 { return c.Malformed })
	f(dottest.Stray, true, func(c Counts) uint64 { return c.Stripped })
}

func TestUnusualButCorrectAnswersAreAccepted(t *testing.T) {
	t.Parallel()
	for _, fault := range []dottest.Fault{{Mangle: dottest.Duplicate}, {Mangle: dottest.Huge}, {Drip: time.Millisecond}, {Mangle: dottest.Stray}} {
		s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{fault}})
		u := open(t, trusting(t, s))
		for i := range 3 {
			q, err := wire.NewQuery(fmt.Sprintf("n%d.example.com", i), "A")
			if err != nil {
				t.Fatal(err)
			}
			if a, err := u.Exchange(t.Context(), q); err != nil || a.RCode() != wire.NoError {
				t.Errorf("%+v: %v, %v", fault, a.RCode(), err)
			}
		}
	}
}

func TestNoQueryReachesAServerThatIsNotVerified(t *testing.T) {
	t.Parallel()
	ca := dottest.NewCA()
	names := []string{dottest.ServerName}
	day := 24 * time.Hour
	now := time.Now()
	for name, test := range map[string]struct {
		certificate tls.Certificate
		fault       dottest.Fault
		want        string
	}{
		"expired":          {certificate: ca.Issue(dottest.CertOptions{Names: names, NotAfter: now.Add(-day)}), want: "clock of this machine"},
		"not yet valid":    {certificate: ca.Issue(dottest.CertOptions{Names: names, NotBefore: now.Add(day)}), want: "clock of this machine"},
		"self-signed":      {certificate: ca.Issue(dottest.CertOptions{Names: names, SelfSigned: true}), want: "certificate"},
		"unknown CA":       {certificate: dottest.NewCA().Issue(dottest.CertOptions{Names: names}), want: "unknown authority"},
		"another name":     {certificate: ca.Issue(dottest.CertOptions{Names: []string{"other.example.com"}}), want: "other.example.com"},
		"no name":          {certificate: ca.Issue(dottest.CertOptions{}), want: "certificate"},
		"for clients only": {certificate: ca.Issue(dottest.CertOptions{Names: names, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}), want: "usage"},
		"TLS 1.1":          {certificate: ca.Issue(dottest.CertOptions{Names: names}), fault: dottest.Fault{MaxVersion: tls.VersionTLS11}, want: "version"},
		"plain text":       {certificate: ca.Issue(dottest.CertOptions{Names: names}), fault: dottest.Fault{Greeting: dottest.PlainText}, want: "handshake"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := dottest.NewServer(t, dottest.Options{CA: ca, Certificate: test.certificate, Faults: []dottest.Fault{test.fault}})
			u := open(t, trusting(t, s))
			err := ask(u, "www.example.com")
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want a word about %q", err, test.want)
			}
			if n := s.Stats().Queries; n != 0 {
				t.Errorf("%d queries reached it", n)
			}
		})
	}
}

func TestWithoutAServerNameTheCertificateMustNameTheAddress(t *testing.T) {
	t.Parallel()
	ca := dottest.NewCA()
	s := dottest.NewServer(t, dottest.Options{CA: ca})
	address := s.Addr().Addr()
	s.SetCertificate(ca.Issue(dottest.CertOptions{IPs: []netip.Addr{address}}))
	o := trusting(t, s)
	o.ServerName = ""
	if err := ask(open(t, o), "www.example.com"); err != nil {
		t.Error(err)
	}
	s.SetCertificate(ca.Issue(dottest.CertOptions{Names: []string{address.String(), dottest.ServerName}}))
	if err := ask(open(t, o), "www.example.com"); err == nil {
		t.Error("a name that looks like the address was enough")
	}
}

func pinOf(t testing.TB, certificate []byte) string {
	t.Helper()
	parsed, err := x509.ParseCertificate(certificate)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(parsed.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(digest[:])
}

// hashOf returns the hash of a certificate without its signature.
func hashOf(t *testing.T, certificate []byte) string {
	t.Helper()
	parsed, err := x509.ParseCertificate(certificate)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(parsed.RawTBSCertificate))
}

func TestPinsHoldOnResumedSessionsToo(t *testing.T) {
	t.Parallel()
	ca := dottest.NewCA()
	certificate := ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}})
	s := dottest.NewServer(t, dottest.Options{CA: ca, Certificate: certificate, Faults: []dottest.Fault{{CloseAfter: 1}}})
	good := pinOf(t, certificate.Certificate[0])
	block, _ := pem.Decode(ca.PEM())
	foreign := pinOf(t, dottest.NewCA().Issue(dottest.CertOptions{}).Certificate[0])

	f := func(pins, hashes []string, want error) {
		t.Helper()
		o, works := trusting(t, s), want == nil
		o.Pins, o.CertHashes = pins, hashes
		u := open(t, o)
		for i := range 3 {
			if err := ask(u, fmt.Sprintf("n%d.example.com", i)); (err == nil) != works {
				t.Errorf("pins %v, hashes %v, query %d: %v", pins, hashes, i, err)
			} else if !works && (!errors.Is(err, want) || OutcomeOf(err) != TLSCertificate) {
				t.Errorf("pins %v, hashes %v: %v", pins, hashes, err)
			}
		}
		if works && u.Counts().Resumed == 0 {
			t.Error("no session was resumed, so this test tests nothing")
		}
	}
	f([]string{good}, nil, nil)
	f([]string{foreign, "sha256/" + good}, nil, nil)
	f([]string{pinOf(t, block.Bytes)}, nil, nil) // the authority's
	f([]string{foreign}, nil, errPin)

	hash, other := hashOf(t, certificate.Certificate[0]), hashOf(t, dottest.NewCA().Issue(dottest.CertOptions{}).Certificate[0])
	f(nil, []string{hash}, nil)
	f([]string{good}, []string{other, strings.ToUpper(hashOf(t, block.Bytes))}, nil)
	f(nil, []string{other}, errCertHash)
	f([]string{good}, []string{other}, errCertHash)
	f([]string{foreign}, []string{hash}, errPin)

	// The check itself must run on resumed sessions, so that changed pins take effect.
	o := trusting(t, s)
	u := open(t, o)
	var seen atomic.Int32
	u.dialer.dot.config.VerifyConnection = func(state tls.ConnectionState) error {
		if state.DidResume && len(state.VerifiedChains) > 0 {
			seen.Add(1)
		}
		return nil
	}
	for i := range 3 {
		if err := ask(u, fmt.Sprintf("n%d.example.com", i)); err != nil {
			t.Fatal(err)
		}
	}
	if seen.Load() == 0 {
		t.Error("resumed sessions are not checked")
	}
}

func TestAClientCertificateIsSentOnRequest(t *testing.T) {
	t.Parallel()
	ca := dottest.NewCA()
	s := dottest.NewServer(t, dottest.Options{CA: ca, Faults: []dottest.Fault{{ClientCAs: ca.Pool()}}})
	o := trusting(t, s)
	if err := ask(open(t, o), "www.example.com"); err == nil {
		t.Error("the server took a client without a certificate")
	}
	client := ca.Issue(dottest.CertOptions{Names: []string{"client.example.com"}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	o.CertFile, o.KeyFile = writePair(t, client)
	if err := ask(open(t, o), "www.example.com"); err != nil {
		t.Error(err)
	}
}

func writePair(t testing.TB, certificate tls.Certificate) (certFile, keyFile string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", certificate.Certificate[0]), write("key.pem", "PRIVATE KEY", key)
}

// atBest tries f a few times, until it returns no error: times are longer while the
// machine is busy.
func atBest(t testing.TB, f func() error) {
	t.Helper()
	var err error
	for range 4 {
		if err = f(); err == nil {
			return
		}
	}
	t.Error(err)
}

func TestTheNextAddressIsUsedWhenOneFails(t *testing.T) {
	t.Parallel()
	ca := dottest.NewCA()
	bad, good := dottest.NewServer(t, dottest.Options{CA: ca}), dottest.NewServer(t, dottest.Options{CA: ca})
	f := func(what string, fail func(), limit time.Duration) {
		t.Helper()
		fail()
		atBest(t, func() error {
			u := open(t, trusting(t, bad, good))
			begin := time.Now()
			if err := ask(u, "www.example.com"); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if took := time.Since(begin); took > limit {
				return fmt.Errorf("%s: took %v", what, took)
			}
			return nil
		})
	}
	f("refused", func() {
		if err := bad.Stop(); err != nil {
			t.Fatal(err)
		}
	}, 200*time.Millisecond)
	if err := bad.Restart(); err != nil {
		t.Fatal(err)
	}
	f("mute", func() { bad.Set(dottest.Fault{Greeting: dottest.Silence}) }, 600*time.Millisecond)
	bad.Set()
	f("blackholed", func() {
		if err := bad.Blackhole(); err != nil {
			t.Fatal(err)
		}
	}, 600*time.Millisecond)
}

func TestAnotherAddressIsUsedWhenOneIsLost(t *testing.T) {
	t.Parallel()
	atBest(t, func() error {
		ca := dottest.NewCA()
		lost, other := dottest.NewServer(t, dottest.Options{CA: ca}), dottest.NewServer(t, dottest.Options{CA: ca})
		u := open(t, trusting(t, lost, other))
		if err := many(u, 20, "w%d.example.com"); err != nil {
			t.Fatal(err)
		}
		if other.Stats().Accepted != 0 {
			return errors.New("the second address is in use although the first works")
		}
		if err := lost.Blackhole(); err != nil {
			t.Fatal(err)
		}
		lost.FreezeConnections()
		begin := time.Now()
		first := make(chan error, 1)
		go func() { first <- askWithin(u, "first.example.com", 3*time.Second) }()
		eventually(t, "silence", func() bool { return u.Silent() > u.overdue() || len(first) > 0 })
		if err := askWithin(u, "next.example.com", time.Second); err != nil {
			return err
		}
		took := time.Since(begin)
		if err := <-first; err != nil {
			t.Error(err)
		}
		if took > 400*time.Millisecond {
			return fmt.Errorf("the other address was found after %v", took)
		}
		return nil
	})
}

func TestDialsEndInTimeAndSayWhichSettingApplies(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{Greeting: dottest.HandshakeStalls}}})
	o := trusting(t, s)
	o.HandshakeTimeout = 50 * time.Millisecond
	if err := ask(open(t, o), "www.example.com"); err == nil || !strings.Contains(err.Error(), "handshake_timeout") {
		t.Errorf("handshake: %v", err)
	}
	if err := s.Blackhole(); err != nil {
		t.Fatal(err)
	}
	o.ConnectTimeout = 50 * time.Millisecond
	if err := ask(open(t, o), "www.example.com"); err == nil || !strings.Contains(err.Error(), "connect_timeout") {
		t.Errorf("connect: %v", err)
	}
}

func TestADialOutlivesTheQueryThatStartedIt(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{RTT: 30 * time.Millisecond})
	u := open(t, trusting(t, s))
	if err := askWithin(u, "www.example.com", 10*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want the caller's own deadline", err)
	}
	eventually(t, "the connection is made all the same", func() bool { return u.open.Load() == 1 })
}

func TestADialWhoseSYNWasLostDoesNotDelayTheNext(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{})
	if err := s.Blackhole(); err != nil {
		t.Fatal(err)
	}
	u := open(t, trusting(t, s))
	go func() { _ = ask(u, "first.example.com") }()
	eventually(t, "a dial", func() bool { return u.Counts().Dials > 0 })
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a connection", func() bool {
		go func() { _ = ask(u, "next.example.com") }()
		return u.open.Load() > 0
	})
	if n := u.Counts().Dials; n < 2 {
		t.Errorf("%d dial: the system had to send it again", n)
	}
}

func TestAChangeOfTheNetworkDialsAnUpstreamThatIsOutOfReach(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{})
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	u := open(t, trusting(t, s))
	if u.NetworkChanged() {
		t.Error("a change is of interest although nothing is wrong")
	}
	if err := ask(u, "www.example.com"); err == nil {
		t.Fatal("an answer from a closed port")
	}
	u.dialer.throttle.mu.Lock()
	u.dialer.throttle.since = time.Now().Add(-time.Hour)
	u.dialer.throttle.mu.Unlock()
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if !u.NetworkChanged() {
		t.Error("the change is of no interest")
	}
	eventually(t, "a connection", func() bool { return u.open.Load() > 0 })
}

func TestIDsAreNeverSharedAndWrapAround(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{})
	u := open(t, trusting(t, s))
	stay := make(chan error, 1)
	go func() { stay <- askWithin(u, "never.example.com", 3*time.Second) }()
	if err := ask(u, "first.example.com"); err != nil {
		t.Fatal(err)
	}
	u.mu.Lock()
	c := u.streams[0]
	u.mu.Unlock()
	for _, start := range []uint16{65500, 65535} { // the query that stays has one of the first IDs
		c.mu.Lock()
		c.nextID = start
		c.mu.Unlock()
		if err := many(u, 60, fmt.Sprintf("n%%d-%d.example.com", start)); err != nil {
			t.Error(err)
		}
	}
	if err := <-stay; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the query that stays: %v", err)
	}
	if n := u.Counts().Mismatched; n != 0 {
		t.Errorf("%d mismatched answers", n)
	}
}

func TestAFullTableReturnsErrBusy(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{Never: true}}})
	o := trusting(t, s)
	o.Connections = 1
	u := open(t, o)
	c, err := u.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	q, _ := wire.NewQuery("www.example.com", "A")
	for range inFlightMax {
		if err := c.send(&call{query: q, done: ignore}, u.now()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.send(&call{query: q, done: ignore}, u.now()); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want ErrBusy", err)
	}
}

func TestCloseFailsPendingQueries(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{Never: true}}})
	u := open(t, trusting(t, s))
	failed := make(chan error, 1)
	go func() { failed <- ask(u, "www.example.com") }()
	eventually(t, "the query is under way", func() bool { return s.Stats().Queries == 1 })
	u.Close()
	if err := <-failed; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	if err := ask(u, "www.example.com"); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: got %v, want ErrClosed", err)
	}
}

func TestPatienceFollowsTheRoundTrips(t *testing.T) {
	t.Parallel()
	f := func(want time.Duration, samples ...time.Duration) {
		t.Helper()
		var e estimator
		for _, s := range samples {
			e.sample(s)
		}
		if _, got := e.usual(); got < want*9/10 || got > want*11/10 {
			t.Errorf("after %v: patience %v, want about %v", samples, got, want)
		}
	}
	repeat := func(n int, d ...time.Duration) (all []time.Duration) {
		for range n {
			all = append(all, d...)
		}
		return all
	}
	const ms = time.Millisecond
	f(patienceUnknown)
	f(patienceMin, repeat(50, ms)...)
	f(75*ms, repeat(100, 50*ms)...)
	f(600*ms, repeat(100, 400*ms)...) // over a satellite
	f(117*ms, repeat(100, 10*ms, 50*ms)...)
}

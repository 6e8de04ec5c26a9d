package upstreams

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

func TestParseDrill(t *testing.T) {
	t.Parallel()
	f := func(text string, want Drill) {
		t.Helper()
		got, err := ParseDrill(text)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v", text, got, err)
		}
		if again, err := ParseDrill(got.String()); err != nil || again != got {
			t.Errorf("%s: prints as %s: %v", text, got, err)
		}
	}
	f("blackhole", Drill{Fault: Blackhole})
	f("delay=300ms", Drill{Fault: Late, Delay: 300 * time.Millisecond})
	f("delay=10s", Drill{Fault: Late, Delay: 10 * time.Second})
	f("servfail=20%", Drill{Fault: ServFail, Share: 20})
	f("servfail=100%", Drill{Fault: ServFail, Share: 100})
	f("close", Drill{Fault: Hangup})
	f("block=853", Drill{Fault: Block, Port: 853})
	f("block=443/udp", Drill{Fault: Block, Port: 443, UDP: true})
	f("http=503", Drill{Fault: HTTPStatus, Status: 503})
}

func TestParseDrillSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	f := func(text, want string) {
		t.Helper()
		if d, err := ParseDrill(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v, want %s", text, d, err, want)
		}
	}
	f("", `"" is no fault; there are blackhole, delay=300ms, servfail=20%, close, block=853, block=443/udp, http=503`)
	f("blackhol", `"blackhol" is no fault; there are`)
	f("Close", "is no fault")
	f("blackhole=1", `"blackhole=1": blackhole takes no value`)
	f("close=", "takes no value")
	f("delay", `"delay" is no delay; write one such as delay=300ms`)
	f("delay=300", "is no delay")
	f("delay=0s", "must be above 0")
	f("delay=-1s", "must be above 0")
	f("delay=11s", "at most 10s")
	f("servfail", "is no share of the answers; write one such as servfail=20%")
	f("servfail=20", "is no share")
	f("servfail=few%", "is no share")
	f("servfail=0%", "between 1% and 100%")
	f("servfail=101%", "between 1% and 100%")
	for _, text := range []string{"block", "block=", "block=0", "block=65536", "block=/udp", "block=853/tcp"} {
		f(text, "is no port; write one such as block=853, or block=443/udp for QUIC")
	}
	for _, text := range []string{"http", "http=200", "http=600", "http=x"} {
		f(text, "is no HTTP status from 300 to 599; write one such as http=503")
	}
}

// drill starts a drill of u. It ends with the test or when end is called, which
// waits for that.
func drill(t testing.TB, u *Upstream, text string) (end func()) {
	t.Helper()
	d, err := ParseDrill(text)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- u.Drill(ctx, d) }()
	for u.dialer.faults.active.Load() == nil {
		time.Sleep(time.Millisecond)
	}
	end = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
	}
	t.Cleanup(end)
	return end
}

func TestADrilledBlackHoleSwallowsQueriesAndConnections(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{})
	o := trusting(t, s)
	o.ConnectTimeout = 300 * time.Millisecond
	u := open(t, o)
	if err := ask(u, "before.example.com"); err != nil {
		t.Fatal(err)
	}
	before := s.Stats()
	end := drill(t, u, "blackhole")
	if err := askWithin(u, "open.example.com", 250*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("over the open connection: %v", err)
	}
	if u.Silent() < 250*time.Millisecond {
		t.Errorf("silent for %v only", u.Silent())
	}
	s.CloseConnections(dottest.FIN)
	began := time.Now()
	err := askWithin(u, "fresh.example.com", 5*time.Second)
	if err == nil || !strings.Contains(err.Error(), "no connection within 300ms (setting connect_timeout)") && !errors.Is(err, errSilent) {
		t.Errorf("over a fresh connection, after %v: %v", time.Since(began), err)
	}
	if got := s.Stats(); got.Queries != before.Queries || got.Accepted != before.Accepted {
		t.Errorf("the server saw %+v", got)
	}
	end()
	if err := ask(u, "after.example.com"); err != nil {
		t.Error(err)
	}
}

func TestADrilledBlackHoleSwallowsAnswersOnTheirWay(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{Delay: time.Second}}}) // within which the drill begins
	u := open(t, trusting(t, s))
	if err := ask(u, "before.example.com"); err != nil {
		t.Fatal(err)
	}
	before := s.Stats().Queries
	lost := make(chan error, 1)
	go func() { lost <- askWithin(u, "under-way.example.com", 2*time.Second) }()
	for s.Stats().Queries == before {
		time.Sleep(time.Millisecond)
	}
	drill(t, u, "blackhole")
	if err := <-lost; !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, errSilent) {
		t.Errorf("got %v", err)
	}
}

func TestADrilledDelayHoldsEachAnswerBackAndNotTheNext(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{})
	u := open(t, trusting(t, s))
	if err := ask(u, "before.example.com"); err != nil {
		t.Fatal(err)
	}
	end := drill(t, u, "delay=150ms")
	began := time.Now()
	if err := many(u, 50, "n%d.example.com"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 150*time.Millisecond || took > 2*time.Second {
		t.Errorf("50 answers took %v together", took)
	}
	if n := s.Stats().Accepted; n > 4 { // on a busy machine, a silent one is replaced
		t.Errorf("%d connections", n)
	}
	end()
	atBest(t, func() error {
		began := time.Now()
		if err := ask(u, "after.example.com"); err != nil || time.Since(began) >= 150*time.Millisecond {
			return fmt.Errorf("after %v: %v", time.Since(began), err)
		}
		return nil
	})
}

func TestTheEndOfADrilledDelayDeliversDelayedAnswers(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{})
	u := open(t, trusting(t, s))
	if err := ask(u, "before.example.com"); err != nil {
		t.Fatal(err)
	}
	end := drill(t, u, "delay=10s")
	got := make(chan error, 1)
	go func() { got <- ask(u, "held.example.com") }()
	for s.Stats().Answers < 2 {
		time.Sleep(time.Millisecond)
	}
	end()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestADrilledServFailReplacesItsShareOfTheAnswers(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{})
	u := open(t, trusting(t, s))
	drill(t, u, "servfail=30%")
	const n = 500
	failed := 0
	for i := range n {
		q, err := wire.NewQuery(fmt.Sprintf("n%d.example.com", i), "A")
		if err != nil {
			t.Fatal(err)
		}
		a, err := u.Exchange(t.Context(), q)
		switch {
		case err != nil:
			t.Fatal(err)
		case a.RCode() == wire.ServFail:
			failed++
		}
	}
	if failed < n*20/100 || failed > n*40/100 {
		t.Errorf("%d of %d are SERVFAIL", failed, n)
	}
	if c := u.Counts(); c.Answered < n || // on a busy machine, connections are tested
		c.Malformed+c.Mismatched+c.Unsolicited != 0 {
		t.Errorf("odd answers: %+v", c)
	}
}

func TestADrilledHangupClosesConnectionsOpenAndNew(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{})
	u := open(t, trusting(t, s))
	if err := ask(u, "before.example.com"); err != nil {
		t.Fatal(err)
	}
	before := s.Stats().Queries
	end := drill(t, u, "close")
	for u.Counts().Open > 0 {
		time.Sleep(time.Millisecond)
	}
	if err := ask(u, "during.example.com"); err == nil || !strings.Contains(err.Error(), "EOF") {
		t.Errorf("got %v", err)
	}
	if handshakes, queries := u.Counts().Handshakes, s.Stats().Queries; handshakes < 2 || queries != before {
		t.Errorf("%d handshakes, %d queries", handshakes, queries)
	}
	end()
	if err := ask(u, "after.example.com"); err != nil {
		t.Error(err)
	}
}

func TestThereIsOneDrillAtATimeAndNoneAfterClose(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{})
	u := open(t, trusting(t, s))
	drill(t, u, "blackhole")
	if err := u.Drill(t.Context(), Drill{Fault: Hangup}); !errors.Is(err, ErrDrill) {
		t.Errorf("got %v", err)
	}
	began := time.Now()
	go u.Close() // must not wait for delayed answers
	for u.dialer.faults.active.Load() != nil {
		time.Sleep(time.Millisecond)
	}
	if err := u.Drill(context.Background(), Drill{Fault: Blackhole}); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the end took %v", took)
	}
}

// A blocked port is one for all connections to it, open and new. The other transport is used
// meanwhile.
func TestADrilledBlockIsOfOnePort(t *testing.T) {
	t.Parallel()
	dot, doh, u := ladder(t)
	if err := ask(u, "before.example.com"); err != nil {
		t.Fatal(err)
	}
	before, requests := dot.Stats(), doh.Requests()
	end := drill(t, u, fmt.Sprintf("block=%d", dot.Addr().Port()))
	for i := range 10 {
		if err := ask(u, fmt.Sprintf("n%d.example.com", i)); err != nil {
			t.Error(err)
		}
	}
	if got := dot.Stats(); got.Queries != before.Queries || got.Accepted != before.Accepted || doh.Requests() < requests+10 {
		t.Errorf("the blocked server saw %+v, the other one %d requests", got, doh.Requests()-requests)
	}
	end()
	for deadline := time.Now().Add(2 * climbInterval); dot.Stats().Queries <= before.Queries+1 && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err := ask(u, "after.example.com"); err != nil {
			t.Error(err)
		}
	}
	if dot.Stats().Queries <= before.Queries+1 {
		t.Error("the port is not used again")
	}
	for _, text := range []string{fmt.Sprintf("block=%d/udp", dot.Addr().Port()), "block=1"} {
		d, err := ParseDrill(text)
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("test: no endpoint has the fault %s: %v (dot), %v (doh)", text, dot.Addr(), doh.Addr())
		if err := u.Drill(t.Context(), d); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// A blocked port of UDP swallows the packets of QUIC, and leaves TCP alone.
func TestADrilledBlockOfUDPIsForQUIC(t *testing.T) {
	t.Parallel()
	ca := dottest.NewCA()
	dot := dottest.NewServer(t, dottest.Options{CA: ca})
	quic := dottest.NewQUICServer(t, dottest.QUICOptions{Addr: dot.Addr().String(), Certificate: ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}})})
	o := trusting(t, dot)
	o.Transports = []string{DoQ, DoT}
	u := open(t, o)
	if err := ask(u, "before.example.com"); err != nil {
		t.Fatal(err)
	}
	before := quic.Queries()
	drill(t, u, fmt.Sprintf("block=%d/udp", quic.Addr().Port()))
	for i := range 10 {
		if err := ask(u, fmt.Sprintf("n%d.example.com", i)); err != nil {
			t.Error(err)
		}
	}
	if got := quic.Queries(); got != before || dot.Stats().Queries < 10 {
		t.Errorf("%d queries over QUIC, %d over TLS", got-before, dot.Stats().Queries)
	}
}

// The server answers, and each answer over HTTPS is replaced. Over TLS, none is.
func TestADrilledHTTPStatusReplacesAnswersOverHTTPS(t *testing.T) {
	t.Parallel()
	f := func(fault string, want Outcome, text string) {
		t.Helper()
		s, o := overHTTPS(t, dottest.HTTPSOptions{})
		u := open(t, o)
		if err := ask(u, "before.example.com"); err != nil {
			t.Fatal(err)
		}
		end := drill(t, u, fault)
		for i := range 3 {
			if err := ask(u, fmt.Sprintf("n%d.example.com", i)); OutcomeOf(err) != want || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: got %v", fault, err)
			}
		}
		end()
		if err := ask(u, "after.example.com"); err != nil {
			t.Error(err)
		}
		if s.Connections() > 2 {
			t.Errorf("%d connections", s.Connections())
		}
	}
	f("http=503", HTTPFailed, "HTTP status 503")
	f("http=429", HTTPLimited, "HTTP status 429")

	dot, doh, u := ladder(t)
	drill(t, u, "http=503")
	if err := ask(u, "tls.example.com"); err != nil || dot.Stats().Queries == 0 || doh.Requests() > 0 {
		t.Errorf("%v; %d over HTTPS", err, doh.Requests())
	}
}

// An error of the server in place of one answer is passed on during a drill, and the
// connection goes on.
func TestADrillPassesErrorsOfOneAnswerOn(t *testing.T) {
	t.Parallel()
	s, o := overHTTPS(t, dottest.HTTPSOptions{})
	u := open(t, o)
	if err := ask(u, "before.example.com"); err != nil {
		t.Fatal(err)
	}
	drill(t, u, "delay=1ms")
	s.Set(dottest.HTTPSFault{Status: 502, For: "bad"})
	for i := range 3 {
		if err := ask(u, fmt.Sprintf("bad%d.example.com", i)); OutcomeOf(err) != HTTPFailed {
			t.Errorf("bad: %v", err)
		}
		if err := ask(u, fmt.Sprintf("good%d.example.com", i)); err != nil {
			t.Errorf("good: %v", err)
		}
	}
	if n := s.Connections(); n > 3 {
		t.Errorf("%d connections", n)
	}
}

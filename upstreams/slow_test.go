package upstreams

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/upstreams/dottest"
)

func TestTimeoutsOutOfBoundsAreRefused(t *testing.T) {
	f := func(o Options, want string) {
		t.Helper()
		got := ""
		o.Name, o.Addresses = "x", []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:853")}
		o.withDefaults().Check(func(option, problem string, beside ...string) { got += option + " " + problem })
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	f(Options{}, "")
	f(Options{ConnectTimeout: 10 * time.Millisecond, HandshakeTimeout: time.Minute, IdleTimeout: 100 * time.Millisecond}, "")
	f(Options{IdleTimeout: 10 * time.Microsecond}, "idle_timeout must be between 100ms and 1h")
	f(Options{IdleTimeout: -time.Second}, "idle_timeout must be between 100ms and 1h")
	f(Options{ConnectTimeout: time.Millisecond}, "connect_timeout must be between 10ms and 1m, or 0s")
	f(Options{HandshakeTimeout: -1}, "handshake_timeout must be between 10ms and 1m, or 0s")
}

func TestLimitsOfADialGrowWithWhatWasLearnt(t *testing.T) {
	f := func(set, took time.Duration, timeouts int, want time.Duration) {
		t.Helper()
		s := stepLimit{set: set, usual: time.Second, max: patienceLimit}
		if took > 0 {
			s.succeeded(took)
		}
		for range timeouts {
			s.timedOut()
		}
		if got := s.current(); got != want {
			t.Errorf("set to %v, after %v and %d timeouts: %v, want %v", set, took, timeouts, got, want)
		}
	}
	f(0, 0, 0, patienceLimit) // it may be on a satellite
	f(0, 0, 9, patienceLimit)
	f(0, 20*time.Millisecond, 0, time.Second)
	f(0, 20*time.Millisecond, 1, 2*time.Second)
	f(0, 20*time.Millisecond, 2, 4*time.Second)
	f(0, 20*time.Millisecond, 1<<20, patienceLimit)
	f(0, 700*time.Millisecond, 0, 2800*time.Millisecond)
	f(0, 3*time.Second, 0, patienceLimit)
	f(300*time.Millisecond, 3*time.Second, 9, 300*time.Millisecond) // set by the operator
}

func TestADialIsCountedOnce(t *testing.T) {
	u := open(t, Options{Name: "test", ServerName: "dns.example", Addresses: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}})
	if usual, patience := u.Latency(); usual != 0 || patience != patienceUnknown {
		t.Errorf("of what was never asked: %v, %v", usual, patience)
	}
	u.dialTime.sample(2 * time.Second)
	if usual, patience := u.Latency(); usual != 0 || patience != patienceUnknown+2500*time.Millisecond {
		t.Errorf("of what was reached, and never answered: %v, %v", usual, patience)
	}
	for range 50 {
		u.rtt.sample(20 * time.Millisecond)
	}
	if usual, patience := u.Latency(); usual.Round(time.Millisecond) != 2020*time.Millisecond || patience != patienceMin+2500*time.Millisecond {
		t.Errorf("with no connection: %v, %v", usual, patience)
	}
	u.open.Store(1)
	if usual, patience := u.Latency(); usual.Round(time.Millisecond) != 20*time.Millisecond || patience != patienceMin {
		t.Errorf("with a connection: %v, %v", usual, patience)
	}
	u.dialTime.sample(time.Minute) // an exception
	if got := u.dialTime.usual(); got > 3200*time.Millisecond {
		t.Errorf("one slow dial makes it %v", got)
	}
}

// Each further step of a dial is a sign of life, once: a host that accepts connections and
// sends nothing is silent.
func TestADialThatMakesProgressIsASignOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := open(t, Options{Name: "test", ServerName: "dns.example", Addresses: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}})
		f := func(wait time.Duration, step int32, want time.Duration) {
			t.Helper()
			time.Sleep(wait)
			u.dialProgressed(step)
			if got := u.Silent(); got != want {
				t.Errorf("silent for %v, want %v", got, want)
			}
		}
		f(time.Second, tcpConnected, 0) // nothing is owed
		u.dialStep.Store(0)
		u.waiting.Store(u.now())
		f(time.Second, tcpConnected, 0)
		f(time.Second, tcpConnected, time.Second) // of another dial
		f(time.Second, tlsAnswered, 0)
		f(time.Second, tcpConnected, time.Second)
		f(time.Second, tlsConnected, 0)
		f(time.Second, tlsConnected, time.Second)
	})
}

// Slow answers are waited for, if they were slow from the start.
func TestAnUpstreamThatIsFarAwayIsServedSlowly(t *testing.T) {
	t.Parallel()
	atBest(t, func() error {
		s := dottest.NewServer(t, dottest.Options{RTT: 1200 * time.Millisecond})
		u := open(t, trusting(t, s))
		for _, format := range []string{"a%d.example.com", "b%d.example.com"} {
			if err := many(u, 50, format); err != nil {
				t.Error(err)
			}
		}
		if n := s.Stats().Queries; n > 130 { // some are tests of the connection
			return fmt.Errorf("100 queries became %d", n)
		}
		return nil
	})
}

func TestASlowHandshakeIsWaitedForEachTime(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{Handshake: 2 * time.Second})
	u := open(t, trusting(t, s))
	for range 2 {
		if err := ask(u, "www.example.com"); err != nil {
			t.Fatal(err)
		}
		if usual, _ := u.Latency(); usual > time.Second {
			t.Errorf("with a connection, it usually takes %v", usual)
		}
		s.CloseConnections(dottest.CloseNotify)
		eventually(t, "the connection is closed", func() bool { return u.open.Load() == 0 })
		if usual, patience := u.Latency(); usual < 1900*time.Millisecond || usual > 3*time.Second || patience < 2*time.Second {
			t.Errorf("without a connection, it usually takes %v, and %v are waited for", usual, patience)
		}
	}
}

// After a handshake of a few milliseconds, one takes 2 s: no query fails, and Reached
// says that the upstream may just be slow.
func TestAHandshakeThatSuddenlyTakesLongIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeServer{fakeBehaviour: fakeBehaviour{handshake: 5 * time.Millisecond}}
		u := openFake(t, s, Options{})
		for range 3 {
			if err := askFake(u); err != nil {
				t.Fatal(err)
			}
		}
		for _, handshake := range []time.Duration{2 * time.Second, 3800 * time.Millisecond} {
			s.closeAll()
			synctest.Wait()
			s.set(fakeBehaviour{handshake: handshake})
			began := time.Now()
			results := make(chan error)
			const queries = 12 // one each 100 ms
			for i := range queries {
				time.AfterFunc(time.Duration(i)*100*time.Millisecond, func() { results <- askFake(u) })
			}
			for time.Since(began) < handshake-100*time.Millisecond {
				time.Sleep(50 * time.Millisecond)
				if !u.Reached() {
					t.Fatalf("seems lost after %v", time.Since(began))
				}
				if silent := u.Silent(); silent != time.Since(began) {
					t.Fatalf("silent for %v after %v", silent, time.Since(began))
				}
			}
			for range queries {
				if err := <-results; err != nil {
					t.Error(err)
				}
			}
			if took := time.Since(began); took > handshake+10*time.Millisecond {
				t.Errorf("a handshake of %v took %v", handshake, took)
			}
			if u.Silent() != 0 || u.Reached() {
				t.Error("something is owed")
			}
		}
	})
}

// A handshake that never ends is given up when clients are gone. Meanwhile another is
// tried beside it.
func TestAHandshakeThatNeverEndsIsGivenUp(t *testing.T) {
	f := func(o Options, want time.Duration, dials int) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			s := new(fakeServer)
			u := openFake(t, s, o)
			if err := askFake(u); err != nil {
				t.Fatal(err)
			}
			s.closeAll()
			synctest.Wait()
			before := s.set(fakeBehaviour{stalls: true})
			began := time.Now()
			err := askFake(u)
			if took := time.Since(began); OutcomeOf(err) != TLSTimedOut || took != want {
				t.Errorf("%v after %v, want %v", err, took, want)
			}
			if got := s.set(fakeBehaviour{}) - before; got != dials {
				t.Errorf("%d dials, want %d", got, dials)
			}
		})
	}
	// two dials, each with a second, plainer ClientHello after half a second
	f(Options{}, 4500*time.Millisecond, 4)
	f(Options{Patience: time.Second}, 4500*time.Millisecond, 4)
	f(Options{Patience: 10 * time.Second}, 10500*time.Millisecond, 4)
	f(Options{HandshakeTimeout: 300 * time.Millisecond}, 600*time.Millisecond, 2)
}

// A connection that went silent speaks against the network being slow.
func TestASilentConnectionIsNotASlowNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(fakeServer)
		u := openFake(t, s, Options{})
		if err := askFake(u); err != nil {
			t.Fatal(err)
		}
		s.silence()
		s.set(fakeBehaviour{stalls: true})
		go func() { _ = askFake(u) }()
		for range 30 {
			time.Sleep(100 * time.Millisecond)
			if u.Reached() {
				t.Fatalf("silent for %v, and seems to be slow", u.Silent())
			}
		}
		if s.set(fakeBehaviour{}) < 2 {
			t.Error("no dial took a step, so this test tests nothing")
		}
	})
}

// Over UDP nothing but an answer shows that a server is there. One that has never
// answered is waited for as long as clients wait, and then no longer.
func TestAServerThatNeverAnsweredOverUDPMayBeFarAway(t *testing.T) {
	p, err := NewPlain(Options{Name: "far", Protocol: UDP, Addresses: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	f := func(what string, want bool) {
		t.Helper()
		if got := p.Reached(); got != want {
			t.Errorf("%s: got %v", what, got)
		}
	}
	p.epoch = p.epoch.Add(-time.Minute) // so that instants of the past are above 0
	p.waiting.Store(p.now() - int64(patienceLimit-time.Second))
	f("within the patience of clients", true)
	p.waiting.Store(p.now() - int64(patienceLimit))
	f("after it", false)
	p.waiting.Store(p.now())
	p.rtt.sample(time.Millisecond)
	f("after an answer", false)
}

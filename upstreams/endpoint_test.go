package upstreams

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/upstreams/dottest"
)

// A dead address delays one dial, and no other.
func TestDeadAddressesAreAvoidedOnceOthersWork(t *testing.T) {
	t.Parallel()
	f := func(dead int, handshake time.Duration) {
		t.Run(fmt.Sprintf("%d dead, a handshake takes %v", dead, handshake), func(t *testing.T) {
			t.Parallel()
			atBest(t, func() error {
				ca := dottest.NewCA()
				var servers []*dottest.Server
				for i := range dead + 1 {
					o := dottest.Options{CA: ca, Handshake: handshake}
					if i < dead {
						o.Faults = []dottest.Fault{{Greeting: dottest.Silence}}
					}
					servers = append(servers, dottest.NewServer(t, o))
				}
				u := open(t, trusting(t, servers...))
				live := servers[dead]
				for round := range 3 {
					began := time.Now()
					if err := ask(u, "www.example.com"); err != nil {
						t.Fatal(err)
					}
					if took := time.Since(began); round > 0 && took > handshake+attemptDelay {
						return fmt.Errorf("dial %d: took %v", round, took)
					}
					live.CloseConnections(dottest.CloseNotify)
					eventually(t, "the connection is closed", func() bool { return u.open.Load() == 0 })
				}
				for i, a := range u.History().Addresses[:dead] {
					if a.Avoided.IsZero() || a.Dials[DialSlower] != 1 {
						return fmt.Errorf("address %d: avoided until %v, outrun %d times", i, a.Avoided, a.Dials[DialSlower])
					}
				}
				if a := u.History().Addresses[dead]; !a.Avoided.IsZero() {
					return errors.New("the one that works is avoided")
				}
				return nil
			})
		})
	}
	f(1, 0)
	f(3, 600*time.Millisecond)
}

// When its pause is over, an address that was avoided is probed without delay to any
// query, and used again if it works.
func TestAnAvoidedAddressIsProbedInTheBackground(t *testing.T) {
	t.Parallel()
	ca := dottest.NewCA()
	first := dottest.NewServer(t, dottest.Options{CA: ca, Faults: []dottest.Fault{{Greeting: dottest.HandshakeAlert}}})
	second := dottest.NewServer(t, dottest.Options{CA: ca})
	u := open(t, trusting(t, first, second))
	e := u.dialer.endpoints[0]
	dial := func() {
		t.Helper()
		if err := ask(u, "www.example.com"); err != nil {
			t.Fatal(err)
		}
		second.CloseConnections(dottest.CloseNotify)
		eventually(t, "the connection is closed", func() bool { return u.open.Load() == 0 })
	}
	dial()
	until, penalties := e.avoided()
	if left := time.Until(until); penalties != 1 || left > pauseMin || left < pauseMin/2 {
		t.Fatalf("after %d failures, avoided for %v", penalties, left)
	}
	accepted := first.Stats().Accepted
	dial()
	if n := first.Stats().Accepted; n != accepted {
		t.Errorf("it was dialled in its pause")
	}
	e.networkChanged()
	dial()
	eventually(t, "it is probeQueries, in vain", func() bool { _, n := e.avoided(); return n == 2 })
	if until, _ := e.avoided(); time.Until(until) < pauseMin*3/2 {
		t.Errorf("the pause has not grown: %v", time.Until(until))
	}
	first.Set()
	e.networkChanged()
	dial()
	eventually(t, "it works again", func() bool { _, n := e.avoided(); return n == 0 })
	if got := u.dialer.ordered()[0]; got != e {
		t.Errorf("the first is %v", got.addr)
	}
}

func TestPausesGrowAndEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		logger := slog.New(slog.NewTextHandler(&log, nil))
		e := &endpoint{addr: netip.MustParseAddrPort("192.0.2.1:853")}
		if e.startProbe() {
			t.Error("what works is to be probeQueries")
		}
		var pauses []time.Duration
		for range 8 {
			var all sync.WaitGroup // dials that fail at once count as one
			for range 4 {
				all.Go(func() { e.penalize(logger, DialTimedOut) })
			}
			all.Wait()
			until, _ := e.avoided()
			pauses = append(pauses, time.Until(until))
			if e.startProbe() {
				t.Error("it is due in its pause")
			}
			time.Sleep(time.Until(until))
			var mu sync.Mutex
			due := 0
			for range 4 {
				all.Go(func() {
					if e.startProbe() {
						mu.Lock()
						defer mu.Unlock()
						due++
					}
				})
			}
			all.Wait()
			if due != 1 {
				t.Errorf("%d may examine it", due)
			}
			e.endProbe()
		}
		want := []time.Duration{30, 60, 120, 240, 480, 900, 900, 900}
		for i := range want {
			want[i] *= time.Second
		}
		if !slices.Equal(pauses, want) {
			t.Errorf("pauses %v, want %v", pauses, want)
		}
		e.clearPenalties(logger)
		if _, n := e.avoided(); n != 0 || strings.Count(log.String(), "\n") != 2 {
			t.Errorf("avoided %d times; log:\n%s", n, log.String())
		}
	})
}

// If no address works, none is worse than the others: the pauses do not grow.
func TestAddressesThatFailTogetherAreNotAvoided(t *testing.T) {
	t.Parallel()
	ca := dottest.NewCA()
	a := dottest.NewServer(t, dottest.Options{CA: ca, Faults: []dottest.Fault{{Greeting: dottest.HandshakeAlert}}})
	b := dottest.NewServer(t, dottest.Options{CA: ca, Faults: []dottest.Fault{{Greeting: dottest.HandshakeAlert}}})
	u := open(t, trusting(t, a, b))
	for range 3 {
		if err := ask(u, "www.example.com"); err == nil {
			t.Fatal("answered")
		}
	}
	for _, e := range u.dialer.ordered() {
		if _, penalties := e.avoided(); penalties != 0 {
			t.Errorf("%v is avoided", e.addr)
		}
	}
}

func TestWhatAServerDoesNotSupportIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e endpoint
		f := func(want string) {
			t.Helper()
			if got := e.without(); got != want {
				t.Errorf("left out is %q, want %q", got, want)
			}
		}
		f("")
		e.noEDNS.learn(ednsPause)
		e.ignoresCase.learn(casePause)
		e.hello.learn(helloMemory{without: withoutALPN}, helloFor)
		f("alpn,edns,case")
		time.Sleep(10 * time.Minute)
		f("alpn,case")
		time.Sleep(50 * time.Minute)
		f("alpn")
		time.Sleep(23 * time.Hour)
		f("")
	})
}

func TestAddressesAreOrderedByWhatIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := make([]*endpoint, 4)
		for i := range all {
			all[i] = &endpoint{addr: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i))}
		}
		f := func(want string) {
			t.Helper()
			got := ""
			for _, e := range inOrder(all) {
				got += fmt.Sprint(e.addr.Port())
			}
			if got != want {
				t.Errorf("order %s, want %s", got, want)
			}
		}
		discard := slog.New(slog.DiscardHandler)
		f("0123")
		all[1].suspect()
		f("0231")
		time.Sleep(time.Second)
		all[0].suspect()
		f("2310")
		all[2].penalize(discard, DialSlower)
		f("3102")
		time.Sleep(suspectFor)
		f("0132") // the penalty stays until it is probed
		all[2].clearPenalties(discard)
		f("0123")
	})
}

// The turns are counted in 32 bits, of which all are in use after some weeks. Where int has
// 32 bits, the upper half of them is negative.
func TestPlainTurnsNeverEnd(t *testing.T) {
	p, err := NewPlain(Options{Name: "a", Protocol: UDP, Addresses: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53"), netip.MustParseAddrPort("127.0.0.2:53"), netip.MustParseAddrPort("127.0.0.3:53")}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, turn := range []uint32{0, 1 << 31, 1<<32 - 1} {
		p.next.Store(turn)
		for range 4 {
			if n := len(p.ordered()); n != 3 {
				t.Errorf("turn %d has %d servers", turn, n)
			}
		}
	}
}

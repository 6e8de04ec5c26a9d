package upstreams

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/upstreams/dottest"
)

// aUser is a networkUser that counts what it is told.
type aUser struct {
	told int
	port *port
}

func (u *aUser) portChanged() { u.told++ }

// newNetworkTest returns a Network with three users of a port, and its log.
func newNetworkTest() (n *Network, users map[byte]*aUser, log *bytes.Buffer) {
	log = new(bytes.Buffer)
	n = NewNetwork(slog.New(slog.NewTextHandler(log, nil)))
	users = make(map[byte]*aUser)
	for _, name := range []byte("abc") {
		u := new(aUser)
		u.port = n.join(u, DoT, netip.MustParseAddrPort("192.0.2.1:853"))
		users[name] = u
	}
	return n, users, log
}

// play has users see events: letters of the user and of the event, or the time until the
// next one.
func play(n *Network, users map[byte]*aUser, events string) {
	for e := range strings.FieldsSeq(events) {
		if pause, err := time.ParseDuration(e); err == nil {
			time.Sleep(pause)
			continue
		}
		if e == "changed" {
			n.Changed()
			continue
		}
		u := users[e[0]]
		loss := portLoss{port: u.port, at: time.Now(), sure: true}
		switch e[1:] {
		case ":lost":
			u.port.saw(portLost, u, loss, DoH)
		case ":reset":
			loss.failure = wasReset
			u.port.saw(portLost, u, loss, DoH)
		case ":mute":
			loss.failure, loss.sure = noAnswers, false
			u.port.saw(portLost, u, loss, DoH)
		case ":still":
			u.port.saw(portStillLost, u, loss, "")
		case ":answered":
			u.port.saw(portAnswered, u, portLoss{}, "")
		default:
			panic(e)
		}
	}
}

func TestStatesOfAPort(t *testing.T) {
	f := func(events string, want portState, warnings, told int) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			n, users, log := newNetworkTest()
			play(n, users, events)
			p := users['a'].port
			if got := strings.Count(log.String(), "is blocked on"); p.state != want || got != warnings || users['c'].told != told {
				t.Errorf("%s: state %d, %d warnings, told %d times", events, p.state, got, users['c'].told)
			}
			if blocked := n.String() != ""; blocked != (want == portBlocked) || blocked != (p.blockedAt() != nil) {
				t.Errorf("%s: %q", events, n)
			}
			if p.logged != (strings.Count(log.String(), "not blocked") < warnings) {
				t.Errorf("%s: the log has\n%s", events, log)
			}
		})
	}
	f("", portOpen, 0, 0)
	f("a:lost", portDoubted, 0, 0)
	f("a:lost a:lost", portDoubted, 0, 0)
	f("a:lost b:lost", portBlocked, 1, 1)
	f("a:lost 900ms b:lost 5s c:lost", portBlocked, 1, 1)
	f("a:lost 1100ms b:lost", portDoubted, 0, 0)
	f("a:lost b:reset", portDoubted, 0, 0)
	f("a:reset b:reset", portBlocked, 1, 1)
	f("a:lost a:answered b:lost", portDoubted, 0, 0)
	f("a:lost a:answered", portOpen, 0, 0)
	// What failed before is no failure of now.
	f("a:still b:still", portOpen, 0, 0)
	// A connection without answers is looked at before anything is logged.
	f("a:mute b:mute", portBlocked, 0, 1)
	f("a:mute b:mute 1s a:still", portBlocked, 1, 1)
	f("a:mute b:mute 50ms b:answered", portOpen, 0, 2)
	f("a:mute b:lost", portBlocked, 1, 1)
	f("a:lost b:lost 1m c:answered", portOpen, 1, 2)
	f("a:lost b:lost 1m c:answered a:still b:still", portOpen, 1, 2)
	f("a:lost b:lost 1m c:answered 1m a:lost b:lost", portBlocked, 2, 3)
	// A change of the network is forgotten if nothing else has changed.
	f("a:lost b:lost 1m changed", portChanged, 1, 2)
	f("a:lost b:lost 1m changed a:still", portChanged, 1, 2)
	f("a:lost b:lost 1m changed a:still 20ms b:still", portBlocked, 1, 3)
	f("a:lost b:lost 1m changed a:answered", portOpen, 1, 2)
	f("a:lost changed b:lost", portDoubted, 0, 0)
}

func TestTheNetworkIsDescribed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, users, log := newNetworkTest()
		began := time.Now()
		play(n, users, "a:reset 200ms b:reset 10s c:still")
		want := fmt.Sprintf("tcp/853 is blocked on this network since %s (no SYN-ACK at 3 of 3 upstreams); using DoH", began.Format("15:04"))
		if got := n.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if !strings.Contains(log.String(), `level=WARN msg="tcp/853 is blocked on this network" reason="reset at 2 of 3 upstreams" using=DoH`) {
			t.Error(log)
		}
		err := n.explain(&failure{DialTimedOut, fmt.Errorf("no connection within 1s")})
		if want, _, _ = strings.Cut(want, "; using"); err.Error() != want+"; no connection within 1s" || OutcomeOf(err) != DialTimedOut {
			t.Errorf("explained as %q", err)
		}
		for _, u := range users {
			u.port = n.join(u, DoQ, netip.MustParseAddrPort("192.0.2.1:853"))
		}
		play(n, users, "a:lost b:lost")
		if got := n.String(); !strings.Contains(got, "; udp/853 is blocked on this network") || !strings.Contains(got, "(no reply at 2 of 3 upstreams)") {
			t.Errorf("got %q", got)
		}
		for _, u := range users {
			n.leave(u)
		}
		if len(n.ports) > 0 {
			t.Error("ports are left")
		}
	})
}

// Whatever two upstreams see at once, the last event decides.
func TestANetworkOfTwoGoroutines(t *testing.T) {
	t.Parallel()
	n := NewNetwork(slog.New(slog.DiscardHandler))
	users := []*countingUser{{}, {}}
	for _, u := range users {
		u.port = n.join(u, DoT, netip.MustParseAddrPort("192.0.2.1:853"))
	}
	var both sync.WaitGroup
	for _, u := range users {
		both.Go(func() {
			for range 2000 {
				u.port.saw(portLost, u, portLoss{port: u.port, at: time.Now(), sure: true}, DoH)
				u.port.saw(portAnswered, u, portLoss{}, "")
			}
		})
	}
	both.Wait()
	if p := users[0].port; p.state != portOpen || p.blockedAt() != nil || len(p.losses) > 0 || n.String() != "" {
		t.Errorf("state %d, %d losses, %q", p.state, len(p.losses), n)
	}
	for _, u := range users { // each change was told to both
		if u.blocked != u.open {
			t.Errorf("blocked %d times, open %d times", u.blocked, u.open)
		}
	}
}

// A countingUser counts the states that it finds when it is told of one.
type countingUser struct {
	mu            sync.Mutex
	port          *port
	last          bool
	blocked, open int
}

func (u *countingUser) portChanged() {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := u.port.blockedAt() != nil
	if now == u.last {
		return
	}
	u.last = now
	if now {
		u.blocked++
	} else {
		u.open++
	}
}

// providers returns three upstreams of one network, each over TLS and over HTTPS.
func providers(t *testing.T, log *slog.Logger) (dots [3]*dottest.Server, dohs [3]*dottest.HTTPSServer, all [3]*Upstream, n *Network) {
	t.Helper()
	n = NewNetwork(log)
	port := uint16(0)
	for i := range all {
		ca := dottest.NewCA()
		addr := netip.AddrPortFrom(dottest.Loopback(), port)
		dots[i] = dottest.NewServer(t, dottest.Options{Addr: addr.String(), CA: ca, RTT: 5 * time.Millisecond})
		port = dots[i].Addr().Port() // of all
		dohs[i] = dottest.NewHTTPSServer(t, dottest.HTTPSOptions{
			Certificate: ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}}), RTT: 5 * time.Millisecond,
		})
		o := trusting(t, dots[i])
		o.DoHAddresses, o.Network = []netip.AddrPort{dohs[i].Addr()}, n
		all[i] = open(t, o)
		if err := ask(all[i], "before.example.com"); err != nil {
			t.Fatal(err)
		}
	}
	return dots, dohs, all, n
}

// What two upstreams have found out costs the third one nothing, and all return as soon as
// one of them can.
func TestABlockedPortIsLeftByAll(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	dots, dohs, all, n := providers(t, slog.New(slog.NewTextHandler(&log, nil)))
	for _, dot := range dots {
		dot.Blackhole()
		dot.FreezeConnections()
	}
	var asking sync.WaitGroup
	for _, u := range all[:2] {
		asking.Go(func() {
			if err := ask(u, "during.example.com"); err != nil {
				t.Error(err)
			}
		})
	}
	asking.Wait()
	eventually(t, "the third one leaves port 853", func() bool { return dohs[2].Connections() == 1 })
	time.Sleep(100 * time.Millisecond) // for the handshake
	began := time.Now()
	if err := ask(all[2], "third.example.com"); err != nil || dohs[2].Requests() != 1 || time.Since(began) > 200*time.Millisecond {
		t.Errorf("%v after %v, %d over HTTPS", err, time.Since(began), dohs[2].Requests())
	}
	eventually(t, "the reason", func() bool { return strings.Contains(n.String(), "(no SYN-ACK at ") })
	eventually(t, "the log", func() bool {
		return strings.Count(log.String(), fmt.Sprintf("tcp/%d is blocked on", dots[0].Addr().Port())) == 1
	})
	for _, dot := range dots {
		dot.Restart()
	}
	eventually(t, "the way back", func() bool {
		for _, u := range all {
			if err := ask(u, "later.example.com"); err != nil {
				t.Error(err)
			}
		}
		return n.String() == ""
	})
	time.Sleep(200 * time.Millisecond) // for the handshakes of the others
	for i, u := range all {
		before := dohs[i].Requests()
		if err := ask(u, "after.example.com"); err != nil || dohs[i].Requests() > before {
			t.Errorf("%v; upstream %d was asked over HTTPS", err, i)
		}
	}
}

// After a change of the network, all try the better transport at once, and errors no longer
// speak of the former one.
func TestAChangeOfTheNetworkIsTheWayBack(t *testing.T) {
	t.Parallel()
	dots, dohs, all, n := providers(t, slog.New(slog.DiscardHandler))
	for _, dot := range dots {
		dot.Stop()
		dot.CloseConnections(dottest.RST)
	}
	for _, u := range all {
		if err := ask(u, "during.example.com"); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "the reason", func() bool { return strings.Contains(n.String(), "(reset at ") })
	for _, dot := range dots {
		dot.Restart()
	}
	began := time.Now()
	n.Changed()
	if n.String() != "" {
		t.Errorf("%q", n)
	}
	eventually(t, "the way back", func() bool {
		back := 0
		for i, u := range all {
			before := dohs[i].Requests()
			if err := ask(u, "after.example.com"); err != nil {
				t.Error(err)
			}
			if dohs[i].Requests() == before {
				back++
			}
		}
		return back == len(all)
	})
	if took := time.Since(began); took > climbInterval/2 {
		t.Errorf("took %v", took)
	}
}

// A lockedBuffer is a buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

package gateway

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

// explainedError has an EDE of its own.
type explainedError struct{}

func (explainedError) Error() string { return "filtered" }
func (explainedError) EDE() wire.EDE { return wire.EDE{Code: wire.EDEProhibited, Text: "not here"} }

func TestFailureIsServfailWithReason(t *testing.T) {
	fail := func(err error) resolver {
		return func(context.Context, wire.Query) (wire.Answer, error) { return wire.Answer{}, err }
	}
	for name, test := range map[string]struct {
		resolver Resolver
		outcome  Outcome
		code     wire.EDECode
		text     string
	}{
		"error":     {fail(errTest), Failed, wire.EDENoReachable, "no upstream answered"},
		"explained": {fail(fmt.Errorf("asked: %w", explainedError{})), Failed, wire.EDEProhibited, "not here"},
		"nothing":   {fail(nil), Failed, wire.EDENoReachable, "no upstream answered"},
		"silence":   {silent, TimedOut, wire.EDENoReachable, "no upstream answered in time"},
		"panic":     {crashing{}, Crashed, wire.EDEOther, "internal error"},
	} {
		t.Run(name, func(t *testing.T) {
			eachTransport(t, func(t *testing.T, network string) {
				g, stop := start(t, test.resolver, Options{Timeout: 50 * time.Millisecond})
				c := dial(t, network, g.Addrs()[0])
				m := withEDNS(query("example.com."), 1232)
				reply := exchange(t, c, m)
				code, text := edeOf(reply)
				if reply.Rcode != dns.RcodeServerFailure || reply.Id != m.Id || code != int(test.code) || text != test.text {
					t.Errorf("got %v", reply)
				}
				if bare := exchange(t, c, query("example.com.")); bare.Rcode != dns.RcodeServerFailure || bare.IsEdns0() != nil {
					t.Errorf("without EDNS: %v", bare)
				}
				c.Close()
				stop()
				if n := g.Counts().Outcomes[test.outcome].Total(); n != 2 {
					t.Errorf("counts %d %v, want 2", n, test.outcome)
				}
			})
		})
	}
}

// detailedError has a text for trusted clients.
type detailedError struct{ explainedError }

func (detailedError) Detail() string { return "quad9: no TLS handshake within 1s" }

func TestOnlyTrustedClientsGetTheFailedUpstream(t *testing.T) {
	t.Parallel()
	r := resolver(func(context.Context, wire.Query) (wire.Answer, error) { return wire.Answer{}, detailedError{} })
	f := func(trusted []netip.Prefix, want string) {
		t.Helper()
		eachTransport(t, func(t *testing.T, network string) {
			g, _ := start(t, r, Options{Trusted: trusted})
			reply := exchange(t, dial(t, network, g.Addrs()[0]), withEDNS(query("example.com."), 1232))
			if code, text := edeOf(reply); code != int(wire.EDEProhibited) || text != want {
				t.Errorf("trusted %v: got EDE %d (%s)", trusted, code, text)
			}
		})
	}
	f(nil, "quad9: no TLS handshake within 1s") // this host is trusted by default
	f([]netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, "quad9: no TLS handshake within 1s")
	f([]netip.Prefix{}, "not here")
	f([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, "not here")
}

func TestPanicIsLoggedOnceWithItsStack(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	var mu sync.Mutex
	g, stop := start(t, crashing{},
		Options{Log: slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return log.Write(p)
		}), nil))})
	c := dial(t, "udp", g.Addrs()[0])
	for range 3 {
		exchange(t, c, query("example.com."))
	}
	stop()
	text := log.String()
	if strings.Count(text, "oops") != 1 || !strings.Contains(text, "crashing.Ask") {
		t.Errorf("logged: %s", text)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestTooManyQueriesAreRefusedAtOnce(t *testing.T) {
	eachTransport(t, func(t *testing.T, network string) {
		asked := make(chan struct{}, 1)
		release := make(chan struct{})
		g, stop := start(t, resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
			asked <- struct{}{}
			<-release
			return addressed(ctx, q)
		}), Options{MaxQueries: 1, Cache: newCache(t, nil)})
		first, second := dial(t, network, g.Addrs()[0]), dial(t, network, g.Addrs()[0])
		sendQuery(t, first, query("example.com."))
		<-asked
		reply := exchange(t, second, withEDNS(query("example.org."), 1232))
		if _, text := edeOf(reply); reply.Rcode != dns.RcodeServerFailure || text == "" {
			t.Errorf("got %v", reply)
		}
		close(release)
		if reply := receive(t, first); len(reply.Answer) != 1 {
			t.Errorf("got %v", reply)
		}
		// That there was no room is not remembered.
		for deadline := time.Now().Add(patience); g.Counts().InProgress > 0 && time.Now().Before(deadline); {
			runtime.Gosched()
		}
		if reply := exchange(t, second, query("example.org.")); len(reply.Answer) != 1 {
			t.Errorf("once there is room, got %v", reply)
		}
		first.Close()
		second.Close()
		stop()
		if n := g.Counts().Outcomes[Overload].Total(); n != 1 {
			t.Errorf("overload %d", n)
		}
	})
}

// packed returns m's bytes, edited.
func packed(m *dns.Msg, edit func([]byte) []byte) []byte {
	packet, err := m.Pack()
	if err != nil {
		panic(err)
	}
	if edit != nil {
		packet = edit(packet)
	}
	return packet
}

// unwanted are packets that are not for the Resolver. A negative code means
// that silence is due.
var unwanted = map[string]struct {
	packet  []byte
	rcode   int
	outcome Outcome
}{
	"empty":       {nil, -1, IgnoredShort},
	"short":       {[]byte("hello"), -1, IgnoredShort},
	"response":    {packed(query("example.com."), func(p []byte) []byte { p[2] |= 0x80; return p }), -1, IgnoredResponse},
	"notify":      {packed(new(dns.Msg).SetNotify("example.com."), nil), dns.RcodeNotImplemented, RefusedOpcode},
	"no question": {packed(&dns.Msg{}, nil), dns.RcodeFormatError, RefusedMalformed},
	"garbage":     {packed(query("example.com."), func(p []byte) []byte { return append(p, 1, 2, 3) }), dns.RcodeFormatError, RefusedMalformed},
	"transfer":    {packed(new(dns.Msg).SetAxfr("example.com."), nil), dns.RcodeRefused, RefusedPolicy},
	"chaos": {packed(&dns.Msg{Question: []dns.Question{{Name: "version.bind.", Qtype: dns.TypeTXT, Qclass: dns.ClassCHAOS}}}, nil),
		dns.RcodeRefused, RefusedPolicy},
	"version": {packed(withEDNS(query("example.com."), 1232), func(p []byte) []byte { p[len(p)-5] = 1; return p }),
		dns.RcodeBadVers, RefusedVersion},
}

func TestUnwantedPacketsOverUDP(t *testing.T) {
	for name, test := range unwanted {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, stop := start(t, addressed, Options{})
			c := dial(t, "udp", g.Addrs()[0])
			if _, err := c.Write(test.packet); err != nil {
				t.Fatal(err)
			}
			if test.rcode >= 0 {
				if reply := receive(t, c); reply.Rcode != test.rcode || reply.Id != wire.ID(test.packet) || !reply.Response {
					t.Errorf("got %v", reply)
				}
			}
			// What is ignored has no reply: the next one is for the next query.
			m := query("example.org.")
			if reply := exchange(t, c, m); reply.Id != m.Id || len(reply.Answer) != 1 {
				t.Errorf("afterwards got %v", reply)
			}
			stop()
			if n := g.Counts().Outcomes[test.outcome][wire.UDP]; n != 1 {
				t.Errorf("%v: %d", test.outcome, n)
			}
		})
	}
}

func TestUnwantedMessagesOverTCP(t *testing.T) {
	for name, test := range unwanted {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, stop := start(t, addressed, Options{})
			c := dial(t, "tcp", g.Addrs()[0])
			// The query before it must be answered even if the connection ends.
			before := query("example.org.")
			if _, err := c.Write(append(framed(packed(before, nil)), framed(test.packet)...)); err != nil {
				t.Fatal(err)
			}
			want := map[uint16]int{before.Id: dns.RcodeSuccess}
			if test.rcode >= 0 {
				want[wire.ID(test.packet)] = test.rcode
			}
			for len(want) > 0 {
				reply := receive(t, c)
				if rcode, ok := want[reply.Id]; !ok || rcode != reply.Rcode {
					t.Errorf("got %v", reply)
				}
				delete(want, reply.Id)
			}
			if test.rcode < 0 {
				expectEOF(t, c)
			} else if m := query("example.org."); exchange(t, c, m).Id != m.Id {
				t.Error("wrong ID afterwards")
			}
			c.Close()
			stop()
			if n := g.Counts().Outcomes[test.outcome][wire.TCP]; n != 1 {
				t.Errorf("%v: %d", test.outcome, n)
			}
		})
	}
}

func TestTryAnswerDoesNotAllocate(t *testing.T) {
	g, err := New(addressed, Options{})
	if err != nil {
		t.Fatal(err)
	}
	buffer, from := make([]byte, 0, wire.MaxUDPSize), localClient(g, new(counters))
	wanted := packed(withEDNS(query("example.com."), 1232), nil)
	for name, packet := range map[string][]byte{
		"ignored": unwanted["response"].packet,
		"refused": unwanted["chaos"].packet,
		"wanted":  wanted,
	} {
		if n := testing.AllocsPerRun(100, func() {
			if _, _, next := g.tryAnswer(buffer, packet, from); next == ask {
				g.slots.release()
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestOutcomesHaveDifferentNames(t *testing.T) {
	seen := make(map[string]bool)
	for o := range Outcome(outcomes) {
		if name := o.String(); name == "" || seen[name] {
			t.Errorf("outcome %d is called %q", o, name)
		} else {
			seen[name] = true
		}
	}
	if got := Outcome(200).String(); got != "Outcome(200)" {
		t.Error(got)
	}
}

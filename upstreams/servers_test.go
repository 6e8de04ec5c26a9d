package upstreams_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
	"dotgate/upstreams"
	"dotgate/upstreams/dottest"
)

func TestPlainTCPCarriesManyQueriesOnAConnection(t *testing.T) {
	t.Parallel()
	s := startPlain(t, func(_ string, m *dns.Msg) []*dns.Msg {
		time.Sleep(20 * time.Millisecond) // an answer takes that long
		return []*dns.Msg{addressed(m)}
	})
	p := newPlain(t, upstreams.TCP, s.addr)
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			if _, err := askPlain(t, p, fmt.Sprintf("n%d.example.com", i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) > 4 {
		t.Errorf("100 queries had %d connections", len(s.conns))
	}
	for _, m := range s.seen {
		if opt := m.IsEdns0(); opt == nil || len(opt.Option) > 0 {
			t.Fatalf("asked %v", m) // nothing to pad: RFC 7830 section 6
		}
	}
}

// Servers without EDNS answer in one of two ways (RFC 6891 section 7), or send the
// query back with an error.
func TestServersWithoutEDNSAreAskedWithoutIt(t *testing.T) {
	t.Parallel()
	f := func(protocol string, rcode int, echo bool) {
		t.Helper()
		atBest(t, func() error {
			s := startPlain(t, func(_ string, m *dns.Msg) []*dns.Msg {
				if m.IsEdns0() == nil {
					return []*dns.Msg{addressed(m)}
				}
				reply := new(dns.Msg).SetRcode(m, rcode)
				if echo {
					reply.Extra = m.Extra
				}
				return []*dns.Msg{reply}
			})
			p := newPlain(t, protocol, s.addr)
			for i := range 3 {
				mustAskPlain(t, p, fmt.Sprintf("n%d.example.com", i))
			}
			if got, want := s.way(), strings.TrimSuffix(strings.Repeat(protocol+" ", 4), " "); got != want {
				return fmt.Errorf("3 queries were sent as %q, want %q", got, want)
			}
			if got := p.History().Addresses[0].Without; got != "edns" {
				return fmt.Errorf("shown is %q", got)
			}
			return nil
		})
	}
	for _, protocol := range []string{upstreams.UDP, upstreams.TCP} {
		f(protocol, dns.RcodeFormatError, false)
		f(protocol, dns.RcodeFormatError, true)
		f(protocol, dns.RcodeNotImplemented, false)
	}
}

// From an error that is not about EDNS, nothing is learnt.
func TestOtherErrorsAreNotTakenForALackOfEDNS(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{upstreams.UDP, upstreams.TCP} {
		s := startPlain(t, func(_ string, m *dns.Msg) []*dns.Msg {
			if strings.HasPrefix(m.Question[0].Name, "n") || strings.HasPrefix(m.Question[0].Name, "N") {
				return []*dns.Msg{new(dns.Msg).SetRcode(m, dns.RcodeNotImplemented)}
			}
			return []*dns.Msg{addressed(m)}
		})
		p := newPlain(t, protocol, s.addr)
		if a, err := askPlain(t, p, "n.example.com"); err != nil || a.RCode() != wire.NotImp {
			t.Errorf("%s: got %v, %v", protocol, a, err)
		}
		mustAskPlain(t, p, "www.example.com")
		if got := p.History().Addresses[0].Without; got != "" {
			t.Errorf("%s: shown is %q", protocol, got)
		}
	}
}

func folded(m *dns.Msg) *dns.Msg {
	reply := addressed(m)
	reply.Question[0].Name = strings.ToLower(reply.Question[0].Name)
	return reply
}

func TestServersThatDoNotKeepTheCaseOfLettersAreLearnt(t *testing.T) {
	t.Parallel()
	f := func(name string, tcp bool, want string, handle func(network string, m *dns.Msg, queries int32) *dns.Msg) {
		t.Helper()
		atBest(t, func() error {
			var queries atomic.Int32
			s := startPlain(t, func(network string, m *dns.Msg) []*dns.Msg {
				return []*dns.Msg{handle(network, m, queries.Add(1))}
			})
			if !tcp {
				s.tcp()
			}
			p := newPlain(t, upstreams.UDP, s.addr)
			for range 3 {
				mustAskPlain(t, p, longName)
			}
			if got := s.way(); got != want {
				return fmt.Errorf("%s: 3 queries were sent as %q, want %q", name, got, want)
			}
			learnt := p.History().Addresses[0].Without == "case"
			s.mu.Lock()
			defer s.mu.Unlock()
			if last := s.seen[len(s.seen)-1].Question[0].Name; learnt != (last == longName+".") {
				return fmt.Errorf("%s: learnt %v, and asked for %s", name, learnt, last)
			}
			return nil
		})
	}
	once := func(_ string, m *dns.Msg, queries int32) *dns.Msg {
		if queries == 1 {
			return folded(m)
		}
		return addressed(m)
	}
	always := func(_ string, m *dns.Msg, _ int32) *dns.Msg { return folded(m) }
	f("TCP confirms it", true, "udp tcp udp udp", always)
	f("no TCP", false, "udp udp udp udp udp", always)
	f("all is well", true, "udp udp udp", func(_ string, m *dns.Msg, _ int32) *dns.Msg { return addressed(m) })
	f("one that may be forged", true, "udp tcp udp udp", once)
	f("one that may be forged, no TCP", false, "udp udp udp udp", once)
}

// After a response that is well-formed and to the question, but not valid, no other one is
// waited for.
func TestAfterAnInvalidAnswerNoOtherIsWaitedFor(t *testing.T) {
	t.Parallel()
	foreign := func(m *dns.Msg) *dns.Msg {
		reply := addressed(m)
		for range 40 {
			rr, err := dns.NewRR("www.example.org. 60 IN A 192.0.2.66")
			if err != nil {
				panic(err)
			}
			reply.Answer = append(reply.Answer, rr)
		}
		loop, err := dns.NewRR(m.Question[0].Name + " 60 IN CNAME a.example.org.")
		if err != nil {
			panic(err)
		}
		reply.Answer[0] = loop
		return reply
	}
	bad := startPlain(t, func(network string, m *dns.Msg) []*dns.Msg { return []*dns.Msg{foreign(m)} })
	began := time.Now()
	p := newPlain(t, upstreams.UDP, bad.addr)
	a, err := askPlain(t, p, longName)
	if took := time.Since(began); took > 3*time.Second { // it would be waited for for 4 s
		t.Errorf("%v, %v after %v", a, err, took)
	}
	if err != nil && p.Counts().OutOfBailiwick == 0 {
		t.Error("it is not counted")
	}
	half := startPlain(t, func(network string, m *dns.Msg) []*dns.Msg {
		if network == "udp" {
			reply := addressed(m)
			reply.Answer[0].Header().Rdlength = 3
			reply.Answer = append(reply.Answer, &dns.RFC3597{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: 1, Ttl: 1}, Rdata: "0000"})
			return []*dns.Msg{reply} // an address of two octets
		}
		return []*dns.Msg{addressed(m)}
	})
	atBest(t, func() error {
		before := half.way()
		mustAskPlain(t, newPlain(t, upstreams.UDP, half.addr), longName)
		if got := strings.TrimSpace(strings.TrimPrefix(half.way(), before)); got != "udp tcp" {
			return fmt.Errorf("asked over %s", got)
		}
		return nil
	})
}

// One dead address of several delays few queries, and is shown.
func TestADeadAddressOfAPlainServerIsAvoided(t *testing.T) {
	t.Parallel()
	var dead atomic.Bool
	dead.Store(true)
	first := startPlain(t, func(_ string, m *dns.Msg) []*dns.Msg {
		if dead.Load() {
			return nil
		}
		return []*dns.Msg{addressed(m)}
	})
	second := startPlain(t, honest)
	p := newPlain(t, upstreams.UDP, first.addr, second.addr)
	for i := range 20 {
		mustAskPlain(t, p, fmt.Sprintf("n%d.example.com", i))
	}
	if n := len(strings.Fields(first.way())); n > 3 {
		t.Errorf("the dead one was sent %d of 20 queries", n)
	}
	avoided := func() bool { return !p.History().Addresses[0].Avoided.IsZero() }
	if !avoided() || !p.History().Addresses[1].Avoided.IsZero() {
		t.Errorf("got %+v", p.History().Addresses)
	}
	dead.Store(false)
	p.NetworkChanged() // ends the pause
	deadline := time.Now().Add(30 * time.Second)
	for avoided() && time.Now().Before(deadline) {
		mustAskPlain(t, p, "again.example.com")
	}
	if avoided() {
		t.Error("it works, and is avoided")
	}
}

func TestAClosedPortIsFollowedByTheNextAddressAtOnce(t *testing.T) {
	t.Parallel()
	gone := netip.AddrPortFrom(dottest.Loopback(), 9)
	s := startPlain(t, honest)
	p := newPlain(t, upstreams.UDP, gone, s.addr)
	for range 5 {
		atBest(t, func() error {
			began := time.Now()
			mustAskPlain(t, p, longName)
			if took := time.Since(began); took > 250*time.Millisecond {
				return fmt.Errorf("took %v", took)
			}
			return nil
		})
	}
}

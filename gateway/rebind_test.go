package gateway

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

// RFC 8914 section 4.16 (Blocked).
func TestPrivateAddressesStayOutOfPublicNames(t *testing.T) {
	t.Parallel()
	private := resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
		if strings.HasPrefix(nameOf(q), "public.") {
			return answer(q, record("%s 60 IN A 192.0.2.1", nameOf(q)))
		}
		return answer(q, record("%s 60 IN A 10.0.0.1", nameOf(q)))
	})
	f := func(o Options, name, want string) {
		t.Helper()
		o.Cache = newCache(t, nil)
		g, _ := start(t, private, o)
		for range 2 { // and from the cache
			reply := exchange(t, dial(t, "udp", g.Addrs()[0]), withEDNS(query(name), 1232))
			code, _ := edeOf(reply)
			got := dns.RcodeToString[reply.Rcode]
			if code == 15 {
				got += " blocked"
			}
			if len(reply.Answer) > 0 {
				got += " " + dns.TypeToString[reply.Answer[0].Header().Rrtype]
			}
			if got != want {
				t.Errorf("%s: got %s, want %s", name, got, want)
			}
		}
	}
	f(Options{}, "evil.example.com.", "NOERROR A")
	f(Options{BlockPrivate: true}, "evil.example.com.", "NOERROR blocked")
	f(Options{BlockPrivate: true}, "public.example.com.", "NOERROR A")
	f(Options{BlockPrivate: true, AllowPrivate: []string{"plex.direct", "Example.com"}}, "evil.example.com.", "NOERROR A")
	f(Options{BlockPrivate: true, AllowPrivate: []string{"*.example.com"}}, "evil.example.com.", "NOERROR A")
	f(Options{BlockPrivate: true, AllowPrivate: []string{"*.example.com"}}, "example.com.", "NOERROR blocked")
	f(Options{BlockPrivate: true, AllowPrivate: []string{"ample.com"}}, "evil.example.com.", "NOERROR blocked")
}

// Private addresses in the additional section are removed by their own names, and the answer
// stays.
func TestPrivateAdditionalAddressesAreRemoved(t *testing.T) {
	t.Parallel()
	servers := resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
		var m, r dns.Msg
		if err := m.Unpack(q.AppendUpstream(nil, 1)); err != nil {
			return wire.Answer{}, err
		}
		r.SetReply(&m)
		for _, host := range []string{"mail.example.com.", "mail.lan.example."} {
			r.Answer = append(r.Answer, record("%s 60 IN MX 10 %s", nameOf(q), host))
			r.Extra = append(r.Extra, record("%s 60 IN A 10.0.0.1", host), record("%s 60 IN A 192.0.2.1", host))
		}
		packet, err := r.Pack()
		if err != nil {
			return wire.Answer{}, err
		}
		return wire.ParseAnswer(q, packet)
	})
	g, _ := start(t, servers, Options{Cache: newCache(t, nil), BlockPrivate: true, AllowPrivate: []string{"lan.example"}})
	ask := query("example.com.")
	ask.Question[0].Qtype = dns.TypeMX
	for range 2 { // and from the cache
		reply := exchange(t, dial(t, "udp", g.Addrs()[0]), ask)
		if len(reply.Answer) != 2 || len(reply.Extra) != 3 || strings.Count(reply.String(), "mail.example.com.\t60\tIN\tA\t192.0.2.1") != 1 {
			t.Errorf("got %v", reply)
		}
	}
}

// RFC 7871 section 7.
func TestClientSubnets(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	located := resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
		asked.Add(1)
		var m, r dns.Msg
		if err := m.Unpack(q.AppendUpstream(nil, 1)); err != nil {
			return wire.Answer{}, err
		}
		seen := "nothing"
		r.SetReply(&m)
		for _, o := range m.IsEdns0().Option {
			if subnet, ok := o.(*dns.EDNS0_SUBNET); ok {
				seen = subnet.String()
				subnet.SourceScope = 20
				r.SetEdns0(1232, false).IsEdns0().Option = []dns.EDNS0{subnet}
			}
		}
		r.Answer = []dns.RR{record("%s 60 IN TXT %s", nameOf(q), seen)}
		packet, err := r.Pack()
		if err != nil {
			return wire.Answer{}, err
		}
		return wire.ParseAnswer(q, packet)
	})
	text := func() *dns.Msg {
		m := query("www.example.com.")
		m.Question[0].Qtype = dns.TypeTXT
		return m
	}
	withSubnet := func(bits uint8, addr string) *dns.Msg {
		m := withEDNS(text(), 1232)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: bits, Address: net.ParseIP(addr)}}
		return m
	}
	f := func(ecs string, wantAsked int64, want ...string) {
		t.Helper()
		g, _ := start(t, located, Options{ECS: ecs, Cache: newCache(t, nil)})
		c := dial(t, "udp", g.Addrs()[0])
		before := asked.Load()
		for i, m := range []*dns.Msg{withSubnet(24, "192.0.2.0"), withSubnet(24, "198.51.100.0"), text(), withSubnet(0, "0.0.0.0")} {
			reply := exchange(t, c, m)
			got := reply.Answer[0].(*dns.TXT).Txt[0]
			if opt := reply.IsEdns0(); opt != nil && len(opt.Option) > 0 {
				got += ", told " + opt.Option[0].String()
			}
			if got != want[i] {
				t.Errorf("%s: query %d: got %s, want %s", ecs, i, got, want[i])
			}
		}
		if n := asked.Load() - before; n != wantAsked {
			t.Errorf("%s: asked %d times, want %d", ecs, n, wantAsked)
		}
	}
	f("strip", 1, "nothing", "nothing", "nothing", "nothing")
	f("203.0.113.0/24", 1, "203.0.113.0/24/0", "203.0.113.0/24/0", "203.0.113.0/24/0", "203.0.113.0/24/0")
	f("forward", 3, "192.0.2.0/24/0, told 192.0.2.0/24/20", "198.51.100.0/24/0, told 198.51.100.0/24/20", "nothing", "nothing")
	for ecs, ok := range map[string]bool{"strip": true, "forward": true, "192.0.2.0/24": true, "2001:db8::/56": true, "192.0.2.1/24": false, "yes": false, "192.0.2.1": false} {
		if _, err := New(located, Options{ECS: ecs}); (err == nil) != ok {
			t.Errorf("%s: %v", ecs, err)
		}
	}
	// A malformed option matters only if it is read.
	malformed := withEDNS(query("www.example.com."), 1232)
	malformed.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: dns.EDNS0SUBNET, Data: []byte{0, 9}}}
	for ecs, want := range map[string]int{"strip": dns.RcodeSuccess, "forward": dns.RcodeFormatError} {
		g, _ := start(t, located, Options{ECS: ecs})
		if reply := exchange(t, dial(t, "tcp", g.Addrs()[0]), malformed); reply.Rcode != want {
			t.Errorf("%s: got %v", ecs, reply)
		}
	}
}

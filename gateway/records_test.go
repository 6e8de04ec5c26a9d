package gateway

import (
	"context"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

// show returns what a reply says, in a line.
func showReply(m *dns.Msg) string {
	words := []string{dns.RcodeToString[m.Rcode]}
	if m.Truncated {
		words = append(words, "TC")
	}
	for _, rr := range m.Answer {
		words = append(words, strings.Join(strings.Fields(rr.String())[2:], " "))
	}
	for _, rr := range m.Ns {
		words = append(words, "("+rr.Header().Name+" "+dns.TypeToString[rr.Header().Rrtype]+")")
	}
	return strings.Join(words, " ")
}

func TestSpecialNamesAreAnsweredHere(t *testing.T) {
	digest := strings.Repeat("00", 32) // of SHA-256
	asked := resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
		if q.Type() == wire.TypeDS {
			return answer(q, record("%s 60 IN DS 1 8 2 %s", nameOf(q), digest))
		}
		return answer(q, record("%s 60 IN TXT forwarded", nameOf(q)))
	})
	eachTransport(t, func(t *testing.T, network string) {
		g, _ := start(t, asked, Options{ForwardLocal: []string{"20.10.in-addr.arpa", "Home.arpa.", "31.172.in-addr.arpa", "*.test", "*.corp.local"}})
		c := dial(t, network, g.Addrs()[0])
		f := func(question, want string) {
			t.Helper()
			name, typ, _ := strings.Cut(question, " ")
			m := new(dns.Msg).SetQuestion(name, dns.StringToType[typ])
			reply := exchange(t, c, m)
			if got := showReply(reply); got != want {
				t.Errorf("%s: got %s, want %s", question, got, want)
			}
			if reply.Question[0] != m.Question[0] || reply.Authoritative || !reply.RecursionAvailable {
				t.Errorf("%s: got %v", question, reply)
			}
		}
		const forwarded = `NOERROR IN TXT "forwarded"`
		f("localhost. A", "NOERROR IN A 127.0.0.1") // RFC 6761 section 6.3
		f("LocalHost. AAAA", "NOERROR IN AAAA ::1")
		f("a.b.localhost. A", "NOERROR IN A 127.0.0.1")
		f("localhost. MX", "NOERROR (localhost. SOA)")
		f("a.LOCALhost. TXT", "NOERROR (LOCALhost. SOA)")
		f("invalid. A", "NOERROR (invalid. SOA)") // section 6.4
		f("a.invalid. A", "NXDOMAIN (invalid. SOA)")
		f("a.b.test. TXT", forwarded)         // section 6.2, but forwarded
		f("test. TXT", "NOERROR (test. SOA)") // a wildcard is for the names below
		f("www.corp.local. TXT", forwarded)
		f("corp.local. TXT", "NXDOMAIN (local. SOA)")
		f("a.onion. A", "NXDOMAIN (onion. SOA)")             // RFC 7686
		f("db.corp.internal. A", "NXDOMAIN (internal. SOA)") // ICANN
		f("internal. TXT", "NOERROR (internal. SOA)")
		f("a.alt. A", "NXDOMAIN (alt. SOA)") // RFC 9476
		f("printer.local. A", "NXDOMAIN (local. SOA)")
		f("_dns.resolver.arpa. SVCB", "NOERROR (resolver.arpa. SOA)") // RFC 9462 section 4
		f("resolver.arpa. A", "NOERROR (resolver.arpa. SOA)")
		f("ipv4only.arpa. A", "NOERROR IN A 192.0.0.170 IN A 192.0.0.171") // RFC 8880
		f("ipv4only.arpa. AAAA", "NOERROR (ipv4only.arpa. SOA)")
		f("1.2.0.10.in-addr.arpa. PTR", "NXDOMAIN (10.in-addr.arpa. SOA)") // RFC 6303
		f("1.1.168.192.in-addr.arpa. PTR", "NXDOMAIN (168.192.in-addr.arpa. SOA)")
		f("1.1.16.172.in-addr.arpa. PTR", "NXDOMAIN (16.172.in-addr.arpa. SOA)")
		f("1.1.127.100.in-addr.arpa. PTR", "NXDOMAIN (127.100.in-addr.arpa. SOA)") // RFC 7793
		f("1.0.0.127.in-addr.arpa. PTR", "NOERROR IN PTR localhost.")
		f("0.0.127.in-addr.arpa. PTR", "NOERROR (127.in-addr.arpa. SOA)") // a name is below it (RFC 8020)
		f("1."+strings.Repeat("0.", 31)+"ip6.arpa. PTR", "NOERROR IN PTR localhost.")
		f("1.0.0.0.d.f.ip6.arpa. PTR", "NXDOMAIN (d.f.ip6.arpa. SOA)")
		f("1.0.8.e.f.ip6.arpa. PTR", "NXDOMAIN (8.e.f.ip6.arpa. SOA)")
		// What is public, what only looks like it, and what is to be forwarded.
		f("example.com. TXT", forwarded)
		f(". TXT", forwarded)
		f("notlocalhost. TXT", forwarded)
		f("local.example.com. TXT", forwarded)
		f("1.1.15.172.in-addr.arpa. TXT", forwarded)
		f("1.1.32.172.in-addr.arpa. TXT", forwarded)
		f("arpa. TXT", forwarded)
		f("home.arpa. DS", "NOERROR IN DS 1 8 2 "+digest) // RFC 8375 section 4: for the zone above to prove
		f("test. DS", "NOERROR IN DS 1 8 2 "+digest)
		f("a.home.arpa. TXT", forwarded)
		f("1.1.20.10.in-addr.arpa. TXT", forwarded)
		f("1.1.21.10.in-addr.arpa. TXT", "NXDOMAIN (10.in-addr.arpa. SOA)")
		f("1.1.31.172.in-addr.arpa. TXT", forwarded)
		f("use-application-dns.net. TXT", forwarded)
	})
}

func TestNamesOfOneLabelAreAnsweredHere(t *testing.T) {
	asked := resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
		return q.OwnAnswer(wire.NXDomain, wire.EDE{}), nil
	})
	f := func(o Options, question, want string) {
		t.Helper()
		g, _ := start(t, asked, o)
		name, typ, _ := strings.Cut(question, " ")
		reply := exchange(t, dial(t, "udp", g.Addrs()[0]), new(dns.Msg).SetQuestion(name, dns.StringToType[typ]))
		if got := showReply(reply); got != want {
			t.Errorf("%s: got %s, want %s", question, got, want)
		}
	}
	on := Options{BlockSingleLabel: true}
	const here, there = "NOERROR (. SOA)", "NXDOMAIN"
	f(Options{}, "printer. A", there)
	for _, typ := range []string{"A", "AAAA", "HTTPS", "SVCB"} {
		f(on, "Printer. "+typ, here)
		f(on, "printer.example. "+typ, there)
	}
	// What resolvers ask of top-level domains is public.
	for _, question := range []string{"com. NS", "com. DS", "com. SOA", "com. DNSKEY", ". NS", ". A"} {
		f(on, question, there)
	}
	f(on, "localhost. A", "NOERROR IN A 127.0.0.1")
	f(Options{BlockSingleLabel: true, ForwardLocal: []string{"printer"}}, "printer. A", there)
}

func TestTheCanaryDomainOfBrowsers(t *testing.T) {
	g, _ := start(t, addressed, Options{NoApplicationDNS: true})
	reply := exchange(t, dial(t, "udp", g.Addrs()[0]), query("use-application-dns.net."))
	if got := showReply(reply); got != "NXDOMAIN (use-application-dns.net. SOA)" {
		t.Errorf("got %s", got)
	}
}

// RFC 8482.
func TestANYIsAnsweredMinimallyOverUDP(t *testing.T) {
	t.Parallel()
	g, _ := start(t, addressed, Options{})
	any := func() *dns.Msg { return new(dns.Msg).SetQuestion("example.com.", dns.TypeANY) }
	f := func(network string, m *dns.Msg, want string) {
		t.Helper()
		if got := showReply(exchange(t, dial(t, network, g.Addrs()[0]), m)); got != want {
			t.Errorf("%s: got %s, want %s", network, got, want)
		}
	}
	f("udp", any(), `NOERROR IN HINFO "RFC8482" ""`)
	f("udp", any().SetEdns0(1232, false), `NOERROR IN HINFO "RFC8482" ""`)
	f("udp", any().SetEdns0(1232, true), "NOERROR TC")
	f("tcp", any(), "NOERROR IN A 192.0.2.1")
	f("tcp", any().SetEdns0(1232, true), "NOERROR IN A 192.0.2.1")
}

// RFC 4892.
func TestCHAOSNamesHaveTheConfiguredTexts(t *testing.T) {
	t.Parallel()
	quiet, _ := start(t, addressed, Options{})
	open, _ := start(t, addressed, Options{Version: "dotgate", ID: "ns1", Hostname: strings.Repeat("h", 200)})
	f := func(g *Gateway, name string, qtype uint16, want string) {
		t.Helper()
		m := new(dns.Msg).SetQuestion(name, qtype)
		m.Question[0].Qclass = dns.ClassCHAOS
		for _, network := range []string{"udp", "tcp"} {
			if got := showReply(exchange(t, dial(t, network, g.Addrs()[0]), m)); got != want {
				t.Errorf("%s: got %s, want %s", name, got, want)
			}
		}
	}
	f(quiet, "version.bind.", dns.TypeTXT, "REFUSED")
	f(open, "Version.BIND.", dns.TypeTXT, `NOERROR CH TXT "dotgate"`)
	f(open, "version.server.", dns.TypeTXT, `NOERROR CH TXT "dotgate"`)
	f(open, "id.server.", dns.TypeTXT, `NOERROR CH TXT "ns1"`)
	f(open, "id.server.", dns.TypeANY, `NOERROR CH TXT "ns1"`)
	f(open, "hostname.bind.", dns.TypeTXT, `NOERROR CH TXT "`+strings.Repeat("h", 200)+`"`)
	f(open, "id.server.", dns.TypeA, "REFUSED")
	f(open, "authors.bind.", dns.TypeTXT, "REFUSED")
}

func TestLocalAnswersDoNotAllocate(t *testing.T) {
	g, err := New(addressed, Options{RateLimit: 1_000_000, RateBurst: 1_000_000, NSID: "ns1"})
	if err != nil {
		t.Fatal(err)
	}
	buffer, from := make([]byte, 0, wire.MaxUDPSize), localClient(g, new(counters))
	for _, m := range []*dns.Msg{
		query("localhost."), query("a.test."), withCookie(query("localhost."), "0011223344556677"),
		new(dns.Msg).SetQuestion("example.com.", dns.TypeANY),
	} {
		packet := packed(m, nil)
		if n := testing.AllocsPerRun(100, func() { g.tryAnswer(buffer, packet, from) }); n != 0 {
			t.Errorf("%s: %v allocations", m.Question[0].Name, n)
		}
	}
}

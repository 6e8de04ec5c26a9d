package gateway

import (
	"context"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/configs/secret"
	"dotgate/gateway/access"
	"dotgate/gateway/wire"
)

// dialFrom connects from an address of this host.
func dialFrom(t testing.TB, network, from string, to netip.AddrPort) net.Conn {
	t.Helper()
	local := net.Addr(&net.UDPAddr{IP: net.ParseIP(from)})
	if network == "tcp" {
		local = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	d := net.Dialer{LocalAddr: local, Timeout: patience}
	c, err := d.Dial(network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// replies sends packet to g n times, and returns the replies, and the octets of both.
// It waits until g has counted an outcome for each packet, however long that takes on
// a busy machine, and then reads until no further reply arrives. A hundred packets are
// sent at once, which any socket's buffer has room for.
func replies(t testing.TB, g *Gateway, c net.Conn, packet []byte, n int) (got []*dns.Msg, sent, received int) {
	t.Helper()
	settled := func() (total uint64) {
		for _, of := range g.Counts().Outcomes {
			total += of[wire.UDP]
		}
		return total
	}
	before := settled()
	want := before + uint64(n)
	c.SetDeadline(time.Time{})
	for i := range n {
		if i%100 == 0 {
			eventually(t, func() bool { return settled() >= before+uint64(i) })
		}
		if _, err := c.Write(packet); err != nil {
			t.Fatal(err)
		}
		sent += len(packet)
	}
	buffer := make([]byte, 4096)
	for limit := time.Now().Add(30 * time.Second); ; {
		done := settled() >= want || time.Now().After(limit)
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		size, err := c.Read(buffer)
		if err != nil && done {
			return got, sent, received
		}
		if err != nil {
			continue
		}
		received += size
		m := new(dns.Msg)
		if err := m.Unpack(buffer[:size]); err != nil {
			t.Fatal(err)
		}
		got = append(got, m)
	}
}

func TestWhichClientsAreServedByDefault(t *testing.T) {
	g, err := New(addressed, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f := func(addr string, want bool) {
		t.Helper()
		_, _, next := g.tryAnswer(nil, packed(query("example.com."), nil), clientAt(g, addr, new(counters)))
		if got := next == ask; got != want {
			t.Errorf("%s: got %t", addr, got)
		}
	}
	for _, addr := range []string{
		"127.0.0.1", "127.255.255.255", "::1", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.255.1",
		"169.254.1.1", "fe80::1", "fd00::1", "fc00::1", "::ffff:10.1.2.3",
	} {
		f(addr, true)
	}
	for _, addr := range []string{
		"8.8.8.8", "9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.1.1", "192.169.0.0",
		"2001:db8::1", "::2", "fec0::1", "fe00::1", "100.64.0.1", "0.0.0.0", "::", "::ffff:8.8.8.8",
	} {
		f(addr, false)
	}
}

// RFC 8914 section 4.19 (Prohibited).
func TestClientsThatAreNotAllowedAreRefusedAndThenIgnored(t *testing.T) {
	t.Parallel()
	g, _ := start(t, addressed, Options{Allow: []access.Range{{Prefix: netip.MustParsePrefix("127.0.0.1/32")}}})
	friend := dialFrom(t, "udp", "127.0.0.1", g.Addrs()[0])
	stranger := dialFrom(t, "udp", "127.0.0.2", g.Addrs()[0])
	reply := exchange(t, stranger, withEDNS(query("example.com."), 1232))
	if code, _ := edeOf(reply); reply.Rcode != dns.RcodeRefused || code != 18 || len(reply.Answer) > 0 {
		t.Errorf("a stranger got %v", reply)
	}
	if reply := exchange(t, dialFrom(t, "tcp", "127.0.0.2", g.Addrs()[0]), query("example.com.")); reply.Rcode != dns.RcodeRefused {
		t.Errorf("a stranger got %v over TCP", reply)
	}
	got, _, _ := replies(t, g, stranger, packed(query("example.com."), nil), 1000)
	if len(got) == 0 || len(got) > 2*access.RefusalBurst {
		t.Errorf("1000 queries of a stranger had %d replies", len(got))
	}
	for _, m := range got {
		if m.Rcode != dns.RcodeRefused {
			t.Errorf("a stranger got %v", m)
		}
	}
	if reply := exchange(t, friend, query("example.com.")); len(reply.Answer) != 1 {
		t.Errorf("a friend got %v", reply)
	}
	c := g.Counts()
	if c.Outcomes[IgnoredClient][wire.UDP] < 900 || c.Outcomes[RefusedClient][wire.TCP] != 1 {
		t.Errorf("got %v", c.Outcomes)
	}
}

// TestOverTheLimitRepliesAreFewerAndSmaller makes sure that the gateway is
// useless for reflection, and still serves real clients.
func TestOverTheLimitRepliesAreFewerAndSmaller(t *testing.T) {
	t.Parallel()
	long := resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
		txt := record("%s 60 IN TXT %s", nameOf(q), strings.Repeat("x", 200))
		if strings.HasPrefix(nameOf(q), "big.") { // more than a packet has room for
			return answer(q, slices.Repeat([]dns.RR{txt}, 10)...)
		}
		return answer(q, txt)
	})
	g, _ := start(t, long, Options{RateLimit: 1, RateBurst: 10, RateExempt: []netip.Prefix{netip.MustParsePrefix("127.0.0.3/32")}})
	c := dialFrom(t, "udp", "127.0.0.2", g.Addrs()[0])
	plain := query("example.com.")
	plain.Question[0].Qtype = dns.TypeTXT
	m := withEDNS(plain.Copy(), 1232)
	big := m.Copy()
	big.Question[0].Name = "big.example.com."
	for _, packet := range [][]byte{packed(m, nil), packed(big, nil), packed(plain, nil), unwanted["chaos"].packet} {
		replies(t, g, c, packet, 12) // the burst is used up
		began := time.Now()
		got, sent, received := replies(t, g, c, packet, 200)
		if len(got) < 80 || len(got) > 120 || received > sent {
			t.Errorf("200 queries with %d octets had %d replies with %d", sent, len(got), received)
		}
		answered := 0
		for _, m := range got {
			if len(m.Answer) > 0 || m.Rcode == dns.RcodeRefused {
				if answered++; answered > 5+int(time.Since(began).Seconds()) { // one a second
					t.Errorf("%d replies are more than TC", answered)
				}
				continue
			}
			if !m.Truncated {
				t.Errorf("got %v", m)
			}
		}
	}
	if reply := exchange(t, dialFrom(t, "tcp", "127.0.0.2", g.Addrs()[0]), m); len(reply.Answer) != 1 {
		t.Errorf("got %v over TCP", reply)
	}
	if reply := exchange(t, dialFrom(t, "udp", "127.0.0.4", g.Addrs()[0]), m); len(reply.Answer) != 1 {
		t.Errorf("another client got %v", reply)
	}
	if got, _, _ := replies(t, g, dialFrom(t, "udp", "127.0.0.3", g.Addrs()[0]), packed(m, nil), 100); len(got) != 100 {
		t.Errorf("an exempt client got %d replies", len(got))
	}
}

func cookieOf(m *dns.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if c, ok := o.(*dns.EDNS0_COOKIE); ok {
				return c.Cookie
			}
		}
	}
	return ""
}

func withCookie(m *dns.Msg, cookie string) *dns.Msg {
	m = withEDNS(m, 1232)
	m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: cookie})
	return m
}

// RFC 7873 section 5.2: with a cookie there is no limit; without, there is a
// cookie to be had.
func TestCookiesAreGivenAndLiftTheLimit(t *testing.T) {
	t.Parallel()
	const mine, bad = "0011223344556677", "0011223344556677" + "01000000000000000000000000000000"
	eachTransport(t, func(t *testing.T, network string) {
		g, _ := start(t, addressed, Options{RateLimit: 1, RateBurst: 1, RateExempt: []netip.Prefix{}})
		c := dialFrom(t, network, "127.0.0.2", g.Addrs()[0])
		reply := exchange(t, c, withCookie(query("example.com."), mine))
		cookie := cookieOf(reply)
		if len(reply.Answer) != 1 || !strings.HasPrefix(cookie, mine) || len(cookie) != 48 {
			t.Fatalf("got %v", reply)
		}
		for range 20 {
			if reply := exchange(t, c, withCookie(query("example.com."), cookie)); len(reply.Answer) != 1 || cookieOf(reply) != cookie {
				t.Fatalf("with a cookie, got %v", reply)
			}
		}
		if reply := exchange(t, c, query("refused.example.com.").SetAxfr("example.com.")); reply.IsEdns0() != nil && network == "tcp" {
			t.Errorf("got %v", reply) // no OPT record, no cookie
		}
		if network == "tcp" {
			return
		}
		packet := packed(withCookie(query("example.com."), bad), nil)
		got, sent, received := replies(t, g, c, packet, 20)
		if len(got) == 0 || received > sent {
			t.Errorf("%d octets with a bad cookie had %d replies with %d octets", sent, len(got), received)
		}
		for _, m := range got {
			if m.Rcode != dns.RcodeBadCookie && len(m.Answer) == 0 {
				t.Errorf("with a bad cookie, got %v", m)
			}
			if fresh := cookieOf(m); fresh[:16] != mine || fresh == bad {
				t.Errorf("with a bad cookie, got cookie %s", fresh)
			}
		}
		packet = packed(withCookie(query("example.com."), mine), nil)
		if got, sent, received := replies(t, g, c, packet, 20); len(got) == 0 || received > sent {
			t.Errorf("%d octets with a client's cookie had %d replies with %d octets", sent, len(got), received)
		}
	})
}

// A pair shares a secret, and replaces it without a bad cookie at any client.
func TestCookiesAreGoodOnBothNodesOfAPair(t *testing.T) {
	t.Parallel()
	const first, second = "e5e973e5a6b2a43f48e7dc849e37bfcf", "dd3bdf9344b678b185a6f5cb60fca715"
	cookie := "0011223344556677"
	for _, secrets := range []string{first, first, first + " " + second, second + " " + first, second} {
		g, _ := start(t, addressed, Options{RateLimit: 1, RateBurst: 1, RateExempt: []netip.Prefix{}, CookieSecret: cookieSecrets(secrets)})
		c := dial(t, "udp", g.Addrs()[0])
		if len(cookie) == 16 {
			cookie = cookieOf(exchange(t, c, withCookie(query("example.com."), cookie)))
			continue
		}
		exchange(t, c, query("example.com.")) // the burst
		reply := exchange(t, c, withCookie(query("example.com."), cookie))
		if len(reply.Answer) != 1 {
			t.Fatalf("%s: got %v", secrets, reply)
		}
		cookie = cookieOf(reply)
	}
}

func TestABadCookieIsRefusedWhileSlotsAreCrowded(t *testing.T) {
	t.Parallel()
	held, release := holding()
	defer release()
	g, _ := start(t, held, Options{MaxQueries: 2, Timeout: patience})
	c := dial(t, "udp", g.Addrs()[0])
	sendQuery(t, c, query("a.example.com."))
	sendQuery(t, c, query("b.example.com."))
	bad := withCookie(query("c.example.com."), "0011223344556677"+strings.Repeat("ab", 16))
	for {
		m := exchange(t, c, bad)
		if m.Rcode == dns.RcodeBadCookie && m.Id == bad.Id {
			break
		}
	}
}

// RFC 7828 section 3.3.2, RFC 5001 section 2.1, RFC 7830 section 3.
func TestOptionsAreAnsweredWhereTheyBelong(t *testing.T) {
	eachTransport(t, func(t *testing.T, network string) {
		g, _ := start(t, addressed, Options{NSID: "ns1.example", IdleTimeout: 7 * time.Second})
		c := dial(t, network, g.Addrs()[0])
		f := func(m *dns.Msg, want string, options ...dns.EDNS0) {
			t.Helper()
			m = withEDNS(m, 1232)
			m.IsEdns0().Option = options
			var got []string
			for _, o := range exchange(t, c, m).IsEdns0().Option {
				switch o := o.(type) {
				case *dns.EDNS0_NSID:
					text, _ := hex.DecodeString(o.Nsid)
					got = append(got, "nsid="+string(text))
				case *dns.EDNS0_TCP_KEEPALIVE:
					got = append(got, "keepalive="+time.Duration(int(o.Timeout)*int(100*time.Millisecond)).String())
				default:
					got = append(got, o.String())
				}
			}
			if got := strings.Join(got, " "); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		nsid, keepalive := &dns.EDNS0_NSID{Code: dns.EDNS0NSID}, &dns.EDNS0_TCP_KEEPALIVE{Code: dns.EDNS0TCPKEEPALIVE}
		padding := &dns.EDNS0_PADDING{Padding: make([]byte, 50)}
		f(query("example.com."), "")
		f(query("example.com."), "nsid=ns1.example", nsid)
		f(query("example.com."), "", padding)
		if network == "tcp" {
			f(query("example.com."), "nsid=ns1.example keepalive=7s", nsid, keepalive)
		} else {
			f(query("example.com."), "nsid=ns1.example", nsid, keepalive)
		}
	})
}

func cookieSecrets(texts string) (all []secret.Text) {
	for _, text := range strings.Fields(texts) {
		all = append(all, secret.Text(text))
	}
	return all
}

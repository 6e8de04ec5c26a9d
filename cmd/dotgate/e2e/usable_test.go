//go:build linux && e2e

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/upstreams/dottest"
)

// odd answers as unusual servers do; the first label of a name selects the kind.
func odd(dst, query []byte) ([]byte, time.Duration) {
	var m, r dns.Msg
	if m.Unpack(query) != nil || len(m.Question) != 1 {
		return dst, 0
	}
	r.SetReply(&m)
	name, typ := m.Question[0].Name, m.Question[0].Qtype
	answer := func(texts ...string) {
		for _, text := range texts {
			rr, err := dns.NewRR(text)
			if err != nil {
				panic(err)
			}
			if typ == dns.TypeAAAA && rr.Header().Rrtype == dns.TypeA {
				header := *rr.Header()
				header.Rrtype = dns.TypeAAAA
				rr = &dns.AAAA{Hdr: header, AAAA: net.ParseIP("2001:db8::80")}
			}
			r.Answer = append(r.Answer, rr)
		}
	}
	a := func(owner string) string { return owner + " 60 IN A 192.0.2.80" }
	ede := func(text string) {
		r.SetEdns0(1232, false).IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: dns.EDNS0EDE, Data: []byte("\x00\x03" + text)}}
	}
	switch label, _, _ := strings.Cut(name, "."); label {
	case "reversed":
		answer(a("end.example.net."), "mid.example.com. 60 IN CNAME end.example.net.", name+" 60 IN CNAME mid.example.com.")
	case "strays":
		answer("other.example.org. 60 IN A 192.0.2.66", a(name), "mid.example.com. 60 IN CNAME end.example.net.", name+" 60 IN TXT x")
	case "text":
		answer(a(name))
		ede("\xff\xfe in Latin-1: \xe4\x00\x1b[31m")
	case "bom":
		answer(a(name))
		ede("\xef\xbb\xbfmarked")
	case "loop":
		answer(name+" 60 IN CNAME mid.example.com.", "mid.example.com. 60 IN CNAME "+name)
	case "code":
		r.Rcode = dns.RcodeNotAuth
	case "plain": // not compressed, more than 1,232 octets
		for i := range 25 {
			answer(fmt.Sprintf("%s 60 IN MX %d mail%d.servers.example.org.", name, i, i))
		}
	case "srv": // its target is compressed
		packet, err := r.Pack()
		if err != nil {
			return dst, 0
		}
		packet[7] = 1
		return append(append(dst, packet...), "\xc0\x0c\x00\x21\x00\x01\x00\x00\x00\x3c\x00\x08\x00\x01\x00\x02\x00\x03\xc0\x0c"...), 0
	}
	packet, err := r.Pack()
	if err != nil {
		return dst, 0
	}
	return append(dst, packet...), 0
}

// TestAnswersOfUnusualServersAreUsable has dig, kdig, dnspython and the C library ask for
// names whose servers answer in unusual ways.
func TestAnswersOfUnusualServersAreUsable(t *testing.T) {
	s := startUpstream(t, dottest.Options{Handler: odd})
	g := startGateway(t, []string{url(s.Addr())})
	const script = `
import sys, dns.message, dns.query, dns.rcode
q = dns.message.make_query(sys.argv[3], sys.argv[4], use_edns=0, payload=1232)
r = dns.query.udp(q, sys.argv[1], port=int(sys.argv[2]), timeout=5)
print(dns.rcode.to_text(r.rcode()), *(" ".join(line.split()[:1] + line.split()[3:]) for s in r.answer for line in s.to_text().splitlines()), sep="; ")
`
	f := func(question, status string, answers ...string) {
		t.Helper()
		args := strings.Fields(question)
		for _, c := range []client{dig, kdig} {
			p := c.ask(t, g.addr, append(args, "+bufsize=1232", "+ignore")...)
			if p.status != status || strings.Join(p.answers, "; ") != strings.Join(answers, "; ") || strings.Contains(p.text, "WARNING") || strings.Contains(p.text, "malformed") {
				t.Errorf("%s %s: got %s %q, want %s %q\n%s", c.name, question, p.status, p.answers, status, answers, p.text)
			}
		}
		out, err := exec.Command("/usr/bin/python3", "-c", script, g.addr.Addr().String(), fmt.Sprint(g.addr.Port()), args[0], args[1]).CombinedOutput()
		if want := strings.Join(append([]string{status}, answers...), "; "); err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("dnspython %s: %v\n got %swant %s", question, err, out, want)
		}
	}
	f("reversed.example.com A", "NOERROR", "reversed.example.com. CNAME mid.example.com.", "mid.example.com. CNAME end.example.net.", "end.example.net. A 192.0.2.80")
	f("strays.example.com A", "NOERROR", "strays.example.com. A 192.0.2.80")
	f("text.example.com A", "NOERROR", "text.example.com. A 192.0.2.80")
	f("bom.example.com A", "NOERROR", "bom.example.com. A 192.0.2.80")
	f("srv.example.com SRV", "NOERROR", "srv.example.com. SRV 1 2 3 srv.example.com.")
	f("loop.example.com A", "SERVFAIL")
	f("code.example.com A", "SERVFAIL")
	var mail []string
	for i := range 25 {
		mail = append(mail, fmt.Sprintf("plain.example.com. MX %d mail%d.servers.example.org.", i, i))
	}
	f("plain.example.com MX", "NOERROR", mail...)
}

// TestGlibcFindsAddressesInAnyOrder has the C library ask for a name whose server sends
// the address before the aliases that lead to it.
func TestGlibcFindsAddressesInAnyOrder(t *testing.T) {
	s := startUpstream(t, dottest.Options{Handler: odd})
	addr := netip.AddrPortFrom(dottest.Loopback(), 53)
	if ln, err := net.Listen("tcp", addr.String()); err != nil {
		t.Skipf("NOT TESTED: the C library asks at port 53, which may not be had here: %v", err)
	} else {
		ln.Close()
	}
	startGateway(t, []string{url(s.Addr())}, "DOTGATE_GATEWAY_LISTEN="+addr.String())
	for _, name := range []string{"reversed.example.com", "strays.example.com", "text.example.com"} {
		p := inside(t, map[string]string{
			"/etc/resolv.conf":   fmt.Sprintf("nameserver %s\noptions timeout:2 attempts:1 edns0\n", addr.Addr()),
			"/etc/nsswitch.conf": "hosts: dns\n",
		}, "getent", "ahosts", name)
		if code := p.exitCode(t, startLimit); code != 0 || !p.output.contains("192.0.2.80") || !p.output.contains("2001:db8::80") {
			t.Errorf("getent ahosts %s exits with %d\n%s", name, code, p.output.String())
		}
	}
}

// TestEDNSCompliance sends the queries of ISC's tests for the DNS flag days, with the same
// expectations.
func TestEDNSCompliance(t *testing.T) {
	_, urls := startUnbounds(t)
	g := startGateway(t, urls)
	f := func(options, status, flags string, edns bool, never ...string) {
		t.Helper()
		args := append(strings.Fields(options), "+nocookie")
		if !strings.Contains(options, "header-only") {
			args = append(args, "example.com", "SOA")
		}
		p := dig.ask(t, g.addr, args...)
		if got := strings.Join(p.flags, " "); p.status != status || got != flags || strings.Contains(p.text, "EDNS: version: 0") != edns {
			t.Errorf("dig %s: got %s, flags %s\n%s", options, p.status, got, p.text)
		}
		for _, text := range append(never, "MBZ", "WARNING: Message parser", "malformed") {
			if strings.Contains(p.text, text) {
				t.Errorf("dig %s: there is %q in\n%s", options, text, p.text)
			}
		}
		if hasSOA := strings.Contains(p.text, "\tSOA\t"); hasSOA != (status == "NOERROR") {
			t.Errorf("dig %s: SOA %t\n%s", options, hasSOA, p.text)
		}
	}
	f("+noedns +noad +norec", "NOERROR", "qr ra", false)
	f("+noedns +noad +norec +aaflag", "NOERROR", "qr ra", false)
	f("+noedns +noad +norec +cd", "NOERROR", "qr ra cd", false)
	f("+noedns +noad +rec", "NOERROR", "qr rd ra", false)
	f("+noedns +noad +norec +tcflag +raflag +zflag", "NOERROR", "qr ra", false)
	f("+noedns +noad +norec +header-only +opcode=15", "NOTIMP", "qr", false)
	f("+noedns +header-only +opcode=15 +tcflag +rec +raflag +cd +ad +aaflag +zflag", "NOTIMP", "qr", false)
	f("+noedns +noad +norec +tcp", "NOERROR", "qr ra", false)
	f("+edns=0 +noad +norec", "NOERROR", "qr ra", true)
	f("+edns=1 +noednsneg +noad +norec", "BADVERS", "qr ra", true)
	f("+edns=0 +noad +norec +ednsopt=100", "NOERROR", "qr ra", true, "OPT=100")
	f("+edns=1 +noednsneg +noad +norec +ednsopt=100", "BADVERS", "qr ra", true, "OPT=100")
	f("+edns=0 +noad +norec +ednsflags=0x40", "NOERROR", "qr ra", true)
	f("+edns=1 +noednsneg +noad +norec +ednsflags=0x40", "BADVERS", "qr ra", true)
	f("+edns=0 +noad +norec +nsid +subnet=0.0.0.0/0 +expire", "NOERROR", "qr ra", true)
	f("+edns=1 +noednsneg +noad +norec +nsid +ednsopt=10:00", "BADVERS", "qr ra", true)
}

//go:build linux && e2e

package e2e

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestDigAndKdigGetTheAnswersOfUnbound(t *testing.T) {
	_, urls := startUnbounds(t)
	g := startGateway(t, urls)
	f := func(question, status string, answers ...string) {
		t.Helper()
		for _, c := range []client{dig, kdig} {
			for _, network := range []string{"+notcp", "+tcp"} {
				p := c.ask(t, g.addr, append(strings.Fields(question), network)...)
				what := fmt.Sprintf("%s %s %s", c.name, network, question)
				if p.status != status || !slices.Equal(sorted(p.answers), sorted(answers)) {
					t.Errorf("%s: %s %q, not %s %q\n%s", what, p.status, p.answers, status, answers, p.text)
				}
				if !p.has("qr") || !p.has("rd") || !p.has("ra") || p.has("aa") || p.has("tc") {
					t.Errorf("%s: flags are %v", what, p.flags)
				}
				if wanted := strings.Fields(question)[0] + "."; p.question != wanted {
					t.Errorf("%s: the reply is to %q, not to %q", what, p.question, wanted)
				}
			}
		}
	}
	f("www.example.com A", "NOERROR", "www.example.com. A 192.0.2.80")
	f("www.example.com AAAA", "NOERROR", "www.example.com. AAAA 2001:db8::80")
	f("example.com MX", "NOERROR", "example.com. MX 10 mail.example.com.", "example.com. MX 20 www.example.com.")
	f("example.com TXT", "NOERROR", `example.com. TXT "v=spf1 -all"`)
	f("missing.example.com A", "NXDOMAIN")
	f("mail.example.com AAAA", "NOERROR")
	f("alias.example.com A", "NOERROR", "alias.example.com. CNAME alias2.example.com.",
		"alias2.example.com. CNAME alias3.example.com.", "alias3.example.com. CNAME www.example.com.",
		"www.example.com. A 192.0.2.80")
	f("dangling.example.com A", "NXDOMAIN", "dangling.example.com. CNAME missing.example.com.")
	f("example.org A", "NXDOMAIN")
	f("www.example.com A +noedns", "NOERROR", "www.example.com. A 192.0.2.80")
	f("www.example.com A +dnssec", "NOERROR", "www.example.com. A 192.0.2.80")

	if p := dig.ask(t, g.addr, "www.example.com", "+qid=4711"); p.id != "4711" {
		t.Errorf("the reply to 4711 has the ID %s", p.id)
	}
	// The spelling is that of the client. Kdig sends lower case only.
	if p := dig.ask(t, g.addr, "wWw.ExAmPlE.cOm"); p.question != "wWw.ExAmPlE.cOm." || !slices.Equal(p.answers, []string{"wWw.ExAmPlE.cOm. A 192.0.2.80"}) {
		t.Errorf("the reply to wWw.ExAmPlE.cOm is spelt otherwise:\n%s", p.text)
	}
}

func sorted(texts []string) []string { return slices.Sorted(slices.Values(texts)) }

func TestALongAnswerIsTruncatedOverUDPAndWholeOverTCP(t *testing.T) {
	_, urls := startUnbounds(t)
	g := startGateway(t, urls)
	const question = "big.example.com"
	for _, limit := range []string{"+noedns", "+bufsize=512", "+bufsize=1232", "+bufsize=4096"} {
		p := dig.ask(t, g.addr, question, "TXT", "+ignore", limit)
		size := found(p.text, `MSG SIZE  rcvd: (\d+)`)
		if !p.has("tc") || len(p.answers) > 0 || p.status != "NOERROR" || len(size) > 3 {
			t.Errorf("%s: %s, flags %v, %s octets; it should be cut short", limit, p.status, p.flags, size)
		}
	}
	for _, c := range []client{dig, kdig} {
		for _, args := range [][]string{{"+tcp"}, {}} { // without +tcp, they retry over TCP themselves
			p := c.ask(t, g.addr, append(args, question, "TXT")...)
			if p.has("tc") || len(p.answers) != 1 || len(p.answers[0]) < 4000 || !strings.Contains(p.text, "TCP") {
				t.Errorf("%s %v: flags %v, %d answers\n%s", c.name, args, p.flags, len(p.answers), p.text)
			}
		}
	}
}

func TestTwoHundredQueriesOnOneConnectionAreAllAnswered(t *testing.T) {
	_, urls := startUnbounds(t)
	g := startGateway(t, urls)
	const n = 200

	t.Run("one after the other, by kdig", func(t *testing.T) {
		args := []string{"+tcp", "+keepopen", "+short"}
		for i := range n {
			args = append(args, unboundName(i), "A")
		}
		out := strings.Fields(kdig.run(t, g.addr, args...))
		if len(out) != n {
			t.Fatalf("%d answers to %d queries:\n%s", len(out), n, out)
		}
		for i, got := range out {
			if want := unboundAddress(unboundName(i)).String(); got != want {
				t.Errorf("%s has %s, not %s", unboundName(i), got, want)
			}
		}
	})
	t.Run("in one segment", func(t *testing.T) {
		load{
			to: g.addr, network: "tcp", sockets: 1, queries: n, patience: time.Second,
			name: func(i int) string { return "segment-" + unboundName(i) }, address: unboundAddress,
		}.run(t).mustBeWhole(t)
	})
}

func TestNoQueryIsSentInClearText(t *testing.T) {
	all, urls := startUnbounds(t)
	var heard []*atomic.Int64
	for _, u := range all {
		heard = append(heard, eavesdrop(t, net.JoinHostPort(u.addr.Addr().String(), "53")))
	}
	g := startGateway(t, urls)
	ask := func(run string, queries int) outcome {
		l := unboundLoad(g, queries, 2000)
		l.name = func(i int) string { return run + unboundName(i) }
		return l.run(t)
	}
	ask("well-", 1000).mustBeWhole(t)
	all[0].kill()
	ask("one-is-dead-", 1000).mustBeWhole(t)
	for _, u := range all[1:] {
		u.kill()
	}
	if o := ask("all-are-dead-", 500); len(o.latencies) > 0 {
		t.Errorf("%d answers without an upstream", len(o.latencies))
	}
	for i, n := range heard {
		if n := n.Load(); n > 0 {
			t.Errorf("port 53 of %v got %d packets or connections", unboundAddrs[i], n)
		}
	}
}

// eavesdrop counts what arrives at addr over UDP and TCP.
func eavesdrop(t *testing.T, addr string) *atomic.Int64 {
	t.Helper()
	heard := new(atomic.Int64)
	ln, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EACCES) {
		t.Skip("only root may listen on port 53")
	}
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close(); pc.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			heard.Add(1)
			c.Close()
		}
	}()
	go func() {
		for packet := make([]byte, 1<<16); ; heard.Add(1) {
			if _, _, err := pc.ReadFrom(packet); err != nil {
				return
			}
		}
	}()
	return heard
}

// unboundLoad is a load that Unbound answers.
func unboundLoad(g *gateway, queries, rate int) load {
	return load{
		to: g.addr, network: "udp", sockets: 8, queries: queries, rate: rate, patience: time.Second,
		name: unboundName, address: unboundAddress,
	}
}

package main

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/testscript"

	"dotgate/upstreams/dottest"
)

// scriptPlain starts a server of one's own network, which speaks plain DNS.
func scriptPlain(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: plain NAME")
	}
	name := args[0]
	// At an address of its own, so that no client has the same port for UDP.
	ln, err := net.Listen("tcp", netip.AddrPortFrom(dottest.Loopback(), 0).String())
	ts.Check(err)
	pc, err := net.ListenPacket("udp", ln.Addr().String())
	ts.Check(err)
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		reply := new(dns.Msg).SetReply(m)
		rr, err := dns.NewRR(fmt.Sprintf("%s 60 IN TXT %q", m.Question[0].Name, name))
		if err != nil {
			return
		}
		if m.Question[0].Qtype == dns.TypeTXT {
			reply.Answer = append(reply.Answer, rr)
		}
		w.WriteMsg(reply)
	})
	for _, server := range []*dns.Server{{Listener: ln, Handler: handler}, {PacketConn: pc, Handler: handler}} {
		ready, done := make(chan struct{}), make(chan struct{})
		server.NotifyStartedFunc = func() { close(ready) }
		go func() { defer close(done); server.ActivateAndServe() }()
		<-ready
		ts.Defer(func() { server.Shutdown(); <-done })
	}
	ts.Setenv(name, ln.Addr().String())
}

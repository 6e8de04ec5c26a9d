package upstreams

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/upstreams/dottest"
)

// whereIsIt answers that dns.example.com is at address, and has no other name.
func whereIsIt(query []byte, address netip.Addr) []byte {
	var m dns.Msg
	if m.Unpack(query) != nil || len(m.Question) != 1 {
		return nil
	}
	reply := new(dns.Msg).SetReply(&m)
	switch q := m.Question[0]; {
	case !strings.EqualFold(q.Name, dottest.ServerName+"."):
		reply.Rcode = dns.RcodeNameError
	case q.Qtype == dns.TypeA:
		reply.Answer = append(reply.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
			A:   address.AsSlice(),
		})
	}
	packed, _ := reply.Pack()
	return packed
}

// plainResolver answers over UDP, in clear text.
func plainResolver(t *testing.T, address netip.Addr) string {
	t.Helper()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := socket.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply := whereIsIt(buf[:n], address); reply != nil {
				_, _ = socket.WriteTo(reply, from)
			}
		}
	}()
	t.Cleanup(func() { socket.Close(); <-done })
	return socket.LocalAddr().String()
}

func TestAHostIsResolvedThroughItsBootstrapResolvers(t *testing.T) {
	t.Parallel()
	ca := dottest.NewCA()
	s := dottest.NewServer(t, dottest.Options{CA: ca})
	secure := dottest.NewServer(t, dottest.Options{CA: ca, Handler: func(dst, query []byte) ([]byte, time.Duration) {
		return append(dst, whereIsIt(query, s.Addr().Addr())...), 0
	}})
	f := func(bootstrap ...string) error {
		o := trusting(t, s)
		o.Addresses, o.ServerName = nil, ""
		o.Host, o.Port, o.Bootstrap = dottest.ServerName, s.Addr().Port(), bootstrap
		u := open(t, o)
		err := ask(u, "www.example.com")
		if err == nil && (len(u.Addresses()) != 1 || u.Addresses()[0] != s.Addr()) {
			t.Errorf("through %v: addresses %v, want %v", bootstrap, u.Addresses(), s.Addr())
		}
		return err
	}
	plain, dot := plainResolver(t, s.Addr().Addr()), "tls://"+secure.Addr().String()+"#"+dottest.ServerName
	for _, working := range [][]string{{plain}, {dot}, {"127.0.0.1:1", plain}} {
		if err := f(working...); err != nil {
			t.Errorf("through %v: %v", working, err)
		}
	}
	if err := f("127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "setting bootstrap") {
		t.Errorf("through a closed port: %v", err)
	}
	if err := f("tls://" + secure.Addr().String() + "#other.example.com"); err == nil {
		t.Error("a bootstrap resolver with the certificate of another name was believed")
	}
}

func TestBootstrapResolversAreWrittenInOneOfTwoWays(t *testing.T) {
	t.Parallel()
	f := func(text string, want netip.AddrPort, secure bool, name string) {
		t.Helper()
		b, err := parseBootstrap(text)
		if err != nil || b.addr != want || b.tls != secure || b.serverName != name {
			t.Errorf("%s: %+v, %v", text, b, err)
		}
	}
	f("192.0.2.1", netip.MustParseAddrPort("192.0.2.1:53"), false, "")
	f("192.0.2.1:5353", netip.MustParseAddrPort("192.0.2.1:5353"), false, "")
	f("2001:db8::1", netip.MustParseAddrPort("[2001:db8::1]:53"), false, "")
	f("tls://192.0.2.1#dns.example", netip.MustParseAddrPort("192.0.2.1:853"), true, "dns.example")
	f("tls://[2001:db8::1]:8853", netip.MustParseAddrPort("[2001:db8::1]:8853"), true, "")
	for _, wrong := range []string{"", "dns.example", "192.0.2.1#dns.example", "https://192.0.2.1", "192.0.2.1:0", "tls://"} {
		if b, err := parseBootstrap(wrong); err == nil {
			t.Errorf("%q was read as %+v", wrong, b)
		}
	}
}

// While no bootstrap resolver answers, addresses that are known are dialled; once one does,
// the host is used as well.
func TestKnownAddressesDoNotWaitForTheHost(t *testing.T) {
	t.Parallel()
	https, o := overHTTPS(t, dottest.HTTPSOptions{})
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	o.Transports, o.Host, o.Port = nil, dottest.ServerName, 1
	o.Bootstrap = []string{silent.LocalAddr().String()}
	u := open(t, o)
	began := time.Now()
	if err := ask(u, "www.example.com"); err != nil || https.Requests() == 0 {
		t.Errorf("%v; %d over HTTPS", err, https.Requests())
	}
	if took := time.Since(began); took > resolveTimeout-time.Second {
		t.Errorf("took %v", took)
	}
	if got := u.Addresses(); len(got) != 1 {
		t.Errorf("addresses: %v", got)
	}

	o.Bootstrap = []string{plainResolver(t, https.Addr().Addr())}
	u = open(t, o)
	if err := ask(u, "www.example.com"); err != nil {
		t.Error(err)
	}
	if got := u.Addresses(); len(got) != 2 || got[0] != netip.AddrPortFrom(https.Addr().Addr(), 1) {
		t.Errorf("addresses: %v", got)
	}
}

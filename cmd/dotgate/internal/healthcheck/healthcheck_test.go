package healthcheck

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/configs"
	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

// serveDNS serves at an address of its own, over UDP and TCP.
func serveDNS(t *testing.T, udp, tcp dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	addr := netip.AddrPortFrom(dottest.Loopback(), 5300)
	conn, err := net.ListenPacket("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: conn, Handler: udp}, {Listener: listener, Handler: tcp}} {
		started, done := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(done)
			_ = s.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() {
			_ = s.Shutdown()
			<-done
		})
	}
	return addr
}

// replying answers with an error code, or with an address if it is none.
func replying(rcode int, truncated bool) dns.HandlerFunc {
	return func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetRcode(m, rcode)
		r.RecursionAvailable, r.Truncated = true, truncated
		if rcode == dns.RcodeSuccess && !truncated {
			rr, _ := dns.NewRR("probe.example.com. 60 IN A 192.0.2.1")
			r.Answer = append(r.Answer, rr)
		}
		_ = w.WriteMsg(r)
	}
}

func probeQuery(t *testing.T) wire.Query {
	t.Helper()
	q, err := wire.NewQuery("probe.example.com", "A")
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func TestAHealthCheckTellsRepliesApart(t *testing.T) {
	q := probeQuery(t)
	token := make([]byte, wire.TokenLen)
	f := func(udp, tcp dns.HandlerFunc, token []byte, want string) {
		t.Helper()
		s := &subject{listening: []netip.AddrPort{serveDNS(t, udp, tcp)}, token: token}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := s.answers(ctx, q, false, "udp")
		got := "ok"
		var not *notAsked
		if errors.As(err, &not) {
			got = "not asked"
		} else if err != nil {
			got = err.Error()[strings.LastIndex(err.Error(), ": ")+2:]
		}
		if got != want {
			t.Errorf("got %s (%v), want %s", got, err, want)
		}
	}
	good, broken := replying(dns.RcodeSuccess, false), replying(dns.RcodeServerFailure, false)
	f(good, broken, token, "ok")
	f(replying(dns.RcodeNameError, false), broken, token, "ok")
	f(replying(dns.RcodeSuccess, true), good, token, "ok") // TC is followed over TCP
	f(replying(dns.RcodeSuccess, true), broken, token, "reply is SERVFAIL")
	f(broken, good, token, "reply is SERVFAIL")
	f(replying(dns.RcodeRefused, false), good, token, "reply is REFUSED")
	f(replying(dns.RcodeRefused, false), good, nil, "not asked") // it may be this client
	var lost atomic.Int32
	f(func(w dns.ResponseWriter, m *dns.Msg) {
		if lost.Add(1) > 1 { // a busy socket drops packets
			good(w, m)
		}
	}, broken, token, "ok")
}

func TestWhatThisMachineLacksSaysNothingOfTheGateway(t *testing.T) {
	f := func(err error, want bool) {
		t.Helper()
		if got := isLocal(err); got != want {
			t.Errorf("%v: %t", err, got)
		}
	}
	f(&net.OpError{Op: "dial", Err: syscall.EMFILE}, true)
	f(syscall.ENETUNREACH, true)
	f(syscall.ECONNREFUSED, false)
	f(context.DeadlineExceeded, false)
}

// A control socket that accepts and says nothing costs 200 ms, and no verdict.
func TestASilentControlSocketIsGivenUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	good := replying(dns.RcodeSuccess, false)
	addr := serveDNS(t, good, good)
	config, err := settings.Load(configs.Sources{Environ: []string{
		"DOTGATE_CONTROL_SOCKET=" + path, "DOTGATE_GATEWAY_LISTEN=" + addr.String(), "DOTGATE_ADMIN_LISTEN=off",
		"DOTGATE_HEALTH_PROBE_NAME=probe.example.com", "DOTGATE_HEALTH_PROBE_TYPE=A",
	}})
	if err != nil {
		t.Fatal(err)
	}
	c := &checker{config: config, read: time.Now()}
	var out bytes.Buffer
	if err := c.once(t.Context(), &out); err != nil || !strings.Contains(out.String(), "asked as an ordinary client: the control socket did not answer within 200ms") {
		t.Errorf("%v: it said %s", err, &out)
	}
}

// An address that no interface has may be another machine's, and is not asked.
func TestAddressesOfNoInterfaceAreNotAsked(t *testing.T) {
	t.Parallel()
	q, err := wire.NewQuery("probe.example.com", "A")
	if err != nil {
		t.Fatal(err)
	}
	asked := serveDNS(t, replying(dns.RcodeSuccess, false), replying(dns.RcodeSuccess, false))
	absent := netip.MustParseAddrPort("192.0.2.99:53")
	f := func(listening []netip.AddrPort, token []byte, want string, fails bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		s := &subject{listening: listening, token: token}
		got, err := s.answers(ctx, q, false, "udp", "tcp")
		var not *notAsked
		if strings.Join(got, " ") != want || errors.As(err, &not) != fails || (err != nil) != fails {
			t.Errorf("%v: asked %v, error %v", listening, got, err)
		}
	}
	token := make([]byte, wire.TokenLen)
	f([]netip.AddrPort{absent, asked}, token, asked.String(), false)
	f([]netip.AddrPort{absent, asked}, nil, asked.String(), false)
	f([]netip.AddrPort{absent}, token, "", false) // it has told that it is there
	f([]netip.AddrPort{absent}, nil, "", true)
}

// A host without IPv6 can't ask ::1. That must not hide that the gateway refuses at the
// other address: a node whose gateway is dead has to give its address away.
func TestARefusalIsSeenBesideAnAddressThatCannotBeAsked(t *testing.T) {
	t.Parallel()
	q, err := wire.NewQuery("example.com", "A")
	if err != nil {
		t.Fatal(err)
	}
	// No connection can be made to the broadcast address, on any host.
	refusing, absent := netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("255.255.255.255:1")
	f := func(hidden bool, addrs ...netip.AddrPort) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := askSome(ctx, addrs, q, wire.HealthCheck{}, []string{"tcp"})
		var not *notAsked
		if err == nil || errors.As(err, &not) != hidden {
			t.Errorf("%v: got %v", addrs, err)
		}
	}
	f(false, refusing)
	f(false, refusing, absent)
	f(false, absent, refusing)
	f(true, absent)
}

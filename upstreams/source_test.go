package upstreams

import (
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

func TestParseSource(t *testing.T) {
	t.Parallel()
	f := func(text string, want source) {
		t.Helper()
		if got, err := parseSource(text); err != nil || got != want {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	f("", source{})
	f("192.0.2.1", source{addr: netip.MustParseAddr("192.0.2.1")})
	f("::ffff:192.0.2.1", source{addr: netip.MustParseAddr("192.0.2.1")})
	f("2001:db8::1", source{addr: netip.MustParseAddr("2001:db8::1")})
	if canBind {
		f("wg0", source{device: "wg0"})
		f("eth0.100", source{device: "eth0.100"})
	}
	for _, wrong := range []string{"0.0.0.0", "ff02::1", "192.0.2.300", "192.0.2.1:53", "a/b", "two words", "a-name-that-is-too-long", "2001:db8"} {
		if got, err := parseSource(wrong); err == nil {
			t.Errorf("%q is %v", wrong, got)
		}
	}
}

// peerOf returns the address that a server sees of connections from a source.
func peerOf(t *testing.T, from source, network string) (netip.Addr, error) {
	t.Helper()
	if network == "udp" {
		server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		conn, err := from.connectUDP(t.Context(), server.LocalAddr().(*net.UDPAddr).AddrPort())
		if err != nil {
			return netip.Addr{}, err
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("x")); err != nil {
			return netip.Addr{}, err
		}
		_, peer, err := server.ReadFromUDPAddrPort(make([]byte, 1))
		return peer.Addr().Unmap(), err
	}
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	conn, err := from.connectTCP(t.Context(), server.Addr().(*net.TCPAddr).AddrPort(), connectUsual, true)
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	accepted, err := server.Accept()
	if err != nil {
		return netip.Addr{}, err
	}
	defer accepted.Close()
	return accepted.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(), nil
}

func TestPacketsLeaveFromTheirSource(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("all of 127.0.0.0/8 is this host's on Linux only")
	}
	f := func(text, network, want string) {
		t.Helper()
		from, err := parseSource(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := peerOf(t, from, network); err != nil || got.String() != want {
			t.Errorf("%s over %s: got %v, %v", text, network, got, err)
		}
	}
	refused := func(text, network, want string) {
		t.Helper()
		from, err := parseSource(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := peerOf(t, from, network); err == nil || OutcomeOf(err) != DialUnreachable || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s over %s: got %v, %v", text, network, got, err)
		}
	}
	for _, network := range []string{"tcp", "udp"} {
		f("", network, "127.0.0.1")
		f("127.0.0.77", network, "127.0.0.77")
		f("lo", network, "127.0.0.1")
		refused("192.0.2.1", network, "from 192.0.2.1 (setting source): bind: cannot assign requested address")
		refused("2001:db8::1", network, "from 2001:db8::1 (setting source): network is unreachable")
		refused("absent0", network, "from absent0 (setting source): "+syscall.ENODEV.Error())
	}
}

// All protocols use the source.
func TestUpstreamsHaveASource(t *testing.T) {
	t.Parallel()
	f := func(source string, works bool, ask func(o Options) error) {
		t.Helper()
		if err := ask(Options{Source: source}); (err == nil) != works || !works && !strings.Contains(err.Error(), "from 192.0.2.1 (setting source)") {
			t.Errorf("%s: %v", source, err)
		}
	}
	dot := dottest.NewServer(t, dottest.Options{})
	_, overDoH := overHTTPS(t, dottest.HTTPSOptions{})
	_, overDoQ := overQUIC(t, dottest.QUICOptions{})
	for _, via := range []Options{trusting(t, dot), overDoH, overDoQ} {
		askIt := func(o Options) error { via.Source = o.Source; return ask(open(t, via), "www.example.com") }
		f("127.0.0.1", true, askIt)
		f("192.0.2.1", false, askIt)
	}
	plain := netip.MustParseAddrPort(plainResolver(t, netip.MustParseAddr("192.0.2.9")))
	askIt := func(o Options) error {
		o.Name, o.Protocol, o.Addresses = "test", UDP, []netip.AddrPort{plain}
		p, err := NewPlain(o)
		if err != nil {
			return err
		}
		defer p.Close()
		q, err := wire.NewQuery(dottest.ServerName, "A")
		if err != nil {
			return err
		}
		_, err = p.Exchange(t.Context(), q)
		return err
	}
	f("127.0.0.1", true, askIt)
	f("192.0.2.1", false, askIt)
}

package gateway

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
)

func newGateway(t *testing.T, listen ...string) *Gateway {
	t.Helper()
	o := Options{Log: slog.New(slog.DiscardHandler)}
	for _, addr := range listen {
		o.Listen = append(o.Listen, netip.MustParseAddrPort(addr))
	}
	g, err := New(addressed, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeSockets(g) })
	return g
}

func TestListenOnUsedPort(t *testing.T) {
	first := newGateway(t, "127.0.0.1:0")
	if err := first.Listen(); err != nil {
		t.Fatal(err)
	}
	taken := first.Addrs()[0]
	second := newGateway(t, "127.0.0.1:0", taken.String())
	err := second.Listen()
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"gateway.listen", taken.String(), "UDP", "another program"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing from: %v", want, err)
		}
	}
	if n := len(second.Addrs()); n != 0 {
		t.Errorf("%d sockets are still open", n)
	}
}

func TestListenOnPortUsedForUDPOnly(t *testing.T) {
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.ListenPacket("udp4", free.Addr().String())
	free.Close()
	if err != nil {
		t.Skip("that port is not free for both: ", err)
	}
	defer other.Close()
	g := newGateway(t, other.LocalAddr().String())
	if err := g.Listen(); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "UDP") {
		t.Errorf("got %v", err)
	}
}

func TestListenNamesEveryAddressThatCannotBeHad(t *testing.T) {
	g := newGateway(t, "192.0.2.99:5300", "127.0.0.1:0", "192.0.2.98:5300")
	err := g.Listen()
	for _, want := range []string{"192.0.2.99", "192.0.2.98", "no interface has this address"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing from: %v", want, err)
		}
	}
}

func TestListenTwice(t *testing.T) {
	g := newGateway(t, "127.0.0.1:0")
	if err := g.Listen(); err != nil {
		t.Fatal(err)
	}
	if err := g.Listen(); err == nil {
		t.Error("no error")
	}
	if len(g.Addrs()) != 1 {
		t.Error("the sockets are gone")
	}
}

func TestWildcardsOfBothFamiliesShareAPort(t *testing.T) {
	for range attempts { // others may take the port in between
		first := newGateway(t, "127.0.0.1:0")
		if err := first.Listen(); err != nil {
			t.Fatal(err)
		}
		port := first.Addrs()[0].Port()
		closeSockets(first)
		g := newGateway(t, netip.AddrPortFrom(netip.IPv4Unspecified(), port).String(), netip.AddrPortFrom(netip.IPv6Unspecified(), port).String())
		if err := g.Listen(); err == nil {
			return
		} else if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
	t.Error("no port is free for both families")
}

func TestListenErrorsSayWhatHelps(t *testing.T) {
	for errno, want := range map[syscall.Errno]string{
		syscall.EADDRINUSE:    "systemd-resolved",
		syscall.EACCES:        "CAP_NET_BIND_SERVICE",
		syscall.EADDRNOTAVAIL: "no interface",
		syscall.EAFNOSUPPORT:  "no IPv6",
	} {
		addr := netip.MustParseAddrPort("192.0.2.1:53")
		cause := &net.OpError{Op: "listen", Net: "tcp4", Addr: net.TCPAddrFromAddrPort(addr), Err: os.NewSyscallError("bind", errno)}
		err := explain(cause, "TCP", addr)
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), addr.String()) != 1 {
			t.Errorf("%v: %v", errno, err)
		}
	}
}

// closeSockets closes those of a gateway that doesn't serve.
func closeSockets(g *Gateway) {
	for _, s := range g.stations {
		s.close()
	}
	g.stations = nil
}

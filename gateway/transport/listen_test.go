package transport

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestListenOnUsedPort(t *testing.T) {
	first := newServer(t, handler{}, Options{})
	if err := first.Listen(addrs("127.0.0.1:0"), false); err != nil {
		t.Fatal(err)
	}
	taken := first.Addrs()[0]
	second := newServer(t, handler{}, Options{})
	err := second.Listen(addrs("127.0.0.1:0", taken.String()), false)
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"gateway.listen", taken.String(), "udp", "another program"} {
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
	s := newServer(t, handler{}, Options{})
	if err := s.Listen(addrs(other.LocalAddr().String()), false); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "udp") {
		t.Errorf("got %v", err)
	}
}

func TestListenTwice(t *testing.T) {
	s := newServer(t, handler{}, Options{})
	if err := s.Listen(addrs("127.0.0.1:0"), false); err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(addrs("127.0.0.1:0"), false); err == nil {
		t.Error("no error")
	}
	if len(s.Addrs()) != 1 {
		t.Error("the sockets are gone")
	}
}

func TestWildcardsOfBothFamiliesShareAPort(t *testing.T) {
	for range attempts { // others may take the port in between
		first := newServer(t, handler{}, Options{})
		if err := first.Listen(addrs("127.0.0.1:0"), false); err != nil {
			t.Fatal(err)
		}
		port := first.Addrs()[0].Port()
		closeSockets(first)
		both := []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), port), netip.AddrPortFrom(netip.IPv6Unspecified(), port)}
		if err := newServer(t, handler{}, Options{}).Listen(both, false); err == nil {
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
		err := explain(cause, "tcp", addr)
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), addr.String()) != 1 {
			t.Errorf("%v: %v", errno, err)
		}
	}
}

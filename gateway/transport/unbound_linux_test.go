package transport

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// InNamespace runs f in a network namespace that has nothing but lo. Sockets that f
// opens, and those that code called by f on the same goroutine opens, are in there.
func InNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: absent addresses of gateway.listen, because no network namespace can be made here (root is needed)")
	}
	done := make(chan struct{})
	var problem error
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if problem = unix.Unshare(unix.CLONE_NEWNET); problem != nil {
			return
		}
		AddAddress(t, "lo", "127.0.0.1")
		f()
	}()
	<-done
	if problem != nil {
		t.Skip("NOT TESTED: absent addresses of gateway.listen, because no network namespace can be made here: ", problem)
	}
}

// AddAddress gives an interface of the namespace an address, and has it up.
func AddAddress(t *testing.T, label, addr string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(label)
	if err != nil {
		t.Error(err)
		return
	}
	if err := r.SetInet4Addr(net.ParseIP(addr).To4()); err != nil {
		t.Error(err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, r); err != nil {
		t.Error("add an address:", err)
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		t.Error("set an interface up:", err)
	}
}

// serveHere serves until stop is called.
func serveHere(t *testing.T, s *Server) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, func() {}) }()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		serving := s.service.ctx != nil
		s.mu.Unlock()
		if serving {
			break
		}
		if time.Now().After(deadline) {
			t.Error("it does not serve")
			break
		}
	}
	return func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// AnsweredAt compares where queries are answered over UDP and TCP.
func AnsweredAt(t *testing.T, addr netip.AddrPort, want bool) {
	t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		got := false
		if c, err := net.DialTimeout(network, addr.String(), 5*time.Second); err == nil {
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			got = true
			if want {
				got = exchange(t, c, query("www.example.com.")) != nil
			}
			c.Close()
		}
		if got != want {
			t.Errorf("%v over %s: answered: %t", addr, network, got)
		}
	}
}

// An address that no interface has does not keep the others from being served, not
// at start and not at a reload, and is served once an interface has it.
func TestAnAbsentAddressIsServedOnceAnInterfaceHasIt(t *testing.T) {
	present, late, later := netip.MustParseAddrPort("127.0.0.1:5300"), netip.MustParseAddrPort("192.0.2.99:5300"), netip.MustParseAddrPort("192.0.2.98:5300")
	f := func(name string, bindAbsent bool, warning string) {
		t.Run(name, func(t *testing.T) {
			InNamespace(t, func() {
				var log Buffer
				s := newServer(t, handler{}, Options{})
				s.log, s.bindAbsent = slog.New(slog.NewTextHandler(&log, nil)), bindAbsent
				if err := s.Listen([]netip.AddrPort{late, present}, false); err != nil {
					t.Error(err)
					return
				}
				defer serveHere(t, s)()
				AnsweredAt(t, present, true)
				AnsweredAt(t, late, false)
				if !strings.Contains(log.String(), warning) || !strings.Contains(log.String(), "address="+late.String()) {
					t.Errorf("%q is not in the log:\n%s", warning, log.String())
				}
				if !s.RetryUnbound() {
					t.Error("nothing is looked for")
				}
				AddAddress(t, "lo:1", late.Addr().String())
				if s.RetryUnbound() {
					t.Error("something is still looked for")
				}
				AnsweredAt(t, late, true)
				if want := "clients are served there\" address=" + late.String(); !strings.Contains(log.String(), want) {
					t.Errorf("%q is not in the log:\n%s", want, log.String())
				}

				// The same at a reload, during which nothing is opened.
				c, err := s.Prepare([]netip.AddrPort{later, late})
				if err != nil {
					t.Error(err)
					return
				}
				AddAddress(t, "lo:2", later.Addr().String())
				s.RetryUnbound()
				c.Commit(func() {})
				if s.RetryUnbound() {
					t.Error("something is still looked for after the reload")
				}
				AnsweredAt(t, late, true)
				AnsweredAt(t, later, true)
				if got := len(s.Addrs()); got != 2 {
					t.Errorf("it listens at %v", s.Addrs())
				}
			})
		})
	}
	f("bound before", true, "no interface has an address of gateway.listen; clients are served there once one has")
	f("bound later", false, "listening on an address of gateway.listen failed, because no interface has it; trying again every second")
}

// Without any address that can be opened, there is no service.
func TestNoAddressAtAllIsAnError(t *testing.T) {
	s := newServer(t, handler{}, Options{})
	s.bindAbsent = false
	err := s.Listen(addrs("192.0.2.99:5300", "192.0.2.98:5300"), false)
	for _, want := range []string{"192.0.2.99", "192.0.2.98", "no interface has this address"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing from: %v", want, err)
		}
	}
}

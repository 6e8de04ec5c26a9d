package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"syscall"
)

// Listen opens all sockets, UDP and TCP for each address. Either all of them are open when
// it returns, or none, and the error names every address that failed.
//
// An address that no interface has is no error if at least one other can be opened: it is
// served once an interface has it. [::1] on a host without IPv6, which is among the
// defaults, is left out if there is another address.
//
// If share is set, s serves at the same addresses as another process of the same user, which
// is about to stop. Otherwise that is an error.
func (s *Server) Listen(addrs []netip.AddrPort, share bool) error {
	if len(s.Addrs()) > 0 {
		return errors.New("listen: already listening")
	}
	opened, err := s.open(addrs, share, nil, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners, s.unbound = opened.added, opened.unbound
	return err
}

// An openResult is what open did with the listen addresses.
type openResult struct {
	kept, added []*listener
	unbound     []unboundAddress
}

// open opens listeners for all addresses in listen, except those that one of have is
// already open for, which it keeps. On an error, none is opened.
func (s *Server) open(listen []netip.AddrPort, share bool, have, draining []*listener) (opened openResult, err error) {
	var problems []error
	for _, addr := range listen {
		overlaps := func(l *listener) bool { return l.overlaps(addr) }
		share := share || slices.ContainsFunc(have, overlaps) || slices.ContainsFunc(draining, overlaps)
		if err := s.openOne(&opened, addr, listen, share, have); err != nil {
			problems = append(problems, err)
		}
	}
	for _, u := range opened.unbound {
		if len(opened.kept)+len(opened.added) == 0 {
			problems = append(problems, u.problem)
		} else if len(problems) == 0 {
			u.warn(s.log)
		}
	}
	if len(problems) > 0 {
		for _, l := range opened.added {
			l.close()
		}
		return openResult{}, errors.Join(problems...)
	}
	return opened, nil
}

// openOne adds a listener for addr to opened: one of have, or a new one, or none as long as
// no interface has addr.
func (s *Server) openOne(opened *openResult, addr netip.AddrPort, listen []netip.AddrPort, share bool, have []*listener) error {
	family := familyOf(addr, listen)
	same := func(l *listener) bool {
		return l.listen == addr && l.family == family && !slices.Contains(opened.kept, l)
	}
	if i := slices.IndexFunc(have, same); i >= 0 {
		opened.kept = append(opened.kept, have[i])
		return nil
	}
	l, err := s.openListener(addr, family, share, false)
	if isAbsent(addr, err) {
		if addr.Addr() == netip.IPv6Loopback() && len(listen) > 1 {
			s.log.Warn("not listening on an address of gateway.listen, because this host has no IPv6", "address", addr)
			return nil
		}
		u := unboundAddress{listen: addr, family: family, problem: err}
		if l, err = s.openAbsent(u, share); err != nil {
			opened.unbound = append(opened.unbound, u)
			return nil
		}
	}
	if err != nil {
		return err
	}
	opened.added = append(opened.added, l)
	return nil
}

// overlaps reports whether some packets for addr arrive at l. Both have to share the port
// then, for as long as both exist.
func (l *listener) overlaps(addr netip.AddrPort) bool {
	return slices.ContainsFunc(l.addrs, func(own netip.AddrPort) bool {
		return own == addr || own.Port() == addr.Port() && (own.Addr().IsUnspecified() || addr.Addr().IsUnspecified())
	})
}

// Adopt takes over open sockets, in place of Listen: those of a service manager, which
// opens ports that this process may not. No Change replaces them. Serve closes its
// descriptors at the end, or Adopt does on an error, but leaves the sockets as they are
// for the next process.
func (s *Server) Adopt(listeners []*net.TCPListener, conns []*net.UDPConn) error {
	if len(s.Addrs()) > 0 {
		return errors.New("adopt: already listening")
	}
	all := new(listener)
	var problems []error
	note := func(addr netip.AddrPort) {
		if addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()); !slices.Contains(all.addrs, addr) {
			all.addrs = append(all.addrs, addr)
		}
	}
	for _, ln := range listeners {
		addr := ln.Addr().(*net.TCPAddr).AddrPort()
		l, err := newTCPListener(s, ln)
		if err != nil {
			problems = append(problems, explain(err, "tcp", addr))
			continue
		}
		all.tcp = append(all.tcp, l)
		note(addr)
	}
	for _, conn := range conns {
		addr := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		u, err := adoptUDPSocket(s, conn, addr.Addr().Is6(), addr)
		if err != nil {
			problems = append(problems, explain(err, "udp", addr))
			continue
		}
		u.adopted = true
		all.udp = append(all.udp, u)
		note(addr)
	}
	if len(all.udp) == 0 || len(all.tcp) == 0 {
		problems = append(problems, fmt.Errorf("adopt: there are %d UDP sockets and %d TCP sockets; clients need both", len(all.udp), len(all.tcp)))
	}
	if len(problems) > 0 {
		all.close()
		return errors.Join(problems...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners, s.adopted = []*listener{all}, true
	return nil
}

// attempts bounds the search for a port that is free for both UDP and TCP.
const attempts = 20

// openListener opens the sockets for one address; if absent, even if no interface has it.
// TCP comes last: a script that waits for the gateway by connecting may then ask over UDP.
func (s *Server) openListener(listen netip.AddrPort, family string, share, absent bool) (*listener, error) {
	addr := netip.AddrPortFrom(listen.Addr().Unmap(), listen.Port())
	for attempt := 1; ; attempt++ {
		sockets, err := s.listenUDP(addr, family, share, absent)
		if err != nil {
			return nil, explain(err, "udp", addr)
		}
		bound := netip.AddrPortFrom(addr.Addr(), uint16(sockets[0].conn.LocalAddr().(*net.UDPAddr).Port))
		l, err := s.listenTCP(bound, family, share, absent)
		if err == nil {
			return &listener{listen: listen, family: family, addrs: []netip.AddrPort{bound}, udp: sockets, tcp: []*tcpListener{l}, absent: absent}, nil
		}
		closeUDP(sockets)
		if !errors.Is(err, syscall.EADDRINUSE) || addr.Port() != 0 || attempt == attempts {
			return nil, explain(err, "tcp", addr)
		}
	}
}

// listenTCP opens a socket that the next gateway may share. Unless share is set, it first
// makes sure that no other process listens there.
func (s *Server) listenTCP(addr netip.AddrPort, family string, share, absent bool) (*tcpListener, error) {
	// TCP keep-alive is off: idle clients are closed after idle_timeout, long before a
	// keep-alive probe would be sent.
	lc := net.ListenConfig{KeepAlive: -1}
	lc.SetMultipathTCP(false) // its handshake is longer, and a query never lives long enough to profit
	if !share {
		lc.Control = beforeBind(false, absent)
		alone, err := lc.Listen(context.Background(), "tcp"+family, addr.String())
		if err != nil {
			return nil, err
		}
		addr = netip.AddrPortFrom(addr.Addr(), uint16(alone.Addr().(*net.TCPAddr).Port))
		alone.Close()
	}
	lc.Control = beforeBind(true, absent)
	ln, err := lc.Listen(context.Background(), "tcp"+family, addr.String())
	if err != nil {
		return nil, err
	}
	return newTCPListener(s, ln.(*net.TCPListener))
}

// listenUDP opens sockets that share one port. The first one is bound without sharing,
// because only then does the system report that another process serves there, even
// another gateway.
func (s *Server) listenUDP(addr netip.AddrPort, family string, share, absent bool) (sockets []*udpSocket, err error) {
	lc := net.ListenConfig{Control: beforeBind(share, absent)}
	for len(sockets) < socketsPerAddress(runtime.GOMAXPROCS(0)) {
		u, err := newUDPSocket(s, lc, "udp"+family, addr)
		if err == nil && len(sockets) == 0 {
			addr = netip.AddrPortFrom(addr.Addr(), uint16(u.conn.LocalAddr().(*net.UDPAddr).Port))
			lc.Control = beforeBind(true, absent)
			err = shareFromNow(u.conn)
		}
		if u != nil {
			sockets = append(sockets, u)
		}
		if err != nil {
			closeUDP(sockets)
			return nil, err
		}
	}
	return sockets, nil
}

// beforeBind returns a function that sets options of a socket before it is bound: share
// for sharing its port, absent for an address that no interface has.
func beforeBind(share, absent bool) func(network, address string, c syscall.RawConn) error {
	return func(network, address string, c syscall.RawConn) error {
		if share {
			if err := sharePort(network, address, c); err != nil {
				return err
			}
		}
		if absent {
			return freeBind(network, address, c)
		}
		return nil
	}
}

// shareFromNow lets sockets that are opened afterwards share conn's port.
func shareFromNow(conn *net.UDPConn) error {
	c, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	return sharePort("", "", c)
}

func closeUDP(sockets []*udpSocket) {
	for _, s := range sockets {
		s.conn.Close()
	}
}

// familyOf returns the suffix of the network for addr: none for an IPv6 socket that takes
// IPv4 too. If IPv4 addresses are listed with the same port, [::] is for IPv6 only: the two
// would overlap.
func familyOf(addr netip.AddrPort, listed []netip.AddrPort) string {
	if addr.Addr().Unmap().Is4() {
		return "4"
	}
	if addr.Addr() != netip.IPv6Unspecified() {
		return "6"
	}
	for _, other := range listed {
		if other.Addr().Unmap().Is4() && other.Port() == addr.Port() {
			return "6"
		}
	}
	return ""
}

// explain says what was attempted, which option it comes from, and what usually helps.
func explain(err error, transport string, addr netip.AddrPort) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = fmt.Sprintf("; another program uses this port: ss -lntup 'sport = :%d'", addr.Port())
		if addr.Port() == 53 {
			hint += " (often systemd-resolved: see DNSStubListener= in resolved.conf)"
		}
	case errors.Is(err, syscall.EACCES):
		hint = "; ports below 1024 need root, CAP_NET_BIND_SERVICE, or a lower net.ipv4.ip_unprivileged_port_start"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "; no interface has this address; 0.0.0.0 and [::] are all addresses, also those that come and go"
	case errors.Is(err, syscall.EAFNOSUPPORT):
		hint = "; this host has no IPv6"
	}
	// The system's text is clearer than the net package's, which repeats the address.
	if call, ok := errors.AsType[*os.SyscallError](err); ok {
		err = call
	}
	return fmt.Errorf("listen %s %s (gateway.listen): %w%s", transport, addr, err, hint)
}

package gateway

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

// Listen opens all sockets, UDP and TCP for each address. Either all of them
// are open when it returns, or none and an error that names every address that
// could not be had.
//
// One exception: [::1] on a host without IPv6 is left out, with a warning, if
// there is another address. It is among the defaults, and nobody misses it.
func (g *Gateway) Listen() error {
	if len(g.Addrs()) > 0 {
		return errors.New("listen: already listening")
	}
	_, stations, err := g.open(g.now().Options, nil, nil)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stations = stations
	return err
}

// open opens stations for all addresses in the options but those that stay: the
// ones among have that are for the same. On an error, nothing is opened.
func (g *Gateway) open(o Options, have, leaving []*station) (stay, fresh []*station, err error) {
	var problems []error
	for _, addr := range o.Listen {
		family := familyOf(addr, o.Listen)
		same := func(s *station) bool { return s.listen == addr && s.family == family && !slices.Contains(stay, s) }
		if i := slices.IndexFunc(have, same); i >= 0 {
			stay = append(stay, have[i])
			continue
		}
		share := o.Share || slices.ContainsFunc(slices.Concat(have, leaving), func(s *station) bool { return s.overlaps(addr) })
		s, err := g.openStation(addr, family, share)
		switch {
		case err == nil:
			fresh = append(fresh, s)
		case addr.Addr() == netip.IPv6Loopback() && noIPv6(err) && len(o.Listen) > 1:
			g.log.Warn("this host has no IPv6, nobody can ask there", "address", addr)
		default:
			problems = append(problems, err)
		}
	}
	if len(problems) > 0 {
		for _, s := range fresh {
			s.close()
		}
		return nil, nil, errors.Join(problems...)
	}
	return stay, fresh, nil
}

// overlaps reports whether some packets for addr come to s. Then both need to share
// the port, for as long as there are both.
func (s *station) overlaps(addr netip.AddrPort) bool {
	return slices.ContainsFunc(s.addrs, func(own netip.AddrPort) bool {
		return own == addr || own.Port() == addr.Port() && (own.Addr().IsUnspecified() || addr.Addr().IsUnspecified())
	})
}

// Adopt takes over sockets that somebody else has opened, in place of Listen: those
// of a service manager, which opens ports that we may not. Options.Listen is then of
// no matter. Serve leaves them as they are for whoever has them next, but our hold
// on them ends with it, or at once if there is an error.
func (g *Gateway) Adopt(listeners []*net.TCPListener, conns []*net.UDPConn) error {
	if len(g.Addrs()) > 0 {
		return errors.New("adopt: already listening")
	}
	s := new(station)
	var problems []error
	note := func(addr netip.AddrPort) {
		if addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()); !slices.Contains(s.addrs, addr) {
			s.addrs = append(s.addrs, addr)
		}
	}
	for _, ln := range listeners {
		addr := ln.Addr().(*net.TCPAddr).AddrPort()
		l, err := newTCPListener(g, ln)
		if err != nil {
			problems = append(problems, explain(err, "TCP", addr))
			continue
		}
		s.tcp = append(s.tcp, l)
		note(addr)
	}
	for _, conn := range conns {
		addr := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		u, err := adoptUDPSocket(g, conn, addr.Addr().Is6(), addr)
		if err != nil {
			problems = append(problems, explain(err, "UDP", addr))
			continue
		}
		u.lent = true
		s.udp = append(s.udp, u)
		note(addr)
	}
	if len(s.udp) == 0 || len(s.tcp) == 0 {
		problems = append(problems, fmt.Errorf("adopt: there are %d UDP sockets and %d TCP sockets; clients need both", len(s.udp), len(s.tcp)))
	}
	if len(problems) > 0 {
		s.close()
		return errors.Join(problems...)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stations, g.adopted = []*station{s}, true
	return nil
}

func noIPv6(err error) bool {
	return errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)
}

// attempts bounds the search for a port that is free for UDP and TCP both.
const attempts = 20

// openStation opens the sockets for one address. TCP comes last: whoever gets a
// connection, as scripts do that wait for a gateway to start, may ask over UDP.
func (g *Gateway) openStation(listen netip.AddrPort, family string, share bool) (*station, error) {
	addr := netip.AddrPortFrom(listen.Addr().Unmap(), listen.Port())
	for attempt := 1; ; attempt++ {
		sockets, err := g.listenUDP(addr, family, share)
		if err != nil {
			return nil, explain(err, "UDP", addr)
		}
		bound := netip.AddrPortFrom(addr.Addr(), uint16(sockets[0].conn.LocalAddr().(*net.UDPAddr).Port))
		l, err := g.listenTCP(bound, family, share)
		if err == nil {
			return &station{listen: listen, family: family, addrs: []netip.AddrPort{bound}, udp: sockets, tcp: []*tcpListener{l}}, nil
		}
		closeUDP(sockets)
		if !errors.Is(err, syscall.EADDRINUSE) || addr.Port() != 0 || attempt == attempts {
			return nil, explain(err, "TCP", addr)
		}
	}
}

// listenTCP opens a socket that the next gateway may share. Unless this one is to
// share somebody's, it looks first whether anybody is there.
func (g *Gateway) listenTCP(addr netip.AddrPort, family string, share bool) (*tcpListener, error) {
	// Who says nothing is disconnected long before the system would look whether it is
	// still there.
	config := net.ListenConfig{KeepAlive: -1}
	config.SetMultipathTCP(false) // its handshake is longer, and a query never lives long enough to profit
	if !share {
		alone, err := config.Listen(context.Background(), "tcp"+family, addr.String())
		if err != nil {
			return nil, err
		}
		addr = netip.AddrPortFrom(addr.Addr(), uint16(alone.Addr().(*net.TCPAddr).Port))
		alone.Close()
	}
	config.Control = sharePort
	ln, err := config.Listen(context.Background(), "tcp"+family, addr.String())
	if err != nil {
		return nil, err
	}
	return newTCPListener(g, ln.(*net.TCPListener))
}

// listenUDP opens sockets that share one port. The first is opened as one that
// does not share: only so does the system tell that somebody else serves there,
// be it another gateway.
func (g *Gateway) listenUDP(addr netip.AddrPort, family string, share bool) (sockets []*udpSocket, err error) {
	var config net.ListenConfig
	if share {
		config.Control = sharePort
	}
	for len(sockets) < socketsPerAddress(runtime.GOMAXPROCS(0)) {
		s, err := newUDPSocket(g, config, "udp"+family, addr)
		if err == nil && len(sockets) == 0 {
			addr = netip.AddrPortFrom(addr.Addr(), uint16(s.conn.LocalAddr().(*net.UDPAddr).Port))
			config.Control = sharePort
			err = shareFromNow(s.conn)
		}
		if s != nil {
			sockets = append(sockets, s)
		}
		if err != nil {
			closeUDP(sockets)
			return nil, err
		}
	}
	return sockets, nil
}

// shareFromNow lets sockets that are opened from now on share conn's port.
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

// familyOf returns the suffix of the network for addr: none for an IPv6 socket
// that takes IPv4 too. If IPv4 addresses are listed, they are what is meant for
// IPv4, and the two would be in each other's way.
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

// explain says what was being done, which option it comes from, and what
// usually helps.
func explain(err error, transport string, addr netip.AddrPort) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = fmt.Sprintf("; another program serves there, and `ss -lntup 'sport = :%d'` tells which", addr.Port())
		if addr.Port() == 53 {
			hint += " (often systemd-resolved: see DNSStubListener= in resolved.conf)"
		}
	case errors.Is(err, syscall.EACCES):
		hint = "; ports below 1024 need root, CAP_NET_BIND_SERVICE, or a lower net.ipv4.ip_unprivileged_port_start"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "; no interface has this address. 0.0.0.0 and [::] serve addresses that come and go, too"
	case errors.Is(err, syscall.EAFNOSUPPORT):
		hint = "; this host has no IPv6"
	}
	// The system's own words are clearer than the net package's, which repeat
	// the address.
	if call, ok := errors.AsType[*os.SyscallError](err); ok {
		err = call
	}
	return fmt.Errorf("gateway.listen: serve %s on %s: %w%s", transport, addr, err, hint)
}

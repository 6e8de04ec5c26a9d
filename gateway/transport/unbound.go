package transport

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// UnboundInterval is how often RetryUnbound should be called as long as it returns true: some
// systems report no change of their network.
const UnboundInterval = time.Second

// An unboundAddress is a listen address that no interface has, on a system where a
// socket cannot be bound to it until one does.
type unboundAddress struct {
	listen  netip.AddrPort
	family  string // see familyOf
	problem error  // why it could not be opened
}

func (u unboundAddress) warn(log *slog.Logger) {
	log.Warn("listening on an address of gateway.listen failed, because no interface has it; trying again every second", "address", u.listen, "error", u.problem)
}

// IsAbsent reports whether no interface of this machine has addr, so that no client can
// reach it.
func IsAbsent(addr netip.Addr) bool {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr.Unmap(), 0)))
	if err != nil {
		return isAbsent(netip.AddrPortFrom(addr, 0), err)
	}
	conn.Close()
	return false
}

// isAbsent reports whether err says that no interface has addr.
func isAbsent(addr netip.AddrPort, err error) bool {
	if addr.Addr().Zone() != "" && (errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENODEV)) {
		return true // no interface has the name of the zone
	}
	return errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)
}

// openAbsent opens the sockets for an address that no interface has. It fails where the
// system does not allow that.
func (s *Server) openAbsent(u unboundAddress, share bool) (*listener, error) {
	if !s.bindAbsent {
		return nil, errors.ErrUnsupported
	}
	l, err := s.openListener(u.listen, u.family, share, true)
	if err == nil {
		s.log.Warn("no interface has an address of gateway.listen; clients are served there once one has", "address", u.listen)
	}
	return l, err
}

// RetryUnbound opens and serves unbound addresses that can be bound by now, unless a
// Change is in preparation, which does the same. It reports whether it has to be called
// again: some addresses are still missing from all interfaces.
func (s *Server) RetryUnbound() bool {
	s.opening.Lock()
	defer s.opening.Unlock()
	s.mu.Lock()
	unbound := slices.Clone(s.unbound)
	var absent []*listener
	for _, l := range s.listeners {
		if l.absent {
			absent = append(absent, l)
		}
	}
	ready := s.service.ctx != nil && !s.changing
	s.mu.Unlock()
	waiting := len(unbound)+len(absent) > 0
	if !waiting || !ready {
		return waiting
	}
	var opened, present []*listener
	var still []unboundAddress
	for _, u := range unbound {
		l, err := s.openListener(u.listen, u.family, false, false)
		if err == nil {
			opened = append(opened, l)
			continue
		}
		if err.Error() != u.problem.Error() {
			u.problem = err
			u.warn(s.log)
		}
		still = append(still, u)
	}
	for _, l := range absent {
		if !IsAbsent(l.listen.Addr()) {
			present = append(present, l)
		}
	}
	s.serveRetried(still, opened, present)
	return len(still)+len(absent) > len(present)
}

// serveRetried serves the listeners in opened, marks those in present as having an address
// of an interface, and keeps the addresses in still for the next try. The caller holds
// opening.
func (s *Server) serveRetried(still []unboundAddress, opened, present []*listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unbound = still
	for _, l := range present {
		l.absent = false
	}
	for _, l := range opened {
		if s.service.ending {
			l.close()
			continue
		}
		s.listeners = append(s.listeners, l)
		s.serve(l)
	}
	for _, l := range slices.Concat(opened, present) {
		s.log.Info("an interface has an address of gateway.listen by now; clients are served there", "address", l.listen)
	}
}

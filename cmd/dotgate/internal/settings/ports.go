package settings

import "net/netip"

// checkPorts reports addresses to listen on that stand in each other's way: each of them
// is for TCP, among others.
func (l *loader) checkPorts() {
	c := l.config
	for _, client := range c.Gateway.Listen {
		l.checkPair("admin.listen", c.Admin.Listen.AddrPort, "gateway.listen", client)
		if len(c.Peers.Nodes) > 0 {
			l.checkPair("peers.listen", c.Peers.Listen, "gateway.listen", client)
		}
	}
	if len(c.Peers.Nodes) > 0 {
		l.checkPair("peers.listen", c.Peers.Listen, "admin.listen", c.Admin.Listen.AddrPort)
	}
}

// checkPair reports two addresses that can't both be had, at the one that is written.
func (l *loader) checkPair(key string, a netip.AddrPort, otherKey string, other netip.AddrPort) {
	if !overlap(a, other) {
		return
	}
	if l.config.origins[key].IsDefault() {
		key, a, otherKey, other = otherKey, other, key, a
	}
	l.Report(l.config.origins[key], key, "%v is in the way of %s, %v; give one of them another port", a, otherKey, other)
}

// overlap reports whether no two sockets can have a and b. [::] is all addresses, of IPv4
// as well.
func overlap(a, b netip.AddrPort) bool {
	if !a.IsValid() || !b.IsValid() || a.Port() != b.Port() || a.Port() == 0 {
		return false
	}
	first, second := a.Addr(), b.Addr()
	covers := func(a, b netip.Addr) bool { return a == netip.IPv6Unspecified() || a.IsUnspecified() && b.Is4() }
	return first == second || covers(first, second) || covers(second, first)
}

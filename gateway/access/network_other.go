//go:build !linux

package access

import (
	"fmt"
	"net"
	"net/netip"
)

// Interfaces returns the interfaces of this machine that are up, with all of their addresses.
// Their routes are unknown on this system.
func Interfaces() (all []Interface, err error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoInterfaces, err)
	}
	for _, l := range links {
		if l.Flags&net.FlagUp == 0 {
			continue
		}
		i := Interface{Name: l.Name, Loopback: l.Flags&net.FlagLoopback != 0, DefaultRoute: true}
		addresses, err := l.Addrs()
		if err != nil {
			continue // the interface has just gone
		}
		for _, a := range addresses {
			if p, ok := a.(*net.IPNet); ok {
				if addr, ok := netip.AddrFromSlice(p.IP); ok {
					ones, size := p.Mask.Size()
					if size == 128 && addr.Is4In6() {
						ones -= 96
					}
					i.Addresses = append(i.Addresses, netip.PrefixFrom(addr.Unmap(), ones))
				}
			}
		}
		all = append(all, i)
	}
	return all, nil
}

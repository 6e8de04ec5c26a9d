package admin

import (
	"fmt"
	"net"
	"net/netip"
)

// held returns the addresses of this machine, without those of loopback interfaces.
func held() (map[netip.Addr]bool, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces, to look for admin.shared_addresses: %w", err)
	}
	all := make(map[netip.Addr]bool)
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 || i.Flags&net.FlagUp == 0 {
			continue
		}
		addresses, err := i.Addrs()
		if err != nil {
			continue // it is just going
		}
		for _, a := range addresses {
			if prefix, ok := a.(*net.IPNet); ok {
				if addr, ok := netip.AddrFromSlice(prefix.IP); ok {
					all[addr.Unmap()] = true
				}
			}
		}
	}
	return all, nil
}

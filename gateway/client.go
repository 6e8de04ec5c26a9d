package gateway

import (
	"net"
	"net/netip"

	"dotgate/gateway/wire"
)

// A client is who asks, as far as the reply depends on it, and room for what
// only this reply has. It is for one packet at a time.
type client struct {
	addr    netip.Addr // never an IPv4 address in IPv6 form; invalid if it is unknown
	via     wire.Transport
	extras  wire.Extras
	options [maxReplyOptions]byte
}

// addrOf returns the IP address in a, which is of a TCP connection.
func addrOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

package transport

import (
	"golang.org/x/sys/unix"
)

// controlSize is the size of an in6_pktinfo with its header, which has a packet's
// destination.
var controlSize = unix.CmsgSpace(unix.SizeofInet6Pktinfo)

// replySource turns the control message of a packet, in place, into the one that makes the
// reply leave from the address that the packet was sent to: clients accept no other. It
// returns nothing if the socket's own address will do.
//
// The interface is removed, so that replies take the route that the host's tables say,
// which need not lead back to where the query came from. Link-local addresses keep it: they
// mean nothing without.
func replySource(control []byte) []byte {
	if len(control) < unix.SizeofCmsghdr {
		return nil
	}
	header, data, rest, err := unix.ParseOneSocketControlMessage(control)
	if err != nil {
		return nil
	}
	switch {
	case header.Level == unix.IPPROTO_IP:
		if !replySource4(int32(header.Type), data) {
			return nil
		}
	case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
		// An in6_pktinfo: address, interface. IPv4 addresses come mapped.
		switch {
		case data[0] == 0xff:
			return nil // multicast: no source for a reply
		case data[0] == 0xfe && data[1]&0xc0 == 0x80:
		default:
			clear(data[16:20])
		}
	default:
		return nil
	}
	return control[:len(control)-len(rest)]
}

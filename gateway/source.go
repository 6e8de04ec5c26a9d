package gateway

import "golang.org/x/sys/unix"

// controlSize has room for what the system tells about a packet's destination,
// an in6_pktinfo with its header.
var controlSize = unix.CmsgSpace(unix.SizeofInet6Pktinfo)

// replySource turns the control message that came with a packet, in place, into
// the one that makes the reply leave from the address that was asked: a client
// does not listen to any other. It is empty if the socket's own address will do.
//
// The interface is taken out, for replies take the route that the host's tables
// say, which need not lead back through where the query came from. It stays for
// link-local addresses only, which mean nothing without.
func replySource(control []byte) []byte {
	if len(control) < unix.SizeofCmsghdr {
		return nil
	}
	header, data, rest, err := unix.ParseOneSocketControlMessage(control)
	if err != nil {
		return nil
	}
	switch {
	case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
		// An in_pktinfo: interface, our address, the address in the packet's
		// header. The first two are read when sending.
		clear(data[:4])
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

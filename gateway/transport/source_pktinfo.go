//go:build linux || darwin

package transport

import (
	"golang.org/x/sys/unix"
)

// replySource4 is replySource for the data of an IPv4 control message. It reports whether
// the message has the packet's destination.
func replySource4(kind int32, data []byte) bool {
	if kind != unix.IP_PKTINFO || len(data) < unix.SizeofInet4Pktinfo {
		return false
	}
	// An in_pktinfo: interface, local address, the address in the packet's header. The
	// first two are read when sending.
	clear(data[:4])
	return true
}

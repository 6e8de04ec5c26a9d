//go:build !linux

package transport

import (
	"errors"
	"net"
	"syscall"
)

// socketsPerAddress is 1: on other systems than Linux, sharing a port does not spread its
// clients.
func socketsPerAddress(int) int { return 1 }

func sharePort(_, _ string, _ syscall.RawConn) error { return nil }

// freeBind fails: other systems require that an interface has the address.
func freeBind(_, _ string, _ syscall.RawConn) error { return errors.ErrUnsupported }

// setReceiveBuffer tries ever smaller sizes: other systems fail for one that is too large.
func setReceiveBuffer(conn *net.UDPConn, size int) {
	for conn.SetReadBuffer(size) != nil && size > 64<<10 {
		size /= 2
	}
}

// dropped returns 0: other systems do not report it.
func dropped(*net.UDPConn) uint64 { return 0 }

// leaveGroup does nothing: on other systems no sockets share a port.
func leaveGroup(*net.UDPConn) bool { return false }

//go:build !linux

package gateway

import (
	"net"
	"syscall"
)

// socketsPerAddress: elsewhere, sharing a port doesn't spread its clients.
func socketsPerAddress(int) int { return 1 }

func sharePort(_, _ string, _ syscall.RawConn) error { return nil }

// setReceiveBuffer tries ever less: elsewhere, too much is an error.
func setReceiveBuffer(conn *net.UDPConn, size int) {
	for conn.SetReadBuffer(size) != nil && size > 64<<10 {
		size /= 2
	}
}

// dropped returns 0: the system does not tell.
func dropped(*net.UDPConn) uint64 { return 0 }

// leaveGroup: elsewhere, nobody shares a port.
func leaveGroup(*net.UDPConn) bool { return false }

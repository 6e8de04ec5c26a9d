package gateway

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketsPerAddress returns how many sockets share one address: the kernel
// spreads clients over them, and each core reads its own.
func socketsPerAddress(cores int) int { return cores }

func sharePort(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}); e != nil {
		return e
	}
	return err
}

// setReceiveBuffer asks for size octets. With CAP_NET_ADMIN it gets them,
// otherwise as much as net.core.rmem_max allows; less is no reason not to serve.
func setReceiveBuffer(conn *net.UDPConn, size int) {
	c, err := conn.SyscallConn()
	if err != nil {
		return
	}
	c.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) != nil {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, size)
		}
	})
}

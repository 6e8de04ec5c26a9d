package upstreams

import (
	"net"
	"syscall"
)

// acknowledgeAtOnce has the system acknowledge what comes next without the delay
// of up to 40 ms in which it hopes for something to send along.
func acknowledgeAtOnce(conn net.Conn) {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return
	}
	// Without it, all works as well, if later.
	_ = raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1) })
}

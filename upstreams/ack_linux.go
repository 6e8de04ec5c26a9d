package upstreams

import (
	"net"
	"syscall"
)

// acknowledgeAtOnce has the system acknowledge what comes next without the delay
// of up to 40 ms in which it hopes for something to send along.
func acknowledgeAtOnce(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	// Without it, all works as well, if later.
	_ = raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1) })
}

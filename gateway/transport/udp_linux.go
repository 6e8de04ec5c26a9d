package transport

import (
	"net"
	"net/netip"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socketsPerAddress returns how many sockets share one address: the kernel spreads clients
// over them, and each core reads its own.
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

// freeBind allows a socket to be bound to an address that no interface has.
func freeBind(network, _ string, c syscall.RawConn) error {
	level, option := unix.IPPROTO_IP, unix.IP_FREEBIND
	if strings.HasSuffix(network, "6") {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
	}
	var err error
	if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); e != nil {
		return e
	}
	return err
}

// leaveGroup takes the socket out of the group of those that share its port, if it can: new
// packets go to the others, such as the next gateway's. It is connected to an address from
// which no client sends, so that the kernel does not choose it; it can still send to all.
func leaveGroup(conn *net.UDPConn) bool {
	local := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	addr := local.Addr()
	if addr.Zone() != "" {
		return false
	}
	var unused unix.Sockaddr
	switch {
	case addr.Is4() && addr.IsUnspecified():
		unused = &unix.SockaddrInet4{Port: discard, Addr: [4]byte{127, 0, 0, 1}}
	case addr.Is4():
		unused = &unix.SockaddrInet4{Port: discard, Addr: addr.As4()}
	case addr.IsUnspecified():
		unused = &unix.SockaddrInet6{Port: discard, Addr: netip.IPv6Loopback().As16()}
	default:
		unused = &unix.SockaddrInet6{Port: discard, Addr: addr.As16()}
	}
	c, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	if e := c.Control(func(fd uintptr) { err = unix.Connect(int(fd), unused) }); e != nil {
		return false
	}
	return err == nil
}

// discard is a port that no client sends from (RFC 863).
const discard = 9

// setReceiveBuffer asks for size octets. With CAP_NET_ADMIN it gets them, otherwise as much
// as net.core.rmem_max allows; less is no reason not to serve.
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

// dropped returns how many packets the system dropped because the socket was full
// (SO_MEMINFO, the ninth number).
func dropped(conn *net.UDPConn) uint64 {
	c, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	var info [9]uint32
	c.Control(func(fd uintptr) {
		size := uint32(unsafe.Sizeof(info))
		unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	})
	return uint64(info[8])
}

package dottest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// A port is a server's address while it listens and while it does not. When it
// does not, a socket that is bound but does not serve keeps others from taking
// the port.
type port struct {
	listener net.Listener // or nil
	holder   *os.File     // or nil
	fillers  []net.Conn   // see ignore
}

// refuse makes the port refuse connections.
func (p *port) refuse(addr netip.AddrPort) error {
	p.release()
	holder, err := bind(addr)
	p.holder = holder
	return err
}

// ignore makes the port drop packets: a socket listens whose queue of connections to
// accept is full.
func (p *port) ignore(addr netip.AddrPort) error {
	if err := p.refuse(addr); err != nil {
		return err
	}
	if err := syscall.Listen(int(p.holder.Fd()), 0); err != nil {
		return fmt.Errorf("listen without serving: %w", err)
	}
	for range 16 { // one or two fill the queue on Linux
		full, known := queueIsFull(int(p.holder.Fd()))
		if full {
			return nil
		}
		const patience = 50 * time.Millisecond // far more than loopback needs, unless the machine is busy
		filler, err := net.DialTimeout("tcp", addr.String(), patience)
		if err == nil {
			p.fillers = append(p.fillers, filler)
		} else if !known {
			return nil
		}
	}
	return fmt.Errorf("the queue of %s takes any number of connections", addr)
}

// release frees the port.
func (p *port) release() {
	if p.listener != nil {
		p.listener.Close()
	}
	if p.holder != nil {
		p.holder.Close()
	}
	for _, filler := range p.fillers {
		filler.Close()
	}
	*p = port{}
}

// bind returns a socket that has addr and does not listen.
func bind(addr netip.AddrPort) (*os.File, error) {
	family, sockaddr := syscall.AF_INET, syscall.Sockaddr(&syscall.SockaddrInet4{Port: int(addr.Port())})
	if addr.Addr().Is4() {
		sockaddr.(*syscall.SockaddrInet4).Addr = addr.Addr().As4()
	} else {
		family, sockaddr = syscall.AF_INET6, &syscall.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	}
	syscall.ForkLock.RLock() // as for any descriptor that must not leak into a child
	fd, err := syscall.Socket(family, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, fmt.Errorf("hold %s: %w", addr, err)
	}
	file := os.NewFile(uintptr(fd), "holder of "+addr.String())
	// With it, the next listener can have the port before this one is gone.
	err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err == nil {
		err = syscall.Bind(fd, sockaddr)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("hold %s: %w", addr, err)
	}
	return file, nil
}

package upstreams

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readAhead is how much a socket reads at once. An answer takes about 200 octets with its
// TLS record, so that a burst of dozens costs one system call.
const readAhead = 16 << 10

// A socket is a TCP connection that reads ahead, and that involves the scheduler in a
// system call only if the call has to wait. The scheduler's part costs more than the
// call: on an idle machine its monitor has to be woken, twice for each query.
//
// One goroutine may read and one may write.
type socket struct {
	*net.TCPConn
	raw    syscall.RawConn
	buf    [readAhead]byte
	unread []byte // of buf

	// Arguments and results of receive and submit, which are made once, because making a
	// function may allocate.
	in, out         transfer
	receive, submit func(fd uintptr) (done bool)
}

// A transfer is one read or write.
type transfer struct {
	data  []byte
	n     int
	errno syscall.Errno
}

func newSocket(tcp *net.TCPConn) (net.Conn, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{TCPConn: tcp, raw: raw}
	s.receive = func(fd uintptr) bool { return s.in.call(unix.SYS_RECVFROM, fd) }
	s.submit = func(fd uintptr) bool { return s.out.call(unix.SYS_SENDTO, fd) }
	return s, nil
}

// call makes a system call that does not wait. It reports false if the call would have to
// wait.
func (t *transfer) call(number, fd uintptr) bool {
	for {
		n, _, errno := syscall.RawSyscall6(number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.data))), uintptr(len(t.data)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case unix.EAGAIN:
			return false
		case unix.EINTR:
			continue
		}
		t.n, t.errno = int(n), errno
		return true
	}
}

func (s *socket) Read(p []byte) (int, error) {
	if len(s.unread) == 0 {
		s.in.data = s.buf[:]
		if err := s.raw.Read(s.receive); err != nil {
			return 0, err
		}
		if s.in.errno != 0 {
			return 0, s.failure("read", s.in.errno)
		}
		if s.in.n == 0 {
			return 0, io.EOF
		}
		s.unread = s.buf[:s.in.n]
	}
	n := copy(p, s.unread)
	s.unread = s.unread[n:]
	return n, nil
}

func (s *socket) Write(p []byte) (written int, err error) {
	for written < len(p) {
		s.out.data = p[written:]
		if err := s.raw.Write(s.submit); err != nil {
			return written, err
		}
		if s.out.errno != 0 {
			return written, s.failure("write", s.out.errno)
		}
		written += s.out.n
	}
	return written, nil
}

func (s *socket) failure(call string, errno syscall.Errno) error {
	return &net.OpError{Op: call, Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: os.NewSyscallError(call, errno)}
}

// acknowledgeAtOnce has the system acknowledge the next segments without the usual delay
// of up to 40 ms.
func acknowledgeAtOnce(conn net.Conn) {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return
	}
	// An error is no harm: acknowledgements are just delayed.
	_ = raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1) })
}

// smallSegment is the longest TCP segment whose packet passes where packets over 1,000
// octets get lost.
const smallSegment = 900

// smallSegments limits the segments that a socket sends and receives. It is called before
// the socket connects.
func smallSegments(_, _ string, raw syscall.RawConn) error {
	// An error is no harm: a shorter ClientHello may be enough.
	return raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, smallSegment)
	})
}

// receiveBuffer returns how many octets of packets the system keeps for a socket until they
// are read, or 0 if that is not known.
func receiveBuffer(conn net.Conn) (size int) {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { size, _ = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF) }) // 0 then
	return size
}

// canBind says that sockets can be bound to an interface.
const canBind = true

// bindTo has a socket use one interface only.
func bindTo(raw syscall.RawConn, device string) error {
	var refused error
	err := raw.Control(func(fd uintptr) { refused = unix.BindToDevice(int(fd), device) })
	if err != nil {
		return err
	}
	return refused
}

//go:build linux && load

package e2e

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A link is a client's socket, and the questions that were sent through it.
// It makes system calls directly, without Go's poller: the load must cost less than the
// gateway.
type link struct {
	fd     int
	stream bool // TCP
	asked  []question
	id     uint16
	open   int // number of questions without a reply
	out    []byte
	sends  packets
	in     inbox
}

// A question has no reply yet, unless sent is 0.
type question struct {
	number uint32
	sent   int64 // nanoseconds, on the clock of the client
}

const (
	// Number of datagrams of one system call.
	batch       = 64
	receiveRoom = 512
	// Longest time that a system call waits for a reply.
	receiveLimit = 50 * time.Millisecond
)

// An inbox is the receive buffer of a link, for datagrams or a stream.
type inbox struct {
	packets
	data   []byte
	filled int // of a stream, octets of an incomplete reply
}

// packets are the structures of the kernel for a batch of datagrams.
type packets struct {
	headers [batch]mmsghdr
	vectors [batch]unix.Iovec
}

// set sets the octets of packet i.
func (p *packets) set(i int, data []byte) {
	p.vectors[i].Base = &data[0]
	p.vectors[i].SetLen(len(data))
	p.headers[i].header.Iov = &p.vectors[i]
	p.headers[i].header.SetIovlen(1)
}

// mmsghdr is the kernel's struct mmsghdr.
type mmsghdr struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

func newLink(t *testing.T, to netip.AddrPort, network string) *link {
	t.Helper()
	l := &link{stream: network == "tcp", asked: make([]question, 1<<16)}
	kind := unix.SOCK_DGRAM
	if l.stream {
		kind = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.close() })
	l.fd = fd
	limit := unix.NsecToTimeval(receiveLimit.Nanoseconds())
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	if err == nil && l.stream {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err == nil && !l.stream {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20) // as much as the system allows
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	}
	if err != nil {
		t.Fatal(err)
	}
	l.in.prepare(l.stream)
	return l
}

func (in *inbox) prepare(stream bool) {
	if stream {
		in.data = make([]byte, 1<<17)
		return
	}
	in.data = make([]byte, batch*receiveRoom)
	for i := range batch {
		in.set(i, in.data[i*receiveRoom:][:receiveRoom])
	}
}

func (l *link) close() {
	if l.fd >= 0 {
		_ = unix.Close(l.fd)
		l.fd = -1
	}
}

// ask adds a query for a name to those that flush will send. It fails when all IDs are
// in use.
func (l *link) ask(number uint32, now int64) bool {
	if l.open == 1<<16 {
		return false
	}
	for l.asked[l.id].sent != 0 {
		l.id++
	}
	l.asked[l.id] = question{number, now}
	l.open++
	if l.stream {
		l.out = binary.BigEndian.AppendUint16(l.out, uint16(len(numbered)))
	}
	at := len(l.out)
	l.out = append(l.out, numbered...)
	binary.BigEndian.PutUint16(l.out[at:], l.id)
	putNumber(l.out[at+digitsAt:], number)
	l.id++
	return true
}

// flush sends the added queries. Errors are ignored: their queries will have no replies.
func (l *link) flush() {
	for out := l.out; len(out) > 0; {
		sent, err := l.send(out)
		if err == unix.EINTR {
			continue
		}
		if err != 0 {
			break
		}
		out = out[sent:]
	}
	l.out = l.out[:0]
}

// send sends a part of out and returns its length.
func (l *link) send(out []byte) (int, unix.Errno) {
	if l.stream {
		n, _, err := unix.RawSyscall(unix.SYS_WRITE, uintptr(l.fd), uintptr(unsafe.Pointer(&out[0])), uintptr(len(out)))
		return int(n), err
	}
	size := len(numbered)
	count := min(len(out)/size, batch)
	for i := range count {
		l.sends.set(i, out[i*size:][:size])
	}
	n, _, err := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(l.fd), uintptr(unsafe.Pointer(&l.sends.headers[0])), uintptr(count), 0, 0, 0)
	return int(n) * size, err
}

// receive calls take for each reply that has arrived. It may wait for the first one for
// a short time.
func (l *link) receive(wait bool, take func(reply []byte)) {
	if l.stream {
		l.receiveStream(wait, take)
		return
	}
	flags := uintptr(unix.MSG_DONTWAIT)
	if wait {
		flags = unix.MSG_WAITFORONE
	}
	n, _, err := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(l.fd), uintptr(unsafe.Pointer(&l.in.headers[0])), batch, flags, 0, 0)
	if err != 0 {
		return // no reply, or an ICMP message about a query
	}
	for i := range int(n) {
		take(l.in.data[i*receiveRoom:][:l.in.headers[i].length])
	}
}

func (l *link) receiveStream(wait bool, take func(reply []byte)) {
	flags := uintptr(0)
	if !wait {
		flags = unix.MSG_DONTWAIT
	}
	room := l.in.data[l.in.filled:]
	n, _, err := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(l.fd), uintptr(unsafe.Pointer(&room[0])), uintptr(len(room)), flags, 0, 0)
	if err != 0 || n == 0 {
		return
	}
	data := l.in.data[:l.in.filled+int(n)]
	for len(data) >= 2 && len(data) >= 2+int(binary.BigEndian.Uint16(data)) {
		end := 2 + int(binary.BigEndian.Uint16(data))
		take(data[2:end])
		data = data[end:]
	}
	l.in.filled = copy(l.in.data, data)
}

// An epoll waits until some of its files are readable. Its timeouts have the precision of
// the kernel's timers.
type epoll struct {
	fd     int
	events [64]unix.EpollEvent
}

func newEpoll() (*epoll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		// The default timer slack of a thread is 50 µs.
		err = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	}
	return &epoll{fd: fd}, err
}

// add adds fd, which e reports by number.
func (e *epoll) add(fd, number int) error {
	return unix.EpollCtl(e.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(number)})
}

func (e *epoll) wait(limit time.Duration) []unix.EpollEvent {
	patience := unix.NsecToTimespec(max(limit, 0).Nanoseconds())
	n, _, err := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(e.fd), uintptr(unsafe.Pointer(&e.events[0])),
		uintptr(len(e.events)), uintptr(unsafe.Pointer(&patience)), 0, 0)
	if err != 0 {
		return nil // a signal
	}
	return e.events[:n]
}

func (e *epoll) close() { _ = unix.Close(e.fd) }

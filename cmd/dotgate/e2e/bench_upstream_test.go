//go:build linux && load

package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dotgate/upstreams/dottest"
)

// The bench's upstream is a process of its own, so that its share of the
// processor is known: a DNS-over-TLS server of one thread, which reads in bulk,
// answers all queries that it has read in one write, and can delay answers precisely.
// The same port answers over UDP in clear text, to measure the share of the upstream and
// the client in a delay.
type benchUpstream struct {
	poll     *epoll
	listener int
	udp      int
	config   *tls.Config
	conns    map[int]*benchConn
	delay    time.Duration
	late     []lateAnswer // from first on, sorted by due time
	first    int
	buffer   []byte
	begin    time.Time
}

type lateAnswer struct {
	due    int64
	conn   *benchConn // or nil:
	to     unix.Sockaddr
	length uint8
	data   [125]byte
}

// benchConn is a connection; it is the net.Conn below its own TLS.
type benchConn struct {
	fd       int
	blocking bool // while shaking hands
	tls      *tls.Conn
	received []byte // from the kernel, not yet decrypted
	drained  bool   // the kernel has no more for now
	queries  []byte // decrypted; at the end perhaps a part of one
	answers  []byte // to be sent in one write
	room     [1 << 16]byte
}

// TestBenchUpstream is the upstream's process.
func TestBenchUpstream(t *testing.T) {
	settings := os.Getenv(upstreamEnv)
	if settings == "" {
		t.Skip("TestLoad starts it")
	}
	var address, delay, certificate, key string
	if _, err := fmt.Sscan(settings, &address, &delay, &certificate, &key); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	u := &benchUpstream{config: &tls.Config{Certificates: []tls.Certificate{pair}}, conns: make(map[int]*benchConn), begin: time.Now()}
	if u.delay, err = time.ParseDuration(delay); err != nil {
		t.Fatal(err)
	}
	debug.SetGCPercent(400)
	runtime.GOMAXPROCS(1)
	runtime.LockOSThread()
	if err := u.listen(netip.MustParseAddrPort(address)); err != nil {
		t.Fatal(err)
	}
	fmt.Println("the upstream is serving")
	for {
		u.turn()
	}
}

// certificateFiles returns a directory with a server's cert.pem and key.pem.
func certificateFiles(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	chain, key := pemOf(t, ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}}))
	for name, data := range map[string][]byte{"cert.pem": chain, "key.pem": key} {
		if err := os.WriteFile(dir+"/"+name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// startBenchUpstream starts the upstream on the processor of the load.
func startBenchUpstream(t *testing.T, delay time.Duration) (*process, netip.AddrPort) {
	t.Helper()
	dir := certificateFiles(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	addr := ownAddr()
	settings := fmt.Sprintf("%s=%s %s %s/cert.pem %s/key.pem", upstreamEnv, addr, delay, dir, dir)
	p := start(t, append(os.Environ(), settings), self, "-test.run=^TestBenchUpstream$", "-test.timeout=0")
	p.await(t, "the upstream is serving")
	return p, addr
}

func (u *benchUpstream) listen(addr netip.AddrPort) (err error) {
	if u.poll, err = newEpoll(); err != nil {
		return err
	}
	u.buffer = make([]byte, 1<<16)
	for kind, fd := range map[int]*int{unix.SOCK_STREAM: &u.listener, unix.SOCK_DGRAM: &u.udp} {
		if *fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err = unix.Bind(*fd, &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}); err != nil {
			return err
		}
		if err = u.poll.add(*fd, *fd); err != nil {
			return err
		}
	}
	return unix.Listen(u.listener, 1024)
}

func (u *benchUpstream) now() int64 { return int64(time.Since(u.begin)) }

// turn waits for events and handles all of them.
func (u *benchUpstream) turn() {
	limit := time.Second
	if u.first < len(u.late) {
		limit = time.Duration(u.late[u.first].due - u.now())
	}
	var writing []*benchConn
	for _, event := range u.poll.wait(limit) {
		switch fd := int(event.Fd); fd {
		case u.listener:
			u.accept()
		case u.udp:
			u.receive()
		default:
			c := u.conns[fd]
			if err := u.read(c); err != nil {
				u.drop(c)
			} else if len(c.answers) > 0 {
				writing = append(writing, c)
			}
		}
	}
	for _, c := range append(writing, u.overdue()...) {
		u.write(c)
	}
}

func (u *benchUpstream) accept() {
	fd, _, err := unix.Accept4(u.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		return
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	c := &benchConn{fd: fd, blocking: true}
	c.tls = tls.Server(c, u.config)
	if err := c.tls.Handshake(); err != nil || u.poll.add(fd, fd) != nil {
		_ = unix.Close(fd)
		return
	}
	c.blocking = false
	u.conns[fd] = c
	if err := u.read(c); err != nil { // data that arrived with the end of the handshake
		u.drop(c)
		return
	}
	u.write(c)
}

func (u *benchUpstream) drop(c *benchConn) {
	delete(u.conns, c.fd)
	_ = unix.Close(c.fd)
	c.fd = -1
}

// read reads and answers the queries that have arrived.
func (u *benchUpstream) read(c *benchConn) error {
	c.drained = false
	// Without this the kernel delays the acknowledgement until there is an answer, and a
	// gateway with Nagle's algorithm sends its next queries 5 to 10 ms later. The option
	// must be set again after each read.
	_ = unix.SetsockoptInt(c.fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
	for {
		n, err := c.tls.Read(u.buffer)
		c.queries = append(c.queries, u.buffer[:n]...)
		if errors.Is(err, errNothingYet) {
			break
		}
		if err != nil {
			return err
		}
	}
	now, queries := u.now(), c.queries
	for len(queries) >= 2 && len(queries) >= 2+int(binary.BigEndian.Uint16(queries)) {
		end := 2 + int(binary.BigEndian.Uint16(queries))
		if end < 2+12 {
			return errors.New("a query without a header")
		}
		u.answer(lateAnswer{conn: c, due: now}, queries[2:end])
		queries = queries[end:]
	}
	c.queries = c.queries[:copy(c.queries, queries)]
	return nil
}

// answer answers a query now, or adds it to the late ones.
func (u *benchUpstream) answer(a lateAnswer, query []byte) {
	data := appendAnswer(a.data[:0], query)
	if len(data) > len(a.data) {
		return // a longer name than the bench has
	}
	a.length = uint8(len(data))
	if u.delay == 0 {
		u.send(&a)
		return
	}
	a.due += int64(u.delay)
	u.late = append(u.late, a)
}

func (u *benchUpstream) send(a *lateAnswer) {
	data := a.data[:a.length]
	if a.conn == nil {
		_ = unix.Sendto(u.udp, data, unix.MSG_DONTWAIT, a.to)
		return
	}
	a.conn.answers = binary.BigEndian.AppendUint16(a.conn.answers, uint16(len(data)))
	a.conn.answers = append(a.conn.answers, data...)
}

// overdue returns the connections with answers that are due.
func (u *benchUpstream) overdue() (writing []*benchConn) {
	now := u.now()
	for ; u.first < len(u.late) && u.late[u.first].due <= now; u.first++ {
		a := &u.late[u.first]
		if a.conn != nil && len(a.conn.answers) == 0 {
			writing = append(writing, a.conn)
		}
		u.send(a)
		a.conn, a.to = nil, nil
	}
	if u.first > len(u.late)/2 {
		u.late, u.first = u.late[:copy(u.late, u.late[u.first:])], 0
	}
	return writing
}

func (u *benchUpstream) write(c *benchConn) {
	if c.fd < 0 || len(c.answers) == 0 {
		return
	}
	_, err := c.tls.Write(c.answers)
	c.answers = c.answers[:0]
	if err != nil {
		u.drop(c)
	}
}

func (u *benchUpstream) receive() {
	for {
		n, from, err := unix.Recvfrom(u.udp, u.buffer, unix.MSG_DONTWAIT)
		if err != nil {
			return
		}
		if n >= 12 {
			u.answer(lateAnswer{to: from, due: u.now()}, bytes.Clone(u.buffer[:n]))
		}
	}
}

// errNothingYet is temporary for crypto/tls, which then keeps an incomplete record.
var errNothingYet net.Error = nothingYet{}

type nothingYet struct{}

func (nothingYet) Error() string   { return "nothing has come yet" }
func (nothingYet) Temporary() bool { return true }
func (nothingYet) Timeout() bool   { return true }

// Read returns received data to TLS, up to 64 KiB for each system call.
func (c *benchConn) Read(to []byte) (int, error) {
	for len(c.received) == 0 {
		if c.drained {
			return 0, errNothingYet
		}
		n, err := unix.Read(c.fd, c.room[:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN && c.blocking:
			if err := c.await(unix.POLLIN); err != nil {
				return 0, err
			}
		case err == unix.EAGAIN:
			c.drained = true
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			c.received = c.room[:n]
			c.drained = n < len(c.room) && !c.blocking
		}
	}
	n := copy(to, c.received)
	c.received = c.received[n:]
	return n, nil
}

func (c *benchConn) Write(data []byte) (int, error) {
	for rest := data; len(rest) > 0; {
		n, err := unix.Write(c.fd, rest)
		if err == unix.EAGAIN {
			err = c.await(unix.POLLOUT)
			n = 0
		}
		if err != nil && err != unix.EINTR {
			return 0, err
		}
		rest = rest[max(n, 0):]
	}
	return len(data), nil
}

// await waits until c is readable or writable, for a limited time, as no other connection
// is served meanwhile.
func (c *benchConn) await(what int16) error {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: what}}, 1000)
	if n == 0 && err == nil {
		return os.ErrDeadlineExceeded
	}
	if err == unix.EINTR {
		return nil
	}
	return err
}

func (c *benchConn) Close() error                     { return nil }
func (c *benchConn) LocalAddr() net.Addr              { return nil }
func (c *benchConn) RemoteAddr() net.Addr             { return nil }
func (c *benchConn) SetDeadline(time.Time) error      { return nil }
func (c *benchConn) SetReadDeadline(time.Time) error  { return nil }
func (c *benchConn) SetWriteDeadline(time.Time) error { return nil }

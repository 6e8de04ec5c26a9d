package peers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/time/rate"
)

const (
	// maxPacket is the longest packet that is looked at. The engine sends 1400
	// octets at the most, before encryption.
	maxPacket = 2 << 10
	// handshakeLimit is how long a connection may take to be made.
	handshakeLimit = 2 * time.Second
	// maxConnections is how many others may have open here, handshakes included.
	maxConnections = 32

	// A node says a few things a second. What comes on top of these rates is dropped
	// before it costs more than its arrival; strangers, who may be nodes with an
	// address that we don't know, share theirs.
	nodeRate, nodeBurst         = 200, 400
	strangerRate, strangerBurst = 20, 40
	dialRate, dialBurst         = 10, 20 // connections
)

// A transport carries the engine's packets, which it encrypts itself, and
// connections, which are TLS. It implements memberlist.NodeAwareTransport.
type transport struct {
	log      *slog.Logger
	identity *identity
	counts   *counts
	known    func(netip.Addr) bool // whether it is a node's
	serve    func(net.Conn)        // for the protocol of caches; it closes the connection

	udp  *net.UDPConn
	tcp  *net.TCPListener
	addr netip.AddrPort // which it advertises; set before the engine starts

	packets chan *memberlist.Packet
	streams chan net.Conn
	closing chan struct{} // closed by Shutdown
	once    sync.Once
	running sync.WaitGroup

	mu        sync.Mutex // guards the rest
	nodes     map[netip.Addr]*rate.Limiter
	strangers *rate.Limiter
	dials     *rate.Limiter
	open      map[net.Conn]struct{} // accepted
	dialled   map[net.Conn]struct{}
	hungUp    bool
}

// listen opens the sockets. Nothing is read before run.
func listen(addr netip.AddrPort) (*net.UDPConn, *net.TCPListener, error) {
	ip := net.IP(addr.Addr().AsSlice())
	if addr.Addr().IsUnspecified() && addr.Addr().Is6() {
		ip = nil // all that there are, even without IPv6
	}
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: ip, Port: int(addr.Port()), Zone: addr.Addr().Zone()})
	if err != nil {
		return nil, nil, fmt.Errorf("peers.listen: %w", err)
	}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: ip, Port: int(addr.Port()), Zone: addr.Addr().Zone()})
	if err != nil {
		tcp.Close()
		return nil, nil, fmt.Errorf("peers.listen: %w", err)
	}
	return udp, tcp, nil
}

func newTransport(id *identity, c *counts, log *slog.Logger) *transport {
	return &transport{
		log: log, identity: id, counts: c,
		packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), closing: make(chan struct{}),
		nodes: make(map[netip.Addr]*rate.Limiter), open: make(map[net.Conn]struct{}), dialled: make(map[net.Conn]struct{}),
		strangers: rate.NewLimiter(strangerRate, strangerBurst), dials: rate.NewLimiter(dialRate, dialBurst),
	}
}

// run starts to read.
func (t *transport) run() {
	t.running.Go(t.readPackets)
	t.running.Go(t.accept)
}

// Shutdown closes all and returns when nothing runs any more.
func (t *transport) Shutdown() error {
	t.once.Do(func() { close(t.closing) })
	t.udp.Close()
	t.tcp.Close()
	t.mu.Lock()
	for c := range t.open {
		c.Close()
	}
	t.mu.Unlock()
	t.running.Wait()
	return nil
}

func (t *transport) isClosing() bool {
	select {
	case <-t.closing:
		return true
	default:
		return false
	}
}

func (t *transport) readPackets() {
	buf := make([]byte, maxPacket+1)
	for {
		n, from, err := t.udp.ReadFromUDPAddrPort(buf)
		if t.isClosing() || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n == 0 {
			continue // an ICMP message about an earlier packet
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		switch {
		case n > maxPacket:
			t.counts.reject(malformed)
			continue
		case !t.allows(from.Addr()):
			t.counts.reject(flood)
			continue
		}
		packet := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now()}
		select {
		case t.packets <- packet:
		case <-t.closing:
			return
		}
	}
}

// allows reports whether something of this address may be looked at now.
func (t *transport) allows(from netip.Addr) bool {
	known := t.known(from)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !known {
		return t.strangers.Allow()
	}
	l := t.nodes[from]
	if l == nil {
		if len(t.nodes) >= 2*maxNodes { // addresses that nodes had once
			clear(t.nodes)
		}
		l = rate.NewLimiter(nodeRate, nodeBurst)
		t.nodes[from] = l
	}
	return l.Allow()
}

func (t *transport) accept() {
	for {
		conn, err := t.tcp.Accept()
		if t.isClosing() || errors.Is(err, net.ErrClosed) {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil {
			t.pause()
			continue
		}
		if !t.take(conn) {
			t.counts.reject(flood)
			conn.Close()
			continue
		}
		t.running.Go(func() { t.greet(conn) })
	}
}

// pause lets some time pass when nothing can be accepted: there are too few file
// descriptors, most often.
func (t *transport) pause() {
	timer := time.NewTimer(100 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.closing:
	}
}

func (t *transport) take(conn net.Conn) bool {
	from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	known := t.known(from)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.open) >= maxConnections || !known && len(t.open) >= maxConnections/2 || !t.dials.Allow() || t.isClosing() {
		return false
	}
	t.open[conn] = struct{}{}
	return true
}

func (t *transport) release(conn net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, conn)
}

// greet makes the handshake, and gives the connection to whom it is for.
func (t *transport) greet(conn net.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeLimit)
	defer cancel()
	secure := tls.Server(conn, t.identity.server())
	if err := secure.HandshakeContext(ctx); err != nil {
		t.counts.reject(stranger)
		t.log.Debug("a connection of no node", "from", conn.RemoteAddr(), "error", err)
		t.release(conn)
		conn.Close()
		return
	}
	held := &heldConn{Conn: secure, release: func() { t.release(conn) }}
	if secure.ConnectionState().NegotiatedProtocol == cacheProtocol {
		t.serve(held)
		return
	}
	select {
	case t.streams <- held:
	case <-t.closing:
		held.Close()
	}
}

// A heldConn gives its place back when it is closed.
type heldConn struct {
	net.Conn
	once    sync.Once
	release func()
}

func (c *heldConn) Close() error {
	c.once.Do(c.release)
	return c.Conn.Close()
}

// dial makes a connection for a protocol.
func (t *transport) dial(ctx context.Context, to string, protocol string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.dialled[raw] = struct{}{}
	hungUp := t.hungUp
	t.mu.Unlock()
	secure := tls.Client(raw, t.identity.client(protocol))
	conn := &heldConn{Conn: secure, release: func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.dialled, raw)
	}}
	if hungUp {
		conn.Close()
		return nil, net.ErrClosed
	}
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		if err = explain(err); errors.Is(err, errKey) {
			t.counts.reject(wrongKey)
		}
		return nil, err
	}
	return conn, nil
}

// hangUp ends what this node has begun: nobody waits for an end that stalls.
func (t *transport) hangUp() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hungUp = true
	for c := range t.dialled {
		c.Close()
	}
}

// What follows is what the engine asks for.

var _ memberlist.NodeAwareTransport = (*transport)(nil)

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.addr.Addr().AsSlice(), int(t.addr.Port()), nil
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *transport) StreamCh() <-chan net.Conn           { return t.streams }

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	_, err = t.udp.WriteToUDPAddrPort(b, to)
	return time.Now(), err
}

func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

func (t *transport) DialTimeout(addr string, limit time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return t.dial(ctx, addr, gossipProtocol)
}

func (t *transport) DialAddressTimeout(a memberlist.Address, limit time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, limit)
}

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
	// maxPacket is the longest accepted packet, in octets. Memberlist sends at most 1400
	// octets before encryption.
	maxPacket = 2 << 10
	// handshakeLimit bounds TCP connect and TLS handshake together.
	handshakeLimit = 2 * time.Second
	// maxConnections bounds accepted connections, including handshakes.
	maxConnections = 32

	// A node sends a few packets a second. Packets above these rates are dropped before
	// they are decrypted. Senders with an unknown address, which may be nodes, share one
	// limit.
	peerRate, peerBurst       = 200, 400
	unknownRate, unknownBurst = 20, 40
	acceptRate, acceptBurst   = 10, 20 // connections
)

// A transport carries memberlist's packets, which memberlist encrypts, and its
// connections, which are TLS. It implements memberlist.NodeAwareTransport.
type transport struct {
	log      *slog.Logger
	identity *identity
	counts   *counts
	known    func(netip.Addr) bool // reports whether a node has the address
	serve    func(net.Conn)        // serves cacheProtocol and closes the connection

	udp  *net.UDPConn
	tcp  *net.TCPListener
	addr netip.AddrPort // advertised; set before memberlist starts

	packets chan *memberlist.Packet
	streams chan net.Conn
	closing chan struct{} // closed by Shutdown
	once    sync.Once
	running sync.WaitGroup

	mu      sync.Mutex // guards the rest
	nodes   map[netip.Addr]*rate.Limiter
	unknown *rate.Limiter // all addresses of no node
	accepts *rate.Limiter
	open    map[net.Conn]struct{} // accepted
	dialled map[net.Conn]struct{}
	aborted bool // abortDials was called
}

// listen opens the sockets. Nothing is read before run.
func listen(addr netip.AddrPort) (*net.UDPConn, *net.TCPListener, error) {
	ip := net.IP(addr.Addr().AsSlice())
	if addr.Addr().IsUnspecified() && addr.Addr().Is6() {
		ip = nil // all addresses, also on hosts without IPv6
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
		unknown: rate.NewLimiter(unknownRate, unknownBurst), accepts: rate.NewLimiter(acceptRate, acceptBurst),
	}
}

// run starts the readers.
func (t *transport) run() {
	t.running.Go(t.readPackets)
	t.running.Go(t.accept)
}

// Shutdown closes the sockets and accepted connections, and waits for all goroutines.
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

// allows reports whether a packet from this address is within its rate.
func (t *transport) allows(from netip.Addr) bool {
	known := t.known(from)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !known {
		return t.unknown.Allow()
	}
	l := t.nodes[from]
	if l == nil {
		if len(t.nodes) >= 2*maxNodes { // former addresses of nodes
			clear(t.nodes)
		}
		l = rate.NewLimiter(peerRate, peerBurst)
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
			select { // most often, it is a lack of file descriptors
			case <-time.After(100 * time.Millisecond):
			case <-t.closing:
			}
			continue
		}
		if !t.admit(conn) {
			t.counts.reject(flood)
			conn.Close()
			continue
		}
		t.running.Go(func() { t.handshake(conn) })
	}
}

func (t *transport) admit(conn net.Conn) bool {
	from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	known := t.known(from)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.open) >= maxConnections || !known && len(t.open) >= maxConnections/2 || !t.accepts.Allow() || t.isClosing() {
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

// handshake completes the TLS handshake and hands the connection to memberlist or, for
// cacheProtocol, to serve.
func (t *transport) handshake(conn net.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeLimit)
	defer cancel()
	secure := tls.Server(conn, t.identity.server())
	if err := secure.HandshakeContext(ctx); err != nil {
		t.counts.reject(unknownSender)
		t.log.Debug("rejected a connection: the TLS handshake failed", "address", conn.RemoteAddr(), "error", err)
		t.release(conn)
		conn.Close()
		return
	}
	held := &trackedConn{Conn: secure, release: func() { t.release(conn) }}
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

// A trackedConn calls release when it is closed first.
type trackedConn struct {
	net.Conn
	once    sync.Once
	release func()
}

func (c *trackedConn) Close() error {
	c.once.Do(c.release)
	return c.Conn.Close()
}

// dial returns a connection for protocol. It blocks for handshakeLimit at most.
func (t *transport) dial(ctx context.Context, to string, protocol string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.dialled[raw] = struct{}{}
	aborted := t.aborted
	t.mu.Unlock()
	secure := tls.Client(raw, t.identity.client(protocol))
	conn := &trackedConn{Conn: secure, release: func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.dialled, raw)
	}}
	if aborted {
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

// abortDials closes the connections that this node dialled, so that a stalled peer does
// not delay shutdown.
func (t *transport) abortDials() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.aborted = true
	for c := range t.dialled {
		c.Close()
	}
}

// The methods below implement memberlist.NodeAwareTransport.

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

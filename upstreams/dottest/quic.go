package dottest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

// A QUICServer is a DNS-over-QUIC server for tests (RFC 9250) that misbehaves on request.
type QUICServer struct {
	addr    netip.AddrPort
	o       QUICOptions
	fault   atomic.Pointer[QUICFault] // never nil
	running sync.WaitGroup

	queries, connections, resumed, misbehaved atomic.Int64

	mu    sync.Mutex // guards below
	below *quic.Transport
}

// QUICOptions are the options of a QUICServer. A zero field means its default.
type QUICOptions struct {
	// Addr is where to listen. Default: any port of a Loopback address.
	Addr string
	// Certificate is required.
	Certificate tls.Certificate
	// Handler answers. Default: Answer.
	Handler Handler
	// RTT is the round-trip time: each packet of the server leaves so much later.
	RTT time.Duration
	// Streams is how many queries a connection may have at once. Default: 100.
	Streams int64
	// Idle is how long a connection is kept without a packet. Default: 30 s.
	Idle time.Duration
	// Retry has clients prove their address (RFC 9000 section 8.1.2).
	Retry bool
	// Protocols are those of ALPN. Default: doq.
	Protocols []string
}

// A QUICFault is a misbehaviour of a QUICServer. The zero QUICFault does nothing.
type QUICFault struct {
	Delay time.Duration // of answers
	Drop  bool          // no packet passes, in either direction
	Never bool          // no answer
	Reset bool          // RESET_STREAM instead of an answer
	Cut   bool          // the stream ends within the answer
	Open  bool          // no FIN behind the answer
	Close int64         // a connection is closed instead of its answer with this number
	Code  uint64        // of Reset and Close
}

// NewQUICServer starts a server that ends with the test.
func NewQUICServer(tb testing.TB, o QUICOptions) *QUICServer {
	tb.Helper()
	if o.Addr == "" {
		o.Addr = netip.AddrPortFrom(Loopback(), 0).String()
	}
	if o.Handler == nil {
		o.Handler = Answer
	}
	if o.Protocols == nil {
		o.Protocols = []string{"doq"}
	}
	s := &QUICServer{o: o}
	s.Set(QUICFault{})
	if err := s.listen(o.Addr); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		s.Stop()
		s.running.Wait()
	})
	return s
}

// resetKey lets a server that was restarted reset the connections of its predecessor.
var resetKey = &quic.StatelessResetKey{1, 2, 3}

func (s *QUICServer) listen(addr string) error {
	socket, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	s.addr = socket.LocalAddr().(*net.UDPAddr).AddrPort()
	s.below = &quic.Transport{Conn: newPath(socket, s.o.RTT, func() bool { return s.fault.Load().Drop }), StatelessResetKey: resetKey}
	if s.o.Retry {
		s.below.VerifySourceAddress = func(net.Addr) bool { return true }
	}
	listener, err := s.below.Listen(
		&tls.Config{Certificates: []tls.Certificate{s.o.Certificate}, NextProtos: s.o.Protocols},
		&quic.Config{MaxIncomingStreams: s.o.Streams, MaxIdleTimeout: s.o.Idle, Allow0RTT: true})
	if err != nil {
		s.below.Conn.Close()
		return err
	}
	s.running.Go(func() {
		for {
			conn, err := listener.Accept(context.Background())
			if err != nil {
				return
			}
			s.running.Go(func() { s.serve(conn) })
		}
	})
	return nil
}

// A path is a UDP socket and the network before it: packets from here take a time, and all
// may get lost.
type path struct {
	net.PacketConn // of which the buffers stay as they are
	rtt            time.Duration
	lossy          func() bool
	leaving        chan departure
	ended          chan struct{} // closed by Close
	once           sync.Once
}

// A departure is a packet on its way.
type departure struct {
	due    time.Time
	packet []byte
	to     net.Addr
}

func newPath(socket net.PacketConn, rtt time.Duration, lossy func() bool) *path {
	p := &path{PacketConn: socket, rtt: rtt, lossy: lossy, leaving: make(chan departure, 1<<14), ended: make(chan struct{})}
	go func() {
		for {
			select {
			case d := <-p.leaving:
				time.Sleep(time.Until(d.due))
				p.PacketConn.WriteTo(d.packet, d.to)
			case <-p.ended:
				return
			}
		}
	}()
	return p
}

func (*path) SetReadBuffer(int) error  { return nil }
func (*path) SetWriteBuffer(int) error { return nil }

func (p *path) ReadFrom(b []byte) (n int, from net.Addr, err error) {
	for {
		if n, from, err = p.PacketConn.ReadFrom(b); err != nil || !p.lossy() {
			return n, from, err
		}
	}
}

func (p *path) WriteTo(b []byte, to net.Addr) (int, error) {
	switch {
	case p.lossy():
		return len(b), nil
	case p.rtt == 0:
		return p.PacketConn.WriteTo(b, to)
	}
	select {
	case p.leaving <- departure{time.Now().Add(p.rtt), bytes.Clone(b), to}:
	default: // a queue in the network is full
	}
	return len(b), nil
}

func (p *path) Close() error {
	p.once.Do(func() { close(p.ended) })
	return p.PacketConn.Close()
}

// Addr returns where the server listens. It never changes.
func (s *QUICServer) Addr() netip.AddrPort { return s.addr }

// Set replaces the fault.
func (s *QUICServer) Set(f QUICFault) { s.fault.Store(&f) }

// Queries returns how many queries there were, Connections how many connections, Resumed
// how many of these with a session of an earlier one, and Misbehaved how many queries were
// against RFC 9250.
func (s *QUICServer) Queries() int     { return int(s.queries.Load()) }
func (s *QUICServer) Connections() int { return int(s.connections.Load()) }
func (s *QUICServer) Resumed() int     { return int(s.resumed.Load()) }
func (s *QUICServer) Misbehaved() int  { return int(s.misbehaved.Load()) }

// Stop ends the server as a crash does: no connection is told.
func (s *QUICServer) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.below != nil {
		s.below.Conn.Close()
		s.below.Close()
		s.below = nil
	}
}

// Restart starts the server again after Stop, where it was.
func (s *QUICServer) Restart() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listen(s.addr.String())
}

func (s *QUICServer) serve(conn *quic.Conn) {
	s.connections.Add(1)
	if conn.ConnectionState().TLS.DidResume {
		s.resumed.Add(1)
	}
	for n := int64(1); ; n++ {
		stream, err := conn.AcceptStream(context.Background())
		if err != nil {
			return
		}
		s.running.Go(func() { s.answer(conn, stream, n) })
	}
}

// answer answers query number n of a connection.
func (s *QUICServer) answer(conn *quic.Conn, stream *quic.Stream, n int64) {
	f := s.fault.Load()
	s.queries.Add(1)
	frame, err := io.ReadAll(io.LimitReader(stream, 1<<16))
	if err != nil {
		return
	}
	// The ID is 0 (RFC 9250 section 4.2.1), and queries are padded (section 5.4).
	if len(frame) < 2+headerLen || int(binary.BigEndian.Uint16(frame)) != len(frame)-2 || frame[2]|frame[3] != 0 || len(frame) < 2+128 {
		s.misbehaved.Add(1)
	}
	reply, after := s.o.Handler(nil, frame[2:])
	if f.Never {
		after = 1 << 62
	}
	timer := time.NewTimer(after + f.Delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-conn.Context().Done():
		return
	case <-stream.Context().Done():
		return
	}
	if n == f.Close {
		conn.CloseWithError(quic.ApplicationErrorCode(f.Code), "")
		return
	}
	if f.Reset {
		stream.CancelWrite(quic.StreamErrorCode(f.Code))
		return
	}
	reply = append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)
	if f.Cut {
		reply = reply[:len(reply)/2]
	}
	stream.Write(reply)
	if !f.Open {
		stream.Close()
	}
}

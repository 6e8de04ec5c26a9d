package transport

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"dotgate/gateway/wire"
)

const (
	// batchSize is how many packets one system call takes. Most of the saving comes with the
	// first dozen.
	batchSize = 32
	// packetSize is the largest packet that is read in full. wire.MaxUDPSize is advertised;
	// well-formed queries are far shorter.
	packetSize = 2048
	// receiveBuffer is the size of a socket's buffer while its loop is busy: ten thousand
	// queries and more, as they arrive when a network wakes up.
	receiveBuffer = 4 << 20
)

// A datagram is a packet that was read or is to be written.
type datagram struct {
	packet  []byte
	control []byte // the destination of a query, or source of a reply, as a control message; may be empty
	peer    peer

	buf, controlBuf []byte // packet and control are read into these
}

// A udpSocket serves the clients of one socket. Its read loop sends the replies that are
// ready at once. Replies to pending queries are sent in batches by a second loop: if the
// goroutine that delivers an answer sent the reply itself, other answers would wait for the
// system call.
type udpSocket struct {
	server    *Server
	conn      *net.UDPConn
	batch     *batchConn // this and the next three are the read loop's
	in, out   []datagram
	pending   []PendingQuery
	queue     replyQueue
	queries   sync.WaitGroup // pending ones
	client    Client         // of the packet that the read loop handles
	responder Responder      // nil until serve
	counters  *Counters      // of responder
	adopted   bool           // it stays open for the next process, so its state must not change
	drops     atomic.Uint64  // the value of dropped when the socket was closed
}

// A replyQueue holds replies to pending queries until sendLoop sends them.
type replyQueue struct {
	conn *batchConn    // sendLoop's
	wake chan struct{} // capacity 1: waiting is not empty

	mu      sync.Mutex // guards waiting; not held while anything is sent
	waiting []queuedReply

	// Used by sendLoop only.
	taken []queuedReply
	batch [batchSize]datagram
}

// A queuedReply is the reply to a pending query.
type queuedReply struct {
	message *[]byte
	to      *ReplyTo
}

// newUDPSocket opens a socket.
func newUDPSocket(server *Server, lc net.ListenConfig, network string, addr netip.AddrPort) (*udpSocket, error) {
	pc, err := lc.ListenPacket(context.Background(), network, addr.String())
	if err != nil {
		return nil, err
	}
	return adoptUDPSocket(server, pc.(*net.UDPConn), network != "udp4", addr)
}

// adoptUDPSocket takes over a socket that is open at addr.
func adoptUDPSocket(server *Server, conn *net.UDPConn, v6 bool, addr netip.AddrPort) (*udpSocket, error) {
	setReceiveBuffer(conn, receiveBuffer)
	if addr.Addr().IsUnspecified() {
		if err := noteDestination(conn, v6); err != nil {
			conn.Close()
			return nil, err
		}
	}
	s := &udpSocket{server: server, conn: conn, queue: replyQueue{wake: make(chan struct{}, 1)}}
	var err error
	s.batch, err = newBatchConn(conn)
	if err == nil {
		s.queue.conn, err = newBatchConn(conn)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	s.in, s.out = newDatagrams(packetSize), newDatagrams(wire.MaxUDPSize)
	return s, nil
}

// newDatagrams returns a batch whose buffers have this size.
func newDatagrams(size int) []datagram {
	batch := make([]datagram, batchSize)
	for i := range batch {
		batch[i].buf, batch[i].controlBuf = make([]byte, size), make([]byte, controlSize)
	}
	return batch
}

// noteDestination asks the system to report, with each packet, to which address it was
// sent.
func noteDestination(conn *net.UDPConn, v6 bool) error {
	if v6 {
		return ipv6.NewPacketConn(conn).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	}
	return ipv4.NewPacketConn(conn).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
}

// serve reads until shutdownRead after ctx is done, then waits for the queries in progress
// and closes the socket.
func (s *udpSocket) serve(ctx context.Context) {
	s.begin()
	defer s.responder.Close()
	var sender sync.WaitGroup
	sender.Go(s.sendLoop)
	s.readLoop(ctx)
	s.queries.Wait()
	close(s.queue.wake)
	sender.Wait()
	s.drops.Store(dropped(s.conn))
	s.conn.Close()
}

// begin gets a Responder for s.
func (s *udpSocket) begin() {
	s.client = Client{Via: wire.UDP, ReplyTo: ReplyTo{Sender: s}}
	s.responder = s.server.handler.NewResponder(&s.client)
	s.counters = s.responder.Counters()
}

// dropped returns how many packets the system has dropped because the socket was full.
func (s *udpSocket) dropped() uint64 { return max(s.drops.Load(), dropped(s.conn)) }

func (s *udpSocket) readLoop(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { s.conn.SetReadDeadline(time.Now().Add(shutdownRead)) })
	defer stop()
	backoff := socketBackoff{log: s.server.log, doing: "read UDP"}
	left := false
	handle := func(in []datagram) bool {
		backoff.reset()
		s.counters.Received.Add(uint64(len(in)))
		s.handle(in)
		s.batch.coalesceAbove(s.server.options().GatherAbove) // the options may have changed
		return true
	}
	for {
		err := s.batch.read(s.in, handle)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && !left && !s.adopted && leaveGroup(s.conn):
			// Packets that had reached this socket can still be read, and so can those that
			// are about to.
			left = true
			s.conn.SetReadDeadline(time.Now().Add(shutdownDrain))
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.batch.drain(s.in, handle) // on a busy machine, the deadline may be long over
			return
		case errors.Is(err, net.ErrClosed):
			return
		default:
			backoff.wait(ctx, err)
		}
	}
}

// handle answers the packets whose replies are ready at once, and then has the others
// resolved.
func (s *udpSocket) handle(in []datagram) {
	n := 0
	for i := range in {
		d, out := &in[i], &s.out[n]
		if !d.peer.hasPort() {
			s.counters.NoPort.Add(1)
			continue
		}
		to := &s.client.ReplyTo
		s.client.Addr, to.source, to.addr = d.peer.addr(), replySource(d.control), d.peer
		reply, p := s.responder.Answer(out.buf[:0], d.packet)
		switch {
		case p != nil:
			s.queries.Add(1)
			s.pending = append(s.pending, p)
		case len(reply) > 0:
			out.packet, out.control, out.peer = reply, to.source, to.addr
			n++
		}
	}
	s.send(s.batch, s.out[:n])
	for _, p := range s.pending {
		p.Resolve()
	}
	clear(s.pending)
	s.pending = s.pending[:0]
}

// Peer returns the source of a packet.
func (s *udpSocket) Peer(r *ReplyTo) netip.AddrPort { return r.addr.addrPort() }

// Send queues a reply for sendLoop.
func (s *udpSocket) Send(r *ReplyTo, message *[]byte) {
	q := &s.queue
	q.mu.Lock()
	defer q.mu.Unlock() // only after the wake-up: once the reply is sent, wake may be closed
	q.waiting = append(q.waiting, queuedReply{message, r})
	if len(q.waiting) == 1 {
		select {
		case q.wake <- struct{}{}:
		default: // sendLoop has not taken the last wake-up yet
		}
	}
}

// sendLoop sends queued replies until wake is closed.
func (s *udpSocket) sendLoop() {
	q := &s.queue
	for range q.wake {
		// Answers arrive in bursts, so more replies are about to follow: sent alone, a
		// packet costs as much as several in a batch.
		runtime.Gosched()
		for q.take() {
			for rest := q.taken; len(rest) > 0; {
				n := min(len(rest), batchSize)
				s.sendQueued(rest[:n])
				rest = rest[n:]
			}
		}
	}
}

// sendQueued sends a batch of queued replies.
func (s *udpSocket) sendQueued(batch []queuedReply) {
	q := &s.queue
	for i, r := range batch {
		q.batch[i].packet, q.batch[i].control, q.batch[i].peer = *r.message, r.to.source, r.to.addr
	}
	s.send(q.conn, q.batch[:len(batch)])
	for _, r := range batch {
		putBuffer(r.message)
		s.queries.Done()
	}
}

// take moves waiting to taken, and reports whether there is any reply.
func (q *replyQueue) take() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	clear(q.taken)
	q.taken, q.waiting = q.waiting, q.taken[:0]
	return len(q.taken) > 0
}

func (s *udpSocket) send(conn *batchConn, replies []datagram) {
	if n := conn.write(replies); n > 0 {
		s.counters.Undelivered.Add(uint64(n))
	}
}

package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"dotgate/gateway/wire"
)

const (
	// batchSize is how many packets one system call takes. Most of the saving
	// is in the first dozen.
	batchSize = 32
	// packetSize is the largest packet that we read whole. We advertise
	// wire.MaxUDPSize; no honest query comes near that.
	packetSize = 2048
	// receiveBuffer is what a socket may hold while its loop is busy: ten
	// thousand queries and more, as they come when a network wakes up.
	receiveBuffer = 4 << 20
)

// A datagram is a packet on its way in or out.
type datagram struct {
	packet  []byte
	control []byte // what the system tells, or is told, about our address; may be empty
	peer    peer

	room, controlRoom []byte // where packets and control messages are read into
}

// A udpSocket serves the clients of one socket. Its loop reads queries and writes
// the replies that can be had at once; those that come later are written by another
// loop, a burst of them at once. If whoever has an answer wrote the reply, others'
// answers would wait behind it.
type udpSocket struct {
	gateway *Gateway
	conn    *net.UDPConn
	batch   *batchConn // the read loop's, as are the next two
	in, out []datagram
	asking  []*waiter
	late    outbox
	queries sync.WaitGroup // those that wait for the Resolver
	client  client         // whose packet the read loop is at
	tally   tally
	lent    bool          // whoever has it next has to find it as it is
	drops   atomic.Uint64 // what the system has dropped, when it was closed
}

// An outbox has the replies that came later.
type outbox struct {
	conn *batchConn    // of the loop that sends them
	wake chan struct{} // one place: there is something to send

	mu      sync.Mutex // guards waiting; not held while anything is sent
	waiting []lateReply

	// Of the loop.
	taken []lateReply
	batch [batchSize]datagram
}

// A lateReply is a reply that came later.
type lateReply struct {
	message *[]byte
	*waiter
}

// newUDPSocket opens a socket.
func newUDPSocket(g *Gateway, config net.ListenConfig, network string, addr netip.AddrPort) (*udpSocket, error) {
	pc, err := config.ListenPacket(context.Background(), network, addr.String())
	if err != nil {
		return nil, err
	}
	return adoptUDPSocket(g, pc.(*net.UDPConn), network != "udp4", addr)
}

// adoptUDPSocket takes over a socket that is open at addr.
func adoptUDPSocket(g *Gateway, conn *net.UDPConn, v6 bool, addr netip.AddrPort) (*udpSocket, error) {
	setReceiveBuffer(conn, receiveBuffer)
	if addr.Addr().IsUnspecified() {
		if err := noteDestination(conn, v6); err != nil {
			conn.Close()
			return nil, err
		}
	}
	s := &udpSocket{gateway: g, conn: conn, late: outbox{wake: make(chan struct{}, 1)}}
	var err error
	s.batch, err = newBatchConn(conn)
	if err == nil {
		s.late.conn, err = newBatchConn(conn)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	s.in, s.out = newDatagrams(packetSize), newDatagrams(wire.MaxUDPSize)
	return s, nil
}

// newDatagrams returns a batch with rooms of this size.
func newDatagrams(size int) []datagram {
	batch := make([]datagram, batchSize)
	for i := range batch {
		batch[i].room, batch[i].controlRoom = make([]byte, size), make([]byte, controlSize)
	}
	return batch
}

// noteDestination asks the system to tell, with each packet, which of our
// addresses it was sent to.
func noteDestination(conn *net.UDPConn, v6 bool) error {
	if v6 {
		return ipv6.NewPacketConn(conn).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	}
	return ipv4.NewPacketConn(conn).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
}

// serve reads until shortly after ctx is done, then waits for the queries under
// way and closes the socket.
func (s *udpSocket) serve(ctx context.Context) {
	var sender sync.WaitGroup
	sender.Go(s.sendLoop)
	s.readLoop(ctx)
	s.queries.Wait()
	close(s.late.wake)
	sender.Wait()
	s.drops.Store(dropped(s.conn))
	s.conn.Close()
}

// dropped returns how many packets the system has dropped for want of room.
func (s *udpSocket) dropped() uint64 { return max(s.drops.Load(), dropped(s.conn)) }

func (s *udpSocket) readLoop(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { s.conn.SetReadDeadline(time.Now().Add(lastCall)) })
	defer stop()
	failing := setback{log: s.gateway.log, doing: "read UDP"}
	left := false
	for {
		err := s.batch.read(s.in, func(in []datagram) bool {
			failing.over()
			s.tally.received.Add(uint64(len(in)))
			s.handle(in)
			s.batch.gatherAbove(s.gateway.now().GatherAbove) // which may change
			return true
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && !left && !s.lent && leaveGroup(s.conn):
			// What had been given to this socket is still there.
			left = true
			s.conn.SetReadDeadline(time.Now().Add(drain))
		case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed):
			return
		default:
			failing.wait(ctx, err)
		}
	}
}

// handle answers what can be answered now, and then has the rest asked for.
func (s *udpSocket) handle(in []datagram) {
	n := 0
	for i := range in {
		d, out := &in[i], &s.out[n]
		if !d.peer.hasPort() {
			s.tally.count(IgnoredSource)
			continue
		}
		s.client.addr = d.peer.addr()
		reply, q, next := s.gateway.answerNow(out.room[:0], d.packet, &s.client, &s.tally)
		source := replySource(d.control)
		switch next {
		case send, sendAndRenew:
			out.packet, out.control, out.peer = reply, source, d.peer
			n++
			if log := s.gateway.now().QueryLog; log != nil {
				log.Note(d.peer.addrPort(), wire.UDP, d.packet, reply, 0)
			}
		case ask:
			s.queries.Add(1)
			w := newWaiter(q, s, s.client.addr, &s.tally)
			w.source, w.to = slices.Clone(source), d.peer
			s.asking = append(s.asking, w)
		}
		if next == sendAndRenew {
			s.gateway.renew(q.Clone(), &s.tally)
		}
	}
	s.send(s.batch, s.out[:n])
	for _, w := range s.asking {
		s.gateway.answerLater(w)
	}
	clear(s.asking)
	s.asking = s.asking[:0]
}

// reply leaves a reply to sendLoop.
func (s *udpSocket) reply(w *waiter, message *[]byte) {
	if log := s.gateway.now().QueryLog; log != nil {
		log.Note(w.to.addrPort(), wire.UDP, w.query.Packet(), *message, time.Since(w.began))
	}
	o := &s.late
	o.mu.Lock()
	defer o.mu.Unlock() // not sooner: once the reply is sent, wake may be closed
	o.waiting = append(o.waiting, lateReply{message, w})
	if len(o.waiting) == 1 {
		select {
		case o.wake <- struct{}{}:
		default: // it has not begun yet
		}
	}
}

// sendLoop sends the replies that came later, until there will be no more.
func (s *udpSocket) sendLoop() {
	o := &s.late
	for range o.wake {
		// A burst of answers came, most likely, and more replies are about to: a
		// packet sent alone costs several in company.
		runtime.Gosched()
		for o.take() {
			for rest := o.taken; len(rest) > 0; {
				n := min(len(rest), batchSize)
				s.sendLate(rest[:n])
				rest = rest[n:]
			}
		}
	}
}

// sendLate sends a batch.
func (s *udpSocket) sendLate(batch []lateReply) {
	o := &s.late
	for i, r := range batch {
		o.batch[i].packet, o.batch[i].control, o.batch[i].peer = *r.message, r.source, r.to
	}
	s.send(o.conn, o.batch[:len(batch)])
	for _, r := range batch {
		putBuffer(r.message)
		s.queries.Done()
	}
}

// take takes what waits, and reports whether anything does.
func (o *outbox) take() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.taken)
	o.taken, o.waiting = o.waiting, o.taken[:0]
	return len(o.taken) > 0
}

func (s *udpSocket) send(conn *batchConn, replies []datagram) {
	if n := conn.write(replies); n > 0 {
		s.tally.undelivered.Add(uint64(n))
	}
}

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
// the replies that can be had at once; those that come later are written by who
// has them, a burst of them by one for all. If each query wrote its own, the read
// loop would have to queue for the socket behind thousands of them.
type udpSocket struct {
	gateway *Gateway
	conn    *net.UDPConn
	batch   *batchConn // the read loop's, as are the next two
	in, out []datagram
	late    outbox
	queries sync.WaitGroup // those that wait for the Resolver
	client  client         // whose packet the read loop is at
	tally   tally
	lent    bool          // whoever has it next has to find it as it is
	drops   atomic.Uint64 // what the system has dropped, when it was closed
}

// An outbox has the replies that came later.
type outbox struct {
	conn *batchConn // of who sends

	// mu guards the rest. It is not held while anything is sent.
	mu      sync.Mutex
	waiting []udpReply // at most as many as there are slots
	sending bool       // somebody sends what waits

	// Of who sends.
	taken []udpReply
	batch [batchSize]datagram
}

// A udpReply is a reply that came later.
type udpReply struct {
	buffer *[]byte
	source []byte // as a control message; may be empty
	to     peer
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
	s := &udpSocket{gateway: g, conn: conn}
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
func (s *udpSocket) serve(ctx, work context.Context) {
	s.readLoop(ctx, work)
	s.queries.Wait()
	s.drops.Store(dropped(s.conn))
	s.conn.Close()
}

// dropped returns how many packets the system has dropped for want of room.
func (s *udpSocket) dropped() uint64 { return max(s.drops.Load(), dropped(s.conn)) }

func (s *udpSocket) readLoop(ctx, work context.Context) {
	stop := context.AfterFunc(ctx, func() { s.conn.SetReadDeadline(time.Now().Add(lastCall)) })
	defer stop()
	failing := setback{log: s.gateway.log, doing: "read UDP"}
	left := false
	for {
		err := s.batch.read(s.in, func(in []datagram) bool {
			failing.over()
			s.tally.received.Add(uint64(len(in)))
			s.handle(work, in)
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

// handle answers what can be answered now and starts goroutines for the rest.
func (s *udpSocket) handle(work context.Context, in []datagram) {
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
			go s.later(work, q.Clone(), slices.Clone(source), d.peer)
		}
		if next == sendAndRenew {
			s.gateway.renew(work, q.Clone(), &s.tally)
		}
	}
	s.send(s.batch, s.out[:n])
}

// later answers q when the Resolver has.
func (s *udpSocket) later(work context.Context, q wire.Query, source []byte, to peer) {
	defer s.queries.Done()
	defer s.gateway.slots.release()
	buffer := buffers.Get().(*[]byte)
	began := time.Now()
	*buffer = s.gateway.answerLater(work, (*buffer)[:0], q, to.addr(), &s.tally)
	if log := s.gateway.now().QueryLog; log != nil {
		log.Note(to.addrPort(), wire.UDP, q.Packet(), *buffer, time.Since(began))
	}
	s.sendLate(udpReply{buffer, source, to})
}

// sendLate sends a reply, and those of others that come meanwhile, unless somebody
// does so already.
func (s *udpSocket) sendLate(reply udpReply) {
	o := &s.late
	o.mu.Lock()
	o.waiting = append(o.waiting, reply)
	if o.sending {
		o.mu.Unlock()
		return
	}
	o.sending = true
	o.mu.Unlock()
	// A burst of answers came, most likely, and those that they are for are about
	// to reply: a packet sent alone costs several in company.
	runtime.Gosched()
	for o.take() {
		for rest := o.taken; len(rest) > 0; {
			n := min(len(rest), batchSize)
			for i, r := range rest[:n] {
				o.batch[i].packet, o.batch[i].control, o.batch[i].peer = *r.buffer, r.source, r.to
			}
			s.send(o.conn, o.batch[:n])
			for _, r := range rest[:n] {
				putBuffer(r.buffer)
			}
			rest = rest[n:]
		}
	}
}

// take takes what waits. If nothing does, nobody sends any more.
func (o *outbox) take() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.taken)
	o.taken, o.waiting = o.waiting, o.taken[:0]
	o.sending = len(o.taken) > 0
	return o.sending
}

func (s *udpSocket) send(conn *batchConn, replies []datagram) {
	if n := conn.write(replies); n > 0 {
		s.tally.undelivered.Add(uint64(n))
	}
}

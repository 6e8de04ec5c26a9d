package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
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

// A batchConn reads and writes many packets at once (recvmmsg, sendmmsg).
// It returns how many; packets are written up to the first that can't be.
type batchConn interface {
	ReadBatch([]ipv4.Message, int) (int, error)
	WriteBatch([]ipv4.Message, int) (int, error)
}

// A udpSocket serves the clients of one socket. It has two loops: one reads
// queries and writes the replies that can be had at once, the other writes those
// that came later. If each query wrote its own, the read loop would have to
// queue for the socket behind thousands of them.
type udpSocket struct {
	gateway *Gateway
	conn    *net.UDPConn
	batch   batchConn
	in, out []ipv4.Message // the read loop's
	late    chan udpReply
	queries sync.WaitGroup // those that wait for the Resolver
	tally   tally
}

// A udpReply is a reply that came later.
type udpReply struct {
	buffer *[]byte
	source []byte // as a control message; may be empty
	to     *net.UDPAddr
}

// newUDPSocket opens a socket.
func newUDPSocket(g *Gateway, config net.ListenConfig, network string, addr netip.AddrPort) (*udpSocket, error) {
	pc, err := config.ListenPacket(context.Background(), network, addr.String())
	if err != nil {
		return nil, err
	}
	conn := pc.(*net.UDPConn)
	setReceiveBuffer(conn, receiveBuffer)
	v6 := network != "udp4"
	if addr.Addr().IsUnspecified() {
		if err := noteDestination(conn, v6); err != nil {
			conn.Close()
			return nil, err
		}
	}
	s := &udpSocket{gateway: g, conn: conn, batch: newBatchConn(conn, v6), late: make(chan udpReply, batchSize)}
	s.in, s.out = newBatch(packetSize), newBatch(wire.MaxUDPSize)
	for i := range s.in {
		s.in[i].OOB = make([]byte, controlSize)
	}
	return s, nil
}

// newBatch returns messages with one buffer each.
func newBatch(size int) []ipv4.Message {
	batch := make([]ipv4.Message, batchSize)
	for i := range batch {
		batch[i].Buffers = [][]byte{make([]byte, size)}
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
	defer s.conn.Close()
	var writer sync.WaitGroup
	writer.Go(s.writeLoop)
	s.readLoop(ctx, work)
	s.queries.Wait()
	close(s.late)
	writer.Wait()
}

func (s *udpSocket) readLoop(ctx, work context.Context) {
	stop := context.AfterFunc(ctx, func() { s.conn.SetReadDeadline(time.Now().Add(lastCall)) })
	defer stop()
	failing := setback{log: s.gateway.options.Log, doing: "read UDP"}
	for {
		n, err := s.batch.ReadBatch(s.in, 0)
		switch {
		case err == nil:
			failing.over()
			s.tally.received.Add(uint64(n))
			s.handle(work, s.in[:n])
		case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed):
			return
		default:
			failing.wait(ctx, err)
		}
	}
}

// handle answers what can be answered now and starts goroutines for the rest.
func (s *udpSocket) handle(work context.Context, in []ipv4.Message) {
	n := 0
	for i := range in {
		m := &in[i]
		from := m.Addr.(*net.UDPAddr)
		if from.Port == 0 {
			s.tally.count(IgnoredSource)
			continue
		}
		out := &s.out[n]
		reply, q, next := s.gateway.answerNow(out.Buffers[0][:0], m.Buffers[0][:m.N], wire.UDP, &s.tally)
		source := replySource(m.OOB[:m.NN])
		switch next {
		case send, sendAndRenew:
			if next == sendAndRenew {
				s.gateway.renew(work, q.Clone(), &s.tally)
			}
			out.Buffers[0], out.OOB, out.Addr = reply, source, from
			n++
		case ask:
			s.later(work, q.Clone(), slices.Clone(source), from)
		}
	}
	s.flush(s.out[:n])
}

// later answers q when the Resolver has.
func (s *udpSocket) later(work context.Context, q wire.Query, source []byte, to *net.UDPAddr) {
	s.queries.Go(func() {
		defer s.gateway.slots.release()
		buffer := buffers.Get().(*[]byte)
		*buffer = s.gateway.answerLater(work, (*buffer)[:0], q, &s.tally)
		s.late <- udpReply{buffer, source, to}
	})
}

// writeLoop writes late replies until there will be no more: a burst of them
// together, a lone one at once.
func (s *udpSocket) writeLoop() {
	batch := newBatch(0)
	var written [batchSize]*[]byte
	for reply := range s.late {
		n := 0
		for {
			batch[n].Buffers[0], batch[n].OOB, batch[n].Addr = *reply.buffer, reply.source, reply.to
			written[n] = reply.buffer
			if n++; n == batchSize || len(s.late) == 0 {
				break
			}
			reply = <-s.late
		}
		s.flush(batch[:n])
		for _, buffer := range written[:n] {
			putBuffer(buffer)
		}
	}
}

// flush sends replies. One that can't be sent, for want of a route or by a
// firewall's word, doesn't keep back those behind it.
func (s *udpSocket) flush(replies []ipv4.Message) {
	for len(replies) > 0 {
		n, err := s.batch.WriteBatch(replies, 0)
		if err != nil {
			s.tally.undelivered.Add(1)
			n = 1
		}
		replies = replies[n:]
	}
}

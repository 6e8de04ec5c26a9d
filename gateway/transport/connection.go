package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

const (
	// firstTimeout is how long a client may take to begin its first message: clients connect
	// when they have a query.
	firstTimeout = 5 * time.Second
	// messageTimeout is how long a message may take from its first octet to its last. It fits
	// into one segment normally; the time is for lossy links.
	messageTimeout = 5 * time.Second
	// writeTimeout is how long a client may leave replies unread once all buffers in between
	// are full.
	writeTimeout = 5 * time.Second
	// halfCloseTime is how long a half-closed connection is still read and the data discarded,
	// so that a query that crosses our FIN does not cause a reset, which would discard replies
	// as well. halfCloseRead is how much is read then.
	halfCloseTime = time.Second
	halfCloseRead = 256 << 10
	// writeSize is the size at which a batch of replies is written.
	writeSize = 32 << 10
	// unsentMax is how many octets of replies may wait to be written, to all clients together: a
	// hundred long answers are little for one client that reads, and much for a thousand that
	// do not.
	unsentMax = 8 << 20
)

// A stream is the part of *net.TCPConn that a connection uses.
type stream interface {
	net.Conn
	CloseWrite() error
}

// A connection is one client's TCP connection. Its read loop reads queries and writes the
// replies that are ready at once; its write loop writes replies to pending queries in the
// order of their completion (RFC 7766 section 7). Both write in batches.
//
// Its states: open (idle or with queries in progress), half-closed (replies sent, waiting
// for the client's FIN), closed with a closeReason.
type connection struct {
	server   *Server
	nc       stream // both loops may write at once: each Write stays in one piece
	counters *Counters

	// The next ones are the read loop's.
	client     Client
	responder  Responder
	in         *bufio.Reader
	gotMessage bool    // a message was read
	used       int     // the size of the last message, which is still in the buffer
	batch      *[]byte // replies to be written before the loop waits; or nil
	batched    int     // number of replies in batch

	// inProgress holds one element for each query from when it is read until its reply is
	// written. Replies has the same capacity, so sending to it never blocks.
	inProgress chan struct{}
	replies    chan *[]byte
	unsent     atomic.Int64   // octets in replies, and in the write in progress
	queries    sync.WaitGroup // pending ones

	opened time.Time
	active atomic.Int64 // when the last reply was written, as nanoseconds since opened
	broken atomic.Bool  // a write failed
	slow   atomic.Bool  // the write timed out, or the client was disconnected by shedSlowReaders
	reason closeReason  // set before serve returns
}

// A closeReason is why a connection was closed.
type closeReason uint8

const (
	closedNormally closeReason = iota // by the client, by the network, or because the gateway stops
	closedIdle                        // for Options.IdleTimeout
	closedStalled                     // the client stopped within a message
	closedSlow                        // a write took too long
	closedNotQuery                    // the client sent a message that is not a query
	closedRejected                    // beyond the limits, where only health checks are answered
)

func newConnection(s *Server, nc stream) *connection {
	pipelined := s.options().MaxPipelined
	c := &connection{
		server:     s,
		nc:         nc,
		client:     Client{Addr: addrOf(nc.RemoteAddr()), Via: wire.TCP},
		in:         bufio.NewReaderSize(nc, packetSize),
		inProgress: make(chan struct{}, pipelined),
		replies:    make(chan *[]byte, pipelined),
		opened:     time.Now(),
	}
	c.client.ReplyTo.Sender = c
	return c
}

// addrOf returns the IP address in a, an address of a TCP connection.
func addrOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// serve answers the queries of one connection until the client closes it, is idle or
// misbehaves, or ctx is done. Queries that were read by then are answered before it closes.
func (c *connection) serve(ctx context.Context) {
	defer c.nc.Close()
	c.responder = c.server.handler.NewResponder(&c.client)
	defer c.responder.Close()
	c.counters = c.responder.Counters()
	stop := context.AfterFunc(ctx, func() { c.nc.SetReadDeadline(time.Now().Add(shutdownConnection)) })
	defer stop()
	var writer sync.WaitGroup
	writer.Go(c.writeLoop)
	c.reason = c.readLoop(ctx)
	c.queries.Wait()
	close(c.replies)
	writer.Wait()
	if c.slow.Load() {
		c.reason = closedSlow
	}
	if !c.broken.Load() {
		c.halfClose()
	}
}

// halfClose sends a FIN and waits for the client's.
func (c *connection) halfClose() {
	if c.nc.CloseWrite() != nil {
		return
	}
	c.nc.SetReadDeadline(time.Now().Add(halfCloseTime))
	io.CopyN(io.Discard, c.nc, halfCloseRead)
}

// readLoop handles messages one by one until there are no more.
func (c *connection) readLoop(ctx context.Context) closeReason {
	defer c.flush()
	for {
		message, end := c.next(ctx)
		if message == nil {
			return end
		}
		c.acquire()
		c.counters.Received.Add(1)
		if !c.handle(message) {
			if c.client.ChecksOnly {
				return closedRejected
			}
			return closedNotQuery
		}
	}
}

// acquire counts one more query in progress. Beyond MaxPipelined, messages stay unread.
func (c *connection) acquire() {
	select {
	case c.inProgress <- struct{}{}:
	default:
		c.flush() // the read loop's own batch may be what is in progress
		c.inProgress <- struct{}{}
	}
}

// handle answers message at once or has it resolved. It reports false if there is no reply:
// the connection cannot be used any more.
func (c *connection) handle(message []byte) bool {
	if c.batch == nil {
		c.batch = NewBuffer()
	}
	start := len(*c.batch)
	reply, p := c.responder.Answer(append(*c.batch, 0, 0), message)
	*c.batch = reply[:start]
	switch {
	case p != nil:
		c.queries.Add(1)
		p.Resolve()
	case len(reply) > start+2:
		binary.BigEndian.PutUint16(reply[start:], uint16(len(reply)-start-2))
		*c.batch = reply
		if c.batched++; len(reply) >= writeSize {
			c.flush()
		}
	default:
		<-c.inProgress
		return false
	}
	return true
}

// Send queues a reply for writeLoop.
func (c *connection) Send(_ *ReplyTo, message *[]byte) {
	defer c.queries.Done()
	c.enqueue(message)
}

// Peer returns the remote address of the connection.
func (c *connection) Peer(*ReplyTo) netip.AddrPort {
	return c.nc.RemoteAddr().(*net.TCPAddr).AddrPort()
}

// enqueue queues a reply for writeLoop.
func (c *connection) enqueue(reply *[]byte) {
	size := int64(len(*reply))
	c.unsent.Add(size)
	if clients := &c.server.clients; clients.unsent.Add(size) > unsentMax {
		clients.shedSlowReaders()
	}
	c.replies <- reply
}

// abort closes the connection of a client that does not read, whatever is in progress.
func (c *connection) abort() {
	if c.broken.CompareAndSwap(false, true) {
		c.slow.Store(true)
		c.nc.Close() // does not block; both loops then fail
	}
}

// flush writes the replies of the read loop.
func (c *connection) flush() {
	if c.batch == nil {
		return
	}
	c.write(*c.batch, c.batched)
	putBuffer(c.batch) // idle connections keep no buffer
	c.batch, c.batched = nil, 0
}

// next returns the next message, or nil and why there is none. The message is valid until
// the next call.
func (c *connection) next(ctx context.Context) ([]byte, closeReason) {
	c.in.Discard(c.used)
	c.used = 0
	if !c.messageBuffered() { // reading may block
		c.flush()
	}
	if c.in.Buffered() == 0 {
		if end, ok := c.awaitMessage(ctx); !ok {
			return nil, end
		}
	}
	if !c.messageBuffered() {
		c.setReadTimeout(ctx, messageTimeout)
	}
	message, err := c.read()
	if err != nil {
		if ctx.Err() == nil {
			return nil, closedStalled
		}
		return nil, closedNormally
	}
	c.gotMessage = true
	return message, closedNormally
}

// awaitMessage waits for the first octet of a message. A connection with queries in progress
// is not idle (RFC 7766 section 6.2.3); the time begins when the last reply is written.
func (c *connection) awaitMessage(ctx context.Context) (closeReason, bool) {
	for {
		idle, _ := c.idleFor()
		left := c.idleLimit() - idle
		switch {
		case left <= 0 && c.client.ChecksOnly && !c.gotMessage:
			return closedRejected, false
		case left <= 0:
			return closedIdle, false
		}
		c.setReadTimeout(ctx, left)
		_, err := c.in.Peek(1)
		switch {
		case err == nil:
			return closedNormally, true
		case !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil:
			return closedNormally, false
		}
	}
}

// idleLimit returns how long the connection may be idle.
func (c *connection) idleLimit() time.Duration {
	if c.client.ChecksOnly {
		return min(checkTimeout, c.server.options().IdleTimeout)
	}
	if !c.gotMessage {
		return min(firstTimeout, c.server.options().IdleTimeout)
	}
	return c.server.options().IdleTimeout
}

// messageBuffered reports whether a whole message is buffered.
func (c *connection) messageBuffered() bool {
	if c.in.Buffered() < 2 {
		return false
	}
	prefix, _ := c.in.Peek(2)
	return c.in.Buffered() >= 2+int(binary.BigEndian.Uint16(prefix))
}

// read returns a message without its length.
func (c *connection) read() ([]byte, error) {
	prefix, err := c.in.Peek(2)
	if err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(prefix))
	if 2+size <= c.in.Size() {
		message, err := c.in.Peek(2 + size)
		if err != nil {
			return nil, err
		}
		c.used = 2 + size
		return message[2:], nil
	}
	c.in.Discard(2)
	long := make([]byte, size)
	_, err = io.ReadFull(c.in, long)
	return long, err
}

// setReadTimeout bounds the next reads by d from now. Once ctx is done, the deadline does
// not move any more.
func (c *connection) setReadTimeout(ctx context.Context, d time.Duration) {
	if ctx.Err() != nil {
		return
	}
	c.nc.SetReadDeadline(time.Now().Add(d))
	if ctx.Err() != nil { // ctx ended in between, so this deadline may have replaced its
		c.nc.SetReadDeadline(time.Now().Add(min(d, shutdownConnection)))
	}
}

// writeLoop writes replies to pending queries until the channel is closed: all that are
// queued in one write, a single one at once. After a write has failed it goes on taking
// replies, so that no sender blocks.
func (c *connection) writeLoop() {
	var batch []byte
	for reply := range c.replies {
		batch = appendMessage(batch[:0], reply)
		// Yield to goroutines that are about to reply as well. It costs a single
		// reply nothing and saves most system calls of a burst.
		runtime.Gosched()
		n := 1
		for len(batch) < writeSize && len(c.replies) > 0 {
			batch = appendMessage(batch, <-c.replies)
			n++
		}
		c.write(batch, n)
		sent := int64(len(batch) - 2*n) // without the lengths
		c.unsent.Add(-sent)
		c.server.clients.unsent.Add(-sent)
		if cap(batch) > writeSize || len(c.inProgress) == 0 {
			batch = nil // idle connections keep no buffer
		}
	}
}

// write writes a batch of n replies, which are no longer in progress afterwards.
func (c *connection) write(batch []byte, n int) {
	if n > 0 && !c.deliver(batch) {
		c.counters.Undelivered.Add(uint64(n))
	}
	for range n {
		<-c.inProgress
	}
}

// deliver reports whether batch could be written.
func (c *connection) deliver(batch []byte) bool {
	if c.broken.Load() {
		return false
	}
	c.nc.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := c.nc.Write(batch)
	c.active.Store(int64(time.Since(c.opened)))
	if err == nil {
		return true
	}
	// The first failure has the reason; the other loop then fails because of the close.
	if c.broken.CompareAndSwap(false, true) && errors.Is(err, os.ErrDeadlineExceeded) {
		c.slow.Store(true)
	}
	c.nc.Close() // the read loop then fails
	return false
}

// appendMessage appends a reply with its length (RFC 1035 section 4.2.2).
func appendMessage(dst []byte, reply *[]byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(*reply)))
	dst = append(dst, *reply...)
	putBuffer(reply)
	return dst
}

// idleFor returns how long no query has been in progress. It reports false if one is.
func (c *connection) idleFor() (time.Duration, bool) {
	if len(c.inProgress) > 0 {
		return 0, false
	}
	return time.Since(c.opened) - time.Duration(c.active.Load()), true
}

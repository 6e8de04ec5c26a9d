package gateway

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
	// firstTimeout is how long a client may take to begin with its first message:
	// whoever connects has something to say.
	firstTimeout = 5 * time.Second
	// messageTimeout is how long a message may take from its first octet to its
	// last. Honest ones fit into one segment; this is for lossy links.
	messageTimeout = 5 * time.Second
	// writeTimeout is how long a client may leave replies unread once all
	// buffers between us are full.
	writeTimeout = 5 * time.Second
	// linger is how long we go on reading, to no purpose but that a query which
	// crossed our FIN is not met by a reset, which would take replies with it.
	linger = time.Second
	// lingerSize is how much we read then.
	lingerSize = 256 << 10
	// writeSize is where a batch of replies is complete.
	writeSize = 32 << 10
	// unsentMax is how many octets of replies may wait to be written, to all clients
	// together: a hundred long answers are nothing for one that reads, and much for a
	// thousand that don't.
	unsentMax = 8 << 20
)

// A stream is what a *net.TCPConn does for us.
type stream interface {
	net.Conn
	CloseWrite() error
}

// A connection is one client's TCP connection. It has two loops of its own: one
// reads queries and writes the replies that it can make at once, the other writes
// those that had to wait, in the order in which they come (RFC 7766 section 7).
// Both write as many at once as there are.
type connection struct {
	gateway *Gateway
	nc      stream // both loops may write at once: what one writes stays in one piece
	tally   *tally // of the listener

	// The read loop's
	client client
	in     *bufio.Reader
	spoke  bool    // a message has come
	used   int     // of what is buffered in it; the last message, or 0
	batch  *[]byte // replies to be written before it waits for anything; or nil
	held   int     // how many there are in batch

	// underWay holds one element for each query from when it is read until its
	// reply is written. Whoever puts a reply into replies has put one there, and
	// replies has the same capacity: it never blocks.
	underWay chan struct{}
	replies  chan *[]byte
	unsent   atomic.Int64   // octets in replies, and being written from there
	queries  sync.WaitGroup // those that wait for the Resolver

	opened time.Time
	active atomic.Int64 // when the last reply was written, as nanoseconds since opened
	broken atomic.Bool  // a write failed
	slow   atomic.Bool  // because it took too long
	end    ending       // set when serve has returned
}

// An ending is why a connection ended.
type ending uint8

const (
	wasClosed  ending = iota // by the client, by the network, by us when stopping
	wasIdle                  // for Options.IdleTimeout
	wasStalled               // in the midst of a message
	wasSlow                  // a write took too long
	wasNoise                 // sent something that is no query
)

func newConnection(g *Gateway, nc stream, t *tally) *connection {
	pipelined := g.now().MaxPipelined
	return &connection{
		gateway:  g,
		nc:       nc,
		tally:    t,
		client:   client{addr: addrOf(nc.RemoteAddr()), via: wire.TCP},
		in:       bufio.NewReaderSize(nc, packetSize),
		underWay: make(chan struct{}, pipelined),
		replies:  make(chan *[]byte, pipelined),
		opened:   time.Now(),
	}
}

// serve answers the queries of one connection until the client has said its
// last, is idle or misbehaves, or ctx is done. Queries that were read by then
// are answered before it closes.
func (c *connection) serve(ctx context.Context) {
	defer c.nc.Close()
	stop := context.AfterFunc(ctx, func() { c.nc.SetReadDeadline(time.Now().Add(lastCall)) })
	defer stop()
	var writer sync.WaitGroup
	writer.Go(c.writeLoop)
	c.end = c.readLoop(ctx)
	c.queries.Wait()
	close(c.replies)
	writer.Wait()
	if c.slow.Load() {
		c.end = wasSlow
	}
	if !c.broken.Load() {
		c.part()
	}
}

// part half-closes, and waits until the client has closed too.
func (c *connection) part() {
	if c.nc.CloseWrite() != nil {
		return
	}
	c.nc.SetReadDeadline(time.Now().Add(linger))
	io.CopyN(io.Discard, c.nc, lingerSize)
}

// readLoop takes messages one by one until there are no more.
func (c *connection) readLoop(ctx context.Context) ending {
	defer c.flush()
	for {
		message, end := c.next(ctx)
		if message == nil {
			return end
		}
		c.enter()
		c.tally.received.Add(1)
		if !c.take(message) {
			return wasNoise
		}
	}
}

// enter counts one more query as under way. Beyond MaxPipelined, messages wait
// unread.
func (c *connection) enter() {
	select {
	case c.underWay <- struct{}{}:
	default:
		c.flush() // it may be ours that are too many
		c.underWay <- struct{}{}
	}
}

// take answers message now or has its answer asked for. It reports false if
// message is no query: a peer that sends such a thing is lost or worse.
func (c *connection) take(message []byte) bool {
	if c.batch == nil {
		c.batch = buffers.Get().(*[]byte)
	}
	start := len(*c.batch)
	reply, q, next := c.gateway.answerNow(append(*c.batch, 0, 0), message, &c.client, c.tally)
	*c.batch = reply[:start]
	switch next {
	case send, sendAndRenew:
		if log := c.gateway.now().QueryLog; log != nil {
			log.Note(c.peer(), wire.TCP, message, reply[start+2:], 0)
		}
		if next == sendAndRenew {
			c.gateway.renew(q.Clone(), c.tally)
		}
		binary.BigEndian.PutUint16(reply[start:], uint16(len(reply)-start-2))
		*c.batch = reply
		if c.held++; len(reply) >= writeSize {
			c.flush()
		}
	case ask:
		c.queries.Add(1)
		c.gateway.answerLater(newWaiter(q, c, c.client.addr, c.tally))
	case ignore:
		<-c.underWay
		return false
	}
	return true
}

// reply leaves a reply to writeLoop.
func (c *connection) reply(w *waiter, message *[]byte) {
	defer c.queries.Done()
	if log := c.gateway.now().QueryLog; log != nil {
		log.Note(c.peer(), wire.TCP, w.query.Packet(), *message, time.Since(w.began))
	}
	c.hand(message)
}

func (c *connection) peer() netip.AddrPort { return c.nc.RemoteAddr().(*net.TCPAddr).AddrPort() }

// hand gives a reply to writeLoop.
func (c *connection) hand(reply *[]byte) {
	size := int64(len(*reply))
	c.unsent.Add(size)
	if clients := &c.gateway.clients; clients.unsent.Add(size) > unsentMax {
		clients.relieve()
	}
	c.replies <- reply
}

// cutOff ends the connection of a client that does not read, whatever is under way.
func (c *connection) cutOff() {
	if c.broken.CompareAndSwap(false, true) {
		c.slow.Store(true)
		c.nc.Close() // doesn't wait; both loops learn from it
	}
}

// flush writes the replies that the read loop has made.
func (c *connection) flush() {
	if c.batch == nil {
		return
	}
	c.write(*c.batch, c.held)
	putBuffer(c.batch) // idle connections keep no buffers
	c.batch, c.held = nil, 0
}

// next returns the next message, or nil and why there is none. The message is
// valid until the next call.
func (c *connection) next(ctx context.Context) ([]byte, ending) {
	c.in.Discard(c.used)
	c.used = 0
	if !c.whole() { // what follows may wait
		c.flush()
	}
	if c.in.Buffered() == 0 {
		if end, ok := c.await(ctx); !ok {
			return nil, end
		}
	}
	if !c.whole() {
		c.allow(ctx, messageTimeout)
	}
	message, err := c.read()
	if err != nil {
		if ctx.Err() == nil {
			return nil, wasStalled
		}
		return nil, wasClosed
	}
	c.spoke = true
	return message, wasClosed
}

// await waits for the first octet of a message. A connection is not idle while
// replies are outstanding (RFC 7766 section 6.2.3), nor does the clock start
// before the last of them is written.
func (c *connection) await(ctx context.Context) (ending, bool) {
	for {
		idle, _ := c.idleFor()
		left := c.patience() - idle
		if left <= 0 {
			return wasIdle, false
		}
		c.allow(ctx, left)
		_, err := c.in.Peek(1)
		switch {
		case err == nil:
			return wasClosed, true
		case !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil:
			return wasClosed, false
		}
	}
}

// patience returns how long the connection may be idle.
func (c *connection) patience() time.Duration {
	if !c.spoke {
		return min(firstTimeout, c.gateway.now().IdleTimeout)
	}
	return c.gateway.now().IdleTimeout
}

// whole reports whether a message is buffered in full.
func (c *connection) whole() bool {
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

// allow gives the next reads d from now. When ctx is done, the time is set for
// good.
func (c *connection) allow(ctx context.Context, d time.Duration) {
	if ctx.Err() != nil {
		return
	}
	c.nc.SetReadDeadline(time.Now().Add(d))
	if ctx.Err() != nil { // done in between, so that ours may have come last
		c.nc.SetReadDeadline(time.Now().Add(min(d, lastCall)))
	}
}

// writeLoop writes replies that had to wait until there will be no more. What has
// gathered goes out in one write, a lone reply at once. When a write fails, it
// goes on to take replies, so that nobody waits for a client that is gone.
func (c *connection) writeLoop() {
	var batch []byte
	for reply := range c.replies {
		batch = appendMessage(batch[:0], reply)
		// Those who are about to reply as well may do so first. It costs a lone
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
		c.gateway.clients.unsent.Add(-sent)
		if cap(batch) > writeSize || len(c.underWay) == 0 {
			batch = nil // idle connections keep no buffers
		}
	}
}

// write writes a batch of n replies, which are no longer under way then.
func (c *connection) write(batch []byte, n int) {
	if n > 0 && !c.deliver(batch) {
		c.tally.undelivered.Add(uint64(n))
	}
	for range n {
		<-c.underWay
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
	// The first to fail knows why; the other loop fails for what it has done.
	if c.broken.CompareAndSwap(false, true) && errors.Is(err, os.ErrDeadlineExceeded) {
		c.slow.Store(true)
	}
	c.nc.Close() // the read loop learns from it
	return false
}

// appendMessage appends a reply with its length (RFC 1035 section 4.2.2).
func appendMessage(dst []byte, reply *[]byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(*reply)))
	dst = append(dst, *reply...)
	putBuffer(reply)
	return dst
}

// idleFor returns for how long nothing has been under way. It reports false if
// something is.
func (c *connection) idleFor() (time.Duration, bool) {
	if len(c.underWay) > 0 {
		return 0, false
	}
	return time.Since(c.opened) - time.Duration(c.active.Load()), true
}

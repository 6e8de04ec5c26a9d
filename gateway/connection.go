package gateway

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

const (
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
)

// A stream is what a *net.TCPConn does for us.
type stream interface {
	net.Conn
	CloseWrite() error
}

// A connection is one client's TCP connection. It has two loops of its own: one
// reads queries, the other writes replies in the order in which they come
// (RFC 7766 section 7), as many at once as there are.
type connection struct {
	gateway *Gateway
	nc      stream
	tally   *tally // of the listener

	in   *bufio.Reader // the read loop's
	used int           // of what is buffered in it; the last message, or 0

	// underWay holds one element for each query from when it is read until its
	// reply is written. Whoever puts a reply into replies has put one there, and
	// replies has the same capacity: it never blocks.
	underWay chan struct{}
	replies  chan *[]byte
	queries  sync.WaitGroup // those that wait for the Resolver

	opened time.Time
	active atomic.Int64 // when the last reply was written, as nanoseconds since opened
	broken bool         // a write failed; the write loop's until it has ended
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
	return &connection{
		gateway:  g,
		nc:       nc,
		tally:    t,
		in:       bufio.NewReaderSize(nc, packetSize),
		underWay: make(chan struct{}, g.options.MaxPipelined),
		replies:  make(chan *[]byte, g.options.MaxPipelined),
		opened:   time.Now(),
	}
}

// serve answers the queries of one connection until the client has said its
// last, is idle or misbehaves, or ctx is done. Queries that were read by then
// are answered before it closes.
func (c *connection) serve(ctx, work context.Context) {
	defer c.nc.Close()
	stop := context.AfterFunc(ctx, func() { c.nc.SetReadDeadline(time.Now().Add(lastCall)) })
	defer stop()
	var writer sync.WaitGroup
	writer.Go(c.writeLoop)
	end := c.readLoop(ctx, work)
	c.queries.Wait()
	close(c.replies)
	writer.Wait()
	if c.end == wasClosed {
		c.end = end
	}
	if !c.broken {
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
func (c *connection) readLoop(ctx, work context.Context) ending {
	for {
		message, end := c.next(ctx)
		if message == nil {
			return end
		}
		c.underWay <- struct{}{} // beyond MaxPipelined, messages wait unread
		c.tally.received.Add(1)
		if !c.take(work, message) {
			return wasNoise
		}
	}
}

// take answers message now or starts a goroutine to. It reports false if
// message is no query: a peer that sends such a thing is lost or worse.
func (c *connection) take(work context.Context, message []byte) bool {
	buffer := buffers.Get().(*[]byte)
	reply, q, next := c.gateway.answerNow((*buffer)[:0], message, wire.TCP, c.tally)
	*buffer = reply
	switch next {
	case sendAndRenew:
		c.gateway.renew(work, q.Clone(), c.tally)
		c.replies <- buffer
	case send:
		c.replies <- buffer
	case ask:
		q := q.Clone()
		c.queries.Go(func() {
			defer c.gateway.slots.release()
			*buffer = c.gateway.answerLater(work, (*buffer)[:0], q, c.tally)
			c.replies <- buffer
		})
	case ignore:
		putBuffer(buffer)
		<-c.underWay
		return false
	}
	return true
}

// next returns the next message, or nil and why there is none. The message is
// valid until the next call.
func (c *connection) next(ctx context.Context) ([]byte, ending) {
	c.in.Discard(c.used)
	c.used = 0
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
	return message, wasClosed
}

// await waits for the first octet of a message. A connection is not idle while
// replies are outstanding (RFC 7766 section 6.2.3), nor does the clock start
// before the last of them is written.
func (c *connection) await(ctx context.Context) (ending, bool) {
	for {
		idle, _ := c.idleFor()
		left := c.gateway.options.IdleTimeout - idle
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

// writeLoop writes replies until there will be no more. What has gathered goes
// out in one write, a lone reply at once. When a write fails, it goes on to
// take replies, so that nobody waits for a client that is gone.
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
		for range n {
			<-c.underWay
		}
		if cap(batch) > writeSize || len(c.underWay) == 0 {
			batch = nil // idle connections keep no buffers
		}
	}
}

// write writes a batch of n replies.
func (c *connection) write(batch []byte, n int) {
	if !c.broken {
		c.nc.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, err := c.nc.Write(batch)
		c.active.Store(int64(time.Since(c.opened)))
		if err == nil {
			return
		}
		c.broken = true
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.end = wasSlow
		}
		c.nc.Close() // the read loop learns from it
	}
	c.tally.undelivered.Add(uint64(n))
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

package upstreams

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

// faults injects the fault of a drill into the connections of an upstream: by wrapping
// how they are dialled, and what is read from and written to them. Nothing else knows
// of it. The zero faults injects none.
type faults struct {
	active atomic.Pointer[activeFault] // or nil

	mu      sync.Mutex
	conns   map[*faultyConn]bool // open
	reading sync.WaitGroup       // readAhead of connections
}

// An activeFault is a drill that is running.
type activeFault struct {
	Drill
	over chan struct{} // closed when it ends
}

// start injects the fault of d until end is called. It reports false if there is one
// already.
func (f *faults) start(d Drill) (end func(), started bool) {
	active := &activeFault{Drill: d, over: make(chan struct{})}
	if !f.active.CompareAndSwap(nil, active) {
		return nil, false
	}
	if d.Fault == Hangup {
		f.mu.Lock()
		defer f.mu.Unlock()
		for c := range f.conns {
			c.hangUp()
		}
	}
	return func() {
		f.active.Store(nil)
		close(active.over)
	}, true
}

func (f *faults) is(fault Fault) *activeFault {
	if active := f.active.Load(); active != nil && active.Fault == fault {
		return active
	}
	return nil
}

// swallowing returns the drill because of which nothing comes back from an endpoint, or nil.
func (f *faults) swallowing(e *endpoint) *activeFault {
	if active := f.active.Load(); active != nil && active.swallows(e.addr, overUDP(e.transport())) {
		return active
	}
	return nil
}

// A networkDial connects to an address without TLS, within a limit, with small packets
// only if small is set.
type networkDial func(ctx context.Context, addr netip.AddrPort, limit time.Duration, small bool) (net.Conn, error)

// wrapDial returns dial, over TCP or UDP, with faults: if nothing comes back, it takes until
// its limit.
func (f *faults) wrapDial(dial networkDial, udp bool) networkDial {
	return func(ctx context.Context, addr netip.AddrPort, limit time.Duration, small bool) (net.Conn, error) {
		if active := f.active.Load(); active != nil && active.swallows(addr, udp) {
			select {
			case <-active.over:
			case <-time.After(limit):
				return nil, noConnection(limit)
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		return dial(ctx, addr, limit, small)
	}
}

// wrap returns a connection to an endpoint with faults.
func (f *faults) wrap(l link, to *endpoint) link {
	c := &faultyConn{Conn: l.Conn, faults: f, to: to, abort: l.abort, gone: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conns == nil {
		f.conns = make(map[*faultyConn]bool)
	}
	f.conns[c] = true
	if f.is(Hangup) != nil {
		c.hangUp()
	}
	l.Conn, l.abort = c, c.abortNow
	return l
}

// A faultyConn is a connection of DNS messages behind their lengths, with faults. While
// there is none, reads and writes are the connection's own. From the first fault on, a
// goroutine reads whole messages ahead, to drop, delay or replace them.
type faultyConn struct {
	net.Conn
	faults *faults
	to     *endpoint
	abort  func()        // ends Conn at once
	gone   chan struct{} // closed with the connection
	once   sync.Once     // for gone
	hungUp atomic.Bool   // it seems to be closed by the peer

	// For the goroutine that reads.
	split   frameSplitter
	delayed chan delivery // nil before the first fault
	current delivery      // of these: what is still to be read of it
}

// hangUp makes the peer seem to have closed the connection.
func (c *faultyConn) hangUp() {
	c.hungUp.Store(true)
	c.abort()
}

func (c *faultyConn) abortNow() {
	c.abort()
	c.closed()
}

// Close ends the connection as the wrapped one does.
func (c *faultyConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

func (c *faultyConn) closed() {
	c.once.Do(func() {
		close(c.gone)
		c.faults.mu.Lock()
		defer c.faults.mu.Unlock()
		delete(c.faults.conns, c)
	})
}

func (c *faultyConn) Write(p []byte) (int, error) {
	if c.faults.swallowing(c.to) != nil || c.hungUp.Load() {
		return len(p), nil // as into the system's buffer
	}
	return c.Conn.Write(p)
}

func (c *faultyConn) Read(p []byte) (int, error) {
	if c.delayed != nil {
		return c.readDelayed(p)
	}
	n, err := c.Conn.Read(p)
	if c.hungUp.Load() {
		return 0, io.EOF
	}
	if c.faults.active.Load() == nil {
		c.split.pass(p[:n])
		return n, err
	}
	c.split.buf = append(c.split.buf, p[:n]...)
	c.delayed = make(chan delivery, inFlightMax)
	c.faults.reading.Go(func() { c.readAhead(err) })
	return c.readDelayed(p)
}

// readDelayed waits for the next delivery, and reads as much of it as fits.
func (c *faultyConn) readDelayed(p []byte) (int, error) {
	if len(c.current.frame) == 0 && c.current.err == nil {
		select {
		case c.current = <-c.delayed:
		case <-c.gone:
			return 0, net.ErrClosed
		}
	}
	if wait := time.Until(c.current.at); wait > 0 {
		select {
		case <-time.After(wait):
		case <-c.current.over:
		case <-c.gone:
			return 0, net.ErrClosed
		}
	}
	if len(c.current.frame) == 0 {
		err := c.current.err
		if _, ofOne := errors.AsType[*requestError](err); ofOne {
			c.current = delivery{}
		}
		return 0, err
	}
	n := copy(p, c.current.frame)
	c.current.frame, c.current.at = c.current.frame[n:], time.Time{}
	return n, nil
}

// deliver queues something to be read, unless the connection is closed on this side.
func (c *faultyConn) deliver(d delivery) {
	select {
	case c.delayed <- d:
	case <-c.gone:
	}
}

// readAhead reads messages and queues what the fault makes of them, until the
// connection ends. The first read has returned err.
func (c *faultyConn) readAhead(err error) {
	buf := make([]byte, readAheadSize)
	for {
		for frame, whole := c.split.next(); frame != nil; frame, whole = c.split.next() {
			c.inject(delivery{frame: frame}, whole)
		}
		if ofOne, ok := errors.AsType[*requestError](err); ok {
			c.inject(delivery{err: ofOne}, true)
		} else if err != nil {
			break
		}
		var n int
		n, err = c.Conn.Read(buf)
		c.split.buf = append(c.split.buf, buf[:n]...)
	}
	if active := c.faults.swallowing(c.to); active != nil { // the end of the connection is not seen either
		select {
		case <-active.over:
		case <-c.gone:
		}
	}
	if c.hungUp.Load() {
		err = io.EOF
	}
	c.deliver(delivery{frame: c.split.buf[c.split.passed:], err: err})
}

// readAheadSize is how much is read at once.
const readAheadSize = 16 << 10

// inject queues what the fault makes of a message, or of an error in its place. One that
// began to be read before the fault stays as it is.
func (c *faultyConn) inject(d delivery, whole bool) {
	active := c.faults.active.Load()
	switch {
	case active == nil || !whole:
	case active.swallows(c.to.addr, overUDP(c.to.transport())):
		return
	case active.Fault == Late:
		d.at, d.over = time.Now().Add(active.Delay), active.over
	case d.frame == nil:
	case active.Fault == ServFail && rand.IntN(100) < active.Share:
		d.frame = asServFail(d.frame)
	case active.Fault == HTTPStatus && overHTTP(c.to.transport()):
		status := responseHeader{status: active.Status}
		d = delivery{err: &requestError{wire.ID(d.frame[2:]), status.check()}}
	}
	c.deliver(d)
}

// asServFail returns the message of a frame as a SERVFAIL to the same question: its
// header and question, without all else.
func asServFail(frame []byte) []byte {
	const header = 12
	message := frame[2:]
	end := header
	for end < len(message) && message[end] != 0 {
		end += 1 + int(message[end])
	}
	if end += 1 + 4; end > len(message) || binary.BigEndian.Uint16(message[4:]) != 1 {
		return frame
	}
	failure := slices.Concat(binary.BigEndian.AppendUint16(nil, uint16(end)), message[:end])
	const authoritative, truncated, servFail = 0x04, 0x02, 2
	failure[2+2] &^= authoritative | truncated
	failure[2+3] = failure[2+3]&0xd0 | servFail // neither AD nor another code
	clear(failure[2+6 : 2+header])              // no records
	return failure
}

// A delivery is something to be read: a message, or the end of the connection.
type delivery struct {
	frame []byte
	err   error
	at    time.Time       // not before
	over  <-chan struct{} // unless this is closed
}

// A frameSplitter finds the messages in what is read, each behind its length in two
// octets.
type frameSplitter struct {
	buf    []byte // from the start of a message on
	passed int    // how many octets of buf were read as they came
}

// pass notes that p is read as it comes. It copies only an incomplete message at the end of
// p, which is rare.
func (s *frameSplitter) pass(p []byte) {
	own := s.buf[:0]
	if len(s.buf) > 0 {
		p = append(s.buf, p...)
		own = p[:0]
	}
	s.buf = p
	for frame, _ := s.next(); frame != nil; frame, _ = s.next() {
	}
	s.buf = append(own, s.buf...)
	s.passed = len(s.buf)
}

// next takes the next message, with its length, or nil if it is not complete. If a part of
// it was read before, it is the rest, and not whole.
func (s *frameSplitter) next() (frame []byte, whole bool) {
	if len(s.buf) < 2 {
		return nil, false
	}
	n := 2 + int(binary.BigEndian.Uint16(s.buf))
	if len(s.buf) < n {
		return nil, false
	}
	frame, whole = s.buf[s.passed:n:n], s.passed == 0
	s.buf, s.passed = s.buf[n:], 0
	return frame, whole
}

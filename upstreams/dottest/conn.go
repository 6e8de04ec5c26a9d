package dottest

import (
	"bufio"
	"container/heap"
	"crypto/tls"
	"encoding/binary"
	"io"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	"dotgate/gateway/wire"
)

// A conn is one connection of a client. Its read loop makes the answers, and its write
// loop sends them when they are due. No answer has a goroutine or a timer of its own.
type conn struct {
	server   *Server
	greeting Greeting
	raw      *rawConn
	tls      *tls.Conn
	done     chan struct{} // closed when reading has ended
	wake     chan struct{} // holds one token when the write loop has to look again
	retired  bool          // guarded by the server's mutex

	// Used by the read loop only: the answers that the write loop gets at the end of a batch.
	batch []answer
	asked int // queries so far, and so the order of answers

	mu          sync.Mutex    // guards the fields below; only waiting for room blocks under it
	room        sync.Cond     // ready has become shorter, or done is closed
	over        bool          // reading or writing has ended
	established bool          // the write loop runs
	closing     *Closing      // or nil; how the write loop is to close
	ready       []answer      // to be sent now
	unsent      int           // octets in ready
	later       answerHeap    // to be sent when due
	lastDue     time.Duration // of all answers so far: what InOrder waits for
	window      time.Duration // when the window of Reverse ends
	lastUse     time.Duration // when octets were received or sent
	outstanding int
	pending     [1 << 16 / 64]uint64 // bits: IDs of queries that have no answer yet
	spare       answer               // memory for the next batch
}

// An answer is the response to a query, or to several at once.
type answer struct {
	frames []byte        // with length prefixes
	ids    []uint16      // of the queries
	due    time.Duration // on the server's clock; zero means now
	order  int           // among those due at the same time
	alone  bool          // it shares no write with others
	cut    bool
	drip   time.Duration
}

// never is the due time of an answer that is not sent.
const never = time.Duration(math.MaxInt64)

// An answerHeap has the answer that is due first at its top.
type answerHeap []answer

func (h answerHeap) Len() int      { return len(h) }
func (h answerHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *answerHeap) Push(a any)   { *h = append(*h, a.(answer)) }

func (h answerHeap) Less(i, j int) bool {
	return h[i].due < h[j].due || h[i].due == h[j].due && h[i].order < h[j].order
}

func (h *answerHeap) Pop() any {
	last := len(*h) - 1
	a := (*h)[last]
	(*h)[last] = answer{}
	*h = (*h)[:last]
	return a
}

// maxUnsent is how many octets may wait for a client that does not read. More memory is
// not spent on it.
const maxUnsent = 1 << 20

func newConn(s *Server, accepted *net.TCPConn, greeting Greeting) *conn {
	c := &conn{
		server:   s,
		greeting: greeting,
		raw:      &rawConn{TCPConn: accepted},
		done:     make(chan struct{}),
		wake:     make(chan struct{}, 1),
	}
	c.room.L = &c.mu
	c.tls = tls.Server(c.raw, s.tlsConfig(c))
	return c
}

// wakeWriter makes the write loop look again.
func (c *conn) wakeWriter() {
	select {
	case c.wake <- struct{}{}:
	default: // it is about to look
	}
}

func (c *conn) closeBy(how Closing) {
	if how != RST && c.raw.state.load() == frozen {
		return // the client must not notice
	}
	c.server.retire(c)
	if how == RST {
		c.raw.reset()
		return
	}
	c.mu.Lock()
	established := c.established
	c.closing = &how
	c.mu.Unlock()
	if !established {
		c.raw.finish()
	}
	c.wakeWriter()
}

// serve runs the connection from its beginning to its end.
func (c *conn) serve() {
	defer c.server.forget(c)
	defer c.raw.Close()
	if !c.greet() {
		c.raw.drain()
		return
	}
	if err := c.tls.Handshake(); err != nil {
		c.server.tally.failed.Add(1)
		c.server.retire(c)
		c.raw.CloseWrite() // and no more than that, so that the alert arrives, even if the client has sent more
		io.Copy(io.Discard, c.raw.TCPConn)
		return
	}
	c.server.tally.sawHandshake(c.tls.ConnectionState())
	c.mu.Lock()
	c.established = true
	c.lastUse = c.server.clock()
	c.mu.Unlock()
	var writing sync.WaitGroup
	writing.Go(c.writeLoop)
	c.readLoop()
	c.end()
	close(c.done)
	c.raw.Close() // wakes a write loop that waits for the client to read
	writing.Wait()
}

// greet applies the faults that precede the handshake, and reports whether the handshake
// follows.
func (c *conn) greet() bool {
	// One round trip for TCP, which takes no time on loopback, and one for TLS.
	if wait := 2*c.server.options.RTT + c.server.options.Handshake + c.server.plan.Load().conn.Handshake; wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.server.done:
		}
	}
	switch c.greeting {
	case Silence:
		c.raw.freeze()
		return false
	case HandshakeStalls:
		c.raw.state.raise(stalling)
	case HandshakeClosed, HandshakeReset, PlainText:
		var hello [1 << 10]byte
		if _, err := c.raw.Read(hello[:]); err != nil {
			return false
		}
		c.server.retire(c)
		if c.greeting == HandshakeReset {
			c.raw.reset()
			return false
		}
		if c.greeting == PlainText {
			io.WriteString(c.raw, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
		}
		c.raw.finish()
		return false
	}
	return true
}

func (c *conn) readLoop() {
	r := bufio.NewReaderSize(c.tls, 2+wire.MaxSize)
	for {
		if !wholeFrameIn(r) {
			c.flush()
		}
		prefix, err := r.Peek(2)
		if err != nil {
			return
		}
		frame, err := r.Peek(2 + int(binary.BigEndian.Uint16(prefix)))
		if err != nil {
			return
		}
		if query := frame[2:]; len(query) >= headerLen {
			c.take(query)
		}
		r.Discard(len(frame))
	}
}

// wholeFrameIn reports whether r has a whole message in its buffer.
func wholeFrameIn(r *bufio.Reader) bool {
	if r.Buffered() < 2 {
		return false
	}
	prefix, _ := r.Peek(2)
	return r.Buffered() >= 2+int(binary.BigEndian.Uint16(prefix))
}

// take answers query into the batch.
func (c *conn) take(query []byte) {
	s := c.server
	s.tally.sawQuery(query)
	c.asked++
	now, p := s.clock(), s.plan.Load()
	var fault Fault
	if !p.calm {
		fault = p.draw(now, s.dice, query)
	}
	id := binary.BigEndian.Uint16(query)
	shared := c.shared()
	frames := append(shared.frames, 0, 0)
	prefix := len(frames) - 2
	frames, after := c.respond(frames, query, fault)
	after += s.options.RTT + fault.Delay
	silent := len(frames) == prefix+2
	plain := after <= 0 && fault.Mangle&CutRecord == 0 && fault.Drip == 0 && !p.conn.arranges()
	if plain && !silent {
		shared.frames = frame(frames, prefix, fault.Mangle)
		shared.ids = append(shared.ids, id)
		return
	}
	a := answer{
		ids:   []uint16{id},
		order: c.asked,
		alone: p.conn.CloseAfter > 0 || fault.Mangle&CutRecord != 0 || fault.Drip > 0,
		cut:   fault.Mangle&CutRecord != 0,
		drip:  fault.Drip,
	}
	switch {
	case silent:
		a.due = never
	case after > 0:
		// Late by a tick at most, so that answers share records.
		const tick = 250 * time.Microsecond
		a.due = (now + after + tick - 1).Truncate(tick)
	}
	if !silent {
		a.frames = frame(slices.Clone(frames[prefix:]), 0, fault.Mangle)
	}
	shared.frames = frames[:prefix]
	c.batch = append(c.batch, a)
}

// arranges reports whether f changes when, or with which others, an answer is sent.
func (f *Fault) arranges() bool { return f.InOrder || f.Reverse > 0 || f.CloseAfter > 0 }

// shared returns the answer at the end of the batch to which others can be added.
func (c *conn) shared() *answer {
	if last := len(c.batch) - 1; last >= 0 && c.batch[last].due == 0 && !c.batch[last].alone {
		return &c.batch[last]
	}
	c.batch = append(c.batch, answer{order: c.asked})
	return &c.batch[len(c.batch)-1]
}

// respond appends the response to query, changed by fault, or nothing if fault suppresses
// it.
func (c *conn) respond(dst, query []byte, fault Fault) ([]byte, time.Duration) {
	start := len(dst)
	dst, after := c.server.options.Handler(dst, query)
	if fault.Never {
		dst = dst[:start]
	}
	if len(dst) == start {
		return dst, 0
	}
	instead := section{ttl: defaultTTL}
	if fault.Mangle&Truncated != 0 {
		instead.flags = flagTC
	} else if fault.Mangle&Huge != 0 && fault.RCode == 0 {
		instead.records, instead.size = true, wire.MaxSize
	}
	if strays := fault.Mangle & (Foreign | Stray); strays != 0 {
		instead.records, instead.strays = fault.RCode == 0 && strays&Foreign == 0, strays
	}
	if fault.RCode != 0 || fault.Mangle&(Truncated|Huge|Foreign|Stray) != 0 {
		q, _ := parseQuestion(query)
		dst = appendResponse(dst[:start], q, fault.RCode, instead)
	}
	if fault.Mangle&Echo != 0 {
		dst = append(dst[:start], query...)
	}
	message := dst[start:]
	if fault.Mangle&WrongID != 0 {
		message[0] ^= 0x80
	}
	if fault.Mangle&WrongQuestion != 0 && len(message) > headerLen+1 {
		mistake(message[headerLen:])
	}
	if fault.Mangle&Garbage != 0 {
		c.server.dice.fill(message[min(4, len(message)):])
	}
	return dst, after
}

// mistake changes the name at the start of a question, and keeps its length.
func mistake(question []byte) {
	switch {
	case question[0] == 0: // the root has no letter to change
		question[2] ^= 1 // the type has
	case lower(question[1]) == 'x':
		question[1] = 'y'
	default:
		question[1] = 'x'
	}
}

// frame writes the length of the message that follows at prefix, and applies the faults of
// m that concern frames.
func frame(frames []byte, prefix int, m Mangle) []byte {
	n := len(frames) - prefix - 2
	switch {
	case m&LengthZero != 0:
		n, frames = 0, frames[:prefix+2]
	case m&LengthLong != 0:
		n = min(n+10, wire.MaxSize)
	case m&LengthShort != 0:
		n = max(n-10, 0)
	}
	binary.BigEndian.PutUint16(frames[prefix:], uint16(n))
	if m&Duplicate != 0 {
		frames = append(frames, frames[prefix:]...)
	}
	return frames
}

// flush hands the batch to the write loop.
func (c *conn) flush() {
	if len(c.batch) == 0 {
		return
	}
	now, fault := c.server.clock(), &c.server.plan.Load().conn
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.unsent > maxUnsent && !c.over {
		c.room.Wait()
	}
	c.lastUse = now
	for _, a := range c.batch {
		c.noteQueries(a.ids)
	}
	atLeast(&c.server.tally.maxOutstanding, c.outstanding)
	for _, a := range c.batch {
		if len(a.ids) > 0 && !c.over {
			c.schedule(a, now, fault)
		}
	}
	clear(c.batch)
	c.batch = append(c.batch[:0], answer{frames: c.spare.frames[:0], ids: c.spare.ids[:0]})
	c.spare = answer{}
	c.wakeWriter()
}

// schedule queues a for the write loop.
func (c *conn) schedule(a answer, now time.Duration, fault *Fault) {
	if fault.Reverse > 0 && a.due != never {
		if c.window <= now {
			c.window = now + fault.Reverse
		}
		a.due, a.order = max(a.due, c.window), -a.order
	}
	if fault.InOrder {
		a.due = max(a.due, c.lastDue)
		c.lastDue = a.due
	} else {
		c.lastDue = 0
	}
	switch a.due {
	case 0:
		c.ready = append(c.ready, a)
		c.unsent += len(a.frames)
	case never: // it is not sent
	default:
		heap.Push(&c.later, a)
	}
}

func (c *conn) noteQueries(ids []uint16) {
	for _, id := range ids {
		if c.pending[id/64]&(1<<(id%64)) != 0 {
			c.server.tally.duplicateIDs.Add(1)
		}
		c.pending[id/64] |= 1 << (id % 64)
	}
	c.outstanding += len(ids)
}

func (c *conn) noteAnswers(ids []uint16) {
	for _, id := range ids {
		c.pending[id/64] &^= 1 << (id % 64)
	}
	c.outstanding -= len(ids)
	c.server.tally.answers.Add(int64(len(ids)))
}

// end makes both loops end.
func (c *conn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	c.ready, c.later = nil, nil
	c.room.Broadcast()
}

package upstreams

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

const (
	// inFlightMax is how many queries a connection carries at once. An upstream that is
	// that far behind will not catch up before clients give up.
	inFlightMax = 4096
	// abandonAfter is how long a connection may be silent with queries in flight before it
	// is closed. Lost segments are retransmitted well within it.
	abandonAfter = time.Second
	// abandonEarly is the same for a connection that a middlebox seems to have dropped
	// while it was idle: the silence has then outlasted one lost segment.
	abandonEarly = 400 * time.Millisecond
	// testMin is the least time that the test of a silent connection may take.
	testMin = 20 * time.Millisecond
	// idleSuspectAfter is how long a connection may be idle and still be trusted as if it
	// had been in use.
	idleSuspectAfter = 400 * time.Millisecond
	// improperMax is how many improper responses in a row close a connection.
	improperMax = 8
	// quickAckWrites is how many writes ask the system to acknowledge the next segments at
	// once. They mostly carry a session ticket. A server that does not send small
	// segments in a row delays its first answer until the ticket is acknowledged.
	quickAckWrites = 2
	// goodbyeLimit is how long the end of an idle connection may take: its last write may wait
	// for the peer.
	goodbyeLimit = 5 * time.Second
	// answerLimit is how long an answer is waited for, whether or not a client still waits:
	// even a late answer shows how the upstream is doing. A longer
	// Options.Patience raises it.
	answerLimit = 5 * time.Second
)

// streamEvents receives the events of a stream. Its methods are called without the
// stream's mutex, and must not block. Each call that a stream has taken is handed back
// exactly once: to answered, garbled or failed.
type streamEvents interface {
	// answered takes over a call with its answer, as parsed from message.
	answered(s *stream, c *call, message []byte, a wire.Answer, now int64)
	// garbled takes over a call whose response is not a proper answer.
	garbled(s *stream, c *call, err error)
	// failed takes over a call that got no response: on the end of the stream, a *connError.
	failed(c *call, err error)
	// silent says that s has owed an answer for so long that something seems wrong. It may
	// be called several times.
	silent(s *stream)
	// closed says that s takes no more calls. Its pending calls fail after that.
	closed(s *stream, end streamEnd)
}

// A streamEnd says how a stream ended.
type streamEnd struct {
	err     error
	at      int64 // instant
	queries int
	answers int
	pending int // calls that got no answer
	// droppedAfter is how long the stream had been idle when a middlebox dropped it; 0 if
	// none seems to have.
	droppedAfter time.Duration
}

// streamShared is what the streams of one upstream share: its clock, its estimates and
// its counters.
type streamShared struct {
	epoch          time.Time // instants count from it
	patience       time.Duration
	rtt            estimator
	queriesPerConn queriesPerConn
	idle           idleTimeout
	counts         counters
	lastRead       atomic.Int64               // instant of the last answer
	known          atomic.Pointer[knownQuery] // or nil
}

func (sh *streamShared) now() int64 { return int64(time.Since(sh.epoch)) + 1 }

// overdue returns after how long an answer is so late that something seems wrong with its
// connection.
func (sh *streamShared) overdue() time.Duration {
	_, patience := sh.rtt.usual()
	return patience * 8 / 5
}

// A silence is the instant of the first query since the last sign of life, or 0 if nothing
// is owed.
type silence struct{ atomic.Int64 }

func (s *silence) lasted(now int64) time.Duration {
	since := s.Load()
	if since == 0 {
		return 0
	}
	return time.Duration(now - since)
}

// A knownQuery is one that the upstream has answered.
type knownQuery struct {
	query wire.Query
	at    int64 // instant
}

// remember keeps q as a query that the upstream can answer, a new one each second.
func (sh *streamShared) remember(q wire.Query, now int64) {
	if known := sh.known.Load(); known == nil || now-known.at > int64(time.Second) {
		sh.known.Store(&knownQuery{query: q.WithCancel(nil), at: now})
	}
}

// A stream is one connection over TCP, with or without TLS. It carries any number of
// queries at once, each with an ID of its own. Answers come in any order (RFC 7766
// section 6.2.1.1).
//
// States:
//
//   - idle: no call is pending. It closes itself after the idle timeout.
//   - in use: calls are pending, and the last answer is not overdue.
//   - silent: an answer is overdue. The stream asks a known query as a test, and reports
//     silent, so that its calls can be duplicated on another stream. An answer ends this.
//   - abandoned: it was silent for too long, and has closed itself.
//   - closed: by the peer, by a write error, after improper answers, or by close.
//
// It does not know its upstream. What it learns goes to its streamEvents.
type stream struct {
	events   streamEvents
	shared   *streamShared
	link     link
	endpoint *endpoint
	dialled  string        // how it was made, for people
	dialTook time.Duration // how long that took
	born     int64         // instant
	after    int           // the rung that was in use before
	wake     chan struct{} // one place: out is not empty
	gone     chan struct{} // closed with the stream

	pending    atomic.Int32 // len(calls)
	lastSend   atomic.Int64 // instant
	lastRead   atomic.Int64 // instant of the last answer
	waiting    silence      // since the last answer
	tested     atomic.Bool  // since then, it was asked a known query
	resending  atomic.Bool  // its calls are being duplicated on another stream
	idleBefore atomic.Int64 // how long it had been idle before that query, in nanoseconds

	// mu guards the fields below. No blocking call is made while it is held.
	mu       sync.Mutex
	calls    []*call // inFlightMax places; one with ID n is at n%inFlightMax
	nextID   uint16
	sent     int          // queries, in all
	answered int          // of these
	out      []byte       // frames that writeLoop has not taken yet
	traced   []*callTrace // of those whose queries are in out
	timer    *time.Timer  // runs check
	swept    int64        // instant of the last look for expired calls
	err      *connError   // why it ended, or nil
}

// newStream returns a stream over an open connection. Its readLoop and writeLoop have to
// be run.
func newStream(l link, to *endpoint, shared *streamShared, events streamEvents) *stream {
	now := shared.now()
	s := &stream{
		events: events, shared: shared, link: l, endpoint: to, born: now,
		wake: make(chan struct{}, 1), gone: make(chan struct{}),
		calls: make([]*call, inFlightMax), nextID: uint16(rand.Uint32()),
	}
	s.lastSend.Store(now)
	s.lastRead.Store(now)
	// check may run before the timer is assigned: the mutex makes it wait for that.
	s.mu.Lock()
	s.timer = time.AfterFunc(shared.idle.limit(now), s.check)
	s.mu.Unlock()
	return s
}

func (s *stream) silentFor(now int64) time.Duration { return s.waiting.lasted(now) }

// send puts a call into the table and hands its frame to writeLoop. If it returns an
// error, the call still belongs to the caller.
func (s *stream) send(c *call, now int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.endpoint, c.noEDNS = s.endpoint, c.noEDNS || s.endpoint.noEDNS.holds()
	if s.err != nil {
		return s.err
	}
	if s.pending.Load() >= inFlightMax {
		return ErrBusy
	}
	if s.exhaustedLocked(now) {
		return errExhausted
	}
	s.sent++
	// A counter reuses each ID as late as possible. Guessing an ID does not help to forge
	// an answer, which has to come on this connection.
	for s.calls[s.nextID%inFlightMax] != nil {
		s.nextID++
	}
	c.id, c.sent = s.nextID, now
	s.nextID++
	s.calls[c.id%inFlightMax] = c
	if s.waiting.CompareAndSwap(0, now) {
		s.idleBefore.Store(now - max(s.lastSend.Load(), s.lastRead.Load()))
	}
	if s.pending.Add(1) == 1 {
		s.timer.Reset(s.overdue())
	}
	s.lastSend.Store(now)
	frame := len(s.out)
	s.out = s.appendQuery(append(s.out, 0, 0), c)
	binary.BigEndian.PutUint16(s.out[frame:], uint16(len(s.out)-frame-2))
	if frame == 0 { // else writeLoop has been woken
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	if c.trace != nil {
		s.traced = append(s.traced, c.trace)
	}
	s.shared.counts.sent.Add(1)
	return nil
}

func (s *stream) appendQuery(dst []byte, c *call) []byte {
	switch {
	case s.link.secure:
		return c.query.AppendUpstream(dst, c.id)
	case c.noEDNS:
		return c.query.AppendWithoutEDNS(dst, c.id)
	}
	return c.query.AppendUnpadded(dst, c.id)
}

// take removes the call with id from the table. It returns nil if there is none.
func (s *stream) take(id uint16) *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.findLocked(id)
	if c != nil {
		s.removeLocked(c)
		s.answered++
		s.shared.queriesPerConn.exceeded(s.answered)
	}
	return c
}

func (s *stream) findLocked(id uint16) *call {
	if s.err != nil {
		return nil
	}
	c := s.calls[id%inFlightMax]
	if c == nil || c.id != id {
		return nil
	}
	return c
}

func (s *stream) removeLocked(c *call) {
	s.calls[c.id%inFlightMax] = nil
	s.pending.Add(-1)
}

// sweep fails the calls that have waited for longer than answerLimit, and than any
// client waits. It looks at the whole table, and so does little more often than it has to.
func (s *stream) sweep(now int64) {
	limit := max(answerLimit, s.shared.patience)
	var expired []*call
	s.mu.Lock()
	if now-s.swept >= int64(limit/4) {
		s.swept = now
		for _, c := range s.calls {
			if c != nil && now-c.sent >= int64(limit) {
				s.removeLocked(c)
				expired = append(expired, c)
			}
		}
	}
	s.mu.Unlock()
	for _, c := range expired {
		// It says no more about the upstream than a client's own time limit.
		s.events.failed(c, fmt.Errorf("no answer within %v: %w", limit, context.DeadlineExceeded))
	}
}

// resendPending sends this stream's pending queries again on another one, with three
// exceptions. The oldest query is not resent: on a server that answers in order it is the
// one that blocks the rest. But it is resent over another transport. Queries sent well
// before the last answer are not resent either: they have arrived and are merely slow. Nor
// are those that nothing waits for any more, except for the newest. If the stream had been
// idle for longer than idleSuspectAfter, exactly the queries sent since then are resent.
func (s *stream) resendPending(to *stream) {
	_, patience := s.shared.rtt.usual()
	skipped, since := 1, s.lastRead.Load()-int64(patience)
	if s.idleSuspect() {
		skipped, since = 0, s.waiting.Load()
		if since == 0 {
			return // answered in the meantime
		}
	}
	if to.endpoint.rung > s.endpoint.rung {
		skipped = 0
	}
	pending := s.pendingSince(since)
	for i, c := range pending {
		if i < skipped || i < len(pending)-1 && c.query.Cancelled() { // the newest shows whether the upstream answers
			continue
		}
		s.mu.Lock()
		waits := s.findLocked(c.id) == c
		if waits {
			c.duplicated = true
		}
		s.mu.Unlock()
		if !waits {
			continue // answered in the meantime, or failed with the stream
		}
		s.shared.counts.resent.Add(1)
		duplicate := &call{query: c.query, original: c}
		if err := to.send(duplicate, s.shared.now()); err != nil {
			s.events.failed(duplicate, err)
		}
	}
}

// pendingSince returns the calls that were sent since an instant and not again yet, the oldest
// first.
func (s *stream) pendingSince(since int64) []*call {
	s.mu.Lock()
	defer s.mu.Unlock()
	pending := make([]*call, 0, s.pending.Load())
	for _, c := range s.calls {
		if c != nil && !c.duplicated && c.original == nil && c.sent >= since {
			pending = append(pending, c)
		}
	}
	slices.SortFunc(pending, func(a, b *call) int { return cmp.Compare(a.sent, b.sent) })
	return pending
}

// writeLoop writes all frames that are there as one TLS record, so that a burst
// shares it and a lone query leaves at once.
func (s *stream) writeLoop() {
	var frames []byte
	for writes := 0; ; writes++ {
		select {
		case <-s.wake:
		case <-s.gone:
			if errors.Is(s.reason(), errIdle) {
				s.link.Close() // with an alert, which may wait for the peer
			}
			return
		}
		// Goroutines that are about to send a query do so now, and share the record: a
		// write costs more than all else about a query.
		runtime.Gosched()
		s.mu.Lock()
		frames, s.out = s.out, frames[:0]
		traced := s.traced
		s.traced = nil
		s.mu.Unlock()
		if len(frames) == 0 {
			continue
		}
		var began int64
		if traced != nil {
			began = s.shared.now()
		}
		if _, err := s.link.Write(frames); err != nil {
			s.close(fmt.Errorf("%w: %w", errWrite, err))
			return
		}
		for _, t := range traced {
			t.note("written in %v", time.Duration(s.shared.now()-began).Round(time.Microsecond))
		}
		if writes < quickAckWrites {
			acknowledgeAtOnce(s.link.raw)
		}
	}
}

// readLoop reads responses until the connection ends. It always reads, so that a
// connection that the upstream closes while it is idle leaves the pool at once.
func (s *stream) readLoop() {
	r := bufio.NewReaderSize(s.link, 2+wire.MaxSize)
	inARow := 0
	for {
		reason := errImproper
		frame, err := nextFrame(r)
		if ofOne, ok := errors.AsType[*requestError](err); ok {
			if OutcomeOf(err) != HTTPLimited { // another connection would have the same limit
				inARow++
			}
			reason = fmt.Errorf("%w: %w", errImproper, err)
			s.refused(ofOne)
		} else if err != nil {
			s.close(fmt.Errorf("%w: %w", errReadEnded, err))
			return
		} else {
			switch s.receive(frame) {
			case proper:
				inARow = 0
			case improper:
				inARow++
			}
			if _, err := r.Discard(2 + len(frame)); err != nil {
				panic("BUG: a frame that was peeked at can't be discarded: " + err.Error())
			}
		}
		if inARow >= improperMax {
			s.close(reason)
			return
		}
	}
}

// refused hands back the call whose request got an error instead of an answer. One that was
// not processed is sent again, as after the end of the connection.
func (s *stream) refused(e *requestError) {
	c := s.take(e.id)
	switch {
	case c == nil:
	case errors.Is(e, errNotProcessed):
		s.events.failed(c, &connError{err: e.err, reused: true, at: s.shared.now()})
	default:
		s.waiting.Store(0) // the connection is alive
		s.tested.Store(false)
		s.events.garbled(s, c, e.err)
	}
}

// nextFrame returns the next message behind its length prefix. The bytes stay
// valid until the next read, and are still to be discarded.
func nextFrame(r *bufio.Reader) ([]byte, error) {
	prefix, err := r.Peek(2)
	if err != nil {
		if len(prefix) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(prefix))
	frame, err := r.Peek(2 + n)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return frame[2:], nil
}

// quality is the judgement of a message from the upstream.
type quality uint8

const (
	proper      quality = iota // an answer
	improper                   // counted against the connection
	unsolicited                // late, most often: the call has ended
)

// receive hands back the call that message answers.
func (s *stream) receive(message []byte) quality {
	if len(message) < 2 {
		s.shared.counts.malformed.Add(1)
		return improper
	}
	c := s.take(wire.ID(message))
	if c == nil {
		s.shared.counts.unsolicited.Add(1)
		return unsolicited
	}
	if c.trace != nil {
		c.trace.note("%d octets came back", len(message))
	}
	answer, err := wire.ParseAnswer(c.query, message)
	if err != nil {
		s.shared.counts.drop(err)
		s.events.garbled(s, c, err)
		return improper
	}
	now := s.shared.now()
	s.lastRead.Store(now)
	s.waiting.Store(0)
	s.tested.Store(false)
	s.shared.lastRead.Store(now)
	s.shared.remember(c.query, now)
	s.shared.rtt.sample(time.Duration(now - c.sent))
	s.events.answered(s, c, message, answer, now)
	return proper
}

// check closes the stream if it has been idle or silent for too long, and sets the timer
// for the next look.
func (s *stream) check() {
	now := s.shared.now()
	var next time.Duration
	if s.pending.Load() > 0 {
		s.sweep(now)
		if next = s.checkSilence(now); next == 0 {
			s.close(errSilent)
			return
		}
	} else {
		next = s.shared.idle.limit(now) - time.Duration(now-s.lastSend.Load())
		if next <= 0 {
			s.close(errIdle)
			return
		}
	}
	s.mu.Lock()
	if s.err == nil {
		s.timer.Reset(max(next, time.Millisecond))
	}
	s.mu.Unlock()
}

// checkSilence reports a silence and tests the stream, if an answer is overdue. It
// returns when to look again, or 0 if the stream is to be abandoned.
func (s *stream) checkSilence(now int64) (next time.Duration) {
	silent, overdue := s.silentFor(now), s.overdue()
	usual, _ := s.shared.rtt.usual()
	untested := overdue + min(overdue/2, max(usual*3/2, testMin))
	limit := s.silenceLimit(overdue)
	switch {
	case silent >= limit && silent < s.shared.patience && s.resending.Load():
		return testMin // the connection that is to replace this one takes as long
	case silent >= limit, silent >= max(abandonEarly, 2*overdue) && s.droppedWhileIdle():
		return 0
	case silent >= untested, silent >= overdue && s.idleSuspect():
		s.test()
		s.events.silent(s)
		if next = max(abandonEarly, 2*overdue) - silent; next <= 0 {
			next = limit - silent
		}
		return max(next, 1)
	case silent >= overdue:
		s.test()
		return max(untested-silent, 1)
	}
	return max(overdue-silent, 1)
}

// test sends again a query that the upstream has answered before. The silence may be
// the fault of the names that were asked for; this one must be answered.
func (s *stream) test() {
	if known := s.shared.known.Load(); known != nil && !s.tested.Swap(true) {
		_ = s.send(&call{query: known.query, done: ignore, resends: resendMax}, s.shared.now()) // an error ends the stream anyway
	}
}

func ignore(wire.Answer, error) {}

// idleSuspect reports whether the stream had been idle for so long, before its pending
// queries, that a middlebox may have dropped it.
func (s *stream) idleSuspect() bool { return s.idleBefore.Load() >= int64(idleSuspectAfter) }

// overdue returns after how long an answer is overdue: sooner if the stream is suspect
// because it had been idle.
func (s *stream) overdue() time.Duration {
	if s.idleSuspect() {
		_, patience := s.shared.rtt.usual()
		return patience
	}
	return s.shared.overdue()
}

// silenceLimit returns how long the stream may be silent before it is abandoned.
// One that has not answered yet may lead to an upstream that is far away.
func (s *stream) silenceLimit(overdue time.Duration) time.Duration {
	limit := max(abandonAfter, 2*overdue)
	if s.hasAnswered() {
		return limit
	}
	if usual, _ := s.shared.rtt.usual(); usual == 0 {
		return max(limit, s.shared.patience)
	}
	return max(limit, 2*s.dialTook)
}

// droppedWhileIdle reports whether a middlebox seems to have dropped the connection: it
// worked, was idle, and then went silent, while other streams brought answers.
func (s *stream) droppedWhileIdle() bool {
	return s.hasAnswered() && s.idleBefore.Load() >= int64(idleLimitMin) &&
		s.shared.lastRead.Load() > s.waiting.Load()
}

// close ends the stream and fails its pending calls. Only the first call has an effect.
// The connection of an idle stream is left to writeLoop, which can wait.
func (s *stream) close(err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	end := streamEnd{err: err, at: s.shared.now(), queries: s.sent, answers: s.answered, pending: int(s.pending.Swap(0))}
	if errors.Is(err, errSilent) && s.droppedWhileIdle() {
		end.droppedAfter = time.Duration(s.idleBefore.Load())
	}
	// After GOAWAY, calls are as good as not sent.
	s.err = &connError{err: err, reused: s.hasAnswered() || errors.Is(err, errGoAway), at: end.at}
	calls := s.calls
	s.calls = nil
	s.timer.Stop()
	s.mu.Unlock()

	close(s.gone)
	s.events.closed(s, end)
	for _, c := range calls {
		if c != nil && !c.duplicated { // else its duplicate is still in progress
			s.events.failed(c, s.err)
		}
	}
	if errors.Is(err, errIdle) {
		time.AfterFunc(goodbyeLimit, s.link.abort) // writeLoop may be waiting for a peer that never reads
		return
	}
	s.link.abort()
}

// hasAnswered reports whether the stream has brought a proper answer.
func (s *stream) hasAnswered() bool { return s.lastRead.Load() > s.born }

func (s *stream) reason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

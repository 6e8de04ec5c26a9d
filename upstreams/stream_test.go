package upstreams

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/wire"
)

// streamTest is a stream over net.Pipe, with what it reports. It runs in fake time.
type streamTest struct {
	t      *testing.T
	begin  time.Time
	shared *streamShared
	s      *stream
	peer   net.Conn

	mu     sync.Mutex
	events []string
	frames [][]byte // that reached the peer and were not answered
}

// newStreamTest runs a stream in the bubble of a synctest. Its upstream usually answers
// within 20 ms, so that an answer is overdue after patience*8/5 = 80 ms.
func newStreamTest(t *testing.T) *streamTest {
	st := &streamTest{t: t, begin: time.Now(), shared: &streamShared{epoch: time.Now(), patience: patienceLimit}}
	st.shared.idle.configured = 8 * time.Second
	for range 50 {
		st.shared.rtt.sample(20 * time.Millisecond)
	}
	st.s, st.peer = st.open()
	return st
}

// open returns another stream, and its peer.
func (st *streamTest) open() (*stream, net.Conn) {
	near, peer := net.Pipe()
	s := newStream(newLink(near, near, true), new(endpoint), st.shared, st)
	go s.readLoop()
	go s.writeLoop()
	go st.readFrames(peer)
	st.t.Cleanup(func() { s.close(ErrClosed); peer.Close() })
	return s, peer
}

func (st *streamTest) readFrames(peer net.Conn) {
	r := bufio.NewReader(peer)
	for {
		frame, err := nextFrame(r)
		if err != nil {
			return
		}
		st.mu.Lock()
		st.frames = append(st.frames, slices.Clone(frame))
		st.mu.Unlock()
		if _, err := r.Discard(2 + len(frame)); err != nil {
			return
		}
	}
}

// record appends an event with its time.
func (st *streamTest) record(format string, args ...any) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.events = append(st.events, fmt.Sprintf(format, args...)+"@"+time.Since(st.begin).String())
}

func (st *streamTest) answered(_ *stream, c *call, _ []byte, a wire.Answer, _ int64) {
	st.record("answered")
	c.finish(a, nil)
}

func (st *streamTest) garbled(_ *stream, c *call, err error) {
	st.record("garbled")
	c.finish(wire.Answer{}, err)
}

func (st *streamTest) failed(c *call, err error) {
	st.record("failed")
	c.finish(wire.Answer{}, err)
}

func (st *streamTest) silent(*stream) { st.record("silent") }

func (st *streamTest) closed(_ *stream, end streamEnd) {
	text := fmt.Sprintf("closed: %v", end.err)
	if end.droppedAfter > 0 {
		text += fmt.Sprintf(", dropped after %v", end.droppedAfter)
	}
	st.record("%s", text)
}

// query sends a query.
func (st *streamTest) query(name string) {
	st.t.Helper()
	st.queryOn(st.s, name)
}

func (st *streamTest) queryOn(s *stream, name string) *call {
	st.t.Helper()
	q, err := wire.NewQuery(name, "A")
	if err != nil {
		st.t.Fatal(err)
	}
	c := &call{query: q, done: ignore}
	if err := s.send(c, st.shared.now()); err != nil {
		st.t.Fatal(err)
	}
	return c
}

// answer answers all queries that have reached the peer.
func (st *streamTest) answer() {
	st.t.Helper()
	synctest.Wait()
	for _, frame := range st.take() {
		frame[2] |= 0x80 // a response
		frame[3] |= 0x80 // with recursion
		st.reply(frame)
	}
	synctest.Wait()
}

// reply has the peer send a message.
func (st *streamTest) reply(message []byte) {
	st.t.Helper()
	if _, err := st.peer.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)); err != nil {
		st.t.Fatal(err)
	}
}

// take returns the queries that have reached the peers, and forgets them.
func (st *streamTest) take() [][]byte {
	synctest.Wait()
	st.mu.Lock()
	defer st.mu.Unlock()
	frames := st.frames
	st.frames = nil
	return frames
}

// expect compares the events since the last call.
func (st *streamTest) expect(want string) {
	st.t.Helper()
	synctest.Wait()
	st.mu.Lock()
	defer st.mu.Unlock()
	if got := strings.Join(st.events, " | "); got != want {
		st.t.Errorf("got %q, want %q", got, want)
	}
	st.events = nil
}

func TestAStreamThatAnswersStaysOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStreamTest(t)
		for range 3 {
			st.query("www.example.com")
			time.Sleep(20 * time.Millisecond)
			st.answer()
		}
		st.expect("answered@20ms | answered@40ms | answered@60ms")
		if silent := st.s.silentFor(st.shared.now()); silent != 0 || st.s.pending.Load() != 0 {
			t.Errorf("silent for %v with %d pending", silent, st.s.pending.Load())
		}
	})
}

func TestAStreamReportsSilenceAndTestsItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStreamTest(t)
		st.query("known.example.com")
		time.Sleep(20 * time.Millisecond)
		st.answer()
		st.expect("answered@20ms")
		st.query("unknown.example.com")
		if n := len(st.take()); n != 1 {
			t.Errorf("%d queries were sent", n)
		}
		time.Sleep(st.s.overdue() - time.Millisecond)
		st.expect("")
		time.Sleep(time.Millisecond)
		st.expect("")
		tests := st.take()
		if len(tests) != 1 || !strings.Contains(string(tests[0]), "\x05known") {
			t.Errorf("sent as a test: %q", tests)
		}
		time.Sleep(50 * time.Millisecond)
		st.expect("silent@130ms")
		if st.query("next.example.com"); len(st.take()) != 1 {
			t.Error("it is tested again in the same silence")
		}
	})
}

func TestAnAnswerEndsASilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStreamTest(t)
		st.query("www.example.com")
		time.Sleep(200 * time.Millisecond)
		st.expect("silent@110ms")
		st.answer()
		st.expect("answered@200ms")
		time.Sleep(7 * time.Second)
		st.expect("")
	})
}

func TestAStreamThatStaysSilentIsAbandoned(t *testing.T) {
	f := func(name string, prepare func(*streamTest), want string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			st := newStreamTest(t)
			prepare(st)
			st.begin = time.Now()
			st.query("www.example.com")
			time.Sleep(10 * time.Second)
			synctest.Wait()
			st.mu.Lock()
			st.events = slices.DeleteFunc(st.events, func(e string) bool { return strings.HasPrefix(e, "silent") })
			st.mu.Unlock()
			t.Log(name)
			st.expect(want)
			if _, err := st.peer.Read(make([]byte, 1)); err == nil {
				t.Error("the connection is open")
			}
		})
	}
	works := func(st *streamTest) {
		st.query("known.example.com")
		time.Sleep(20 * time.Millisecond)
		st.answer()
		st.expect("answered@20ms")
	}
	f("it has answered before", works, "closed: connection went silent@1s | failed@1s | failed@1s") // with its test
	f("it has never answered", func(*streamTest) {}, "closed: connection went silent@1s | failed@1s")
	f("its dial took long", func(st *streamTest) { st.s.dialTook = 700 * time.Millisecond }, "closed: connection went silent@1.4s | failed@1.4s")
	f("the upstream has never answered", func(st *streamTest) { st.shared.rtt = estimator{} }, "closed: connection went silent@4s | failed@4s")
	f("another connection is being made", func(st *streamTest) { works(st); st.s.resending.Store(true) }, "closed: connection went silent@4s | failed@4s | failed@4s")
	f("it was idle, and others answer", func(st *streamTest) {
		works(st)
		time.Sleep(3 * time.Second)
		time.AfterFunc(100*time.Millisecond, func() { st.shared.lastRead.Store(st.shared.now()) })
	}, "closed: connection went silent, dropped after 3s@400ms | failed@400ms | failed@400ms")
	f("it was idle, and none answers", func(st *streamTest) {
		works(st)
		time.Sleep(3 * time.Second)
	}, "closed: connection went silent@1s | failed@1s | failed@1s")
}

func TestAnIdleStreamClosesItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStreamTest(t)
		time.Sleep(5 * time.Second)
		st.query("www.example.com")
		st.answer()
		st.expect("answered@5s")
		time.Sleep(8 * time.Second)
		st.expect("closed: connection idle@13s")
		if _, err := st.peer.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("the peer read %v", err)
		}
	})
}

// A peer may answer queries that it never reads, if it can tell their numbers: the end of the
// stream does not wait for it.
func TestAnIdleStreamEndsAlthoughItsPeerDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStreamTest(t)
		near, peer := net.Pipe()
		defer peer.Close()
		s := newStream(newLink(near, near, true), new(endpoint), st.shared, st)
		var loops sync.WaitGroup
		ended := false
		loops.Go(s.readLoop)
		loops.Go(s.writeLoop)
		go func() { loops.Wait(); ended = true }()
		c := st.queryOn(s, "www.example.com")
		reply := c.query.AppendUpstream([]byte{0, 0}, c.id)
		binary.BigEndian.PutUint16(reply, uint16(len(reply)-2))
		reply[4] |= 0x80 // a response
		if _, err := peer.Write(reply); err != nil {
			t.Fatal(err)
		}
		time.Sleep(st.shared.idle.configured + goodbyeLimit + time.Second)
		if synctest.Wait(); !ended {
			t.Error("it waits for its peer")
		}
	})
}

func TestTheIdleLimitIsLearntFromTwoDroppedStreams(t *testing.T) {
	const ms, second = time.Millisecond, time.Second
	var i idleTimeout
	i.configured = 8 * second
	f := func(at, idle, want, limit time.Duration) {
		t.Helper()
		if got := i.learn(int64(at), idle); got != want {
			t.Errorf("at %v, after %v idle: learnt %v, want %v", at, idle, got, want)
		}
		if got := i.limit(int64(at)); got != limit {
			t.Errorf("at %v: limit %v, want %v", at, got, limit)
		}
	}
	f(second, 20*second, 0, 8*second) // longer than is configured
	f(2*second, 4*second, 0, 8*second)
	f(3*second, 4*second, 2*second, 2*second)
	f(4*second, 300*ms, 200*ms, 200*ms)
	if got := i.limit(int64(4*second + idleLimitFor)); got != 8*second {
		t.Errorf("later, the limit is %v", got)
	}
	f(time.Hour, 4*second, 0, 8*second) // long after the last one
}

func TestAStreamTakesNoMoreQueriesThanItsUpstreamAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStreamTest(t)
		st.shared.queriesPerConn.limit.Store(2)
		st.query("a.example.com")
		if st.s.exhausted(st.shared.now()) {
			t.Error("exhausted after one query")
		}
		st.query("b.example.com")
		refused := func() bool {
			return st.s.exhausted(st.shared.now()) && st.s.send(&call{query: st.query2(), done: ignore}, st.shared.now()) == errExhausted
		}
		if !refused() {
			t.Error("not exhausted after two queries")
		}
		st.answer()
		st.expect("answered@0s | answered@0s")
		if !refused() {
			t.Error("not exhausted after two answers")
		}
		time.Sleep(queriesPerConnRetry + time.Millisecond) // it was left open
		st.query("c.example.com")
		st.answer()
		st.expect("answered@501ms")
		if n := st.shared.queriesPerConn.limit.Load(); n != 0 {
			t.Errorf("after a third answer, the limit is %d", n)
		}
	})
}

func (st *streamTest) query2() wire.Query {
	q, err := wire.NewQuery("again.example.com", "A")
	if err != nil {
		st.t.Fatal(err)
	}
	return q
}

func TestQueriesPerConnAreLearntFromConnectionsThatEndPromptly(t *testing.T) {
	f := func(want int32, ends ...int) { // negative: not promptly
		t.Helper()
		var q queriesPerConn
		changes := 0
		for _, n := range ends {
			if q.ended(max(n, -n), n > 0) {
				changes++
			}
		}
		if got := q.limit.Load(); got != want || changes != int(cmp.Or(min(want, 1), 0)) {
			t.Errorf("after %v: limit %d, want %d; it changed %d times", ends, got, want, changes)
		}
	}
	f(0, 1, 1)
	f(1, 1, 1, 1)
	f(1, 1, 1, 1, 1)
	f(10, 3, 10, 10, 10)
	f(0, 10, 10, 11)
	f(0, 10, 10, -10, 10, 10)
	f(0, 101, 101, 101)
	f(0, 0, 0, 0)
}

func TestAStreamEndsWithItsPeer(t *testing.T) {
	f := func(end func(*streamTest), want string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			st := newStreamTest(t)
			st.query("www.example.com")
			synctest.Wait()
			end(st)
			st.expect(want)
			if err := st.s.send(&call{query: st.query2(), done: ignore}, st.shared.now()); !errors.As(err, new(*connError)) {
				t.Errorf("a query after the end: %v", err)
			}
		})
	}
	f(func(st *streamTest) { st.peer.Close() }, "closed: read: EOF@0s | failed@0s")
	f(func(st *streamTest) {
		_, _ = st.peer.Write([]byte{0})
		st.peer.Close()
	}, "closed: read: unexpected EOF@0s | failed@0s")
	f(func(st *streamTest) {
		_, _ = st.peer.Write([]byte{0, 9, 1})
		st.peer.Close()
	}, "closed: read: unexpected EOF@0s | failed@0s")
	f(func(st *streamTest) { st.s.close(ErrClosed); st.s.close(errIdle) }, "closed: upstream closed@0s | failed@0s")
}

func TestImproperResponsesCloseAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStreamTest(t)
		st.query("www.example.com")
		frame := st.take()[0]
		st.reply(frame) // the query itself
		st.expect("garbled@0s")
		st.reply(frame)             // unsolicited by now, which does not count
		for range improperMax - 1 { // eight in a row
			st.reply([]byte{1})
		}
		st.expect("closed: connection brings no proper answers@0s")
		if n := st.shared.counts.unsolicited.Load(); n != 1 {
			t.Errorf("%d responses were unsolicited", n)
		}
	})
}

func TestQueriesExpireWhenNoClientWaits(t *testing.T) {
	for _, patience := range []time.Duration{patienceLimit, 20 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			st := newStreamTest(t)
			st.shared.patience = patience
			st.query("slow.example.com")
			st.take()
			limit := max(answerLimit, patience)
			for time.Since(st.begin) < limit-time.Second { // others are answered
				time.Sleep(50 * time.Millisecond)
				st.query("www.example.com")
				st.answer()
			}
			if st.s.pending.Load() != 1 {
				t.Error("it expired too early")
			}
			for range 50 {
				time.Sleep(50 * time.Millisecond)
				st.query("www.example.com")
				time.Sleep(80 * time.Millisecond) // the stream looks for expired queries when an answer is overdue
				st.answer()
			}
			if st.s.pending.Load() != 0 {
				t.Error("it has not expired")
			}
		})
	}
}

// Queries sent long before a stream brought its last answer have arrived: they are slow,
// and not lost. The oldest of the queries after that may be the one that blocks the rest.
func TestQueriesThatHaveArrivedAreNotResent(t *testing.T) {
	f := func(idleBefore time.Duration, want int) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			st := newStreamTest(t)
			to, _ := st.open()
			time.Sleep(time.Minute - 58*time.Second)
			for i := range 10 {
				if i == 6 {
					time.Sleep(5 * time.Millisecond)
				}
				st.query("www.example.com")
			}
			now := st.shared.now()
			st.s.lastRead.Store(now + int64(st.shared.overdue())*5/8) // patience before that is now
			st.s.idleBefore.Store(int64(idleBefore))
			st.s.waiting.Store(now)
			st.s.resendPending(to)
			if got := int(to.pending.Load()); got != want {
				t.Errorf("%d queries were resent, want %d", got, want)
			}
			st.s.resendPending(to)
			if got := int(to.pending.Load()); got != want {
				t.Errorf("%d queries were resent twice", got-want)
			}
		})
	}
	f(0, 3)
	f(time.Second, 4) // it may have been dropped: all sent since then
}

// Over another transport all are resent, as no server has the oldest one; but not those that
// nothing waits for.
func TestTheOldestQueryIsResentOverAnotherTransport(t *testing.T) {
	f := func(rung, cancelled, want int) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			st := newStreamTest(t)
			to, _ := st.open()
			to.endpoint.rung = rung
			over := new(atomic.Bool)
			over.Store(true)
			for i := range 4 {
				q := st.query2()
				if i < cancelled {
					q = q.WithCancel(over)
				}
				if err := st.s.send(&call{query: q, done: ignore}, st.shared.now()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond)
			}
			st.s.resendPending(to)
			if got := int(to.pending.Load()); got != want {
				t.Errorf("%d queries were resent, want %d", got, want)
			}
		})
	}
	f(0, 0, 3)
	f(1, 0, 4)
	f(1, 2, 2)
	f(1, 4, 1) // it shows whether the upstream answers
}

func TestTheFirstAnswerOfAQueryAndItsDuplicateCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStreamTest(t)
		to, _ := st.open()
		st.query("oldest.example.com")
		q := st.query2()
		done := 0
		if err := st.s.send(&call{query: q, done: func(wire.Answer, error) { done++ }}, st.shared.now()); err != nil {
			t.Fatal(err)
		}
		st.s.resendPending(to)
		if to.pending.Load() != 1 {
			t.Fatalf("%d queries were resent", to.pending.Load())
		}
		st.s.close(errSilent) // the duplicate is still pending
		if done != 0 {
			t.Error("it failed with its stream")
		}
		to.close(errSilent)
		if done != 1 {
			t.Errorf("done was called %d times", done)
		}
	})
}

// A stream may end while its queries are being resent: the rest of them fails with it,
// each once.
func TestAStreamMayEndWhileItsQueriesAreResent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStreamTest(t)
		to, _ := st.open()
		to.close(errImproper) // so a query that is sent there fails at once
		failed := 0
		for range 5 {
			c := &call{query: st.query2(), done: func(_ wire.Answer, err error) {
				if !errors.Is(err, errImproper) {
					t.Errorf("got %v", err)
				}
				failed++
				st.s.close(errImproper)
			}}
			if err := st.s.send(c, st.shared.now()); err != nil {
				t.Fatal(err)
			}
		}
		st.s.resendPending(to)
		if failed != 5 {
			t.Errorf("%d of 5 queries failed", failed)
		}
	})
}

func TestAFullStreamRefusesQueries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStreamTest(t)
		q := st.query2()
		for range inFlightMax {
			if err := st.s.send(&call{query: q, done: ignore}, st.shared.now()); err != nil {
				t.Fatal(err)
			}
		}
		if err := st.s.send(&call{query: q, done: ignore}, st.shared.now()); err != ErrBusy {
			t.Errorf("got %v", err)
		}
	})
}

// A timer may fire before the field that holds it is assigned: the goroutine that
// makes the stream may be suspended at that moment.
func TestAStreamMayBeIdleForTooLongBeforeItIsMade(t *testing.T) {
	shared := &streamShared{epoch: time.Now()}
	shared.idle.configured = time.Nanosecond
	st := &streamTest{t: t}
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			near, peer := net.Pipe()
			defer peer.Close()
			s := newStream(newLink(near, near, false), new(endpoint), shared, st)
			<-s.gone
			near.Close()
		})
	}
	all.Wait()
}

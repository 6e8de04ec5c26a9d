package upstreams

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"dotgate/gateway/wire"
)

const (
	// slowDialAfter is how long a dial must have taken before another one is started
	// beside it for the next query: its packets may have been lost, and the system
	// retransmits them only after a second.
	slowDialAfter = 250 * time.Millisecond
	// streamWaitMax is how long a query waits for a connection after other queries have
	// taken the one that it waited for.
	streamWaitMax = time.Second
	// burstDials is how many times as many connections as usual are made at once when
	// each brings one answer only; fewer when it brings a few.
	burstDials = 8
	// dialsMax is how many dials may be in progress at once for one connection.
	dialsMax = 5
	// climbInterval is how often the transports are tried that are better than the one in
	// use.
	climbInterval = 8 * time.Second
)

// A dial is a connection that is being made, and the calls that wait for it.
type dial struct {
	began  int64 // instant
	cancel context.CancelFunc
	beside *time.Timer   // starts another dial; nil unless it was the only one
	calls  []*call       // to be sent on it; guarded by mu of the Upstream
	done   chan struct{} // closed when one of the others is set
	stream *stream
	err    error
}

func (d *dial) over() bool { return d.stream != nil || d.err != nil }

// Connect returns when a connection is open, and at once if one is. It blocks until the
// dial fails or ctx is done. The dial continues without it.
func (u *Upstream) Connect(ctx context.Context) error {
	if u.open.Load() > 0 {
		return nil
	}
	if _, err := u.connect(ctx); err != nil {
		return named(u.o.Name, err)
	}
	return nil
}

// connect waits for a fresh stream.
func (u *Upstream) connect(ctx context.Context) (*stream, error) {
	u.mu.Lock()
	d := u.dialLocked()
	u.mu.Unlock()
	select {
	case <-d.done:
		return d.stream, d.err
	case <-ctx.Done():
		return nil, u.stillConnecting(context.Cause(ctx))
	}
}

// stillConnecting returns the error of a caller that has waited for a connection until cause.
func (u *Upstream) stillConnecting(cause error) error {
	endpoints := u.dialer.ordered()
	if len(endpoints) == 0 {
		return fmt.Errorf("still looking for an address of %s: %w", u.o.Host, cause)
	}
	to := fmt.Sprintf("%v (%s)", endpoints[0].addr, endpoints[0].transport())
	if others := len(endpoints) - 1; others > 0 {
		to += fmt.Sprintf(" and %d other endpoints", others)
	}
	return fmt.Errorf("still connecting to %s: %w", to, cause)
}

// dialLocked returns a dial to wait for: the one in progress, or a new one if that has
// taken so long that its packets may be lost, or if one connection is not enough for all
// waiting calls.
func (u *Upstream) dialLocked() *dial {
	n, limit := len(u.dials), int(u.queriesPerConn.limit.Load())
	if n == 0 {
		return u.newDialLocked()
	}
	d := u.dials[n-1]
	if limit > 0 {
		d = slices.MinFunc(u.dials, func(a, b *dial) int { return len(a.calls) - len(b.calls) })
	}
	switch {
	case limit > 0 && len(d.calls) >= limit && n < u.o.Connections*max(1, burstDials/limit), n < dialsMax && u.mayBeLost(d):
		return u.newDialLocked()
	}
	return d
}

// mayBeLost reports whether to start another dial beside d.
func (u *Upstream) mayBeLost(d *dial) bool {
	usual, _ := u.rtt.usual()
	late := max(slowDialAfter, 4*usual, 2*u.dialTime.usual()) // a handshake takes three round trips
	if longest := u.dialer.ladder[0].longest(); len(u.dials) > 1 {
		// Further dials are spread over the time that one may take. If all began at once,
		// all would end at once, and until then none would notice the end of an outage.
		late = max(late, max(longest.connect, longest.handshake)/dialsMax)
	}
	return time.Duration(u.now()-d.began) >= late && u.dialer.throttle.wouldAllow(time.Now())
}

// newDialLocked starts a dial. It does not end with its caller: if clients wait for a
// shorter time than a handshake takes, no connection would ever be made.
func (u *Upstream) newDialLocked() *dial {
	d := &dial{done: make(chan struct{}), began: u.now()}
	if u.isClosed {
		d.err = ErrClosed
		close(d.done)
		return d
	}
	var ctx context.Context
	ctx, d.cancel = context.WithCancel(u.ctx)
	first := len(u.dials) == 0
	u.dials = append(u.dials, d)
	if usual := u.dialer.ladder[0].limits().handshake; first && usual < u.dialer.ladder[0].longest().handshake {
		d.beside = time.AfterFunc(usual, func() { u.dialBeside(d) })
	}
	u.wg.Go(func() { u.runDial(ctx, d, first) })
	return d
}

// dialBeside starts another dial if d, the first, has taken longer than expected: d is
// continued, because the network may just have become slow, and the other one is
// faster if d's packets were lost.
func (u *Upstream) dialBeside(d *dial) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.isClosed && slices.Contains(u.dials, d) && len(u.dials) < dialsMax && u.dialer.throttle.wouldAllow(time.Now()) {
		u.newDialLocked()
	}
}

// runDial makes the connection of d. It is used for the calls of other dials, too: the
// first dial that succeeds ends them all, unless one connection is not enough.
func (u *Upstream) runDial(ctx context.Context, d *dial, first bool) {
	defer d.cancel()
	l, to, err := u.dialer.dial(ctx, first)
	var s *stream
	u.mu.Lock()
	ended := u.endDialsLocked(d, err == nil && u.queriesPerConn.limit.Load() == 0)
	switch {
	case err != nil:
		u.passOnLocked(d, err)
	case len(ended) == 0 || u.isClosed:
		defer l.abort() // not under mu: it may wait for goroutines of the connection
		err = ErrClosed
	default:
		s = u.addStreamLocked(l, to)
	}
	u.mu.Unlock()
	if s != nil {
		u.announce(s)
		u.reportLosses(s, l.lost)
	}
	for _, e := range ended {
		e.stream, e.err = s, err
		u.endDial(e)
	}
}

// addStreamLocked puts a stream over an open connection into the pool.
func (u *Upstream) addStreamLocked(l link, to *endpoint) *stream {
	s := newStream(l, to, &u.streamShared, u)
	s.dialled, s.dialTook = l.summary(to), l.tcpTook+l.tlsTook
	u.dialTime.sample(s.dialTook)
	u.dialer.throttle.unproven.Store(true)
	u.streams = append(u.streams, s)
	u.open.Store(int32(len(u.streams)))
	u.wg.Go(s.readLoop)
	u.wg.Go(s.writeLoop)
	s.after, u.rung = u.rung, to.rung
	u.climbLaterLocked()
	u.standbyLaterLocked()
	return s
}

// announce logs that the transport has changed, if s has another one than before.
func (u *Upstream) announce(s *stream) {
	to := s.endpoint
	if to.rung == s.after {
		return
	}
	level := slog.LevelInfo
	if to.rung > s.after {
		level = slog.LevelWarn
	}
	u.log.Log(u.ctx, level, "the transport has changed", "transport", to.via, "before", u.dialer.ladder[s.after], "address", to.addr)
}

// reportLosses tells the Network why s has another transport than was used before: dials of
// better ones were lost, or its connections have brought no answer any more.
func (u *Upstream) reportLosses(s *stream, lost []portLoss) {
	if len(lost) == 0 && s.endpoint.rung > s.after {
		for _, e := range u.dialer.ordered() {
			if e.rung == s.after {
				lost = append(lost, portLoss{port: e.port, failure: noAnswers, at: time.Now()})
				break
			}
		}
	}
	for _, loss := range lost {
		loss.port.saw(portLost, u, loss, s.endpoint.via.String())
	}
}

// portChanged has queries leave connections at once that the network blocks, and better
// transports tried: to learn how they are blocked, or because they are not any more.
func (u *Upstream) portChanged() {
	now := u.now()
	u.mu.Lock()
	if u.isClosed {
		u.mu.Unlock()
		return
	}
	var silent []*stream
	usable := false
	for _, s := range u.streams {
		if !s.isBlocked() {
			usable = true
		} else if s.silentFor(now) > 0 {
			silent = append(silent, s)
		}
	}
	if !usable && len(u.streams) > 0 && len(u.dials) == 0 {
		u.newDialLocked()
	}
	u.climbLaterLocked()
	if u.climbing != nil {
		if u.climbAgain = !u.climbing.Stop(); !u.climbAgain {
			u.climbing.Reset(0)
		}
	}
	u.mu.Unlock()
	for _, s := range silent {
		u.failover(s)
	}
}

// rungLocked returns the best rung in use: that of the newest connection if none is open.
func (u *Upstream) rungLocked() int {
	rung, found := u.rung, false
	for _, s := range u.streams {
		if !s.isBlocked() && (!found || s.endpoint.rung < rung) {
			rung, found = s.endpoint.rung, true
		}
	}
	return rung
}

// climbLaterLocked has better transports tried than those in use, unless that is planned.
func (u *Upstream) climbLaterLocked() {
	if u.climbing == nil && !u.isClosed && u.rungLocked() > 0 {
		u.climbing = time.AfterFunc(climbInterval, u.climb)
	}
}

// climb tries the transports that are better than those in use, at intervals, as long as
// there are any and the upstream is asked: a server that ends each connection with an error
// may have none open at the moment. Queries move to the connection that it makes.
func (u *Upstream) climb() {
	u.mu.Lock()
	defer u.mu.Unlock()
	rung, sent := u.rungLocked(), u.counts.sent.Load()
	if u.isClosed || rung == 0 || len(u.streams) == 0 && sent == u.climbSent {
		u.climbing = nil
		return
	}
	u.climbSent = sent
	u.climbs++
	n := u.climbs
	u.wg.Go(func() { u.climbFrom(rung, n) })
}

func (u *Upstream) climbFrom(rung, n int) {
	began := time.Now()
	l, to, err := u.dialer.climb(u.ctx, rung, n)
	var s *stream
	u.mu.Lock()
	switch {
	case err == nil && !u.isClosed:
		u.climbing = nil
		s = u.addStreamLocked(l, to)
	case err == nil:
		defer l.abort()
	case u.isClosed:
	case u.climbAgain:
		u.climbing.Reset(0)
	default:
		u.climbing.Reset(climbInterval - min(time.Since(began), climbInterval/2))
	}
	u.climbAgain = false
	u.mu.Unlock()
	if s != nil {
		u.announce(s)
	}
}

// testLink asks a query that the upstream has answered before. What blocks a transport may
// let its handshake pass.
func (u *Upstream) testLink(ctx context.Context, l link) error {
	known := u.known.Load()
	if known == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, probeAnswerLimit)
	defer cancel()
	defer context.AfterFunc(ctx, l.abort)()
	query := known.query.AppendUpstream(nil, 0)
	if !l.secure {
		query = known.query.AppendUnpadded(nil, 0)
	}
	err := writeFrames(l, query)
	if err == nil {
		_, err = readFrame(l, bufio.NewReaderSize(l, 2+wire.MaxSize))
	}
	if err != nil {
		return &failure{DialFailed, &testError{err}}
	}
	return l.SetReadDeadline(time.Time{})
}

// A testError is a connection that was made, and brought no answer.
type testError struct{ err error }

func (e *testError) Error() string { return "no answer to a test query: " + e.err.Error() }
func (e *testError) Unwrap() error { return e.err }

// passOnLocked has the calls of d, which failed with err, wait for the oldest dial that
// is still in progress, if d took too long: that one may just take longer.
func (u *Upstream) passOnLocked(d *dial, err error) {
	if o := OutcomeOf(err); len(u.dials) > 0 && (o == TLSTimedOut || o == DialTimedOut) {
		u.dials[0].calls = append(u.dials[0].calls, d.calls...)
		d.calls = nil
	}
}

func (u *Upstream) endDial(d *dial) {
	d.cancel()
	if d.beside != nil {
		d.beside.Stop()
	}
	close(d.done)
	calls := d.calls
	if limit := int(u.queriesPerConn.limit.Load()); d.stream != nil && limit > 0 && len(calls) > limit {
		u.awaitAnother(calls[limit:])
		calls = calls[:limit]
	}
	for i, call := range calls {
		switch {
		case d.stream == nil:
			u.failed(call, d.err)
		case i < len(calls)-1 && call.query.Cancelled(): // the newest shows whether the upstream answers
			call.finish(wire.Answer{}, named(u.o.Name, errCancelled))
		default:
			u.sendOn(d.stream, call, u.now())
		}
	}
}

// errCancelled says no more about the upstream than a client's own time limit.
var errCancelled = fmt.Errorf("not sent, as nothing waits for the answer any more: %w", context.DeadlineExceeded)

// awaitAnother has calls, the oldest first, wait for further connections. Calls that have
// waited for too long fail: their clients would not see the answers.
func (u *Upstream) awaitAnother(calls []*call) {
	now, late := u.now(), 0
	for late < len(calls) && time.Duration(now-calls[late].sent) > max(streamWaitMax, 2*u.dialTime.usual()) {
		late++
	}
	u.mu.Lock()
	d := u.dialLocked()
	over := d.over()
	if !over {
		d.calls = append(calls[late:], d.calls...)
	}
	u.mu.Unlock()
	for i, call := range calls {
		switch {
		case i < late:
			call.finish(wire.Answer{}, named(u.o.Name, ErrBusy))
		case over:
			u.failed(call, d.err)
		}
	}
}

// endDialsLocked removes d from the dials in progress, and all others if all is set. It
// returns none if another dial has ended d.
func (u *Upstream) endDialsLocked(d *dial, all bool) (ended []*dial) {
	i := slices.Index(u.dials, d)
	switch {
	case i < 0:
		return nil
	case all:
		ended, u.dials = u.dials, nil
	default:
		ended, u.dials = []*dial{d}, slices.Delete(u.dials, i, i+1)
	}
	return ended
}

// NetworkChanged says that routes, addresses or links of this machine came up: an
// upstream that is out of reach is dialled at once. It reports whether this one is, so
// that a probe is worthwhile.
func (u *Upstream) NetworkChanged() bool {
	for _, e := range u.dialer.ordered() {
		e.networkChanged()
	}
	if !u.dialer.throttle.networkChanged(time.Now()) {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.dials) < dialsMax && u.dialer.throttle.wouldAllow(time.Now()) {
		u.newDialLocked()
	}
	return true
}

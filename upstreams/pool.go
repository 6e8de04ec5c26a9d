package upstreams

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"dotgate/gateway/wire"
)

const (
	// busy is how many queries in flight make a connection worth a second one. Other
	// resolvers allow about a hundred on one, some of which wait for names that no server
	// answers; and bursts that share records are cheaper.
	busy = 128
	// recentAnswer is how recently a connection must have brought an answer to be trusted
	// with a query whose own connection has just ended.
	recentAnswer = time.Second
	// sparePeriod is how long a spare connection is kept after the upstream closed
	// one under its queries: it is likely to do so again.
	sparePeriod = 10 * time.Second
	// garbagePause is how long garbage causes no further connection.
	garbagePause = time.Second
	// limitedWindow is how recently, apart from the time of a Retry-After, a server that
	// limits the rate of queries must have answered one.
	limitedWindow = time.Second
	// growPause is how long no further connection is tried after the upstream
	// closed one without an answer: the number of connections may be limited there.
	growPause = 10 * time.Second
)

// resendAges says, for each time that a call's connection has ended, how recently another
// connection must have brought an answer to be trusted with the call; 0 means that it must
// be made after that. A few have to end before it is known that each takes one query only.
var resendAges = [...]time.Duration{recentAnswer, 0, 0, 0}

// resendMax is how often a call is sent again.
const resendMax = len(resendAges)

// send sends a call on a stream that was made after the given instant, or that has
// brought an answer within the given time, or else on one that is yet to be dialled.
func (u *Upstream) send(c *call, now, since int64, within time.Duration) {
	s, silent := u.pick(now, since, within)
	switch {
	case s == nil:
		c.trace.note("no connection is open, dialling")
		u.await(c)
	case silent:
		u.sendOn(s, c, now)
		u.failover(s)
	default:
		u.sendOn(s, c, now)
	}
}

func (u *Upstream) sendOn(s *stream, c *call, now int64) {
	if c.trace != nil {
		c.trace.noteAt(s.endpoint.addr, "sent with %d more in flight, %s", s.pending.Load(), s.dialled)
	}
	if err := s.send(c, now); err != nil {
		u.failed(c, err)
	}
}

// answered records a sign of life, and passes the answer on. In clear text, a call may
// have to be sent again without EDNS.
func (u *Upstream) answered(s *stream, c *call, message []byte, a wire.Answer, now int64) {
	u.waiting.Store(0)
	u.dialer.throttle.answered()
	if since := s.endpoint.port.blockedAt(); since != nil && s.at(s.born).After(*since) {
		s.endpoint.port.saw(portAnswered, u, portLoss{}, "")
	}
	if u.dialStep.Load() != 0 {
		u.dialStep.Store(0)
		u.wentSilent.Store(false)
	}
	if !s.link.secure {
		if !c.query.SameCase(message) {
			u.caseChanged.Store(now)
		}
		refused := wire.RefusesEDNS(message)
		if refused && !c.noEDNS {
			c.noEDNS = true
			u.counts.resent.Add(1)
			u.send(c, now, 0, 0)
			return
		}
		if !refused && c.noEDNS && !s.endpoint.noEDNS.holds() {
			s.endpoint.noEDNS.learn(ednsPause) // it has helped
		}
	}
	u.counts.accept(a)
	c.finishAt(now, a, nil)
}

// failed sends a call again whose connection has ended, if that says little about the
// upstream, or ends it.
func (u *Upstream) failed(c *call, err error) {
	if ended, ok := err.(*connError); ok && ended.reused && c.resends < resendMax {
		within := resendAges[c.resends]
		c.resends++
		u.counts.resent.Add(1)
		u.send(c, u.now(), ended.at, within)
		return
	}
	if err == errExhausted { // other calls were faster
		u.send(c, u.now(), 0, 0)
		return
	}
	if err == ErrBusy && u.join(c) {
		return
	}
	c.finish(wire.Answer{}, named(u.o.Name, err))
}

// garbled sends a call that got garbage on s again, once, on another connection: where
// there is a single upstream, no other can be asked. That connection is made once in
// garbagePause, so that garbage for all queries causes no flood of dials.
func (u *Upstream) garbled(s *stream, c *call, err error) {
	now := u.now()
	if e, ok := errors.AsType[*rateError](err); ok && now-u.lastRead.Load() < int64(limitedWindow+e.after) {
		s.waiting.Store(0) // it is a sign of life
		u.waiting.Store(0)
		u.failed(c, &limitedError{e})
		return
	}
	if OutcomeOf(err).ofHTTP() {
		s.endpoint.suspect() // the server may be fine, and what is behind it not
		if u.dialer.throttle.unproven.Load() {
			u.noAnswer(s, err, now)
		}
	}
	if last := u.garbage.Load(); last == 0 || now-last >= int64(garbagePause) {
		u.garbage.CompareAndSwap(last, now)
	}
	if c.retried || c.original != nil || s.born > u.garbage.Load() {
		u.failed(c, err)
		return
	}
	c.retried = true
	u.counts.resent.Add(1)
	u.send(c, now, s.born, 0)
}

// A limitedError is that of a query beyond a limit of queries a second. It is no evidence
// against the upstream, which answers others.
type limitedError struct{ *rateError }

func (e *limitedError) Unwrap() error { return &failure{HTTPLimited, e.rateError} }
func (e *limitedError) Excused() bool { return true }

// silent has the calls of s sent on another stream as well.
func (u *Upstream) silent(s *stream) { u.failover(s) }

// closed takes s out of the pool, and learns from its end.
func (u *Upstream) closed(s *stream, end streamEnd) {
	u.remove(s)
	answered := s.hasAnswered()
	promptly := end.at-s.lastRead.Load() < int64(queriesPerConnDelay)
	switch {
	case OutcomeOf(end.err).ofHTTP():
		s.endpoint.suspect()
	case errors.Is(end.err, errSilent):
		s.endpoint.suspect()
		u.wentSilent.Store(true)
		u.learnIdleLimit(end)
	case (errors.Is(end.err, errReadEnded) || errors.Is(end.err, errGoAway)) && u.queriesPerConn.ended(end.answers, promptly):
		u.log.Info("sending fewer queries on each connection: the upstream closes it", "after", end.answers)
	}
	if !answered {
		u.growAfter.Store(end.at + int64(growPause))
		if end.queries > 0 && u.lastRead.Load() < s.born && !errors.Is(end.err, ErrClosed) {
			u.noAnswer(s, end.err, end.at)
		}
	} else if end.pending > 0 && !errors.Is(end.err, errSilent) {
		u.spareUntil.Store(end.at + int64(sparePeriod))
	}
}

// noAnswer limits further dials, as if that of s had failed.
func (u *Upstream) noAnswer(s *stream, err error, now int64) {
	u.dialer.throttle.failed(time.Now().Add(-time.Duration(now-s.born)), &addressError{s.endpoint, err})
}

// learnIdleLimit learns from a stream that was dropped while it was idle.
func (u *Upstream) learnIdleLimit(end streamEnd) {
	if end.droppedAfter == 0 {
		return
	}
	if limit := u.idle.learn(end.at, end.droppedAfter); limit > 0 {
		u.log.Info("closing idle connections earlier: some were dropped on the way",
			"idle", end.droppedAfter.Round(time.Millisecond), "limit", limit.Round(time.Millisecond), "for", idleLimitFor)
	}
}

// await has a call wait for the next fresh stream.
func (u *Upstream) await(c *call) {
	u.mu.Lock()
	d := u.dialLocked()
	over := d.over()
	if !over {
		if c.sent == 0 {
			c.sent = u.now()
		}
		d.calls = append(d.calls, c)
	}
	u.mu.Unlock()
	if over {
		u.failed(c, d.err)
	}
}

// join has a call wait for the newest dial in progress, if there is one.
func (u *Upstream) join(c *call) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.dials) == 0 {
		return false
	}
	d := u.dials[len(u.dials)-1]
	d.calls = append(d.calls, c)
	return true
}

// failover sends the pending calls of a silent stream again on one that answers, or on a
// fresh one as soon as there is one: s may be dead without an end that could be seen, or
// just slow.
func (u *Upstream) failover(s *stream) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.isClosed || s.resending.Swap(true) {
		return
	}
	s.endpoint.suspect() // a fresh one goes to another endpoint, if there is one
	u.wg.Go(func() {
		defer s.resending.Store(false)
		now := u.now()
		other, silent := u.pick(now, now, s.silentFor(now)) // one that has answered since
		if other == nil || silent {
			if u.silentSince(s) {
				return // it is not the connection
			}
			var err error
			if other, err = u.connect(u.ctx); err != nil {
				return // s goes on until it is abandoned
			}
		}
		if s.silentFor(u.now()) > 0 {
			s.resendPending(other)
		}
	})
}

// silentSince reports whether a stream made after s went silent is silent too.
func (u *Upstream) silentSince(s *stream) bool {
	overdue := u.overdue()
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.ContainsFunc(u.streams, func(other *stream) bool {
		return other.born > s.waiting.Load() && other.silentFor(u.now()) > overdue
	})
}

// pick returns the stream for the next query: the one used last that is not busy, so that
// the others may go idle; else the least busy one. Streams that are no newer than since
// must have brought an answer within the given time. Silent is true if it owes an overdue
// answer, as all of them do. Nil means that none is open.
func (u *Upstream) pick(now, since int64, within time.Duration) (s *stream, silent bool) {
	overdue := u.overdue()
	u.mu.Lock()
	defer u.mu.Unlock()
	var c streamChoice
	for _, s := range u.streams {
		if !s.exhausted(now) && (s.born > since || now-s.lastRead.Load() < int64(within)) {
			c.consider(s, now, overdue)
		}
	}
	if c.answering == 0 {
		return c.silent, c.silent != nil
	}
	if c.answering < u.wantedLocked(c.notBusy == nil, now) && len(u.dials) == 0 {
		u.newDialLocked()
	}
	if c.notBusy != nil {
		return c.notBusy, false
	}
	return c.leastBusy, false
}

// wantedLocked returns how many streams should be open.
func (u *Upstream) wantedLocked(allBusy bool, now int64) int {
	switch {
	case allBusy && now > u.growAfter.Load():
		return u.o.Connections
	case u.queriesPerConn.limit.Load() > 0 || now < u.spareUntil.Load():
		return min(2, u.o.Connections)
	}
	return 1
}

// A streamChoice has the best streams among those that were considered.
type streamChoice struct {
	answering int     // how many owe no overdue answer
	notBusy   *stream // of these: used last of those that are not busy, or nil
	leastBusy *stream // of these: if it is busy, or nil
	silent    *stream // of the others, the one that has answered last, or nil
}

func (c *streamChoice) consider(s *stream, now int64, overdue time.Duration) {
	switch {
	case s.silentFor(now) > overdue, s.isBlocked():
		if c.silent == nil || s.lastRead.Load() > c.silent.lastRead.Load() {
			c.silent = s
		}
		return
	case int(s.pending.Load()) < s.busyAt():
		if c.notBusy == nil || s.betterThan(c.notBusy) {
			c.notBusy = s
		}
	case c.leastBusy == nil || s.pending.Load() < c.leastBusy.pending.Load():
		c.leastBusy = s
	}
	c.answering++
}

// busyAt returns how many queries in flight make the stream busy.
func (s *stream) busyAt() int {
	if s.link.capacity == nil {
		return busy
	}
	return min(busy, s.link.capacity())
}

// isBlocked reports whether the network blocks the port, and s has brought no answer since that
// is known.
func (s *stream) isBlocked() bool {
	since := s.endpoint.port.blockedAt()
	return since != nil && since.After(s.at(s.lastRead.Load()))
}

// at returns the time of an instant.
func (s *stream) at(instant int64) time.Time { return s.shared.epoch.Add(time.Duration(instant)) }

// betterThan reports whether to prefer s to t: for its transport, or as it was used last.
func (s *stream) betterThan(t *stream) bool {
	return cmp.Or(cmp.Compare(t.endpoint.rung, s.endpoint.rung), cmp.Compare(s.lastSend.Load(), t.lastSend.Load())) > 0
}

// remove takes s out of the pool. It may be called twice.
func (u *Upstream) remove(s *stream) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if i := slices.Index(u.streams, s); i >= 0 {
		u.streams = slices.Delete(u.streams, i, i+1)
		u.open.Store(int32(len(u.streams)))
		u.climbLaterLocked() // it may have been the best one
	}
}

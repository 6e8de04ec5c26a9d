// Package upstreams sends queries to resolvers: over DNS-over-TLS (RFC 7858), DNS-over-HTTPS
// (RFC 8484) and DNS-over-QUIC (RFC 9250), and in clear text over TCP and UDP to servers of
// the operator's own network.
//
// # What it does
//
// An [Upstream] is one service with one or more addresses. It keeps a few connections, each
// of which carries many queries at once (RFC 7766). A new connection is dialled in the
// background when none is open, when all are busy, or when one goes silent. A [Plain] sends
// each query over UDP from a port of its own, and falls back to TCP.
//
// A query whose connection ends is sent again on another one. The pending queries of a
// silent connection are duplicated on one that answers, and the first answer counts.
// Addresses that fail while another one works are avoided, and probed after a pause that
// grows from 30 s to 15 min.
//
// An endpoint is an address and a transport. The transports of an upstream form a ladder:
// while no connection can be made on a better rung, the next one is used, and the best
// one is tried every 8 s. While it is in use and queries are asked, one of the others is tried
// every 30 s, by turn. Queries move to the better connection as soon as there is one.
// If the same transport fails at several upstreams at once, the Network is taken to block it:
// all leave it, and all return to it when it works for one of them.
//
// # What it never does
//
// It never sends an encrypted query without having verified the certificate, and never
// falls back to clear text. It never accepts an answer to another question. It does not
// judge whether an upstream is up: others do, by the results of Ask, Latency, Silent and
// Reached.
//
// # Files
//
//   - upstream.go, pool.go, dial.go: the service, its connections, and the dials in progress
//   - network.go: what the network does to all upstreams
//   - dialer.go, endpoint.go, throttle.go, limits.go: which address is dialled, when, and for
//     how long
//   - standby.go: tries of the transports that stand by
//   - dot.go, clienthello.go, certificate.go, tcp.go, source.go, proxy.go: the transports that open connections
//   - http2.go: HTTP/2, as a connection that DNS messages are written to
//   - quic.go: QUIC, for DNS over QUIC and over HTTP/3, in the same way
//   - stream.go, call.go: one connection over TLS or TCP, and a query on it; its states are
//     described at stream
//   - plain.go: UDP
//   - rate.go: limits of queries a second, configured and learnt
//   - outcome.go, stats.go, trace.go: what is counted and recorded
//   - drill.go, faults.go: fault injection
//   - probe.go: the command "dotgate probe"
//
// # Limits
//
// A connection carries 4,096 queries at most. Beyond 128 on each, up to Options.Connections
// are opened. At most five dials are in progress for one connection. An upstream that has
// been out of reach for 25 s is dialled 8 times a minute. Answers are waited for during 5 s,
// or as long as clients wait where that is longer.
package upstreams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

// ErrBusy means that more queries are in flight than the upstream can answer in time. It
// is no evidence against the upstream.
var ErrBusy error = busyError{}

type busyError struct{}

func (busyError) Error() string { return "too many queries in flight" }

// Excused reports that the failure says nothing about the upstream.
func (busyError) Excused() bool { return true }

// ErrClosed means that Close was called.
var ErrClosed = errors.New("upstream closed")

// An Upstream is one resolver service with its endpoints and its connections.
type Upstream struct {
	streamShared
	attemptStats
	o           Options
	log         *slog.Logger
	dialer      dialer
	dialTime    dialTime
	rate        rateLimit
	waiting     silence      // since the last sign of life
	dialStep    atomic.Int32 // the step that a dial has reached since the last answer
	wentSilent  atomic.Bool  // a connection was given up for its silence since then
	wg          sync.WaitGroup
	ctx         context.Context // ends with Close
	stop        context.CancelFunc
	spareUntil  atomic.Int64 // instant: until then, a spare connection is kept
	growAfter   atomic.Int64 // instant: until then, no further connection is tried
	caseChanged atomic.Int64 // instant of the last answer in clear text with other case of letters, or 0
	garbage     atomic.Int64 // instant at which a query was last sent again for garbage, or 0
	open        atomic.Int32 // len(streams)

	// mu guards the pool. No blocking call is made while it is held.
	mu        sync.Mutex
	streams   []*stream
	dials     []*dial     // in progress, the newest last
	climbing  *time.Timer // runs climb; nil if no better transport is to be tried
	standby   *time.Timer // runs tryStandby; nil if nothing has been asked lately
	climbSent uint64      // counts.sent when they were tried last
	climbs    int         // how often that was
	standbys  int         // how often tryStandby has tried one
	// standbySent is counts.sent at the last tryStandby.
	standbySent uint64
	// climbAgain is set if a try has begun before the network changed.
	climbAgain bool
	rung       int // of the newest stream, which may have ended
	isClosed   bool
}

// New checks all options and returns an Upstream that has not dialled yet.
func New(o Options) (*Upstream, error) {
	o, err := o.checked("NewPlain", UDP)
	if err != nil {
		return nil, err
	}
	if o.Network == nil {
		o.Network = NewNetwork(o.Log)
	}
	u := &Upstream{o: o, log: o.Log.With("upstream", o.Name)}
	u.epoch, u.patience, u.idle.configured = time.Now(), o.Patience, o.IdleTimeout
	if o.Protocol == TCP {
		o.warnOfPublic(u.log)
	}
	u.rate.init(o.Rate, u.log)
	u.ctx, u.stop = context.WithCancel(context.Background())
	u.dialer.background = func(f func(context.Context)) { u.wg.Go(func() { f(u.ctx) }) }
	u.dialer.test = u.testLink
	if o.Source == "" && o.Proxy == "" { // else its network is not that of the others
		u.dialer.user = u
	}
	if err := u.dialer.init(o, u.log, u.dialProgressed); err != nil {
		o.Network.leave(u)
		return nil, fmt.Errorf("upstream %s: %w", o.Name, err)
	}
	return u, nil
}

// String returns the upstream's name.
func (u *Upstream) String() string { return u.o.Name }

// Latency returns how long a query that is sent now usually takes, and how long it may
// take before something seems wrong. While no connection is open, both include the usual
// time of a dial. So they are the same before, during and after a dial, and the time of
// answers is measured without it.
//
// The usual time is 0 until the upstream has answered for the first time. The patience is
// a guess until then: the upstream may just be far away. In that state, a dial may take
// up to 4 s, or Options.Patience (options connect_timeout and handshake_timeout, if not
// set), and a connection may be silent for as long.
func (u *Upstream) Latency() (usual, patience time.Duration) {
	usual, patience = u.rtt.usual()
	dial := u.dialTime.usual()
	if u.open.Load() > 0 {
		limit := u.queriesPerConn.limit.Load()
		if limit == 0 {
			return usual, patience
		}
		dial /= time.Duration(limit) // each query has a share of the dials
	}
	if usual > 0 {
		usual += dial
	}
	return usual, patience + dial + dial/4
}

// Silent returns for how long the upstream has given no sign of life that it owes: the
// time since the first query after the last sign of life, 0 if no query was sent since.
// An answer is a sign of life. So is a dial that gets further than any other since the
// last answer: a TCP connection, the first octets of a TLS handshake, and its end. A host
// that accepts connections and sends nothing is soon silent nevertheless. A name that is
// never answered causes no silence while others are answered.
func (u *Upstream) Silent() time.Duration {
	if u.waiting.Load() == 0 { // no need to look at the clock
		return 0
	}
	return u.waiting.lasted(u.now())
}

// Reached reports whether what the upstream owes may be slow rather than lost: a dial
// has taken a step since the last answer. Of an upstream that has answered before, that
// holds only while a dial or its connection is waited for, and no connection has gone
// silent since: else the upstream is more likely gone, although its system, or a host
// between, still accepts connections.
func (u *Upstream) Reached() bool {
	if u.dialStep.Load() == 0 {
		return false
	}
	if usual, _ := u.rtt.usual(); usual == 0 {
		return true
	}
	if u.wentSilent.Load() {
		return false
	}
	now, overdue := u.now(), u.overdue()
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.dials)+len(u.streams) > 0 &&
		!slices.ContainsFunc(u.streams, func(s *stream) bool { return s.silentFor(now) > overdue })
}

// RateWait returns how long a query would have to wait so as not to exceed the rate that the
// upstream is to be spared from: Options.Rate, or what was learnt. It returns 0 if the query
// need not wait. Ask sends it at once nevertheless.
func (u *Upstream) RateWait() time.Duration { return u.rate.wait(u.now) }

// The steps of a dial that show that the upstream lives.
const (
	tcpConnected = 1 + iota
	tlsAnswered
	tlsConnected
)

func (u *Upstream) dialProgressed(step int32) {
	for old := u.dialStep.Load(); old < step; old = u.dialStep.Load() {
		if !u.dialStep.CompareAndSwap(old, step) {
			continue
		}
		if since := u.waiting.Load(); since != 0 {
			u.waiting.CompareAndSwap(since, u.now())
		}
		return
	}
}

// Ask sends q. It calls done exactly once, within seconds, with the verified answer or
// with an error. done may be called before Ask returns. It must not block, because other
// answers wait behind it. Ask does not block either: a dial that it starts runs in the
// background. q is kept until done is called. The steps are recorded in the Trace in ctx,
// if there is one. Nothing else of ctx is used.
//
// A connection that was in use and ends during the query says little about the upstream.
// Then the query is sent once more, on a connection that has answered recently, and if
// that ends too, as all do when a server restarts, on fresh ones.
func (u *Upstream) Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	began := u.now()
	u.waiting.CompareAndSwap(0, began)
	u.rate.add(began)
	u.send(&call{query: q, done: done, upstream: u, began: began, trace: u.traceOf(ctx)}, began, 0, 0)
}

// Exchange is Ask for callers that wait. It returns when ctx is done at the latest.
func (u *Upstream) Exchange(ctx context.Context, q wire.Query) (wire.Answer, error) {
	if a, err, ended := waitFor(ctx, u.Ask, q); ended {
		return a, err
	}
	if u.open.Load() == 0 {
		return wire.Answer{}, named(u.o.Name, u.stillConnecting(context.Cause(ctx)))
	}
	return wire.Answer{}, named(u.o.Name, context.Cause(ctx))
}

// waitFor asks and returns the result, unless ctx is done before.
func waitFor(ctx context.Context, ask func(context.Context, wire.Query, func(wire.Answer, error)), q wire.Query) (a wire.Answer, err error, ended bool) {
	type outcome struct {
		answer wire.Answer
		err    error
	}
	outcomes := make(chan outcome, 1)
	ask(ctx, q, func(a wire.Answer, err error) { outcomes <- outcome{a, err} })
	select {
	case o := <-outcomes:
		return o.answer, o.err, true
	case <-ctx.Done():
		return a, nil, false
	}
}

// Close ends all connections, fails the pending queries with ErrClosed, and returns when
// every goroutine has ended.
func (u *Upstream) Close() error {
	u.mu.Lock()
	u.isClosed = true
	for _, timer := range []*time.Timer{u.climbing, u.standby} {
		if timer != nil {
			timer.Stop()
		}
	}
	streams := slices.Clone(u.streams)
	u.mu.Unlock()
	u.stop()
	for _, s := range streams {
		s.close(ErrClosed)
	}
	u.wg.Wait()
	u.o.Network.leave(u)
	u.dialer.faults.reading.Wait()
	return nil
}

// Addresses returns the last known addresses of the upstream.
func (u *Upstream) Addresses() []netip.AddrPort { return u.dialer.addresses() }

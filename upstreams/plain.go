package upstreams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

const (
	// resendMin is the least time before a query is sent again over UDP, which loses some
	// packets. It doubles each time.
	resendMin = 300 * time.Millisecond
	// plainSockets is how many queries may be in progress: each has a socket of its own,
	// so that its port is hard to guess.
	plainSockets = 1000
	// maxForged is how many packets that are no answer a query accepts before it is sent
	// over TCP, where an attacker would have to see the connection to forge one.
	maxForged = 16
)

// A Plain is a server that is asked in clear text over UDP: for servers of the operator's
// own network, most of which support nothing else. All hosts on the path can read and
// change queries and answers.
//
// Each query has a random port, a random ID and random case of the letters in its name,
// so that an answer is hard to forge without seeing the query. The query is sent again
// over TCP if its answer is truncated, has other case of letters, or is not valid. TCP
// connections carry many queries. Servers that do not keep the case of letters, or do not
// know EDNS, are recognized, and then asked accordingly.
//
// Of several addresses, those that answer take turns. A query that gets no answer in time
// is sent to the next address, too.
type Plain struct {
	o         Options
	from      source
	log       *slog.Logger
	epoch     time.Time // instants count from it
	next      atomic.Uint32
	rtt       estimator
	rate      rateLimit
	waiting   silence // since the last answer
	pending   pendingQueries
	servers   []*udpServer // one for each address
	counts    counters
	noAddress outcomeCounts // attempts that went to no address
	attemptStats

	wg   sync.WaitGroup
	ctx  context.Context // ends with Close
	stop context.CancelFunc
}

// A udpServer is one address of a Plain.
type udpServer struct {
	*endpoint           // of tcp
	tcp       *Upstream // the same address
	attempts  outcomeCounts
}

// NewPlain checks all options and returns a Plain that has sent nothing yet. The protocol
// must be UDP.
func NewPlain(o Options) (*Plain, error) {
	o, err := o.checked("New", TCP, TLS)
	if err != nil {
		return nil, err
	}
	from, err := parseSource(o.Source)
	if err != nil {
		return nil, err
	}
	p := &Plain{o: o, from: from, log: o.Log.With("upstream", o.Name), epoch: time.Now(), pending: pendingQueries{limit: plainSockets}}
	p.rate.init(o.Rate*len(o.Addresses), p.log)
	p.ctx, p.stop = context.WithCancel(context.Background())
	o.warnOfPublic(p.log)
	for _, a := range o.Addresses {
		same := o
		same.Protocol, same.Addresses, same.Rate, same.Log = TCP, []netip.AddrPort{a}, 0, slog.New(slog.DiscardHandler)
		tcp, err := New(same)
		if err != nil {
			return nil, err
		}
		p.servers = append(p.servers, &udpServer{endpoint: tcp.dialer.endpoints[0], tcp: tcp})
	}
	return p, nil
}

// warnOfPublic logs a warning for each server that is reached through networks of others.
func (o Options) warnOfPublic(log *slog.Logger) {
	for _, a := range o.Addresses {
		if IsPublic(a.Addr()) {
			log.Warn("asking a public server in clear text: all hosts on the path can read and change it (upstreams: write tls:// if it speaks TLS)", "address", a)
		}
	}
}

// IsPublic reports whether a is reached through networks of others.
func IsPublic(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsGlobalUnicast() && !a.IsPrivate()
}

// String returns the upstream's name.
func (p *Plain) String() string { return p.o.Name }

// Addresses returns the addresses of the server.
func (p *Plain) Addresses() []netip.AddrPort { return p.o.Addresses }

// Latency returns how long an answer usually takes, 0 while that is unknown, and how long
// one may take before something seems wrong.
func (p *Plain) Latency() (usual, patience time.Duration) { return p.rtt.usual() }

// Silent returns the time since the first query after the last answer, 0 if no query was
// sent since.
func (p *Plain) Silent() time.Duration { return p.waiting.lasted(p.now()) }

// RateWait returns what that of an Upstream does.
func (p *Plain) RateWait() time.Duration { return p.rate.wait(p.now) }

// Reached reports whether a first answer may still be on its way. Over UDP there is no
// dial whose steps show that a server is there, so a server that has never answered may
// be far away for as long as clients wait (Options.Patience).
func (p *Plain) Reached() bool {
	usual, _ := p.rtt.usual()
	return usual == 0 && p.Silent() < p.o.Patience
}

func (p *Plain) now() int64 { return int64(time.Since(p.epoch)) + 1 }

// Counts returns the totals, including queries over TCP.
func (p *Plain) Counts() Counts {
	var c Counts
	p.counts.addTo(&c)
	p.rate.addTo(&c)
	for _, s := range p.servers {
		t := s.tcp.Counts()
		c.Dials, c.Open = c.Dials+t.Dials, c.Open+t.Open
		c.Sent, c.Resent = c.Sent+t.Sent, c.Resent+t.Resent
		c.Unsolicited, c.Mismatched = c.Unsolicited+t.Unsolicited, c.Mismatched+t.Mismatched
		c.OutOfBailiwick, c.Malformed = c.OutOfBailiwick+t.OutOfBailiwick, c.Malformed+t.Malformed
	}
	return c
}

// Connect does nothing: UDP needs no connection.
func (p *Plain) Connect(context.Context) error { return nil }

// NetworkChanged reports true: a server that did not answer may do so now.
func (p *Plain) NetworkChanged() bool {
	for _, s := range p.servers {
		s.tcp.NetworkChanged()
	}
	return true
}

// Drill fails: there is no connection that could have a fault.
func (p *Plain) Drill(context.Context, Drill) error {
	return fmt.Errorf("%s is asked over UDP; a drill needs an upstream with connections (tls:// or tcp://)", p.o.Name)
}

// Ask sends q. It calls done exactly once, within seconds, with the verified answer or
// with an error. It does not block.
func (p *Plain) Ask(_ context.Context, q wire.Query, done func(wire.Answer, error)) {
	_, patience := p.rtt.usual()
	pending, ok := p.pending.add(p.ctx, resendAfter(patience))
	if !ok {
		p.noAddress[Overloaded].Add(1)
		done(wire.Answer{}, named(p.o.Name, ErrBusy))
		return
	}
	now := p.now()
	p.waiting.CompareAndSwap(0, now)
	p.rate.add(now)
	p.wg.Go(func() {
		began := time.Now()
		r := p.ask(pending.ctx, q)
		err := p.explain(pending.ctx, r.err)
		p.pending.remove(pending)
		outcome := outcomeOf(r.answer, err)
		r.from.attempts[outcome].Add(1)
		p.attemptStats.add(outcome, time.Since(began), err)
		if outcome == GotRefused {
			p.rate.onRefused(now, p.now(), nil)
		}
		if err != nil {
			done(wire.Answer{}, named(p.o.Name, err))
			return
		}
		p.waiting.Store(0)
		p.rtt.sample(time.Since(r.began))
		p.counts.accept(r.answer)
		done(r.answer, nil)
	})
}

// History returns the outcomes of all queries.
func (p *Plain) History() History {
	var h History
	for _, s := range p.servers {
		a := s.endpoint.history()
		a.Attempts = [outcomes]uint64{}
		s.attempts.addTo(&a.Attempts)
		h.Addresses = append(h.Addresses, a)
	}
	var other AddressHistory
	p.noAddress.addTo(&other.Attempts)
	h.Addresses = append(h.Addresses, other)
	p.attemptStats.addTo(&h)
	return h
}

// Exchange is Ask for callers that wait. It returns when ctx is done at the latest.
func (p *Plain) Exchange(ctx context.Context, q wire.Query) (wire.Answer, error) {
	if a, err, ended := waitFor(ctx, p.Ask, q); ended {
		return a, err
	}
	return wire.Answer{}, named(p.o.Name, context.Cause(ctx))
}

// Close fails the pending queries, and returns when every goroutine has ended.
func (p *Plain) Close() error {
	p.stop()
	for _, s := range p.servers {
		s.tcp.Close()
	}
	p.wg.Wait()
	return nil
}

// explain says in the error of a deadline what was waited for.
func (p *Plain) explain(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case p.ctx.Err() != nil:
		return ErrClosed
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer from %v within %v: %w", p.o.Addresses, p.o.Patience, context.DeadlineExceeded)
	}
	return err
}

// A udpResult is the result of a query at one address.
type udpResult struct {
	from   *udpServer
	began  time.Time
	answer wire.Answer
	err    error
}

// ask sends a query to one server, and to the next one as well when no answer comes in
// time, or at once when the first fails.
func (p *Plain) ask(ctx context.Context, q wire.Query) udpResult {
	ctx, cancel := context.WithTimeout(ctx, p.o.Patience)
	defer cancel()
	order := p.ordered()
	_, patience := p.rtt.usual()
	again := resendAfter(patience)
	p.probe(q, order[0], again)
	replies := make(chan udpResult, len(order))
	var asked, failed []udpResult
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-next.C:
			if len(asked) == len(order) || len(asked) > len(failed) && q.Cancelled() {
				continue
			}
			r := udpResult{from: order[len(asked)], began: time.Now()}
			asked = append(asked, r)
			if len(asked) > 1 {
				p.counts.resent.Add(1)
			}
			p.wg.Go(func() {
				r.answer, r.err = p.askServer(ctx, r.from, q, again*time.Duration(len(order)))
				replies <- r
			})
			next.Reset(again)
		case r := <-replies:
			if r.err == nil {
				p.penalizeSilent(r, asked, failed, again)
				return r
			}
			if failed = append(failed, r); len(failed) == len(order) || ctx.Err() != nil {
				return failed[0]
			}
			next.Reset(0)
		}
	}
}

// resendAfter returns how long a query is waited for before it is sent again.
func resendAfter(patience time.Duration) time.Duration { return max(2*patience, resendMin) }

// ordered returns the servers, the best first, and those that work by turns.
func (p *Plain) ordered() []*udpServer {
	if len(p.servers) == 1 {
		return p.servers
	}
	turn := int((p.next.Add(1) - 1) % uint32(len(p.servers)))
	return inOrder(slices.Concat(p.servers[turn:], p.servers[:turn]))
}

// penalizeSilent penalizes servers that were asked before the one that answered, and that
// failed, or have answered neither this query nor another one since. A single query may
// have been lost on the way.
func (p *Plain) penalizeSilent(won udpResult, asked, failed []udpResult, again time.Duration) {
	for _, r := range failed {
		r.from.penalize(p.log, OutcomeOf(r.err))
	}
	for _, r := range asked {
		answered := r.from.answered.Load()
		if r.from != won.from && won.began.Sub(r.began) >= again && (answered == nil || answered.Before(r.began)) {
			r.from.penalize(p.log, TimedOut)
		}
	}
}

// probe sends q to each server whose pause is over, beside the one that is asked now, to
// see whether it works again.
func (p *Plain) probe(q wire.Query, now *udpServer, again time.Duration) {
	for _, s := range p.servers {
		if s == now || !s.startProbe() {
			continue
		}
		p.wg.Go(func() {
			defer s.endProbe()
			ctx, cancel := context.WithTimeout(p.ctx, p.o.Patience)
			defer cancel()
			if _, err := p.askServer(ctx, s, q, again); err != nil && p.ctx.Err() == nil {
				s.penalize(p.log, OutcomeOf(err))
			}
		})
	}
}

// askServer sends a query to one server: over UDP, and over TCP if UDP does not work.
func (p *Plain) askServer(ctx context.Context, s *udpServer, q wire.Query, again time.Duration) (wire.Answer, error) {
	began := s.tcp.now()
	a, err := p.askUDP(ctx, s, q, again)
	switch {
	case err == errUseTCP:
		a, err = s.tcp.Exchange(ctx, q)
	case err == errCaseChanged:
		if a, err = p.confirmOverTCP(ctx, s, q); err == nil && s.tcp.caseChanged.Load() >= began {
			s.ignoresCase.learn(casePause)
		} else if err != nil && ctx.Err() == nil {
			a, err = p.askUntilConsistent(ctx, s, q, again)
		}
	}
	if err == nil {
		now := time.Now()
		s.answered.Store(&now)
		s.clearPenalties(p.log)
	}
	return a, err
}

// confirmOverTCP sends a query over TCP whose answer had other case of letters. Many
// servers that do not keep it have no TCP, so it does not wait for long.
func (p *Plain) confirmOverTCP(ctx context.Context, s *udpServer, q wire.Query) (wire.Answer, error) {
	_, patience := p.rtt.usual()
	ctx, cancel := context.WithTimeout(ctx, max(4*patience, resendMin))
	defer cancel()
	// Other random case, so that a server that keeps it is recognized.
	return s.tcp.Exchange(ctx, q.WithMixedCase(rand.Uint64))
}

// askUntilConsistent sends a query again, each time from another port, with another ID
// and other case of letters, until caseChangesMin answers in a row match in all but the
// case: they can hardly all be forged.
func (p *Plain) askUntilConsistent(ctx context.Context, s *udpServer, q wire.Query, again time.Duration) (wire.Answer, error) {
	for {
		a, err := p.askUDP(ctx, s, q, again)
		switch {
		case err == errUseTCP:
			return s.tcp.Exchange(ctx, q)
		case err != errCaseChanged:
			return a, err
		}
		p.counts.resent.Add(1)
	}
}

var (
	// errUseTCP means that the query has to be sent over TCP.
	errUseTCP = errors.New("query has to be sent over TCP")
	// errCaseChanged means that the answer has other case of letters.
	errCaseChanged = errors.New("answer has other case of letters")
)

// A udpQuery is a query over UDP.
type udpQuery struct {
	server *udpServer
	query  wire.Query
	id     uint16
	packet []byte
	noEDNS bool // without EDNS
	mixed  bool // the case of letters is random
	forged int  // packets that were no answer
}

func newUDPQuery(s *udpServer, q wire.Query) *udpQuery {
	x := &udpQuery{server: s, query: q, id: uint16(rand.Uint32()), noEDNS: s.noEDNS.holds(), mixed: !s.ignoresCase.holds()}
	if x.mixed {
		x.query = q.WithMixedCase(rand.Uint64)
	}
	x.encode()
	return x
}

func (x *udpQuery) encode() {
	if x.noEDNS {
		x.packet = x.query.AppendWithoutEDNS(nil, x.id)
	} else {
		x.packet = x.query.AppendUnpadded(nil, x.id)
	}
}

// askUDP sends q from a socket of its own.
func (p *Plain) askUDP(ctx context.Context, s *udpServer, q wire.Query, again time.Duration) (wire.Answer, error) {
	// A connected socket accepts packets of the server only, and reports that its port is
	// closed.
	c, err := p.from.connectUDP(ctx, s.addr)
	if err != nil {
		return wire.Answer{}, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	x := newUDPQuery(s, q)
	for first := true; ; first = false {
		// A late answer shows how the server is doing, but is not worth another packet.
		if first || !q.Cancelled() {
			if _, err := c.Write(x.packet); err != nil {
				return wire.Answer{}, err
			}
			p.counts.sent.Add(1)
		}
		a, err := p.await(ctx, c, x, time.Now().Add(again))
		switch err {
		case errUnanswered:
			again *= 2
		case errUseNoEDNS:
			x.noEDNS, x.id = true, uint16(rand.Uint32())
			x.encode()
		default:
			return a, err
		}
		p.counts.resent.Add(1)
	}
}

var (
	errUnanswered = errors.New("no answer in time")
	errUseNoEDNS  = errors.New("query has to be sent without EDNS")
)

// await reads until there is an answer, or another reason to end the wait.
func (p *Plain) await(ctx context.Context, c *net.UDPConn, x *udpQuery, due time.Time) (wire.Answer, error) {
	buffer := make([]byte, 4096)
	for {
		c.SetReadDeadline(due)
		if ctx.Err() != nil { // the deadline for ctx may have been overwritten
			return wire.Answer{}, ctx.Err()
		}
		n, err := c.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			return wire.Answer{}, errUnanswered
		}
		if err != nil {
			return wire.Answer{}, err
		}
		a, err := p.classify(x, buffer[:n])
		if !errors.Is(err, wire.ErrNotResponse) {
			return a, err
		}
		// It may be forged, and the true answer may follow.
		if x.forged++; x.forged >= maxForged {
			return wire.Answer{}, errUseTCP
		}
	}
}

// classify judges a message that came over UDP. If it is a response from the right
// address, to the right port and with the right ID, but not valid, for example because it
// is to another question, another one is not waited for: the query is sent over TCP,
// where responses are hard to forge.
func (p *Plain) classify(x *udpQuery, message []byte) (wire.Answer, error) {
	if len(message) < 2 || wire.ID(message) != x.id {
		p.counts.unsolicited.Add(1)
		return wire.Answer{}, wire.ErrNotResponse
	}
	a, err := wire.ParseAnswer(x.query, message)
	switch {
	case errors.Is(err, wire.ErrTruncated):
		return a, errUseTCP
	case errors.Is(err, wire.ErrNotResponse):
		p.counts.drop(err)
		return a, err
	case err != nil:
		p.counts.drop(err)
		return a, errUseTCP
	}
	return a, x.learnFrom(message, &p.counts)
}

// learnFrom learns from a well-formed answer what the server does not support.
func (x *udpQuery) learnFrom(message []byte, counts *counters) error {
	s := x.server
	switch {
	case !x.mixed:
	case x.query.SameCase(message):
		s.caseChanges.Store(0)
	default:
		counts.mismatched.Add(1)
		if s.caseChanges.Add(1) < caseChangesMin {
			return errCaseChanged
		}
		s.caseChanges.Store(0)
		s.ignoresCase.learn(casePause)
	}
	switch refused := wire.RefusesEDNS(message); {
	case refused && !x.noEDNS:
		return errUseNoEDNS
	case !refused && x.noEDNS && !s.noEDNS.holds():
		s.noEDNS.learn(ednsPause)
	}
	return nil
}

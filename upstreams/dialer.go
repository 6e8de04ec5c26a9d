package upstreams

import (
	"context"
	"crypto/tls"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// attemptDelay is how long the dial of one endpoint may take before the next one is tried
// beside it (RFC 8305 section 5 recommends 250 ms).
const attemptDelay = 250 * time.Millisecond

// transportDelay is the same for the dial of another transport while nothing is known about
// the network, and transportDelayMin if it is fast.
const (
	transportDelay    = 150 * time.Millisecond
	transportDelayMin = 60 * time.Millisecond
)

// A transport opens connections to endpoints. There are tcpTransport, tlsTransport and
// quicTransport.
// The dialer chooses the endpoint, and knows nothing of how its connection is made.
type transport interface {
	String() string
	// open connects within limits, and verifies the server if the transport can. The
	// dialer, not the transport, records success and failure at the endpoint.
	open(ctx context.Context, e *endpoint, limits dialLimits) (link, error)
	// limits returns the limits of the next connection.
	limits() dialLimits
	// longest returns the limits of a connection that is continued although it takes longer
	// than expected, because another one is made beside it.
	longest() dialLimits
}

// dialLimits bound the steps of one connection.
type dialLimits struct{ connect, handshake time.Duration }

// A link is an open connection to an endpoint: TLS, with or without HTTP/2, QUIC, or plain
// TCP.
type link struct {
	net.Conn                      // DNS messages are written to it and read from it
	raw      net.Conn             // the TCP connection, without TLS the same; or the UDP socket
	secure   bool                 // the certificate was verified
	tls      *tls.ConnectionState // nil without TLS
	abort    func()               // ends the connection at once
	capacity func() int           // how many queries the server answers at once; nil: any number
	lost     []portLoss           // of better transports, beside which this one was made

	tcpTook, tlsTook time.Duration // how long the handshakes took
}

func newLink(conn, raw net.Conn, secure bool) link {
	return link{Conn: conn, raw: raw, secure: secure, abort: func() { raw.Close() }}
}

// A dialer connects to the best endpoint of one upstream.
type dialer struct {
	o          Options
	log        *slog.Logger
	from       source
	tcp        tcpTransport
	dot, doh   tlsTransport
	doq, doh3  quicTransport
	ladder     []transport // those that are used, the best first
	throttle   dialThrottle
	faults     faults                            // of a drill
	background func(func(context.Context))       // runs a function in the background, until the upstream is closed; or nil
	test       func(context.Context, link) error // tests a connection to an endpoint that is avoided; or nil
	noAddress  endpoint                          // counts attempts that went to no address
	user       networkUser                       // or nil

	mu        sync.Mutex
	endpoints []*endpoint
	resolved  time.Time // when Host was resolved
	// A look-up of Host is in progress in the background, and the last one of these failed.
	resolving, unresolved bool
}

// init checks and reads what the options name. reached is called when a dial has got
// further; it may be nil.
func (d *dialer) init(o Options, log *slog.Logger, reached func(step int32)) error {
	d.o, d.log = o, log
	var err error
	if d.from, err = parseSource(o.Source); err != nil {
		return err
	}
	through, err := parseProxy(o.Proxy)
	if err != nil {
		return err
	}
	d.tcp.init(o, d.faults.wrapDial(through.wrap(d.from.connectTCP), false), reached)
	for _, name := range o.ladder() {
		t, err := d.transport(name, reached)
		if err != nil {
			return err
		}
		d.ladder = append(d.ladder, t)
	}
	d.setPlaces(o.placesOf(nil)) // those of Host follow
	d.throttle.assignTurn()
	return nil
}

// transport prepares the transport with a name.
func (d *dialer) transport(name string, reached func(step int32)) (transport, error) {
	udp := d.faults.wrapDial(d.from.connectQUIC, true)
	switch name {
	case DoT:
		return &d.dot, d.dot.init(DoT, d.o, &d.tcp, d.log)
	case DoH:
		return &d.doh, d.doh.init(DoH, d.o, &d.tcp, d.log)
	case DoQ:
		return &d.doq, d.doq.init(DoQ, d.o, udp, reached, d.log)
	case DoH3:
		return &d.doh3, d.doh3.init(DoH3, d.o, udp, reached, d.log)
	}
	return &d.tcp, nil
}

// setPlaces replaces the endpoints, keeping what is known of those that stay.
func (d *dialer) setPlaces(places [][]netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.endpoints
	d.endpoints = nil
	for rung, addr := range alternating(places) {
		same := func(e *endpoint) bool { return e.addr == addr && e.rung == rung }
		if i := slices.IndexFunc(old, same); i >= 0 {
			d.endpoints = append(d.endpoints, old[i])
		} else {
			e := &endpoint{addr: addr, via: d.ladder[rung], rung: rung}
			if d.user != nil {
				e.port = d.o.Network.join(d.user, e.via.String(), addr)
			}
			d.endpoints = append(d.endpoints, e)
		}
	}
	for _, e := range old {
		if !slices.Contains(d.endpoints, e) {
			d.noAddress.inherit(e)
		}
	}
}

// identities yields those of all transports with TLS.
func (d *dialer) identities() iter.Seq[*tlsIdentity] {
	return func(yield func(*tlsIdentity) bool) {
		for _, t := range d.ladder {
			if t, ok := t.(interface{ identity() *tlsIdentity }); ok && !yield(t.identity()) {
				return
			}
		}
	}
}

// alternating yields the addresses of each transport in turns. An address and the next one
// have neither their transport nor, if there are several, their host in common: what keeps
// one from answering may not hold for the other.
func alternating(places [][]netip.AddrPort) iter.Seq2[int, netip.AddrPort] {
	return func(yield func(int, netip.AddrPort) bool) {
		for i := 0; slices.ContainsFunc(places, func(of []netip.AddrPort) bool { return i < len(of) }); i++ {
			for rung, of := range places {
				if i < len(of) && !yield(rung, of[(i+rung)%len(of)]) {
					return
				}
			}
		}
	}
}

func (d *dialer) addresses() []netip.AddrPort {
	d.mu.Lock()
	defer d.mu.Unlock()
	var addrs []netip.AddrPort
	for _, e := range d.endpoints {
		addrs = append(addrs, e.addr)
	}
	return addrs
}

func (d *dialer) ordered() []*endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	return inOrder(d.endpoints)
}

// A dialAttempt is a dial of one endpoint, and its result.
type dialAttempt struct {
	link  link
	to    *endpoint
	began time.Time
	test  func(context.Context, link) error // of the connection; or nil
	err   error
}

// A dialRace is a dial of several endpoints. The first connection wins.
type dialRace struct {
	results    chan dialAttempt
	inProgress []dialAttempt // without results
	failed     []dialAttempt
	cancelled  []dialAttempt // those in progress when another one succeeded, with errors
	problem    error         // the errors of all that failed
}

func (r *dialRace) ended(a dialAttempt) {
	r.inProgress = slices.DeleteFunc(r.inProgress, func(b dialAttempt) bool { return a.to == b.to })
	if a.err == nil {
		return
	}
	r.failed = append(r.failed, a)
	r.problem = withProblem(r.problem, a.err)
}

// dial connects to the first endpoint that accepts. Endpoints are tried one after the
// other, the next one as soon as one fails or takes longer than attemptDelay. A patient
// dial waits longer: for an upstream that has been out of reach for long, until the next
// dial may be made, and for a handshake, as long as a client waits.
func (d *dialer) dial(ctx context.Context, patient bool) (link, *endpoint, error) {
	if err := d.resolve(ctx); err != nil {
		return link{}, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := time.Now()
	rest := d.ordered()
	race := dialRace{results: make(chan dialAttempt, len(rest))}
	next := time.NewTimer(0)
	defer next.Stop()
	for len(rest) > 0 || len(race.inProgress) > 0 {
		select {
		case <-next.C:
			if len(rest) == 0 {
				continue
			}
			if !d.throttle.allow(time.Now()) {
				rest = nil
				if race.problem == nil && len(race.inProgress) == 0 {
					return link{}, nil, d.throttle.refusal()
				}
				continue
			}
			a := dialAttempt{to: rest[0], began: time.Now()}
			rest = rest[1:]
			race.inProgress = append(race.inProgress, a)
			go func() { race.results <- d.dialOne(ctx, a, d.limits(a.to, began, patient)) }()
			next.Reset(d.delay(a.to, rest))
		case a := <-race.results:
			race.ended(a)
			if a.err == nil {
				cancel()
				race.closeLosers()
				a.link.lost = race.lostAbove(a.to.rung)
				d.succeeded(a, &race)
				return a.link, a.to, nil
			}
			next.Reset(0)
		}
	}
	if ctx.Err() == nil {
		race.problem = d.o.Network.explain(race.problem)
		d.throttle.failed(began, race.problem)
	}
	return link{}, nil, race.problem
}

// limits returns the limits of a dial that began at the given time.
func (d *dialer) limits(e *endpoint, began time.Time, patient bool) dialLimits {
	limits := e.via.limits()
	if patient {
		limits.connect = d.throttle.connectLimit(began, limits.connect)
		limits.handshake = e.via.longest().handshake
	}
	return limits
}

// delay returns how long the dial of e may take before the next of the rest is tried beside
// it: not as long if that has another transport, since this one may be blocked.
func (d *dialer) delay(e *endpoint, rest []*endpoint) time.Duration {
	if len(rest) == 0 || rest[0].via == e.via {
		return attemptDelay
	}
	usual := time.Duration(d.tcp.connect.took.Load()) + time.Duration(d.dot.handshake.took.Load())
	if usual == 0 {
		return transportDelay
	}
	return min(max(transportDelayMin, 2*usual), attemptDelay)
}

// closeLosers waits for the dials that are in progress, which have been cancelled, and
// closes their connections.
func (r *dialRace) closeLosers() {
	for range r.inProgress {
		a := <-r.results
		if a.err == nil {
			a.link.abort()
			continue
		}
		r.cancelled = append(r.cancelled, a)
	}
}

// succeeded penalizes endpoints that failed while another one worked, or that were slower
// although they had been given time (RFC 8305 section 5). Endpoints whose pause is over
// are probed.
func (d *dialer) succeeded(won dialAttempt, race *dialRace) {
	for _, a := range race.failed {
		a.to.penalize(d.log, OutcomeOf(a.err))
	}
	for _, a := range race.inProgress {
		if won.began.Sub(a.began) >= attemptDelay || won.to.rung > a.to.rung {
			a.to.countDial(DialSlower)
			a.to.penalize(d.log, DialSlower)
		}
	}
	endpoints := d.ordered()
	if len(won.link.lost) > 0 {
		d.leave(won.to.rung, endpoints)
	}
	for _, e := range endpoints {
		if d.background != nil && e.startProbe() {
			d.background(func(ctx context.Context) { d.probeEndpoint(ctx, e) })
		}
	}
}

// lostAbove returns the dials of better transports than that of a rung that have lost. Those
// that the system has no route for say nothing.
func (r *dialRace) lostAbove(rung int) (all []portLoss) {
	for _, a := range r.failed {
		if a.to.rung < rung && noRoute(a.err) == 0 {
			all = append(all, lossOf(a, false))
		}
	}
	for _, a := range r.cancelled {
		if a.to.rung < rung {
			all = append(all, lossOf(a, true))
		}
	}
	return all
}

// leave has all endpoints avoided whose transport is better than that of a rung, which works:
// more likely it is blocked, or out of order, than one address. climb finds out.
func (d *dialer) leave(rung int, endpoints []*endpoint) {
	for _, e := range endpoints {
		if e.rung < rung {
			e.penalize(d.log, DialSlower)
		}
	}
}

// climb dials the best endpoint of transports that are better than that of a rung, and returns
// the first connection that brings an answer: that of the best one each time, and of the
// others each fourth time, by turn, which makes less than ten dials a minute. Endpoints that
// the system has no route to take no turn.
func (d *dialer) climb(ctx context.Context, rung, n int) (link, *endpoint, error) {
	_ = d.resolve(ctx) // one of the endpoints is in use
	better := []int{0}
	if turn := n / 4; n%4 == 0 && rung > 1 {
		better = append(better, 1+turn%(rung-1))
	}
	var problem error
	for _, better := range better {
		for _, e := range d.ordered() {
			if e.rung != better {
				continue
			}
			a := d.dialOne(ctx, dialAttempt{to: e, began: time.Now(), test: d.test}, e.via.limits())
			if a.err == nil {
				return a.link, e, nil
			}
			if ctx.Err() != nil {
				return link{}, nil, a.err
			}
			problem = withProblem(problem, a.err)
			if noRoute(a.err) == 0 {
				e.port.saw(portStillLost, d.user, lossOf(a, false), "")
				break
			}
		}
	}
	return link{}, nil, problem
}

// probeEndpoint finds out whether an endpoint that is avoided works again.
func (d *dialer) probeEndpoint(ctx context.Context, e *endpoint) {
	defer e.endProbe()
	a := d.dialOne(ctx, dialAttempt{to: e, test: d.test}, e.via.limits())
	switch {
	case a.err == nil:
		a.link.abort()
	case ctx.Err() == nil:
		e.penalize(d.log, OutcomeOf(a.err))
	}
}

func (d *dialer) dialOne(ctx context.Context, a dialAttempt, limits dialLimits) dialAttempt {
	e := a.to
	if a.link, a.err = e.via.open(ctx, e, limits); a.err == nil {
		a.link = d.faults.wrap(a.link, e)
	}
	if a.err == nil && a.test != nil {
		if a.err = a.test(ctx, a.link); a.err != nil {
			a.link.abort()
		}
	}
	if a.err == nil && a.test != nil {
		e.port.saw(portAnswered, d.user, portLoss{}, "")
	}
	if a.err == nil {
		e.countDial(GotNoError)
		e.clearPenalties(d.log)
		return a
	}
	if ctx.Err() == nil {
		e.suspect()
		e.countDial(OutcomeOf(a.err))
	}
	a.err = &addressError{e, a.err}
	return a
}

func noConnection(limit time.Duration) error {
	if limit == throttleInterval { // longer than is set, as the upstream has been out of reach
		return &failure{DialTimedOut, fmt.Errorf("no connection within %v", limit)}
	}
	return &failure{DialTimedOut, fmt.Errorf("no connection within %v (setting connect_timeout)", limit)}
}

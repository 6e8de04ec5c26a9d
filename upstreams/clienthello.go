package upstreams

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// helloLate is how long at least the server must not have replied to a ClientHello
	// before a plainer one is sent on another connection: a path may lose large packets.
	helloLate = 500 * time.Millisecond
	// helloFor is how long a plainer ClientHello is used after it has helped, and
	// helloVain how long none is tried after one that has not.
	helloFor  = 24 * time.Hour
	helloVain = time.Minute
)

// helloOmissions says what is left out of a ClientHello, for servers and paths where a
// handshake fails with it. Nothing of the verification is ever left out.
type helloOmissions uint8

const (
	withoutALPN     helloOmissions = 1 << iota // servers that do not know "dot" may refuse it (RFC 7301 section 3.2)
	withoutKeyShare                            // X25519MLKEM768 makes it longer than a packet, which some paths lose

	omitNothing helloOmissions = 0
)

func (h helloOmissions) String() string {
	var left []string
	if h&withoutALPN != 0 {
		left = append(left, "alpn")
	}
	if h&withoutKeyShare != 0 {
		left = append(left, "key_share")
	}
	return strings.Join(left, ",")
}

func (h helloOmissions) apply(config *tls.Config) {
	if h&withoutALPN != 0 {
		config.NextProtos = nil
	}
	if h&withoutKeyShare != 0 {
		config.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384}
	}
}

// A helloMemory is what is known about ClientHellos at one endpoint.
type helloMemory struct {
	without helloOmissions // a plainer one has helped
	vain    bool           // none has helped
	cut     bool           // the server answered the last one by ending the connection
}

// helloProgress says how far a handshake has come.
type helloProgress struct {
	small              bool // no packet may be large
	optionalALPN       bool // the protocol need not be agreed upon
	connected, replied atomic.Bool
}

// remedy returns what to leave out of the next ClientHello after one that failed with
// err, if anything.
func (p *helloProgress) remedy(err error, known helloMemory) helloOmissions {
	switch {
	case refusedALPN(err) && p.optionalALPN:
		return withoutALPN
	case !p.connected.Load() || p.replied.Load():
		return omitNothing
	case OutcomeOf(err) == TLSTimedOut:
		return withoutKeyShare
	case known.cut && endedByPeer(err):
		return withoutKeyShare // twice in a row, so that the server has not just been restarted
	}
	return omitNothing
}

func endedByPeer(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) }

// noApplicationProtocol is the number of an alert (RFC 7301 section 3.2).
const noApplicationProtocol = 120

// refusedALPN reports whether the server ended a handshake because it knows none of the
// protocols that were offered. The alert has a type of crypto/tls that is a number.
func refusedALPN(err error) bool {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return false
	}
	alert := reflect.ValueOf(op.Err)
	return alert.Kind() == reflect.Uint8 && alert.Uint() == noApplicationProtocol
}

// A helloRace makes one connection to an endpoint. If the handshake fails, or gets no
// reply, for a reason that a plainer ClientHello may avoid, one is tried. The endpoint
// remembers what has helped.
type helloRace struct {
	transport  *tlsTransport
	endpoint   *endpoint
	limits     dialLimits
	known      helloMemory
	results    chan handshakeResult
	inProgress int
	tried      helloOmissions
	first      helloProgress
}

// A handshakeResult is the result of one handshake.
type handshakeResult struct {
	link    link
	err     error
	without helloOmissions
}

func (t *tlsTransport) open(ctx context.Context, e *endpoint, limits dialLimits) (link, error) {
	known, _ := e.hello.get()
	r := &helloRace{transport: t, endpoint: e, limits: limits, known: known, tried: known.without, results: make(chan handshakeResult, 3)}
	return r.run(ctx)
}

func (r *helloRace) run(ctx context.Context) (link, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.first.optionalALPN = r.transport.kind == DoT
	r.try(ctx, r.known.without, &r.first)
	late := time.NewTimer(r.transport.helloPatience())
	defer late.Stop()
	var problem error
	var failed link // says how far it came
	for r.inProgress > 0 {
		select {
		case <-late.C:
			switch {
			case !r.first.connected.Load():
				late.Reset(r.transport.helloPatience())
			case !r.first.replied.Load() && r.untried(withoutKeyShare) != 0:
				r.try(ctx, r.tried|withoutKeyShare, new(helloProgress))
			}
		case result := <-r.results:
			r.inProgress--
			if result.err == nil {
				cancel()
				r.closeLosers()
				r.won(result)
				return result.link, nil
			}
			if problem == nil {
				problem, failed = result.err, result.link
			}
			if left := r.untried(r.first.remedy(result.err, r.known)); left != 0 && ctx.Err() == nil {
				r.try(ctx, r.tried|left, new(helloProgress))
			}
		}
	}
	if ctx.Err() == nil {
		r.lost(problem)
	}
	return failed, problem
}

func (r *helloRace) try(ctx context.Context, without helloOmissions, p *helloProgress) {
	r.inProgress++
	r.tried |= without
	go func() {
		l, err := r.transport.openOnce(ctx, r.endpoint, without, r.limits, p)
		r.results <- handshakeResult{l, err, without}
	}()
}

// untried returns what of a remedy may be left out besides, unless that has been tried
// in vain lately.
func (r *helloRace) untried(remedy helloOmissions) helloOmissions {
	if r.known.vain {
		return omitNothing
	}
	return remedy &^ r.tried
}

// closeLosers waits for the handshakes that are in progress, which have been cancelled,
// and closes their connections.
func (r *helloRace) closeLosers() {
	for range r.inProgress {
		if result := <-r.results; result.err == nil {
			result.link.abort()
		}
	}
}

// won remembers a plainer ClientHello that has helped.
func (r *helloRace) won(result handshakeResult) {
	if result.without == r.known.without || result.without&withoutKeyShare != 0 && r.first.replied.Load() {
		return
	}
	r.endpoint.hello.learn(helloMemory{without: result.without}, helloFor)
	r.transport.log.Info("TLS handshake works with a plainer ClientHello, which is used from now on",
		"address", r.endpoint.addr, "without", result.without.String(), "for", helloFor)
}

// lost remembers that no ClientHello has helped, or that there was no reason yet to try a
// plainer one.
func (r *helloRace) lost(problem error) {
	switch {
	case r.tried != r.known.without:
		r.endpoint.hello.learn(helloMemory{vain: true}, helloVain)
	case r.known == helloMemory{} && r.first.connected.Load() && !r.first.replied.Load() && endedByPeer(problem):
		r.endpoint.hello.learn(helloMemory{cut: true}, helloVain)
	}
}

// helloPatience returns how long the server may not reply to a ClientHello before a plainer
// one is tried beside it.
func (t *tlsTransport) helloPatience() time.Duration {
	return max(helloLate, 4*time.Duration(t.tcp.connect.took.Load()), 4*time.Duration(t.handshake.took.Load()))
}

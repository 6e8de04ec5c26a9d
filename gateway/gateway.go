// Package gateway is the client's side: sockets, verification, the path of one
// query.
//
// It serves plain DNS over UDP and TCP (RFC 1035 section 4.2, RFC 7766) and has
// never heard of upstreams: a Resolver answers. Its read loops never wait for
// one, and no goroutine does. Of what can't be answered at once there are at most
// Options.MaxQueries; whoever comes on top of that gets an error at once, and every
// well-formed query gets some reply.
package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
)

const (
	// grace is how long queries under way may go on when the gateway stops.
	// Container runtimes kill after 10 s, and clients ask again after 1 s to 5 s.
	grace = 2 * time.Second
	// farewell is how long replies may take to leave after that.
	farewell = 250 * time.Millisecond
	// lastCall is how long sockets are still read when the gateway stops: what
	// had already reached this host is not lost.
	lastCall = 50 * time.Millisecond
	// drain is how long a socket is read that gets no more packets.
	drain = 5 * time.Millisecond
)

// A Resolver answers queries. It is the only thing that a Gateway needs.
type Resolver interface {
	// Ask has done called once with the answer to q, or with an error for which the
	// client gets SERVFAIL: by the deadline. If that error has a method EDE()
	// wire.EDE, the client is told what it returns; if it has a method Detail()
	// string, clients in Options.Trusted are told that in place of the EDE's text.
	//
	// It doesn't block, and neither does done, which may be called before Ask
	// returns. It may be called concurrently. Q is the callee's to keep, but not to
	// change.
	Ask(q wire.Query, deadline time.Time, done func(wire.Answer, error))
}

// A Gateway serves clients. It goes one way: New, Listen, Serve.
type Gateway struct {
	rules   atomic.Pointer[rules]
	log     *slog.Logger
	cache   *cache.Cache // never nil
	slots   slots
	flights flights
	domains domains
	loops   loops
	clients connections
	panics  panicLog

	mu          sync.Mutex // guards all below; not held during I/O
	adopted     bool       // the stations are somebody else's, and stay
	stations    []*station
	leaving     []*station // those that are no more, while the last are answered there
	past        Counts     // of those where everybody has left
	pastLatency Latency
	service     service
}

// New returns a Gateway that asks r. It checks all options, opens nothing and
// starts nothing.
func New(r Resolver, o Options) (*Gateway, error) {
	first, err := newRules(r, o, nil)
	if err != nil {
		return nil, err
	}
	o = first.Options
	g := &Gateway{log: o.Log, cache: o.Cache}
	if g.cache == nil {
		g.cache = new(cache.Cache)
	}
	g.domains = domains{log: o.Log, known: make(map[string]*domain)}
	g.flights.open = make(map[string]*flight)
	g.clients = connections{open: make(map[*connection]struct{}), clients: make(map[netip.Prefix]int)}
	g.slots.log, g.panics.log, g.loops.log = o.Log, o.Log, o.Log
	g.follow(first)
	return g, nil
}

// Addrs returns where g listens, with the ports that were chosen for port 0.
func (g *Gateway) Addrs() (all []netip.AddrPort) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.stations {
		all = append(all, s.addrs...)
	}
	return all
}

// Serve serves clients until ctx is done and then returns nil. It blocks.
//
// When ctx is done it answers what has reached this host by then, gives queries
// under way up to two seconds, and closes all sockets a quarter of a second
// later at most. Serve with a ctx that is done is thus how to close a Gateway
// that listens. All goroutines of g are gone when it returns. It can't be
// called again.
func (g *Gateway) Serve(ctx context.Context) error {
	if !g.begin(ctx) {
		return errors.New("serve: nothing is listening")
	}
	g.log.Debug("serving clients", "addresses", g.Addrs())
	<-ctx.Done()
	g.end()
	g.abandon() // what still goes on is for no client
	g.log.Debug("stopped serving clients")
	return nil
}

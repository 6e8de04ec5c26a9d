// Package gateway serves DNS clients.
//
// One query, step by step: a transport takes a packet or a message and calls tryAnswer,
// which verifies it, admits the client (allow list, rate limit, cookies), answers names
// that are known here, and looks into the cache. A reply that is ready is sent by the
// transport at once, without an allocation. Otherwise the query becomes a pendingQuery, holds
// a slot and joins the call for its name and type: the Resolver is asked once for all
// clients that ask the same at the same time. When the Resolver delivers, the answer is
// stored, and each pending query gets its reply.
//
// What it never does: it knows nothing of upstreams (a Resolver answers) or of sockets (a
// transport brings queries and takes replies), it never blocks a transport or a goroutine on
// a pending query, it never answers a packet that is not a query, and it never sends more
// than it received to a source that exceeds its rate and may be forged. Every well-formed
// query of an allowed client within its rate gets exactly one reply.
//
// A Gateway's states: New, Listen or Adopt, Serve; draining when Serve's context ends;
// stopped. While it serves, Prepare and Commit exchange its whole configuration.
//
// Its limits are options: queries in progress (MaxQueries, SERVFAIL beyond it) and time
// (Timeout). Those of connections are the transport's.
package gateway

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"dotgate/gateway/access"
	"dotgate/gateway/cache"
	"dotgate/gateway/transport"
	"dotgate/gateway/wire"
)

// A Resolver answers queries. It is the only thing that a Gateway needs.
type Resolver interface {
	// Ask calls done once with the answer to q, or with an error for which the
	// client gets SERVFAIL: by the deadline of ctx. If that error has a method EDE()
	// wire.EDE, the client is told what it returns; if it has a method Detail()
	// string, clients in Options.Trusted are told that in place of the EDE's text. If it
	// has a method AboutName() bool that returns true, the failure is cached for a moment.
	//
	// It doesn't block, and neither does done, which may be called before Ask
	// returns. It may be called concurrently. Q is the callee's to keep, but not to
	// change.
	//
	// Ctx has a deadline, and carries what Tracer.Begin returned. It never ends before
	// done is called, so there is no need to watch it.
	Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error))
}

// A Gateway serves clients: New, then Listen or Adopt, then Serve, each once.
type Gateway struct {
	current atomic.Pointer[config] // use config()
	storing sync.RWMutex           // read-locked while an answer is stored, so that current stays; not held during I/O
	log     *slog.Logger
	cache   *cache.Cache // never nil
	slots   slots
	calls   calls
	domains domains
	loops   loops
	counts  counterSet
	panics  panicLog
	refused *access.Refused
	// checkToken authenticates health checks; checks has their counts.
	checkToken access.Token
	checks     counters
	network    atomic.Pointer[access.Network] // never nil
	// networkChanged, of capacity 1, asks WatchClients to read the interfaces again.
	networkChanged chan struct{}

	server *transport.Server
}

// New returns a Gateway that asks r. It checks all options, opens nothing and
// starts nothing.
func New(r Resolver, o Options) (*Gateway, error) {
	first, err := newConfig(r, o, nil)
	if err != nil {
		return nil, err
	}
	o = first.Options
	g := &Gateway{log: o.Log, cache: o.Cache}
	if g.cache == nil {
		g.cache = new(cache.Cache)
	}
	g.domains = domains{log: o.Log, scarce: g.slots.scarce, known: make(map[string]*domain)}
	g.calls.open, g.counts.udp = make(map[string]*call), make(map[*counters]bool)
	g.slots.log, g.panics.log, g.loops.log = o.Log, o.Log, o.Log
	g.refused, g.networkChanged = access.NewRefused(), make(chan struct{}, 1)
	g.checkToken = access.NewToken()
	g.server = transport.NewServer(handler{g}, o.Log)
	g.apply(first)
	g.readNetwork()
	return g, nil
}

// Listen opens all sockets, UDP and TCP for each address in Options.Listen. Either all of them
// are open when it returns, or none, and the error names every address that failed. An
// address that no interface has is no error if at least one other can be opened.
func (g *Gateway) Listen() error {
	return g.server.Listen(g.config().Listen, g.config().Share)
}

// Adopt takes over open sockets, in place of Listen, and of all addresses that a Change would
// listen at.
func (g *Gateway) Adopt(listeners []*net.TCPListener, conns []*net.UDPConn) error {
	return g.server.Adopt(listeners, conns)
}

// Addrs returns where g listens, with the ports that were chosen for port 0.
func (g *Gateway) Addrs() []netip.AddrPort { return g.server.Addrs() }

// Serve serves clients until ctx is done and then returns nil. It blocks.
//
// When ctx is done it answers the queries that have reached this host by then, gives
// queries in progress up to two seconds, and closes all sockets a quarter of a second
// later at most. All goroutines of g have ended when it returns. To close a Gateway that
// listens, call Serve with a ctx that is done. Serve cannot be called twice.
func (g *Gateway) Serve(ctx context.Context) error {
	return g.server.Serve(ctx, g.failPending)
}

// CheckToken returns the secret that makes a query from this machine a health check: one
// that is answered like any query, but is exempt from client limits and is in no count, log
// or trace. It is new with each Gateway.
func (g *Gateway) CheckToken() [wire.TokenLen]byte { return g.checkToken }

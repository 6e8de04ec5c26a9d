package gateway

import (
	"fmt"
	"sync"
	"sync/atomic"

	"dotgate/gateway/access"
	"dotgate/gateway/cache"
	"dotgate/gateway/latency"
	"dotgate/gateway/transport"
	"dotgate/gateway/wire"
)

// An Outcome is the decision about one packet or message from a client. Each has exactly one.
// Replies that then could not be sent are in Counts.Undelivered as well.
type Outcome uint8

const (
	Answered        Outcome = iota // with an answer of the Resolver, or of the cache, even an error
	Checked                        // a health check of this machine, which is in no other count
	AnsweredLocally                // by this gateway: special names, CHAOS, ANY over UDP

	// The gateway failed, and the client got SERVFAIL.
	Failed   // the Resolver had no answer
	TimedOut // the Resolver had no answer in time
	Overload // Options.MaxQueries were in progress, or the domain is held back; no reply on a connection beyond the limits
	Crashed  // a bug of the gateway; no reply if it is in reading the packet

	// The query is malformed or not supported.
	RefusedMalformed // FORMERR
	RefusedOpcode    // NOTIMP: an opcode other than QUERY
	RefusedVersion   // BADVERS: an EDNS version above 0
	RefusedPolicy    // REFUSED: zone transfers, classes other than IN, TSIG
	RefusedLoop      // REFUSED: a query of this gateway that came back

	// The client is not served, or exceeds its rate.
	RefusedClient // REFUSED: not in Options.Allow
	RefusedRate   // over Options.RateLimit: a truncated reply, so that the client uses TCP
	RefusedCookie // BADCOOKIE: the same with a bad cookie, or with one while many queries are in progress

	// No reply is sent: the packet is not a query, and a reply could start a loop or amplify,
	// or the client is over its rate. Over TCP, the connection is closed.
	IgnoredShort    // shorter than a header
	IgnoredResponse // a response
	IgnoredSource   // from port 0, which cannot receive
	IgnoredClient   // not in Options.Allow, after a few refusals
	IgnoredRate     // over Options.RateLimit, every second query

	outcomes int = iota
)

var outcomeNames = [outcomes]string{
	Answered: "answered", Checked: "health_check", AnsweredLocally: "answered_locally",
	Failed: "failed", TimedOut: "timed_out", Overload: "overload", Crashed: "crashed",
	RefusedMalformed: "refused_malformed", RefusedOpcode: "refused_opcode",
	RefusedVersion: "refused_version", RefusedPolicy: "refused_policy",
	RefusedLoop: "refused_loop", RefusedClient: "refused_client", RefusedRate: "refused_rate", RefusedCookie: "refused_cookie",
	IgnoredClient: "ignored_client", IgnoredRate: "ignored_rate",
	IgnoredShort: "ignored_short", IgnoredResponse: "ignored_response", IgnoredSource: "ignored_source",
}

// String returns the outcome in a form fit for a metric's label.
func (o Outcome) String() string {
	if int(o) < outcomes {
		return outcomeNames[o]
	}
	return fmt.Sprintf("Outcome(%d)", uint8(o))
}

// Counts has the counts of a Gateway since New. Those that say "now" go up and down.
// All others only grow.
//
// Received is the sum of Outcomes, per transport, once no query is in progress; until then it
// is larger.
type Counts struct {
	Received    PerTransport
	Outcomes    [outcomes]PerTransport // indexed by Outcome
	Undelivered PerTransport           // replies that could not be sent
	ServFails   PerTransport           // those Answered with SERVFAIL
	InProgress  int                    // pending queries now
	Dropped     uint64                 // packets that the system dropped because a socket was full; 0 where it does not tell

	// Refused counts queries of clients that are not in Options.Allow, indexed by
	// ClientClass: RefusedClient and IgnoredClient together.
	Refused [access.ClientClasses]uint64

	// Cache is about queries that were neither refused nor ignored.
	Cache struct {
		Hits       PerTransport // answered from fresh entries
		Misses     PerTransport // waited for the Resolver; their results are in Outcomes
		Stale      PerTransport // answered from stale entries, most of them after a miss
		Coalesced  PerTransport // misses that waited for a call led by another query
		Prefetches PerTransport // calls that renewed popular entries before they expired
	}

	Connections transport.ConnectionCounts
}

// PerTransport is a count for UDP and one for TCP, indexed by wire.Transport.
type PerTransport [2]uint64

// Total returns the sum over all transports.
func (p PerTransport) Total() uint64 { return p[wire.UDP] + p[wire.TCP] }

// counters counts for one UDP socket, or for all TCP connections. Each UDP socket is read by a
// core of its own, hence the padding: cores do not contend for the cache lines.
type counters struct {
	_ [64]byte
	transport.Counters
	outcomes   [outcomes]atomic.Uint64
	servFails  atomic.Uint64
	hits       atomic.Uint64
	misses     atomic.Uint64
	stale      atomic.Uint64
	coalesced  atomic.Uint64
	prefetches atomic.Uint64
	overRate   atomic.Uint64 // queries over Options.RateLimit
	waited     latency.Histogram
	_          [64]byte
}

// counterSet has the counters of all sockets and connections.
type counterSet struct {
	tcp counters
	mu  sync.Mutex
	udp map[*counters]bool // whether a socket counts there; of one that has closed, another one takes them over
}

// take returns counters for a socket or for a connection.
func (s *counterSet) take(via wire.Transport) *counters {
	if via == wire.TCP {
		return &s.tcp
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := new(counters)
	for known, used := range s.udp {
		if !used {
			n = known
			break
		}
	}
	s.udp[n] = true
	return n
}

// release gives back what take returned.
func (s *counterSet) release(n *counters) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.udp[n] {
		s.udp[n] = false
	}
}

// each calls do for all counters.
func (s *counterSet) each(do func(wire.Transport, *counters)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.udp {
		do(wire.UDP, n)
	}
	do(wire.TCP, &s.tcp)
}

// finished counts an outcome, with its reply and what the cache had for it.
func (n *counters) finished(o Outcome, found cache.Result, reply []byte) {
	n.count(o)
	if o != Answered {
		return
	}
	if !wire.HeaderRCode(reply).IsResult() {
		n.servFails.Add(1)
	}
	switch found {
	case cache.Fresh, cache.FreshRenew:
		n.hits.Add(1)
	case cache.Stale:
		n.stale.Add(1)
	}
}

func (n *counters) count(o Outcome) { n.outcomes[o].Add(1) }

func (n *counters) addTo(c *Counts, via wire.Transport) {
	for o := range n.outcomes {
		c.Outcomes[o][via] += n.outcomes[o].Load()
	}
	c.Outcomes[IgnoredSource][via] += n.NoPort.Load()
	// Received comes after its outcomes, so that it is never behind them.
	c.Received[via] += n.Received.Load()
	c.Undelivered[via] += n.Undelivered.Load()
	c.Cache.Hits[via] += n.hits.Load()
	c.Cache.Misses[via] += n.misses.Load()
	c.Cache.Stale[via] += n.stale.Load()
	c.Cache.Coalesced[via] += n.coalesced.Load()
	c.Cache.Prefetches[via] += n.prefetches.Load()
	c.ServFails[via] += n.servFails.Load()
}

// Counts returns the current counts. It is made for a scrape every second rather than for
// every query.
func (g *Gateway) Counts() Counts {
	var c Counts
	g.counts.each(func(via wire.Transport, n *counters) { n.addTo(&c, via) })
	c.InProgress = int(g.slots.taken.Load())
	c.Dropped, c.Connections = g.server.Dropped(), g.server.Connections()
	for class := range c.Refused {
		c.Refused[class] = g.refused.Total(access.ClientClass(class))
	}
	return c
}

// A Latency has how long clients waited, from when a query was read until its reply was ready,
// for all queries that waited for the Resolver, whatever their outcome. Replies that were ready
// at once are in Counts only.
type Latency = latency.Snapshot

// Latency returns the latencies so far.
func (g *Gateway) Latency() Latency {
	var l Latency
	g.counts.each(func(_ wire.Transport, n *counters) { l.Include(&n.waited) })
	return l
}

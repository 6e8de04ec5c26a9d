package gateway

import (
	"fmt"
	"sync/atomic"

	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
)

// An Outcome is what became of one packet or message from a client. Each has
// exactly one. An outcome says what was decided; replies that then could not be
// delivered are in Counts.Undelivered as well.
type Outcome uint8

const (
	Answered        Outcome = iota // with an answer of the Resolver, be it an error
	AnsweredLocally                // with what is known here: special names, CHAOS, ANY over UDP

	// Failures of ours: the client got SERVFAIL.
	Failed   // the Resolver had no answer
	TimedOut // the Resolver had no answer in time
	Shed     // Options.MaxQueries were under way
	Crashed  // a bug of ours; if it is in the reading of packets, no reply

	// Queries that the client should not have sent like this.
	RefusedMalformed // FORMERR
	RefusedOpcode    // NOTIMP: an opcode other than QUERY
	RefusedVersion   // BADVERS: an EDNS version above 0
	RefusedPolicy    // REFUSED: zone transfers, classes other than IN, TSIG
	RefusedLoop      // REFUSED: a query of ours that came back

	// Queries from whom we don't serve, or not as often.
	RefusedClient // REFUSED: not in Options.Allow
	RefusedRate   // over Options.RateLimit: told to come by TCP
	RefusedCookie // the same with a bad cookie, or while many queries are under way: BADCOOKIE

	// Packets that are no queries. Any reply could start a loop or amplify.
	// Over TCP, the connection is closed.
	IgnoredShort    // shorter than a header
	IgnoredResponse // a response
	IgnoredSource   // from port 0, where no reply can go
	IgnoredClient   // not in Options.Allow, and too many
	IgnoredRate     // over Options.RateLimit, every other one

	outcomes int = iota
)

var outcomeNames = [outcomes]string{
	Answered: "answered", AnsweredLocally: "answered_locally",
	Failed: "failed", TimedOut: "timed_out", Shed: "shed", Crashed: "crashed",
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

// Counts is what a Gateway has done since New. All but the two that say "now"
// only grow.
//
// Received is the sum of Outcomes, per transport, once nothing is under way;
// until then it is ahead of it.
type Counts struct {
	Received    PerTransport
	Outcomes    [outcomes]PerTransport // indexed by Outcome
	Undelivered PerTransport           // replies that were made but not taken
	ServFails   PerTransport           // of those Answered: that the answer was SERVFAIL
	UnderWay    int                    // queries that wait for the Resolver now
	Dropped     uint64                 // packets that the system dropped for want of room in a socket; 0 where it does not tell

	// Cache is about queries that were neither refused nor ignored.
	Cache struct {
		Hits       PerTransport // answered with what was fresh
		Misses     PerTransport // had to wait for the Resolver; what came of it is in Outcomes
		Stale      PerTransport // answered with what was stale, most of them after a miss
		Coalesced  PerTransport // waited for an exchange that another client had begun; misses too
		Prefetches PerTransport // exchanges to renew what was popular before its end
	}

	Connections struct {
		Open     int    // now
		Accepted uint64 // all, those turned away included
		Evicted  uint64 // closed while idle, to make room for a new one
		Rejected uint64 // turned away: no room, and none idle
		Idle     uint64 // closed for being idle
		Stalled  uint64 // closed, or closed by the client, in the midst of a message
		Slow     uint64 // closed for not reading replies
	}
}

// PerTransport is a count for UDP and one for TCP, indexed by wire.Transport.
type PerTransport [2]uint64

// Total returns the sum over all transports.
func (p PerTransport) Total() uint64 { return p[wire.UDP] + p[wire.TCP] }

// A tally counts for one socket, or for all TCP connections of one listener.
// Every UDP socket is read by a core of its own, hence the padding: cores don't
// contend for the cache lines.
type tally struct {
	_           [64]byte
	received    atomic.Uint64
	outcomes    [outcomes]atomic.Uint64
	undelivered atomic.Uint64
	servFails   atomic.Uint64
	hits        atomic.Uint64
	misses      atomic.Uint64
	stale       atomic.Uint64
	coalesced   atomic.Uint64
	prefetches  atomic.Uint64
	curbed      atomic.Uint64 // over Options.RateLimit, whatever became of it
	waited      histogram
	_           [64]byte
}

// answered counts a reply that is an answer of the Resolver.
func (t *tally) answered(rcode wire.RCode) {
	t.count(Answered)
	if rcode == wire.ServFail {
		t.servFails.Add(1)
	}
}

// cached counts a reply that the cache made.
func (t *tally) cached(reply []byte, found cache.Found) {
	t.answered(wire.HeaderRCode(reply))
	if found == cache.Stale {
		t.stale.Add(1)
	} else {
		t.hits.Add(1)
	}
}

func (t *tally) count(o Outcome) { t.outcomes[o].Add(1) }

func (t *tally) addTo(c *Counts, via wire.Transport) {
	for o := range t.outcomes {
		c.Outcomes[o][via] += t.outcomes[o].Load()
	}
	// Received comes after its outcomes, so that it is never behind them.
	c.Received[via] += t.received.Load()
	c.Undelivered[via] += t.undelivered.Load()
	c.Cache.Hits[via] += t.hits.Load()
	c.Cache.Misses[via] += t.misses.Load()
	c.Cache.Stale[via] += t.stale.Load()
	c.Cache.Coalesced[via] += t.coalesced.Load()
	c.Cache.Prefetches[via] += t.prefetches.Load()
	c.ServFails[via] += t.servFails.Load()
}

// Counts returns the counts of now. It is cheap, but made for a scrape every
// second rather than for every query.
func (g *Gateway) Counts() Counts {
	g.mu.Lock()
	c := g.past
	g.eachStation(func(s *station) { s.addTo(&c) })
	g.mu.Unlock()
	c.UnderWay = int(g.slots.taken.Load())
	g.clients.addTo(&c)
	return c
}

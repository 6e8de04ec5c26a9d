package control

import (
	"encoding/json"
	"net/netip"
	"os"
	"time"

	"dotgate/cmd/dotgate/peers"
	"dotgate/gateway"
	"dotgate/gateway/wire"
	"dotgate/upstreams"
)

// Millis is a duration that is a number of milliseconds in JSON.
type Millis time.Duration

// MarshalJSON writes milliseconds, to the microsecond.
func (m Millis) MarshalJSON() ([]byte, error) {
	return json.Marshal(float64(time.Duration(m).Microseconds()) / 1000)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (m *Millis) UnmarshalJSON(text []byte) error {
	var ms float64
	err := json.Unmarshal(text, &ms)
	*m = Millis(ms * float64(time.Millisecond))
	return err
}

// A Status is what a gateway knows about itself at one moment.
type Status struct {
	Version   string           `json:"version"`
	PID       int              `json:"pid"`
	Started   time.Time        `json:"started"`
	Listening []netip.AddrPort `json:"listening"`
	Upstreams []UpstreamStatus `json:"upstreams"`
	Clients   ClientStatus     `json:"clients"`
	// Balancer counts what it did, by what: queries, attempts, hedges, retries,
	// seconds (second opinions), failures.
	Balancer map[string]uint64 `json:"balancer"`
	Drill    *DrillStatus      `json:"drill,omitempty"` // under way, or nil
	Peers    []PeerStatus      `json:"peers,omitempty"` // other gateways
	Redis    *RedisStatus      `json:"redis,omitempty"` // the cache that they share, or nil
}

// A RedisStatus is about the cache in Redis.
type RedisStatus struct {
	Up     bool              `json:"up"`     // it is asked now
	Reads  map[string]uint64 `json:"reads"`  // by result: hit, miss, skipped, invalid, failed
	Writes map[string]uint64 `json:"writes"` // of answers, by result: written, dropped, failed
}

// A PeerStatus is about another gateway of the same configuration.
type PeerStatus struct {
	Name    string         `json:"name"`
	Host    string         `json:"host,omitempty"` // how it calls itself; empty if it was never there
	Address netip.AddrPort `json:"address,omitzero"`
	Version string         `json:"version,omitempty"`
	Up      bool           `json:"up"`
	Since   time.Time      `json:"since,omitzero"`    // when it came or went; zero if it was never there
	Problem string         `json:"problem,omitempty"` // why it is not there
	Failing []string       `json:"failing,omitempty"` // upstreams that it finds failing
	// Usual is how long answers of upstreams take it, in milliseconds, by upstream.
	Usual map[string]Millis `json:"usual_ms,omitempty"`
}

// An UpstreamStatus is about one upstream.
type UpstreamStatus struct {
	Name      string           `json:"name"`
	Route     string           `json:"route,omitempty"` // the name that it is for; empty: all that have no other
	Addresses []netip.AddrPort `json:"addresses"`
	State     string           `json:"state"`            // up, suspect or down
	Since     time.Time        `json:"since,omitzero"`   // when it went up or down, or silent; zero if unknown
	Reason    string           `json:"reason,omitempty"` // why it is suspect or down
	Usual     Millis           `json:"usual_ms"`         // 0 if unknown
	Patience  Millis           `json:"patience_ms"`
	Open      int              `json:"connections"`
	// Counts has sent, answered, stripped, resent, dials, handshakes, resumed, unasked,
	// mismatched, foreign and malformed.
	Counts map[string]uint64 `json:"counts"`
	// Attempts has what became of the queries that it was asked, by outcome, as
	// far as there were any.
	Attempts map[string]uint64 `json:"attempts"`

	Order       string         `json:"order"`             // auto, or what the operator wants
	Answered    time.Time      `json:"answered,omitzero"` // when it last did; zero if never
	Breaker     BreakerStatus  `json:"breaker"`
	Certificate time.Time      `json:"certificate_not_after,omitzero"` // when it ends; zero if none was seen
	Failure     *FailureStatus `json:"last_failure,omitempty"`         // nil if there was none
	Changes     []ChangeStatus `json:"changes,omitempty"`              // the latest, the newest last
}

// A BreakerStatus is about a circuit breaker.
type BreakerStatus struct {
	State     string `json:"state"` // closed, half-open or open
	Votes     uint32 `json:"votes"` // since it last changed
	Failures  uint32 `json:"failures"`
	InARow    uint32 `json:"failures_in_a_row"`
	Abstained uint32 `json:"abstained"` // outcomes that said nothing about the upstream
}

// A FailureStatus is about an attempt that got no answer.
type FailureStatus struct {
	At      time.Time `json:"at"`
	Outcome string    `json:"outcome"`
	Error   string    `json:"error"`
}

// A ChangeStatus is about when an upstream went up or down.
type ChangeStatus struct {
	At     time.Time `json:"at"`
	State  string    `json:"state"`
	Lasted Millis    `json:"lasted_ms,omitempty"` // the state before; 0 if unknown
	Reason string    `json:"reason,omitempty"`
}

// A ClientStatus is about what clients asked and got.
type ClientStatus struct {
	UDP      uint64            `json:"udp"`      // packets received
	TCP      uint64            `json:"tcp"`      // messages received
	UnderWay int               `json:"underway"` // queries that wait for an upstream now
	Outcomes map[string]uint64 `json:"outcomes"` // what became of them
	Lost     uint64            `json:"lost"`     // of these: those that we failed
	ServFail uint64            `json:"servfail"` // of those answered: SERVFAIL, as the resolvers said
	// Cache counts hits, stale (answers), misses, coalesced and prefetches.
	Cache map[string]uint64 `json:"cache"`
	P50   Millis            `json:"p50_ms"` // of those that waited for an upstream
	P99   Millis            `json:"p99_ms"`
	Max   Millis            `json:"max_ms"`
	Open  int               `json:"connections"`
}

// A DrillStatus is about a drill under way.
type DrillStatus struct {
	Upstream string    `json:"upstream"`
	Fault    string    `json:"fault"`
	Phase    string    `json:"phase"` // before, during or after the fault
	Ends     time.Time `json:"ends"`  // when the fault does at the latest
}

// Status returns what is known now.
func (s *Server) Status() Status {
	status := Status{
		Version: s.o.Version, PID: os.Getpid(), Started: s.started, Listening: s.o.Gateway.Addrs(),
		Clients: clientStatus(s.o.Gateway), Drill: s.drillStatus(),
	}
	for _, m := range s.o.Members() {
		status.Upstreams = append(status.Upstreams, upstreamStatus(m))
	}
	if s.o.Peers != nil {
		for _, p := range s.o.Peers().Peers {
			status.Peers = append(status.Peers, peerStatus(p))
		}
	}
	if s.o.Redis != nil {
		if c := s.o.Redis(); c.Reads != nil {
			status.Redis = &RedisStatus{Up: c.Up, Reads: c.Reads, Writes: c.Writes}
		}
	}
	c := s.o.Balancer.Counts()
	status.Balancer = map[string]uint64{
		"queries": c.Queries, "attempts": c.Attempts, "hedges": c.Hedges,
		"retries": c.Retries, "seconds": c.Seconds, "failures": c.Failures,
	}
	return status
}

func peerStatus(p peers.Peer) PeerStatus {
	s := PeerStatus{
		Name: p.Name, Host: p.Host, Address: p.Address, Version: p.Version, Up: p.Up, Since: p.Since,
		Problem: p.Problem, Failing: p.Failing, Usual: make(map[string]Millis),
	}
	for upstream, usual := range p.Usual {
		s.Usual[upstream] = Millis(usual)
	}
	return s
}

func upstreamStatus(m Member) UpstreamStatus {
	s, c, h := m.Monitor.Status(), m.Upstream.Counts(), m.History()
	status := UpstreamStatus{
		Name: m.String(), Route: m.Route, Addresses: m.Addresses(),
		State: s.State.String(), Since: s.Since, Reason: s.Reason,
		Usual: Millis(s.Usual), Patience: Millis(s.Patience),
		Open: c.Open, Counts: upstreamCounts(c), Attempts: attemptCounts(h),
		Order: s.Order.String(), Answered: s.Answered, Breaker: BreakerStatus(s.Breaker), Certificate: h.NotAfter,
	}
	if f := m.LastFailure(); f.Err != nil {
		status.Failure = &FailureStatus{At: f.At, Outcome: f.Outcome.String(), Error: f.Err.Error()}
	}
	for _, c := range m.Changes() {
		status.Changes = append(status.Changes, ChangeStatus{At: c.At, State: c.State.String(), Lasted: Millis(c.Lasted), Reason: c.Reason})
	}
	return status
}

func attemptCounts(h upstreams.History) map[string]uint64 {
	counts := make(map[string]uint64)
	for _, a := range h.Addresses {
		for o, n := range a.Attempts {
			if n > 0 {
				counts[upstreams.Outcome(o).String()] += n
			}
		}
	}
	return counts
}

func upstreamCounts(c upstreams.Counts) map[string]uint64 {
	return map[string]uint64{
		"dials": c.Dials, "handshakes": c.Handshakes, "resumed": c.Resumed,
		"sent": c.Sent, "answered": c.Answered, "resent": c.Resent,
		"unasked": c.Unasked, "mismatched": c.Mismatched, "foreign": c.Foreign, "malformed": c.Malformed,
		"stripped": c.Stripped,
	}
}

func clientStatus(g Gateway) ClientStatus {
	c, l := g.Counts(), g.Latency()
	s := ClientStatus{
		UDP: c.Received[wire.UDP], TCP: c.Received[wire.TCP], UnderWay: c.UnderWay,
		Outcomes: make(map[string]uint64), Lost: lost(c), ServFail: c.ServFails.Total(),
		P50: Millis(l.Quantile(0.5)), P99: Millis(l.Quantile(0.99)), Max: Millis(l.Quantile(1)),
		Open: c.Connections.Open,
	}
	s.Cache = map[string]uint64{
		"hits": c.Cache.Hits.Total(), "stale": c.Cache.Stale.Total(), "misses": c.Cache.Misses.Total(),
		"coalesced": c.Cache.Coalesced.Total(), "prefetches": c.Cache.Prefetches.Total(),
	}
	for o, n := range c.Outcomes {
		s.Outcomes[gateway.Outcome(o).String()] = n.Total()
	}
	return s
}

// Queries returns how many were answered or lost, and how many of these were
// lost: failed by us. What was refused or ignored is no query.
func Queries(c gateway.Counts) (queries, failed uint64) {
	failed = lost(c)
	return answered(c) + failed, failed
}

// lost returns how many queries got SERVFAIL, or nothing, for a failure of ours.
func lost(c gateway.Counts) uint64 {
	var n uint64
	for _, o := range []gateway.Outcome{gateway.Failed, gateway.TimedOut, gateway.Shed, gateway.Crashed} {
		n += c.Outcomes[o].Total()
	}
	return n
}

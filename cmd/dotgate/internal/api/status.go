package api

import (
	"net/netip"
	"os"
	"strings"
	"time"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/internal/peers"
	"dotgate/gateway"
	"dotgate/gateway/access"
	"dotgate/gateway/latency"
	"dotgate/gateway/redis"
	"dotgate/gateway/wire"
	"dotgate/health"
	"dotgate/upstreams"
)

// Millis is a duration that is a number of milliseconds in JSON.
type Millis = latency.Millis

// A Status is the state of the gateway at one moment.
type Status struct {
	Version   string           `json:"version"`
	PID       int              `json:"pid"`
	Started   time.Time        `json:"started"`
	Listening []netip.AddrPort `json:"listening"`
	OnLink    []access.Link    `json:"on_link,omitempty"` // networks that on_link stands for now; nil if gateway.allow does not include it
	Outage    string           `json:"outage,omitempty"`  // why no upstream of the main list is up; empty if one is
	Network   string           `json:"network,omitempty"` // which ports it blocks; empty if none
	Upstreams []UpstreamStatus `json:"upstreams"`
	Clients   ClientStatus     `json:"clients"`
	Balancer  balancer.Counts  `json:"balancer"`
	// LogDropped counts log lines that were dropped because standard error was blocked.
	LogDropped uint64        `json:"log_lines_dropped"`
	Drill      *DrillStatus  `json:"drill,omitempty"` // the running one, or nil
	Peers      []peers.Peer  `json:"peers,omitempty"` // other gateways
	Redis      *redis.Counts `json:"redis,omitempty"` // the shared cache, or nil
}

// An UpstreamStatus describes one upstream.
type UpstreamStatus struct {
	Name      string           `json:"name"`
	Route     string           `json:"route,omitempty"`  // first name of its list; empty for the main list
	Routes    []string         `json:"routes,omitempty"` // all its lists if there are several, by their first names
	Addresses []netip.AddrPort `json:"addresses"`
	State     string           `json:"state"`            // up, suspect, erroring or down
	Since     time.Time        `json:"since,omitzero"`   // the last change of state; zero if unknown
	Reason    string           `json:"reason,omitempty"` // why it is not up
	Usual     Millis           `json:"usual_ms"`         // 0 if unknown
	Patience  Millis           `json:"patience_ms"`
	Open      int              `json:"connections"`
	Transport string           `json:"transport,omitempty"` // of these; of several, the one that is preferred
	Instead   string           `json:"instead,omitempty"`   // the transport that would be preferred to it, but fails
	Rate      *RateStatus      `json:"rate,omitempty"`      // nil if no limit is known
	Counts    upstreams.Counts `json:"counts"`
	// Attempts has the number of attempts by outcome, without zeros.
	Attempts map[string]uint64 `json:"attempts"`

	Endpoints []EndpointStatus `json:"endpoints"`

	AdminState  string         `json:"admin_state"`       // auto, or the state set by hand
	Answered    time.Time      `json:"answered,omitzero"` // the last answer; zero if none
	Breaker     health.Breaker `json:"breaker"`
	Certificate time.Time      `json:"certificate_not_after,omitzero"` // zero if none was seen
	Failure     *FailureStatus `json:"last_failure,omitempty"`         // nil if none
	Changes     []ChangeStatus `json:"changes,omitempty"`              // the latest, the newest last
}

// A RateStatus is the limit of queries a second that an upstream is spared from exceeding.
type RateStatus struct {
	Limit  int  `json:"limit"`
	Learnt bool `json:"learnt"` // by refused queries; else it is option rate
}

// An EndpointStatus describes an address and a transport of an upstream.
type EndpointStatus struct {
	Address   netip.AddrPort `json:"address"`
	Transport string         `json:"transport"` // dot, doh, doq, doh3, tcp or udp
	// State is "in use" with open connections, or over UDP, "avoided" if it failed, or was slower, while
	// another one worked, and else by the last dial "standing by", "failed" or "unproven".
	State   string    `json:"state"`
	Open    int       `json:"connections"`
	Dialled time.Time `json:"dialled,omitzero"` // when the last dial ended; zero if there was none
	Result  string    `json:"result,omitempty"` // the outcome of it: noerror if it was successful
	// Avoided is the time of the next try; zero if it is not avoided.
	Avoided time.Time `json:"avoided_until,omitzero"`
	// Without lists the features that ClientHellos or plain queries leave out there: alpn,
	// key_share, edns, case.
	Without string `json:"without,omitempty"`
}

func endpointStatus(a upstreams.AddressHistory) EndpointStatus {
	e := EndpointStatus{Address: a.Address, Transport: a.Transport, Open: a.Open, Dialled: a.Dialled, Avoided: a.Avoided, Without: a.Without}
	if !a.Dialled.IsZero() {
		e.Result = a.Result.String()
	}
	switch {
	case a.Open > 0, a.Transport == upstreams.UDP && a.Avoided.IsZero(): // UDP has no connections
		e.State = "in use"
	case !a.Avoided.IsZero():
		e.State = "avoided"
	case a.Dialled.IsZero():
		e.State = "unproven"
	case a.Result == upstreams.GotNoError:
		e.State = "standing by"
	default:
		e.State = "failed"
	}
	return e
}

// A FailureStatus describes an attempt that got no answer.
type FailureStatus struct {
	At      time.Time `json:"at"`
	Outcome string    `json:"outcome"`
	Error   string    `json:"error"`
}

// A ChangeStatus is a change of an upstream's state.
type ChangeStatus struct {
	At     time.Time `json:"at"`
	State  string    `json:"state"`
	Lasted Millis    `json:"lasted_ms,omitempty"` // duration of the state before; 0 if unknown
	Reason string    `json:"reason,omitempty"`
}

// A ClientStatus has the counters of clients.
type ClientStatus struct {
	UDP      uint64            `json:"udp"`      // packets received
	TCP      uint64            `json:"tcp"`      // messages received
	UnderWay int               `json:"underway"` // queries that are waiting for an upstream
	Outcomes map[string]uint64 `json:"outcomes"` // of these packets and messages
	Lost     uint64            `json:"lost"`     // of these: failed by the gateway
	ServFail uint64            `json:"servfail"` // of those answered: SERVFAIL of an upstream
	// Cache counts hits, stale (answers), misses, coalesced and prefetches.
	Cache map[string]uint64 `json:"cache"`
	P50   Millis            `json:"p50_ms"` // of queries that waited for an upstream
	P99   Millis            `json:"p99_ms"`
	Max   Millis            `json:"max_ms"`
	Open  int               `json:"connections"`
}

// A DrillStatus describes the running drill.
type DrillStatus struct {
	Upstream string    `json:"upstream"`
	Fault    string    `json:"fault"`
	Phase    string    `json:"phase"` // before, during or after the fault
	Ends     time.Time `json:"ends"`  // the latest end of the fault
}

// Status returns the current state.
func (s *Server) Status() Status {
	status := Status{
		Version: s.o.Version, PID: os.Getpid(), Started: s.started, Listening: s.o.Gateway.Addrs(),
		OnLink: s.o.Gateway.OnLink(), Outage: s.o.Outage(), Network: s.o.Network.String(), Clients: clientStatus(s.o.Gateway), Balancer: s.o.Balancer.Counts(),
		LogDropped: s.o.LogDropped(), Drill: s.drillStatus(), Peers: s.o.Peers().Peers,
	}
	for _, m := range s.o.Members() {
		status.Upstreams = append(status.Upstreams, upstreamStatus(m))
	}
	if c := s.o.Redis(); c.Reads != nil {
		status.Redis = &c
	}
	return status
}

func upstreamStatus(m Member) UpstreamStatus {
	s, c, h := m.Monitor.Status(), m.Upstream.Counts(), m.History()
	status := UpstreamStatus{
		Name: m.String(), Route: m.Lists()[0], Addresses: m.Addresses(),
		State: s.State.String(), Since: s.Since, Reason: s.Reason,
		Usual: Millis(s.Usual), Patience: Millis(s.Patience),
		Open: c.Open, Transport: c.Transport, Instead: c.Instead, Counts: c, Attempts: attemptCounts(h),
		AdminState: s.AdminState.String(), Answered: s.Answered, Breaker: s.Breaker, Certificate: h.NotAfter,
	}
	for _, a := range h.Addresses {
		if a.Address.IsValid() {
			status.Endpoints = append(status.Endpoints, endpointStatus(a))
		}
	}
	if c.Rate > 0 {
		status.Rate = &RateStatus{c.Rate, c.RateLearnt}
	}
	if len(m.Routes) > 1 {
		status.Routes = m.Routes
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

func clientStatus(g Gateway) ClientStatus {
	c, l := g.Counts(), g.Latency()
	s := ClientStatus{
		UDP: c.Received[wire.UDP], TCP: c.Received[wire.TCP], UnderWay: c.InProgress,
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

// Queries returns the number of queries that were answered or failed, and the number of
// those that the gateway failed. Refused and ignored messages do not count.
func Queries(c gateway.Counts) (queries, failed uint64) {
	failed = lost(c)
	return answered(c) + failed, failed
}

// lost returns the number of queries that the gateway answered with SERVFAIL, or not at all.
func lost(c gateway.Counts) uint64 {
	var n uint64
	for _, o := range []gateway.Outcome{gateway.Failed, gateway.TimedOut, gateway.Overload, gateway.Crashed} {
		n += c.Outcomes[o].Total()
	}
	return n
}

// JoinAddrs returns addresses for people.
func JoinAddrs(all []netip.AddrPort) string {
	texts := make([]string, len(all))
	for i, a := range all {
		texts[i] = a.String()
	}
	return strings.Join(texts, ", ")
}

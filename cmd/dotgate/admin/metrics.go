package admin

import (
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"dotgate/cmd/dotgate/control"
	"dotgate/cmd/dotgate/peers"
	"dotgate/cmd/dotgate/tracing"
	"dotgate/gateway"
	"dotgate/gateway/latency"
	"dotgate/gateway/querylog"
	"dotgate/gateway/redis"
	"dotgate/gateway/wire"
	"dotgate/health"
	"dotgate/upstreams"
)

// bounds are the buckets of histograms: powers of two in microseconds, for which
// what is counted is exact.
var bounds = func() (all []time.Duration) {
	for us := time.Duration(128); us <= 1<<23; us *= 2 {
		all = append(all, us*time.Microsecond)
	}
	return all
}()

// A Metric is what /metrics tells of one name.
type Metric struct {
	Name   string
	Type   string // counter, gauge or histogram
	Help   string
	Labels []string

	desc *prometheus.Desc
	kind prometheus.ValueType
}

// known are all metrics, in the order in which they were described.
var known []*Metric

func describe(kind, name, help string, labels ...string) *Metric {
	m := &Metric{Name: "dotgate_" + name, Type: kind, Help: help, Labels: labels, kind: prometheus.GaugeValue}
	if kind == "counter" {
		m.kind = prometheus.CounterValue
	}
	m.desc = prometheus.NewDesc(m.Name, help, labels, nil)
	known = append(known, m)
	return m
}

// Metrics returns all metrics that are dotgate's own. Those of the Go runtime and
// the process come on top.
func Metrics() []*Metric { return known }

var (
	mBuild       = describe("gauge", "build_info", "Always 1; the version is in its label.", "version")
	mReady       = describe("gauge", "ready", "1 if /readyz says that clients should come.")
	mRedundancy  = describe("gauge", "redundancy", "Upstreams that are up, suspect ones included, by route; route is empty for those of all names that have none.", "route")
	mHeld        = describe("gauge", "shared_address_held", "1 if this machine has an address of admin.shared_addresses now.", "address")
	mReloads     = describe("counter", "config_reloads_total", "Reloads of the configuration, by result: ok or failed.", "result")
	mReloadOK    = describe("gauge", "config_last_reload_successful", "1 if the last reload, if there was any, was done.")
	mReloadTime  = describe("gauge", "config_last_reload_success_timestamp_seconds", "When the configuration in effect was loaded.")
	mQueryLog    = describe("counter", "query_log_entries_total", "Entries of the query log, by result: written, dropped because the output was not quick enough, or failed.", "result")
	mSpans       = describe("counter", "tracing_spans_total", "Spans of traces, by result: exported, dropped because the collector was not quick enough, failed, or rejected by the collector.", "result")
	mReceived    = describe("counter", "client_messages_total", "Packets and messages received from clients, by transport.", "transport")
	mOutcomes    = describe("counter", "client_outcomes_total", "What became of them: answered, failed by us (failed, timed_out, shed, crashed), refused_REASON or ignored_REASON.", "transport", "outcome")
	mServFails   = describe("counter", "client_servfails_total", "Of those answered: with the SERVFAIL of an upstream.", "transport")
	mUndelivered = describe("counter", "client_replies_undelivered_total", "Replies that were made but could not be sent.", "transport")
	mWaiting     = describe("gauge", "client_queries_waiting", "Queries that wait for an upstream now.")
	mWait        = describe("histogram", "client_wait_seconds", "How long clients waited whose query was not answered at once from the cache, failed ones included.")
	mDrops       = describe("counter", "listener_dropped_packets_total", "Packets that the system dropped because a socket's buffer was full.")
	mConns       = describe("gauge", "client_connections", "TCP connections of clients now.")
	mAccepted    = describe("counter", "client_connections_accepted_total", "TCP connections accepted, those turned away included.")
	mConnsEnded  = describe("counter", "client_connections_ended_total", "TCP connections that we ended, by reason: evicted or rejected for want of room, idle, stalled within a message, slow to read.", "reason")

	mHits       = describe("counter", "cache_hits_total", "Queries answered with what was fresh.", "transport")
	mMisses     = describe("counter", "cache_misses_total", "Queries that had to wait for an upstream.", "transport")
	mStale      = describe("counter", "cache_stale_answers_total", "Queries answered with what was stale.", "transport")
	mCoalesced  = describe("counter", "cache_coalesced_total", "Misses that waited for an exchange that another client had begun.", "transport")
	mPrefetches = describe("counter", "cache_prefetches_total", "Exchanges to renew what was popular before its end.", "transport")
	mAnswers    = describe("gauge", "cache_answers", "Answers in the cache.")
	mBytes      = describe("gauge", "cache_bytes", "Memory taken by answers, index included.")
	mSize       = describe("gauge", "cache_size_bytes", "The most memory that the cache takes.")
	mEvictions  = describe("counter", "cache_evictions_total", "Answers that made room for others.")

	mQueries  = describe("counter", "balancer_queries_total", "Queries that needed an upstream.")
	mAttempts = describe("counter", "balancer_attempts_total", "Queries sent to one upstream each.")
	mFailures = describe("counter", "balancer_failures_total", "Queries for which no upstream had an answer.")
	mExtra    = describe("counter", "extra_queries_total", "Upstream queries on top of one per query, the cost of safety, by cause: hedge, retry, second_opinion, resend, probe, prefetch.", "cause")
	mSpared   = describe("counter", "spared_queries_total", "Queries that shared the exchange of another, and needed none of their own.")

	mPeer     = describe("gauge", "peer_up", "1 if the other gateway is there.", "peer")
	mWords    = describe("counter", "peer_messages_total", "Messages about upstreams, by what became of them: sent to others, received, or heeded, which had an upstream probed.", "result")
	mGiven    = describe("counter", "peer_answers_total", "Answers of caches, by what became of them: given to others, taken from them, or used, which were valid and news.", "result")
	mNotTaken = describe("counter", "peer_rejected_total", "What was not taken from others, by reason: malformed, flood, stranger (who has no key of ours), key (a node with another key), version, configuration (other upstreams or routes).", "reason")

	mRedis       = describe("gauge", "redis_up", "1 if the shared cache in Redis is asked; 0 if it is left alone, or there is none.")
	mRedisReads  = describe("counter", "redis_reads_total", "Queries that the own cache had no answer for, by result: hit, miss, skipped (too many at once), invalid (what is there is no answer), failed.", "result")
	mRedisWrites = describe("counter", "redis_writes_total", "Answers for it, by result: written, dropped (it was too slow), failed.", "result")

	mUp          = describe("gauge", "upstream_up", "1 if the upstream gets live queries.", "upstream")
	mSuspect     = describe("gauge", "upstream_suspect", "1 if it is up, but something seems wrong.", "upstream")
	mOrdered     = describe("gauge", "upstream_order", "1 for what the operator wants of it: auto, drain, down or up.", "upstream", "order")
	mBreaker     = describe("gauge", "upstream_breaker_state", "1 for the state of its circuit breaker: closed, half-open or open.", "upstream", "state")
	mDowns       = describe("counter", "upstream_downs_total", "Times that it went down.", "upstream")
	mTried       = describe("counter", "upstream_attempts_total", "Queries that it was asked, by address and by what came of each, counted once. Address other is for what reached no address.", "upstream", "address", "outcome")
	mTook        = describe("histogram", "upstream_attempt_seconds", "How long attempts took, dials included, by result: answered or failed.", "upstream", "result")
	mDials       = describe("counter", "upstream_dials_total", "Connections tried, by address and outcome; ok for one that was made.", "upstream", "address", "outcome")
	mHandshakes  = describe("counter", "upstream_handshakes_total", "TLS handshakes completed, by kind: full or resumed.", "upstream", "kind")
	mReused      = describe("counter", "upstream_connection_reuses_total", "Queries sent on a connection that was made for an earlier one.", "upstream")
	mSent        = describe("counter", "upstream_queries_sent_total", "Queries sent on connections, resent ones included.", "upstream")
	mResent      = describe("counter", "upstream_queries_resent_total", "Queries sent again because their connection died or went silent.", "upstream")
	mBad         = describe("counter", "upstream_bad_responses_total", "Responses that answer nothing, by reason: unasked (late, twice, another ID), mismatched (another question), foreign (about names that were not asked for), malformed.", "upstream", "reason")
	mStripped    = describe("counter", "upstream_stripped_answers_total", "Answers accepted without some of their records, which had nothing to do with the question.", "upstream")
	mProbes      = describe("counter", "upstream_probes_total", "Probes, by result: answered or failed.", "upstream", "result")
	mOutstanding = describe("gauge", "upstream_outstanding", "Queries that wait for it now.", "upstream")
	mOpen        = describe("gauge", "upstream_connections", "Connections open to it now.", "upstream")
	mCertificate = describe("gauge", "upstream_certificate_not_after_timestamp_seconds", "When the certificate that was seen last ends; 0 if none was seen.", "upstream")
	mSRTT        = describe("gauge", "upstream_srtt_seconds", "How long its answers usually take (smoothed, RFC 6298); 0 if unknown.", "upstream")
	mPatience    = describe("gauge", "upstream_patience_seconds", "How long an answer is waited for before another upstream is asked too.", "upstream")
	mSilent      = describe("gauge", "upstream_silent_seconds", "How long it has owed a sign of life; 0 if it owes none.", "upstream")
	mAvailable   = describe("gauge", "upstream_slo_availability_ratio", "The share of attempts that got an answer, by window; 1 if there was none. It knows of nothing before the start.", "upstream", "window")
	mPunctual    = describe("gauge", "upstream_slo_latency_ratio", "The share of answers that were as quick as the objective wants.", "upstream", "window")
	mBudget      = describe("gauge", "upstream_slo_error_budget_ratio", "What is left of the errors that the objective allows, by window: 1 all, 0 nothing, below 0 missed.", "upstream", "window", "objective")
	mObjective   = describe("gauge", "slo_objective_ratio", "The objectives: the share of attempts to be answered (availability), and of answers to be quick (latency).", "objective")
	mLimit       = describe("gauge", "slo_latency_objective_seconds", "How quick an answer must be to count as quick.")
)

// transports are the values of the label, in the order of wire.Transport.
var transports = [...]string{wire.UDP: "udp", wire.TCP: "tcp"}

// metrics serves /metrics.
func (s *Server) metrics() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4, Timeout: 10 * time.Second,
		ErrorLog: errorLog{s},
	})
}

type errorLog struct{ s *Server }

func (l errorLog) Println(v ...any) { l.s.p.Log.Warn("telling metrics failed", "error", v) }

// A collector makes metrics of what others count, when it is asked: nothing of it
// is in the way of queries.
type collector struct{ s *Server }

func (c collector) Describe(to chan<- *prometheus.Desc) {
	for _, m := range known {
		to <- m.desc
	}
}

func (c collector) Collect(to chan<- prometheus.Metric) {
	e := emitter{to}
	s := c.s
	now := time.Now()
	e.one(mBuild, 1, s.p.Version)
	ready := s.Readiness(now)
	e.flag(mReady, ready.Ready)
	e.count(mRedundancy, ready.Redundancy, "")
	for route, up := range ready.Routes {
		e.count(mRedundancy, up, route)
	}
	e.shared(s)
	r := s.p.Reloads()
	e.total(mReloads, r.Done, "ok")
	e.total(mReloads, r.Failed, "failed")
	e.flag(mReloadOK, r.Problem == "")
	e.instant(mReloadTime, r.Last)
	e.queryLog(s.p.QueryLog())
	e.tracing(s.p.Tracing())
	e.clients(s.p.Gateway)
	e.cache(s.p.Cache, s.p.Gateway.Counts())
	e.balancer(s)
	e.objectives(s.objectives())
	e.peers(s.p.Peers())
	e.redis(s.p.Redis())
	outstanding := make(map[string]int)
	for _, candidate := range s.p.Balancer.Candidates() {
		outstanding[candidate.Name] = candidate.Outstanding
	}
	for _, m := range s.p.Members() {
		e.upstream(m)
		e.count(mOutstanding, outstanding[m.String()], m.String())
		e.levels(s, m)
	}
}

// An emitter sends metrics.
type emitter struct{ to chan<- prometheus.Metric }

func (e emitter) one(m *Metric, value float64, labels ...string) {
	e.to <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
}

func (e emitter) total(m *Metric, n uint64, labels ...string) { e.one(m, float64(n), labels...) }

func (e emitter) count(m *Metric, n int, labels ...string) { e.one(m, float64(n), labels...) }

func (e emitter) seconds(m *Metric, d time.Duration, labels ...string) {
	e.one(m, d.Seconds(), labels...)
}

func (e emitter) flag(m *Metric, set bool, labels ...string) {
	value := 0.0
	if set {
		value = 1
	}
	e.one(m, value, labels...)
}

func (e emitter) instant(m *Metric, t time.Time, labels ...string) {
	value := 0.0
	if !t.IsZero() {
		value = float64(t.UnixMilli()) / 1000
	}
	e.one(m, value, labels...)
}

func (e emitter) histogram(m *Metric, l latency.Snapshot, labels ...string) {
	buckets := make(map[float64]uint64, len(bounds))
	for _, bound := range bounds {
		buckets[bound.Seconds()] = l.Within(bound)
	}
	e.to <- prometheus.MustNewConstHistogram(m.desc, l.Count(), l.Sum().Seconds(), buckets, labels...)
}

// shared tells nothing if it can't be known.
func (e emitter) shared(s *Server) {
	wanted := s.terms.Load().SharedAddresses
	if len(wanted) == 0 {
		return
	}
	held, err := held()
	if err != nil {
		s.p.Log.Warn("telling metrics failed", "error", err)
		return
	}
	for _, address := range wanted {
		e.flag(mHeld, held[address.Unmap()], address.String())
	}
}

func (e emitter) perTransport(m *Metric, n gateway.PerTransport, labels ...string) {
	for via, name := range transports {
		e.total(m, n[via], append([]string{name}, labels...)...)
	}
}

func (e emitter) queryLog(c querylog.Counts) {
	e.total(mQueryLog, c.Written, "written")
	e.total(mQueryLog, c.Dropped, "dropped")
	e.total(mQueryLog, c.Failed, "failed")
}

func (e emitter) tracing(c tracing.Counts) {
	e.total(mSpans, c.Exported, "exported")
	e.total(mSpans, c.Dropped, "dropped")
	e.total(mSpans, c.Failed, "failed")
	e.total(mSpans, c.Rejected, "rejected")
}

func (e emitter) clients(g control.Gateway) {
	c := g.Counts()
	for o, n := range c.Outcomes {
		e.perTransport(mOutcomes, n, gateway.Outcome(o).String())
	}
	e.perTransport(mReceived, c.Received)
	e.perTransport(mServFails, c.ServFails)
	e.perTransport(mUndelivered, c.Undelivered)
	e.count(mWaiting, c.UnderWay)
	e.histogram(mWait, g.Latency())
	e.total(mDrops, c.Dropped)
	e.count(mConns, c.Connections.Open)
	e.total(mAccepted, c.Connections.Accepted)
	for reason, n := range map[string]uint64{
		"evicted": c.Connections.Evicted, "rejected": c.Connections.Rejected, "idle": c.Connections.Idle,
		"stalled": c.Connections.Stalled, "slow": c.Connections.Slow,
	} {
		e.total(mConnsEnded, n, reason)
	}
}

func (e emitter) cache(c Cache, counts gateway.Counts) {
	e.perTransport(mHits, counts.Cache.Hits)
	e.perTransport(mMisses, counts.Cache.Misses)
	e.perTransport(mStale, counts.Cache.Stale)
	e.perTransport(mCoalesced, counts.Cache.Coalesced)
	e.perTransport(mPrefetches, counts.Cache.Prefetches)
	u := c.Usage()
	e.count(mAnswers, u.Answers)
	e.count(mBytes, u.Bytes)
	e.count(mSize, u.Size)
	e.total(mEvictions, u.Evicted)
}

func (e emitter) peers(s peers.Status) {
	for _, p := range s.Peers {
		e.flag(mPeer, p.Up, p.Name)
	}
	c := s.Counts
	e.total(mWords, c.Sent, "sent")
	e.total(mWords, c.Received, "received")
	e.total(mWords, c.Heeded, "heeded")
	e.total(mGiven, c.Given, "given")
	e.total(mGiven, c.Taken, "taken")
	e.total(mGiven, c.Used, "used")
	for _, reason := range peers.Reasons() {
		e.total(mNotTaken, c.Rejected[reason], reason)
	}
}

func (e emitter) redis(c redis.Counts) {
	e.flag(mRedis, c.Up)
	for _, result := range []string{"hit", "miss", "skipped", "invalid", "failed"} {
		e.total(mRedisReads, c.Reads[result], result)
	}
	for _, result := range []string{"written", "dropped", "failed"} {
		e.total(mRedisWrites, c.Writes[result], result)
	}
}

// extra returns what was sent to upstreams beyond one query each, by cause.
func (s *Server) extra() map[string]uint64 {
	b := s.p.Balancer.Counts()
	extra := map[string]uint64{
		"hedge": b.Hedges, "retry": b.Retries, "second_opinion": b.Seconds,
		"resend": 0, "probe": 0, "prefetch": s.p.Gateway.Counts().Cache.Prefetches.Total(),
	}
	for _, m := range s.p.Members() {
		extra["resend"] += m.Upstream.Counts().Resent
		extra["probe"] += m.Status().Counts.Probes
	}
	return extra
}

func (e emitter) balancer(s *Server) {
	b := s.p.Balancer.Counts()
	e.total(mQueries, b.Queries)
	e.total(mAttempts, b.Attempts)
	e.total(mFailures, b.Failures)
	for cause, n := range s.extra() {
		e.total(mExtra, n, cause)
	}
	e.total(mSpared, s.p.Gateway.Counts().Cache.Coalesced.Total())
}

func (e emitter) upstream(m control.Member) {
	name, status, c, h := m.String(), m.Status(), m.Counts(), m.History()
	e.flag(mUp, status.State != health.Down, name)
	e.flag(mSuspect, status.State == health.Suspect, name)
	for _, order := range health.Orders() {
		e.flag(mOrdered, status.Order == order, name, order.String())
	}
	for _, state := range health.BreakerStates() {
		e.flag(mBreaker, status.Breaker.State == state, name, state)
	}
	e.total(mDowns, status.Counts.Downs, name)
	for _, a := range h.Addresses {
		e.address(name, a)
	}
	e.histogram(mTook, h.Answered, name, "answered")
	e.histogram(mTook, h.Failed, name, "failed")
	e.total(mHandshakes, c.Handshakes-min(c.Resumed, c.Handshakes), name, "full")
	e.total(mHandshakes, c.Resumed, name, "resumed")
	e.total(mSent, c.Sent, name)
	e.total(mReused, c.Sent-min(c.Sent, c.Handshakes), name)
	e.total(mResent, c.Resent, name)
	e.total(mBad, c.Unasked, name, "unasked")
	e.total(mBad, c.Mismatched, name, "mismatched")
	e.total(mBad, c.Foreign, name, "foreign")
	e.total(mBad, c.Malformed, name, "malformed")
	e.total(mStripped, c.Stripped, name)
	e.total(mProbes, status.Counts.Probes-status.Counts.FailedProbes, name, "answered")
	e.total(mProbes, status.Counts.FailedProbes, name, "failed")
	e.count(mOpen, c.Open, name)
	e.instant(mCertificate, h.NotAfter, name)
	e.seconds(mSRTT, status.Usual, name)
	e.seconds(mPatience, status.Patience, name)
	e.seconds(mSilent, status.Silent, name)
}

func (e emitter) address(name string, a upstreams.AddressHistory) {
	address := "other"
	if a.Address != (netip.AddrPort{}) {
		address = a.Address.String()
	}
	for _, o := range upstreams.Outcomes() {
		e.total(mTried, a.Attempts[o], name, address, o.String())
		switch {
		case o == upstreams.GotNoError:
			e.total(mDials, a.Dials[o], name, address, "ok")
		case o.OfDial():
			e.total(mDials, a.Dials[o], name, address, o.String())
		}
	}
}

func (e emitter) objectives(o Objectives) {
	e.one(mObjective, o.Availability/100, "availability")
	e.one(mObjective, o.LatencyShare/100, "latency")
	e.seconds(mLimit, o.Latency)
}

func (e emitter) levels(s *Server, m control.Member) {
	for _, l := range s.watch.levels(m) {
		e.one(mAvailable, l.Availability, m.String(), l.Window)
		e.one(mPunctual, l.Latency, m.String(), l.Window)
		e.one(mBudget, l.Budget, m.String(), l.Window, "availability")
		e.one(mBudget, l.LatencyBudget, m.String(), l.Window, "latency")
	}
}

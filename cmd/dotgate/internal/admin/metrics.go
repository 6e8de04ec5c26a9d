package admin

import (
	"bytes"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/peers"
	"dotgate/cmd/dotgate/internal/tracing"
	"dotgate/gateway"
	"dotgate/gateway/access"
	"dotgate/gateway/latency"
	"dotgate/gateway/querylog"
	"dotgate/gateway/redis"
	"dotgate/gateway/wire"
	"dotgate/health"
	"dotgate/upstreams"
)

// bucketBounds are the buckets of histograms: powers of two in microseconds, for which
// the counts are exact.
var bucketBounds = func() (all []time.Duration) {
	for us := time.Duration(128); us <= 1<<23; us *= 2 {
		all = append(all, us*time.Microsecond)
	}
	return all
}()

// A Metric describes a metric of /metrics.
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

// Metrics returns all metrics of dotgate. /metrics has those of the Go runtime and the
// process, too.
func Metrics() []*Metric { return known }

var (
	mBuild       = describe("gauge", "build_info", "Always 1; the version is in its label.", "version")
	mReady       = describe("gauge", "ready", "1 if /readyz reports ready.")
	mRedundancy  = describe("gauge", "redundancy", "Upstreams that are up, suspect ones included, by list. route is the first name of the list's route, and empty for the list of all other names.", "route")
	mHeld        = describe("gauge", "shared_address_held", "1 if an interface of this machine has the address of admin.shared_addresses.", "address")
	mReloads     = describe("counter", "config_reloads_total", "Reloads of the configuration, by result: ok or failed.", "result")
	mReloadOK    = describe("gauge", "config_last_reload_successful", "1 unless the last reload failed.")
	mReloadTime  = describe("gauge", "config_last_reload_success_timestamp_seconds", "When the configuration in effect was loaded.")
	mLogDropped  = describe("counter", "log_lines_dropped_total", "Log lines that were dropped because standard error was blocked or too slow.")
	mQueryLog    = describe("counter", "query_log_entries_total", "Entries of the query log, by result: written, dropped because the output was too slow, or failed.", "result")
	mSpans       = describe("counter", "tracing_spans_total", "Spans of traces, by result: exported, dropped because the collector was too slow, failed, or rejected by the collector.", "result")
	mReceived    = describe("counter", "client_messages_total", "Packets and messages received from clients, by transport.", "transport")
	mOutcomes    = describe("counter", "client_outcomes_total", "Outcomes of client messages: answered, failed by the gateway (failed, timed_out, overload, crashed), refused_REASON or ignored_REASON.", "transport", "outcome")
	mRefused     = describe("counter", "client_refused_total", "Queries refused because gateway.allow does not include the client, by the class of its address: this_host, on_link, private, shared (100.64.0.0/10) or public.", "class")
	mServFails   = describe("counter", "client_servfails_total", "Queries answered with the SERVFAIL of an upstream.", "transport")
	mUndelivered = describe("counter", "client_replies_undelivered_total", "Replies that could not be sent.", "transport")
	mWaiting     = describe("gauge", "client_queries_waiting", "Queries that are waiting for an upstream.")
	mWait        = describe("histogram", "client_wait_seconds", "Time until the reply to a query that the cache did not answer, failed queries included.")
	mDrops       = describe("counter", "listener_dropped_packets_total", "Packets that the kernel dropped because a receive buffer was full.")
	mConns       = describe("gauge", "client_connections", "Open TCP connections of clients.")
	mAccepted    = describe("counter", "client_connections_accepted_total", "TCP connections accepted, rejected ones included.")
	mConnsEnded  = describe("counter", "client_connections_ended_total", "TCP connections closed by the gateway, by reason: evicted or rejected at the connection limit, idle, stalled within a message, slow to read.", "reason")

	mHits       = describe("counter", "cache_hits_total", "Queries answered from fresh cache entries.", "transport")
	mMisses     = describe("counter", "cache_misses_total", "Queries that the cache could not answer.", "transport")
	mStale      = describe("counter", "cache_stale_answers_total", "Queries answered from stale cache entries.", "transport")
	mCoalesced  = describe("counter", "cache_coalesced_total", "Misses that waited for an upstream query of another client.", "transport")
	mPrefetches = describe("counter", "cache_prefetches_total", "Upstream queries that renewed a popular entry before it expired.", "transport")
	mAnswers    = describe("gauge", "cache_answers", "Entries in the cache.")
	mBytes      = describe("gauge", "cache_bytes", "Memory used by entries, index included.")
	mSize       = describe("gauge", "cache_size_bytes", "Maximum memory of the cache.")
	mEvictions  = describe("counter", "cache_evictions_total", "Entries that were evicted.")

	mQueries  = describe("counter", "balancer_queries_total", "Queries that were sent to upstreams.")
	mAttempts = describe("counter", "balancer_attempts_total", "Attempts: queries sent to one upstream each.")
	mFailures = describe("counter", "balancer_failures_total", "Queries that no upstream answered.")
	mExtra    = describe("counter", "extra_queries_total", "Upstream queries beyond one per client query, by cause: hedge, retry, second_opinion, resend, probe, prefetch.", "cause")
	mSpared   = describe("counter", "spared_queries_total", "Queries that shared the upstream query of another one.")

	mPeer     = describe("gauge", "peer_up", "1 if the peer is up.", "peer")
	mMessages = describe("counter", "peer_messages_total", "Messages of peers about upstreams, by result: sent, received, or applied (reports that caused a probe).", "result")
	mShared   = describe("counter", "peer_answers_total", "Cached answers exchanged with peers, by result: uploaded, downloaded, or used (downloaded ones that were valid and new).", "result")
	mRejected = describe("counter", "peer_rejected_total", "Rejected messages and connections of peers, by reason: malformed, flood, unknown (the sender is no node or has none of the keys), key (a node with another key), version, configuration (other upstreams or routes).", "reason")

	mRedis       = describe("gauge", "redis_up", "1 if the shared cache in Redis is used; 0 if it is bypassed, or none is configured.")
	mRedisReads  = describe("counter", "redis_reads_total", "Reads from the shared cache after a miss in the own one, by result: hit, miss, skipped (too many reads at once), invalid (the value is no answer), failed.", "result")
	mRedisWrites = describe("counter", "redis_writes_total", "Writes to the shared cache, by result: written, dropped (it was too slow), failed.", "result")

	mUp          = describe("gauge", "upstream_up", "1 if the upstream is up or suspect: it gets live queries.", "upstream")
	mSuspect     = describe("gauge", "upstream_suspect", "1 if the upstream is suspect: up, with a recent sign of failure.", "upstream")
	mAdminState  = describe("gauge", "upstream_admin_state", "1 for the state set by the operator: auto, drain, down or up.", "upstream", "state")
	mBreaker     = describe("gauge", "upstream_breaker_state", "1 for the state of the upstream's circuit breaker: closed, half-open or open.", "upstream", "state")
	mDowns       = describe("counter", "upstream_downs_total", "Times the upstream went down.", "upstream")
	mTried       = describe("counter", "upstream_attempts_total", "Attempts, by address, transport (dot, doh, tcp or udp) and outcome. Address other stands for attempts that reached no address.", "upstream", "address", "transport", "outcome")
	mTook        = describe("histogram", "upstream_attempt_seconds", "Duration of attempts, dials included, by result: answered or failed.", "upstream", "result")
	mDials       = describe("counter", "upstream_dials_total", "Dials, by address, transport and outcome. ok means a connection.", "upstream", "address", "transport", "outcome")
	mHandshakes  = describe("counter", "upstream_handshakes_total", "Completed TLS handshakes, by kind: full or resumed.", "upstream", "kind")
	mPlainHello  = describe("counter", "upstream_plain_handshakes_total", "Completed TLS handshakes with a plainer ClientHello, by the part left out: alpn or key_share.", "upstream", "without")
	mBlocked     = describe("gauge", "network_blocked_ports", "Ports that the network blocks: the same transport fails alike at several upstreams, and another one works.")
	mAvoided     = describe("gauge", "upstream_address_avoided", "1 for an address that is avoided because it failed or lost a race while another one worked.", "upstream", "address", "transport")
	mReused      = describe("counter", "upstream_connection_reuses_total", "Queries sent on a connection that was dialled for an earlier query.", "upstream")
	mSent        = describe("counter", "upstream_queries_sent_total", "Queries sent, resent ones included.", "upstream")
	mResent      = describe("counter", "upstream_queries_resent_total", "Queries sent again because their connection closed or went silent.", "upstream")
	mBad         = describe("counter", "upstream_bad_responses_total", "Responses that were not accepted, by reason: unsolicited (late, duplicate or unknown ID), mismatched (another question), out_of_bailiwick (records of names that were not asked for), malformed.", "upstream", "reason")
	mStripped    = describe("counter", "upstream_stripped_answers_total", "Answers accepted after records that do not belong to the question were removed.", "upstream")
	mProbes      = describe("counter", "upstream_probes_total", "Health probes, by result: answered or failed.", "upstream", "result")
	mOutstanding = describe("gauge", "upstream_outstanding", "Queries in flight to the upstream.", "upstream")
	mOpen        = describe("gauge", "upstream_connections", "Open connections to the upstream.", "upstream")
	mRate        = describe("gauge", "upstream_rate_limit", "Queries a second that the upstream is spared from exceeding, by option rate or as learnt; 0 if no limit is known.", "upstream")
	mOverRate    = describe("counter", "upstream_queries_over_rate_total", "Queries sent although the upstream was at the limit of its rate, as all others were, too.", "upstream")
	mCertificate = describe("gauge", "upstream_certificate_not_after_timestamp_seconds", "End of the certificate that the upstream showed last; 0 if it showed none.", "upstream")
	mSRTT        = describe("gauge", "upstream_srtt_seconds", "Smoothed response time (RFC 6298); 0 if unknown.", "upstream")
	mPatience    = describe("gauge", "upstream_patience_seconds", "Time without an answer after which another upstream is asked as well.", "upstream")
	mSilent      = describe("gauge", "upstream_silent_seconds", "Time for which the upstream has not responded to pending queries; 0 if none are pending.", "upstream")
	mAvailable   = describe("gauge", "upstream_slo_availability_ratio", "Share of attempts that got an answer, by window; 1 without attempts. Windows begin with the process at the earliest.", "upstream", "window")
	mPunctual    = describe("gauge", "upstream_slo_latency_ratio", "Share of answers within the latency objective, by window.", "upstream", "window")
	mBudget      = describe("gauge", "upstream_slo_error_budget_ratio", "Share of the error budget that is left, by window: 1 all, 0 none, below 0 the objective is missed.", "upstream", "window", "objective")
	mObjective   = describe("gauge", "slo_objective_ratio", "Objectives: the share of attempts to be answered (availability) and of answers within the latency objective (latency).", "objective")
	mLimit       = describe("gauge", "slo_latency_objective_seconds", "Latency objective.")
)

// transports are the values of the label, in the order of wire.Transport.
var transports = [...]string{wire.UDP: "udp", wire.TCP: "tcp"}

// metrics serves /metrics.
func (s *Server) metrics() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	h := promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: errorLog{s}})
	plain, compressed := textOf(h, ""), textOf(h, "gzip")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rounds := plain
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			rounds = compressed
			w.Header().Set("Content-Encoding", "gzip")
		}
		text, err := rounds.wait(r.Context())
		if err != nil {
			w.Header().Del("Content-Encoding")
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores")
		w.Write(text)
	})
}

// textOf returns the response of h in this encoding, made once for all clients that ask
// at the same time.
func textOf(h http.Handler, encoding string) *rounds {
	return &rounds{make: func() ([]byte, error) {
		r, err := http.NewRequest(http.MethodGet, "/metrics", nil)
		if err != nil {
			return nil, err
		}
		r.Header.Set("Accept-Encoding", encoding)
		w := &recorder{header: make(http.Header)}
		h.ServeHTTP(w, r)
		if w.code > http.StatusOK {
			return nil, errors.New(strings.TrimSpace(w.body.String()))
		}
		return w.body.Bytes(), nil
	}}
}

// A recorder keeps a response.
type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(code int)        { r.code = code }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }

type errorLog struct{ s *Server }

func (l errorLog) Println(v ...any) { l.s.p.Log.Warn("cannot make metrics", "error", v) }

// A collector makes metrics from the counters of the other components when it is asked.
// No query waits for it.
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
	e.total(mLogDropped, s.p.LogDropped())
	e.queryLog(s.p.QueryLog())
	e.tracing(s.p.Tracing())
	e.clients(s.p.Gateway)
	e.cache(s.p.Cache, s.p.Gateway.Counts())
	e.balancer(s)
	e.objectives(s.objectives())
	e.peers(s.p.Peers())
	e.redis(s.p.Redis())
	e.count(mBlocked, s.p.Network.Blocked())
	outstanding := make(map[string]int)
	for _, candidate := range s.p.Balancer.Candidates() {
		outstanding[candidate.Name] += candidate.Outstanding
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
	buckets := make(map[float64]uint64, len(bucketBounds))
	for _, bound := range bucketBounds {
		buckets[bound.Seconds()] = l.Within(bound)
	}
	e.to <- prometheus.MustNewConstHistogram(m.desc, l.Count(), l.Sum().Seconds(), buckets, labels...)
}

// shared sends nothing if the addresses of this machine are unknown.
func (e emitter) shared(s *Server) {
	wanted := s.terms.Load().SharedAddresses
	if len(wanted) == 0 {
		return
	}
	held, err := held()
	if err != nil {
		s.p.Log.Warn("cannot make metrics", "error", err)
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

func (e emitter) clients(g api.Gateway) {
	c := g.Counts()
	for o, n := range c.Outcomes {
		e.perTransport(mOutcomes, n, gateway.Outcome(o).String())
	}
	e.perTransport(mReceived, c.Received)
	for class, n := range c.Refused {
		e.total(mRefused, n, access.ClientClass(class).String())
	}
	e.perTransport(mServFails, c.ServFails)
	e.perTransport(mUndelivered, c.Undelivered)
	e.count(mWaiting, c.InProgress)
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

func (e emitter) cache(c api.Cache, counts gateway.Counts) {
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
	e.total(mMessages, c.Sent, "sent")
	e.total(mMessages, c.Received, "received")
	e.total(mMessages, c.Applied, "applied")
	e.total(mShared, c.Uploaded, "uploaded")
	e.total(mShared, c.Downloaded, "downloaded")
	e.total(mShared, c.Used, "used")
	for _, reason := range peers.Reasons() {
		e.total(mRejected, c.Rejected[reason], reason)
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

// extra returns the number of upstream queries beyond one per client query, by cause.
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

func (e emitter) upstream(m api.Member) {
	name, status, c, h := m.String(), m.Status(), m.Counts(), m.History()
	e.flag(mUp, status.State.IsUp(), name)
	e.flag(mSuspect, status.State == health.Suspect, name)
	for _, state := range health.AdminStates() {
		e.flag(mAdminState, status.AdminState == state, name, state.String())
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
	e.total(mPlainHello, c.WithoutALPN, name, "alpn")
	e.total(mPlainHello, c.WithoutKeyShare, name, "key_share")
	e.total(mSent, c.Sent, name)
	e.total(mReused, c.Sent-min(c.Sent, c.Handshakes), name)
	e.total(mResent, c.Resent, name)
	e.total(mBad, c.Unsolicited, name, "unsolicited")
	e.total(mBad, c.Mismatched, name, "mismatched")
	e.total(mBad, c.OutOfBailiwick, name, "out_of_bailiwick")
	e.total(mBad, c.Malformed, name, "malformed")
	e.total(mStripped, c.Stripped, name)
	e.total(mProbes, status.Counts.Probes-status.Counts.FailedProbes, name, "answered")
	e.total(mProbes, status.Counts.FailedProbes, name, "failed")
	e.count(mOpen, c.Open, name)
	e.count(mRate, c.Rate, name)
	e.total(mOverRate, c.OverRate, name)
	e.instant(mCertificate, h.NotAfter, name)
	e.seconds(mSRTT, status.Usual, name)
	e.seconds(mPatience, status.Patience, name)
	e.seconds(mSilent, status.Silent, name)
}

func (e emitter) address(name string, a upstreams.AddressHistory) {
	address := "other"
	if a.Address != (netip.AddrPort{}) {
		address = a.Address.String()
		e.flag(mAvoided, !a.Avoided.IsZero(), name, address, a.Transport)
	}
	for _, o := range upstreams.Outcomes() {
		e.total(mTried, a.Attempts[o], name, address, a.Transport, o.String())
		switch {
		case o == upstreams.GotNoError:
			e.total(mDials, a.Dials[o], name, address, a.Transport, "ok")
		case o.OfDial():
			e.total(mDials, a.Dials[o], name, address, a.Transport, o.String())
		}
	}
}

func (e emitter) objectives(o Objectives) {
	e.one(mObjective, o.Availability/100, "availability")
	e.one(mObjective, o.LatencyShare/100, "latency")
	e.seconds(mLimit, o.Latency)
}

func (e emitter) levels(s *Server, m api.Member) {
	for _, l := range s.watch.levels(m) {
		e.one(mAvailable, l.Availability, m.String(), l.Window)
		e.one(mPunctual, l.Latency, m.String(), l.Window)
		e.one(mBudget, l.Budget, m.String(), l.Window, "availability")
		e.one(mBudget, l.LatencyBudget, m.String(), l.Window, "latency")
	}
}

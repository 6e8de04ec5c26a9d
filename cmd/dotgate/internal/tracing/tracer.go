// Package tracing sends traces of queries to an OpenTelemetry collector over OTLP/HTTP: a
// tree of spans for each traced query, one for the query and one for each attempt.
//
// It joins what gateway, balancer and upstreams record about one query. These packages
// do not know each other or OpenTelemetry. Tracing never delays a query: spans that the
// collector does not take in time are dropped and counted. Prefetches have no trace.
package tracing

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"

	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"golang.org/x/time/rate"

	"dotgate/balancer"
	"dotgate/configs/bounds"
	"dotgate/gateway"
	"dotgate/gateway/querylog"
	"dotgate/gateway/wire"
	"dotgate/upstreams"
)

const (
	// queueMax bounds the spans that wait for the collector: some MB.
	queueMax = 2048
	// failuresMax bounds the queries a second that are traced only because they failed.
	// In an outage all queries fail, for one reason.
	failuresMax = 100
)

// A Tracer makes spans of queries, and sends them to a collector.
type Tracer struct {
	config   atomic.Pointer[config]
	queue    chan *tracepb.Span
	turn     atomic.Uint64
	failures *rate.Limiter // of queries that are traced because they failed
	client   http.Client
	counts   struct{ exported, dropped, failed, rejected atomic.Uint64 }
}

// A config is the part of a Tracer that a reload replaces. A config never changes.
type config struct {
	Options
	url     string // empty: nothing is sent
	headers http.Header
	clients querylog.Clients
}

// New checks all options and returns a Tracer. Nothing is sent until Run is called.
func New(o Options) (*Tracer, error) {
	first, err := newConfig(o)
	if err != nil {
		return nil, err
	}
	t := &Tracer{queue: make(chan *tracepb.Span, queueMax), failures: rate.NewLimiter(failuresMax, failuresMax)}
	t.config.Store(first)
	t.client = http.Client{
		// Proxies in the environment are ignored: the configuration names the collector.
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: dialLimit}).DialContext,
			TLSHandshakeTimeout: dialLimit,
			IdleConnTimeout:     6 * batchWait,
		},
		// The headers, which may hold a secret, stay at the configured collector.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return t, nil
}

func newConfig(o Options) (c *config, err error) {
	err = bounds.Err("tracing.", func(report bounds.Report) { c = o.config(report) })
	return c, err
}

// Prepare checks new options and returns a function that puts them in effect, also for
// spans that are already queued. On an error, nothing has changed.
func (t *Tracer) Prepare(o Options) (commit func(), err error) {
	before := t.config.Load()
	o.Version, o.Log = before.Version, before.Log
	next, err := newConfig(o)
	return func() { t.config.Store(next) }, err
}

// Counts are totals of spans since New.
type Counts struct {
	Exported uint64 // accepted by the collector
	Dropped  uint64 // the queue was full
	Failed   uint64 // could not be sent
	Rejected uint64 // refused by the collector
}

// Counts returns the totals.
func (t *Tracer) Counts() Counts {
	return Counts{
		Exported: t.counts.exported.Load(), Dropped: t.counts.dropped.Load(),
		Failed: t.counts.failed.Load(), Rejected: t.counts.rejected.Load(),
	}
}

// A Trace is the record of one query under way. Whether it is exported may be decided
// only at the end of the query.
type Trace struct {
	tracer *Tracer
	id     [16]byte
	root   [8]byte
	steps  *upstreams.Trace       // nil: steps are not recorded
	route  atomic.Pointer[string] // the route whose upstreams were asked; nil: none were

	mu       sync.Mutex // guards decision
	decision decision
}

// A decision tells whether a Trace is exported. It is made once, so that a tree is exported
// as a whole.
type decision uint8

const (
	undecided decision = iota // export if the query fails
	exported
	discarded
)

type traceKey struct{}

// Of returns the Trace in a context made by Begin, or nil.
func Of(ctx context.Context) *Trace {
	trace, _ := ctx.Value(traceKey{}).(*Trace)
	return trace
}

// newTrace returns a Trace with new random IDs.
func (t *Tracer) newTrace() *Trace {
	trace := &Trace{tracer: t, root: newSpanID()}
	a, b := newSpanID(), newSpanID()
	copy(trace.id[:8], a[:])
	copy(trace.id[8:], b[:])
	return trace
}

func newSpanID() (id [8]byte) {
	binary.NativeEndian.PutUint64(id[:], rand.Uint64()|1) // 0 is not a valid ID
	return id
}

// sampled reports whether this query is one of the tracing.sample share.
func (t *Tracer) sampled() bool {
	n := uint64(t.config.Load().Sample)
	return n <= 1 || t.turn.Add(1)%n == 0
}

// Begin returns the context for a query that upstreams are asked for. It holds a Trace,
// which Of returns.
func (t *Tracer) Begin() context.Context {
	trace := t.newTrace()
	ctx := context.WithValue(context.Background(), traceKey{}, trace)
	if t.sampled() {
		trace.decision, trace.steps = exported, new(upstreams.Trace)
		ctx = upstreams.WithTrace(ctx, trace.steps)
	}
	return ctx
}

// End exports the span of a query that got its reply, if it is traced. A query has failed
// if its client got SERVFAIL, or a stale answer because upstreams failed.
func (t *Tracer) End(ctx context.Context, q gateway.Traced) {
	defer t.recoverPanic()
	failed := q.Err != nil || wire.HeaderRCode(q.Reply) == wire.ServFail
	trace := Of(ctx)
	if trace == nil && (t.sampled() || failed && t.failures.Allow()) { // it was answered at once
		trace = t.newTrace()
		trace.decision = exported
	}
	if trace == nil || !trace.wanted(failed) {
		return
	}
	t.enqueue(t.querySpan(trace, q))
}

// Asked records the route whose upstreams are asked. The empty route stands for the
// upstreams of all other names.
func (trace *Trace) Asked(route string) { trace.route.Store(&route) }

// Record exports the spans of the attempts of a query that has ended with an answer or an
// error. It calls exchange only if the query is traced.
func (trace *Trace) Record(a wire.Answer, err error, exchange func() balancer.Trace) {
	defer trace.tracer.recoverPanic()
	if trace.wanted(err != nil || a.RCode() == wire.ServFail) {
		trace.tracer.enqueue(trace.attemptSpans(exchange())...)
	}
}

// wanted makes the decision if it is still open, and reports whether the Trace is exported.
func (trace *Trace) wanted(failed bool) bool {
	trace.mu.Lock()
	defer trace.mu.Unlock()
	if trace.decision == undecided {
		trace.decision = discarded
		if failed && trace.tracer.failures.Allow() {
			trace.decision = exported
		}
	}
	return trace.decision == exported
}

// enqueue hands spans to Run. It does not block.
func (t *Tracer) enqueue(spans ...*tracepb.Span) {
	for _, s := range spans {
		select {
		case t.queue <- s:
		default:
			t.counts.dropped.Add(1)
		}
	}
}

// recoverPanic keeps a bug in this package from costing a client its answer.
func (t *Tracer) recoverPanic() {
	if v := recover(); v != nil {
		t.config.Load().logger().Error("BUG: a trace caused a panic", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
}

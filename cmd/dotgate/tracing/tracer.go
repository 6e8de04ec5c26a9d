// Package tracing tells OpenTelemetry how queries went: each that is traced is a tree
// of spans, of the query and of the attempts that it took, sent to a collector over
// OTLP/HTTP.
//
// It is where the stories of gateway, balancer and upstreams come together, which
// know nothing of each other, nor of OpenTelemetry. It never holds up a query: what a
// collector doesn't take in time is dropped, and counted. What is made ahead of its
// end, for no client, has no trace.
package tracing

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"

	"dotgate/balancer"
	"dotgate/gateway"
	"dotgate/gateway/querylog"
	"dotgate/gateway/wire"
	"dotgate/upstreams"
)

const (
	// queueMax is how many spans wait for the collector at the most: some MB.
	queueMax = 2048
	// failuresMax is how many queries a second are traced for nothing but that they
	// failed: in an outage all do, and for one reason.
	failuresMax = 100
)

// A Tracer makes spans of queries, and sends them to a collector.
type Tracer struct {
	rules    atomic.Pointer[rules]
	queue    chan *tracepb.Span
	turn     atomic.Uint64
	failures allowance
	client   http.Client
	counts   struct{ exported, dropped, failed, rejected atomic.Uint64 }
}

// Rules are what may change while a Tracer runs. They never change; others take their
// place.
type rules struct {
	Options
	url     string // empty: nothing is sent
	headers http.Header
	clients querylog.Clients
}

// New checks all options and returns a Tracer. Run has to be called for it to send
// anything.
func New(o Options) (*Tracer, error) {
	first, err := newRules(o)
	if err != nil {
		return nil, err
	}
	t := &Tracer{queue: make(chan *tracepb.Span, queueMax)}
	t.rules.Store(first)
	t.client = http.Client{Transport: newTransport(), CheckRedirect: stay}
	return t, nil
}

func newRules(o Options) (*rules, error) {
	var problems []error
	r := o.rules(func(option, problem string) {
		problems = append(problems, fmt.Errorf("tracing.%s %s", option, problem))
	})
	return r, errors.Join(problems...)
}

// Prepare gets other options ready. They take effect with the function that it
// returns, for spans that wait to be sent too. On an error, nothing has changed.
func (t *Tracer) Prepare(o Options) (commit func(), err error) {
	before := t.rules.Load()
	o.Version, o.Log = before.Version, before.Log
	next, err := newRules(o)
	return func() { t.rules.Store(next) }, err
}

// Counts are totals of spans since New.
type Counts struct {
	Exported uint64 // the collector has taken them
	Dropped  uint64 // because the collector was not quick enough
	Failed   uint64 // because they could not be sent
	Rejected uint64 // the collector did not want them
}

// Counts returns the totals.
func (t *Tracer) Counts() Counts {
	return Counts{
		Exported: t.counts.exported.Load(), Dropped: t.counts.dropped.Load(),
		Failed: t.counts.failed.Load(), Rejected: t.counts.rejected.Load(),
	}
}

// A Trace is a query on its way. It may turn out that nobody wants to see it.
type Trace struct {
	tracer *Tracer
	id     [16]byte
	root   [8]byte
	steps  *upstreams.Trace       // nil: nobody takes note of them
	route  atomic.Pointer[string] // whose upstreams were asked; nil: none were

	mu      sync.Mutex // guards verdict
	verdict verdict
}

// A verdict is whether a Trace is told. The first one stays, so that a tree is told
// as a whole.
type verdict uint8

const (
	undecided verdict = iota // it is, if it fails
	told
	forgotten
)

type traceKey struct{}

// Of returns the Trace in a context that Begin has made.
func Of(ctx context.Context) *Trace {
	trace, _ := ctx.Value(traceKey{}).(*Trace)
	return trace
}

// newTrace returns one with IDs of its own.
func (t *Tracer) newTrace() *Trace {
	trace := &Trace{tracer: t, root: newSpanID()}
	a, b := newSpanID(), newSpanID()
	copy(trace.id[:8], a[:])
	copy(trace.id[8:], b[:])
	return trace
}

func newSpanID() (id [8]byte) {
	n := rand.Uint64() | 1 // 0 is none
	for i := range id {
		id[i] = byte(n >> (8 * i))
	}
	return id
}

// sampled reports whether it is the turn of a query to be traced.
func (t *Tracer) sampled() bool {
	n := uint64(t.rules.Load().Sample)
	return n <= 1 || t.turn.Add(1)%n == 0
}

// Begin returns what goes with a query for upstreams: a Trace, which Of finds.
func (t *Tracer) Begin() context.Context {
	trace := t.newTrace()
	ctx := context.WithValue(context.Background(), traceKey{}, trace)
	if t.sampled() {
		trace.verdict, trace.steps = told, new(upstreams.Trace)
		ctx = upstreams.WithTrace(ctx, trace.steps)
	}
	return ctx
}

// End makes the span of a query that was answered. It has failed if its client got
// SERVFAIL, or a stale answer because upstreams had none.
func (t *Tracer) End(ctx context.Context, q gateway.Traced) {
	defer t.contain()
	failed := q.Err != nil || wire.HeaderRCode(q.Reply) == wire.ServFail
	var trace *Trace
	switch {
	case ctx != nil:
		trace = Of(ctx)
	case t.sampled() || failed && t.failures.take():
		trace = t.newTrace()
		trace.verdict = told
	}
	if trace == nil || !trace.wanted(failed) {
		return
	}
	t.put(t.querySpan(trace, q))
}

// Asked takes note that the upstreams of a route are asked; empty: those for all
// names that have none.
func (trace *Trace) Asked(route string) { trace.route.Store(&route) }

// Tell makes the spans of the attempts of a query that has an answer, or an error.
// It has their story told only if anybody wants it.
func (trace *Trace) Tell(a wire.Answer, err error, story func() balancer.Story) {
	defer trace.tracer.contain()
	if trace.wanted(err != nil || a.RCode() == wire.ServFail) {
		trace.tracer.put(trace.attemptSpans(story())...)
	}
}

// wanted returns the verdict.
func (trace *Trace) wanted(failed bool) bool {
	trace.mu.Lock()
	defer trace.mu.Unlock()
	if trace.verdict == undecided {
		trace.verdict = forgotten
		if failed && trace.tracer.failures.take() {
			trace.verdict = told
		}
	}
	return trace.verdict == told
}

// put leaves spans to Run.
func (t *Tracer) put(spans ...*tracepb.Span) {
	for _, s := range spans {
		select {
		case t.queue <- s:
		default:
			t.counts.dropped.Add(1)
		}
	}
}

// contain keeps a bug of ours from costing a client its answer.
func (t *Tracer) contain() {
	if v := recover(); v != nil {
		t.rules.Load().logger().Error("BUG: a trace caused a panic", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
}

// An allowance is failuresMax a second.
type allowance struct {
	mu     sync.Mutex
	second int64 // in Unix time
	used   int
}

func (a *allowance) take() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := time.Now().Unix(); now != a.second {
		a.second, a.used = now, 0
	}
	a.used++
	return a.used <= failuresMax
}

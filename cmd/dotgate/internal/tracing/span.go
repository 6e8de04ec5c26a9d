package tracing

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"

	"dotgate/balancer"
	"dotgate/gateway"
	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
	"dotgate/upstreams"
)

// spanFlags: the span is sampled, and its parent, if any, is of this process.
const spanFlags = 0x101

// Attributes are those of a span. Their names are OpenTelemetry's semantic conventions
// where there is one, and begin with dotgate otherwise.
type attributes []*commonpb.KeyValue

func (a *attributes) text(key, value string) {
	*a = append(*a, &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{
		// Invalid UTF-8 would keep the whole batch from being encoded.
		Value: &commonpb.AnyValue_StringValue{StringValue: strings.ToValidUTF8(value, "�")},
	}})
}

func (a *attributes) number(key string, value int64) {
	*a = append(*a, &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: value}}})
}

func (a *attributes) flag(key string) {
	*a = append(*a, &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: true}}})
}

// errorStatus returns the status of a failed span with its reason.
func errorStatus(why string) *tracepb.Status {
	return &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: strings.ToValidUTF8(why, "�")}
}

func nanoseconds(t time.Time) uint64 { return uint64(t.UnixNano()) }

// querySpan returns the root span: the query as its client sees it. A query that was
// answered at once has a span of no length.
func (t *Tracer) querySpan(trace *Trace, q gateway.Traced) *tracepb.Span {
	name, recordType := question(q.Query)
	now := time.Now()
	s := &tracepb.Span{
		TraceId: trace.id[:], SpanId: trace.root[:], Flags: spanFlags, Kind: tracepb.Span_SPAN_KIND_SERVER,
		Name: "DNS " + recordType, StartTimeUnixNano: nanoseconds(now), EndTimeUnixNano: nanoseconds(now),
	}
	if !q.Began.IsZero() {
		s.StartTimeUnixNano = nanoseconds(q.Began)
	}
	var a attributes
	a.text("network.protocol.name", "dns")
	a.text("network.transport", strings.ToLower(q.Query.Via().String()))
	if addr := t.config.Load().clients.Show(q.Client); addr.IsValid() {
		a.text("client.address", addr.String())
	}
	a.text("dns.question.name", name)
	a.text("dotgate.question.type", recordType)
	rcode := wire.HeaderRCode(q.Reply)
	a.text("dotgate.rcode", rcode.String())
	a.number("dotgate.answers", int64(q.Reply[6])<<8|int64(q.Reply[7]))
	a.text("dotgate.cache", cacheResult(trace, q))
	if q.Coalesced {
		a.flag("dotgate.coalesced")
	}
	if route := trace.route.Load(); route != nil && *route != "" {
		a.text("dotgate.route", *route)
	}
	why := ""
	if q.Err != nil {
		why = q.Err.Error()
		a.text("dotgate.failure", why)
	}
	if q.EDE != (wire.EDE{}) {
		a.text("dotgate.ede", fmt.Sprintf("%d (%s)", q.EDE.Code, q.EDE.Text))
	}
	if rcode == wire.ServFail {
		kind := rcode.String() // from an upstream
		if q.Outcome != gateway.Answered {
			kind = q.Outcome.String()
		}
		a.text("error.type", kind)
		s.Status = errorStatus(why)
	}
	s.Attributes = a
	return s
}

// cacheResult returns miss, stale or hit, for the own cache and the shared one together.
func cacheResult(trace *Trace, q gateway.Traced) string {
	asked := q.Coalesced || trace.route.Load() != nil || q.Outcome != gateway.Answered || q.Err != nil
	switch {
	case q.Found == cache.Stale:
		return "stale"
	case q.Found == cache.Miss && asked:
		return "miss"
	}
	return "hit"
}

// question returns the name as the client spelled it, without the final dot, and the type.
func question(q wire.Query) (name, recordType string) {
	text := q.String()
	i := strings.LastIndexByte(text, ' ')
	name, recordType = text[:max(i, 0)], text[i+1:]
	if name != "." {
		name = strings.TrimSuffix(name, ".")
	}
	return name, recordType
}

// attemptSpans returns the spans of all attempts of a query.
func (trace *Trace) attemptSpans(s balancer.Trace) []*tracepb.Span {
	var steps []upstreams.Step
	if trace.steps != nil {
		steps = trace.steps.Steps()
	}
	var all []*tracepb.Span
	for i, a := range s.Attempts {
		all = append(all, trace.attemptSpan(s, a, stepsOf(s, i, steps)))
	}
	return all
}

// stepsOf returns the steps of one attempt. If an upstream was asked twice, its steps from
// the second attempt on belong to that one.
func stepsOf(s balancer.Trace, attempt int, steps []upstreams.Step) (own []upstreams.Step) {
	a := s.Attempts[attempt]
	from, until := s.Began.Add(a.After), s.Began.Add(s.Took)
	for _, later := range s.Attempts[attempt+1:] {
		if later.Name == a.Name {
			until = s.Began.Add(later.After)
			break
		}
	}
	for _, step := range steps {
		if step.Upstream == a.Name && !step.At.Before(from) && !step.At.After(until) {
			own = append(own, step)
		}
	}
	return own
}

// attemptSpan returns the span of one attempt. An attempt that is still open when another
// one has answered ends with the exchange.
func (trace *Trace) attemptSpan(s balancer.Trace, a balancer.AttemptTrace, steps []upstreams.Step) *tracepb.Span {
	began, ended := s.Began.Add(a.After), s.Began.Add(s.Took)
	if a.Ended {
		ended = began.Add(a.Took)
	}
	id := newSpanID()
	span := &tracepb.Span{
		TraceId: trace.id[:], SpanId: id[:], ParentSpanId: trace.root[:], Flags: spanFlags, Kind: tracepb.Span_SPAN_KIND_CLIENT,
		Name: "ask " + a.Name, StartTimeUnixNano: nanoseconds(began), EndTimeUnixNano: nanoseconds(ended),
	}
	var all attributes
	all.text("dotgate.upstream", a.Name)
	all.text("dotgate.reason", a.Reason.String())
	switch {
	case !a.Ended:
		all.text("dotgate.outcome", "open")
	case a.Err != nil:
		all.text("dotgate.outcome", "failed")
		all.text("error.type", upstreams.OutcomeOf(a.Err).String())
		span.Status = errorStatus(a.Err.Error())
	default:
		all.text("dotgate.outcome", "answered")
		all.text("dotgate.rcode", a.RCode.String())
	}
	var at netip.AddrPort
	for _, step := range steps {
		if step.Address.IsValid() {
			at = step.Address
		}
		span.Events = append(span.Events, &tracepb.Span_Event{TimeUnixNano: nanoseconds(step.At), Name: strings.ToValidUTF8(step.What, "�")})
	}
	if at.IsValid() {
		all.text("server.address", at.Addr().String())
		all.number("server.port", int64(at.Port()))
	}
	span.Attributes = all
	return span
}

// resource describes this gateway.
func (c *config) resource() *resourcepb.Resource {
	var a attributes
	a.text("service.name", c.Service)
	if c.Version != "" {
		a.text("service.version", c.Version)
	}
	if host, err := os.Hostname(); err == nil { // tells the nodes of a pair apart
		a.text("host.name", host)
	}
	return &resourcepb.Resource{Attributes: a}
}

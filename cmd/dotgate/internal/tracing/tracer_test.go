package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"

	"dotgate/balancer"
	"dotgate/gateway"
	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
	"dotgate/upstreams"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ gateway.Tracer = (*Tracer)(nil)

// newTracer returns one that traces every query, unless change says otherwise.
func newTracer(t testing.TB, change func(*Options)) *Tracer {
	t.Helper()
	o := Defaults()
	o.Endpoint, o.Sample, o.Version, o.Log = "http://127.0.0.1:1", 1, "v1", slog.New(slog.DiscardHandler)
	if change != nil {
		change(&o)
	}
	tracer, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return tracer
}

func query(t testing.TB, name string) wire.Query {
	t.Helper()
	q, err := wire.NewQuery(name, "AAAA")
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// traced is a query that was answered at once, from the cache, with a code.
func traced(t testing.TB, rcode wire.RCode) gateway.Traced {
	t.Helper()
	q := query(t, "www.Example.com")
	return gateway.Traced{
		Query: q, Reply: q.AppendError(nil, rcode, wire.EDE{}), Client: netip.MustParseAddr("192.0.2.77"),
		Found: cache.Fresh,
	}
}

// later returns a query that was not answered by the cache.
func later(t testing.TB, rcode wire.RCode) gateway.Traced {
	t.Helper()
	q := traced(t, rcode)
	q.Began, q.Found = time.Now(), cache.Miss
	return q
}

// waiting takes the spans that wait to be sent.
func (t *Tracer) waiting() (all []*tracepb.Span) {
	for len(t.queue) > 0 {
		all = append(all, <-t.queue)
	}
	return all
}

// show writes a span as a line: its name, kind, how long it took, its status and its
// attributes.
func show(s *tracepb.Span) string {
	kind := strings.ToLower(strings.TrimPrefix(s.Kind.String(), "SPAN_KIND_"))
	text := fmt.Sprintf("%s (%s, %v)", s.Name, kind, time.Duration(s.EndTimeUnixNano-s.StartTimeUnixNano))
	if s.Status != nil {
		text += fmt.Sprintf(" %v %q", s.Status.Code, s.Status.Message)
	}
	for _, a := range s.Attributes {
		text += " " + a.Key + "=" + strings.NewReplacer("string_value:", "", "int_value:", "", "bool_value:", "", "  ", " ").Replace(a.Value.String())
	}
	return text
}

func expect(t *testing.T, s *tracepb.Span, want string) {
	t.Helper()
	if got := show(s); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestAHitIsARootAlone(t *testing.T) {
	t.Parallel()
	tracer := newTracer(t, nil)
	tracer.End(context.Background(), traced(t, wire.NoError))
	all := tracer.waiting()
	if len(all) != 1 || len(all[0].ParentSpanId) != 0 || len(all[0].TraceId) != 16 || len(all[0].SpanId) != 8 {
		t.Fatalf("%v", all)
	}
	expect(t, all[0], `DNS AAAA (server, 0s) network.protocol.name="dns" network.transport="tcp" client.address="192.0.2.0"`+
		` dns.question.name="www.Example.com" dotgate.question.type="AAAA" dotgate.rcode="NOERROR" dotgate.answers=0 dotgate.cache="hit"`)
}

// A race is what a query took that was retried and hedged, as the balancer tells it.
func race(q wire.Query) balancer.Trace {
	return balancer.Trace{
		Query: q, Began: time.Now(), Took: 30 * time.Millisecond,
		Attempts: []balancer.AttemptTrace{
			{Name: "one", Reason: balancer.First, Ended: true, Took: 2 * time.Millisecond, Err: fmt.Errorf("one: %w", upstreams.ErrBusy)},
			{Name: "two", Reason: balancer.Retry, After: 2 * time.Millisecond},
			{Name: "one", Reason: balancer.Hedge, After: 20 * time.Millisecond, Ended: true, Took: 10 * time.Millisecond, RCode: wire.NXDomain},
		},
	}
}

func TestAMissIsATreeOfItsAttempts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tracer := newTracer(t, nil)
		ctx := tracer.Begin()
		trace := Of(ctx)
		trace.Asked("corp.example")
		q := later(t, wire.NXDomain)
		answer, err := wire.ParseAnswer(q.Query, q.Query.AppendError(nil, wire.NXDomain, wire.EDE{}))
		if err != nil {
			t.Fatal(err)
		}
		exchange := race(q.Query)
		time.Sleep(exchange.Took)
		trace.Record(answer, nil, func() balancer.Trace { return exchange })
		tracer.End(ctx, q)
		all := tracer.waiting()
		if len(all) != 4 {
			t.Fatalf("%d spans", len(all))
		}
		root := all[3]
		for _, s := range all[:3] {
			if string(s.TraceId) != string(root.TraceId) || string(s.ParentSpanId) != string(root.SpanId) || string(s.SpanId) == string(root.SpanId) {
				t.Errorf("%v is no child of %v", s, root)
			}
		}
		expect(t, root, `DNS AAAA (server, 30ms) network.protocol.name="dns" network.transport="tcp" client.address="192.0.2.0"`+
			` dns.question.name="www.Example.com" dotgate.question.type="AAAA" dotgate.rcode="NXDOMAIN" dotgate.answers=0 dotgate.cache="miss" dotgate.route="corp.example"`)
		expect(t, all[0], `ask one (client, 2ms) STATUS_CODE_ERROR "one: too many queries in flight" dotgate.upstream="one" dotgate.reason="first"`+
			` dotgate.outcome="failed" error.type="overload"`)
		expect(t, all[1], `ask two (client, 28ms) dotgate.upstream="two" dotgate.reason="retry" dotgate.outcome="open"`)
		expect(t, all[2], `ask one (client, 10ms) dotgate.upstream="one" dotgate.reason="hedge" dotgate.outcome="answered" dotgate.rcode="NXDOMAIN"`)
	})
}

func TestStepsAreOfTheAttemptThatTookThem(t *testing.T) {
	t.Parallel()
	tracer := newTracer(t, nil)
	trace := Of(tracer.Begin())
	s := race(query(t, "www.example.com"))
	at := netip.MustParseAddrPort("192.0.2.1:853")
	step := func(after time.Duration, upstream, what string, at netip.AddrPort) upstreams.Step {
		return upstreams.Step{At: s.Began.Add(after), Upstream: upstream, What: what, Address: at}
	}
	steps := []upstreams.Step{
		step(0, "one", "dialling", netip.AddrPort{}), step(2*time.Millisecond, "one", "busy", at),
		step(3*time.Millisecond, "two", "sent\xff", netip.AddrPort{}),
		step(29*time.Millisecond, "one", "verified: NXDOMAIN", at), step(31*time.Millisecond, "two", "too late", at),
	}
	for i, want := range []string{
		"dialling, busy at 192.0.2.1:853", "sent�", "verified: NXDOMAIN at 192.0.2.1:853",
	} {
		span := trace.attemptSpan(s, s.Attempts[i], stepsOf(s, i, steps))
		var events []string
		for _, e := range span.Events {
			events = append(events, e.Name)
		}
		got := strings.Join(events, ", ")
		for _, a := range span.Attributes {
			switch a.Key {
			case "server.address":
				got += " at " + a.Value.GetStringValue()
			case "server.port":
				got += fmt.Sprint(":", a.Value.GetIntValue())
			}
		}
		if got != want {
			t.Errorf("attempt %d: got %q, want %q", i, got, want)
		}
	}
}

func TestWhatFailsSaysWhy(t *testing.T) {
	t.Parallel()
	f := func(change func(*gateway.Traced), want string) {
		t.Helper()
		tracer := newTracer(t, func(o *Options) { o.Clients = "none" })
		q := later(t, wire.ServFail)
		change(&q)
		tracer.End(tracer.Begin(), q)
		got := show(tracer.waiting()[0])
		_, got, _ = strings.Cut(got, " dotgate.cache=")
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	f(func(q *gateway.Traced) {}, `"hit" error.type="SERVFAIL"`) // of another cache
	f(func(q *gateway.Traced) { q.Coalesced = true }, `"miss" dotgate.coalesced=true error.type="SERVFAIL"`)
	f(func(q *gateway.Traced) {
		q.Err, q.Outcome, q.EDE = errors.New("one: gone"), gateway.TimedOut, wire.EDE{Code: 22, Text: "no upstream answered in time"}
	}, `"miss" dotgate.failure="one: gone" dotgate.ede="22 (no upstream answered in time)" error.type="timed_out"`)
	f(func(q *gateway.Traced) {
		q.Err, q.Found, q.Reply = errors.New("one: gone"), cache.Stale, q.Query.AppendError(nil, wire.NoError, wire.EDE{})
	}, `"stale" dotgate.failure="one: gone"`)
	f(func(q *gateway.Traced) { q.Outcome = gateway.Overload }, `"miss" error.type="overload"`)
}

func TestClientsAreAnonymous(t *testing.T) {
	t.Parallel()
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("0123456789abcdeffedcba9876543210\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := func(how, want string) {
		t.Helper()
		tracer := newTracer(t, func(o *Options) { o.Clients, o.KeyFile = how, key })
		tracer.End(context.Background(), traced(t, wire.NoError))
		got := show(tracer.waiting()[0])
		if strings.Contains(got, "192.0.2.77") != (how == "full") || !strings.Contains(got, want) || strings.Contains(got, "client.address") != (how != "none") {
			t.Errorf("%s: got %s", how, got)
		}
	}
	f("prefix", `client.address="192.0.2.0"`)
	f("full", `client.address="192.0.2.77"`)
	f("none", "")
	f("ipcrypt", "client.address=")
}

func TestOneQueryOfNIsTraced(t *testing.T) {
	t.Parallel()
	tracer := newTracer(t, func(o *Options) { o.Sample = 10 })
	for range 50 {
		tracer.End(context.Background(), traced(t, wire.NoError))
		ctx := tracer.Begin()
		tracer.End(ctx, later(t, wire.NoError))
		Of(ctx).Record(wire.Answer{}, nil, func() balancer.Trace {
			if Of(ctx).steps == nil {
				t.Error("the exchange of a query is exported that is not traced")
			}
			return race(query(t, "www.example.com"))
		})
	}
	roots, attempts := 0, 0
	for _, s := range tracer.waiting() {
		if len(s.ParentSpanId) == 0 {
			roots++
		} else {
			attempts++
		}
	}
	if roots != 10 || attempts != 3*10 { // it is the turn of those that are asked for
		t.Errorf("%d of 100 are traced, with %d attempts", roots, attempts)
	}
}

var errGone = errors.New("gone")

// A failed query is traced as a whole although it is not sampled, whichever of gateway and
// balancer reports the failure first. So is a query that got a stale answer instead.
func TestFailedQueriesAreTraced(t *testing.T) {
	t.Parallel()
	stale := later(t, wire.NoError)
	stale.Found, stale.Err = cache.Stale, context.DeadlineExceeded
	f := func(q gateway.Traced, err error, tellFirst bool, want int) {
		t.Helper()
		tracer := newTracer(t, func(o *Options) { o.Sample = 1000 })
		ctx := tracer.Begin()
		tell := func() {
			Of(ctx).Record(wire.Answer{}, err, func() balancer.Trace { return race(q.Query) })
		}
		if tellFirst {
			tell()
		}
		tracer.End(ctx, q)
		if !tellFirst {
			tell()
		}
		if all := tracer.waiting(); len(all) != want {
			t.Errorf("%d spans, want %d", len(all), want)
		}
	}
	for _, tellFirst := range []bool{true, false} {
		f(later(t, wire.ServFail), errGone, tellFirst, 4)
		f(later(t, wire.NoError), nil, tellFirst, 0)
		f(stale, errGone, tellFirst, 4)
		f(stale, nil, false, 4) // it is answered before the race is over, which went well
	}
	f(later(t, wire.NXDomain), nil, true, 0)
	tracer := newTracer(t, func(o *Options) { o.Sample = 1000 })
	tracer.End(context.Background(), traced(t, wire.ServFail))
	if all := tracer.waiting(); len(all) != 1 {
		t.Errorf("of a failure in the cache, %d spans", len(all))
	}
}

func TestAnOutageIsNotTracedQueryByQuery(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tracer := newTracer(t, func(o *Options) { o.Sample = 1e9 })
		for range 3 {
			for range 200 {
				tracer.End(tracer.Begin(), later(t, wire.ServFail))
			}
			if n := len(tracer.waiting()); n != failuresMax {
				t.Errorf("%d are traced in a second", n)
			}
			time.Sleep(time.Second)
		}
	})
}

func TestABugInATraceCostsNoAnswer(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	tracer := newTracer(t, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	Of(tracer.Begin()).Record(wire.Answer{}, nil, func() balancer.Trace { panic("oops") })
	if !strings.Contains(log.String(), "BUG") || !strings.Contains(log.String(), "oops") {
		t.Errorf("logged %q", log.String())
	}
}

func TestWhatIsNotTracedCostsLittle(t *testing.T) {
	tracer := newTracer(t, func(o *Options) { o.Sample = 1e9 })
	hit, miss := traced(t, wire.NoError), later(t, wire.NoError)
	if n := testing.AllocsPerRun(100, func() { tracer.End(context.Background(), hit) }); n != 0 {
		t.Errorf("a hit: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { tracer.End(tracer.Begin(), miss) }); n > 2 {
		t.Errorf("a miss: %v allocations", n)
	}
}

// BenchmarkSpans is what it costs to trace a hit.
func BenchmarkSpans(b *testing.B) {
	tracer, hit := newTracer(b, nil), traced(b, wire.NoError)
	b.ReportAllocs()
	for b.Loop() {
		tracer.End(context.Background(), hit)
		<-tracer.queue
	}
}

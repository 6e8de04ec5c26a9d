//go:build linux && e2e

package e2e

import (
	"compress/gzip"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"dotgate/upstreams/dottest"
)

// A collector receives traces over HTTP.
type collector struct {
	*httptest.Server

	mu    sync.Mutex
	spans []*tracepb.Span
	heads []http.Header
}

func startCollector(t *testing.T) *collector {
	c := new(collector)
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m collectorpb.ExportTraceServiceRequest
		zip, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		text, err := io.ReadAll(zip)
		if err == nil {
			err = proto.Unmarshal(text, &m)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL, err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.heads = append(c.heads, r.Header)
		for _, resource := range m.ResourceSpans {
			if name := attribute(resource.Resource.Attributes, "service.name"); name != "under-test" {
				t.Errorf("spans are of %q", name)
			}
			for _, scope := range resource.ScopeSpans {
				c.spans = append(c.spans, scope.Spans...)
			}
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// tree returns the span of the latest query for a name, and those of its attempts in the
// order of their start.
func (c *collector) tree(t *testing.T, name string) (root *tracepb.Span, attempts []*tracepb.Span) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if len(s.ParentSpanId) == 0 && attribute(s.Attributes, "dns.question.name") == name {
			root = s
		}
	}
	if root == nil {
		t.Fatalf("%s has no trace", name)
	}
	for _, s := range c.spans {
		if string(s.ParentSpanId) == string(root.SpanId) && string(s.TraceId) == string(root.TraceId) {
			attempts = append(attempts, s)
		}
	}
	slices.SortFunc(attempts, func(a, b *tracepb.Span) int { return int(int64(a.StartTimeUnixNano) - int64(b.StartTimeUnixNano)) })
	return root, attempts
}

// attribute returns the value of an attribute that is a text, or empty.
func attribute(attributes []*commonpb.KeyValue, key string) string {
	for _, a := range attributes {
		if a.Key == key {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

// has checks attributes of a span, given as key=value, and whether it failed.
func has(t *testing.T, s *tracepb.Span, failed bool, want ...string) {
	t.Helper()
	for _, w := range want {
		if key, value, _ := strings.Cut(w, "="); attribute(s.Attributes, key) != value {
			t.Errorf("%s: %s is %q, not %q", s.Name, key, attribute(s.Attributes, key), value)
		}
	}
	if (s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR) != failed {
		t.Errorf("%s: status %v", s.Name, s.Status)
	}
	if s.EndTimeUnixNano < s.StartTimeUnixNano {
		t.Errorf("%s ends before it begins", s.Name)
	}
}

// TestTracesHaveTheAttempts has the program send its traces to a collector.
func TestTracesHaveTheAttempts(t *testing.T) {
	t.Parallel()
	c := startCollector(t)
	servers, urls := startUpstreams(t, time.Millisecond, time.Millisecond)
	headers := writeFile(t, "headers", "Authorization: Bearer of-the-collector\n")
	g := startGateway(t, urls, "DOTGATE_TRACING_ENDPOINT="+c.URL, "DOTGATE_TRACING_SAMPLE=1", "DOTGATE_TRACING_SERVICE=under-test",
		"DOTGATE_TRACING_HEADERS_FILE="+headers, "DOTGATE_BALANCER_POLICY=ordered")
	warmUp(t, g.addr)
	ask(t, g.addr, "known.example.com")
	ask(t, g.addr, "Known.example.com")
	ask(t, g.addr, "missed.example.com")
	servers[0].Set(dottest.Fault{Mangle: dottest.WrongQuestion})
	ask(t, g.addr, "retried.example.com")
	servers[1].Set(dottest.Fault{Mangle: dottest.WrongQuestion})
	ask(t, g.addr, "failed.example.com")
	g.stop(t) // it sends the pending spans

	root, attempts := c.tree(t, "Known.example.com")
	has(t, root, false, "dotgate.cache=hit", "dotgate.rcode=NOERROR", "network.transport=udp", "client.address=127.0.0.0")
	if root.Kind != tracepb.Span_SPAN_KIND_SERVER || root.Name != "DNS A" || len(attempts) != 0 {
		t.Errorf("a hit is %v with %d attempts", root, len(attempts))
	}

	root, attempts = c.tree(t, "missed.example.com")
	has(t, root, false, "dotgate.cache=miss", "dotgate.rcode=NOERROR")
	if len(attempts) != 1 {
		t.Fatalf("a miss took %d attempts", len(attempts))
	}
	has(t, attempts[0], false, "dotgate.reason=first", "dotgate.outcome=answered", "server.address="+servers[0].Addr().Addr().String())
	var events []string
	for _, e := range attempts[0].Events {
		events = append(events, e.Name)
	}
	if text := strings.Join(events, "; "); !strings.Contains(text, "sent with ") || !strings.Contains(text, "written in ") || !strings.HasSuffix(text, "verified: NOERROR") {
		t.Errorf("its steps are %s", text)
	}
	if attempts[0].Kind != tracepb.Span_SPAN_KIND_CLIENT || attempts[0].StartTimeUnixNano < root.StartTimeUnixNano {
		t.Errorf("odd attempt: %v", attempts[0])
	}

	root, attempts = c.tree(t, "retried.example.com")
	has(t, root, false, "dotgate.cache=miss", "dotgate.rcode=NOERROR")
	if len(attempts) != 2 {
		t.Fatalf("it took %d attempts", len(attempts))
	}
	has(t, attempts[0], true, "dotgate.reason=first", "dotgate.outcome=failed", "error.type=wrong_question", "server.address="+servers[0].Addr().Addr().String())
	has(t, attempts[1], false, "dotgate.reason=retry", "dotgate.outcome=answered", "server.address="+servers[1].Addr().Addr().String())

	root, attempts = c.tree(t, "failed.example.com")
	has(t, root, true, "dotgate.cache=miss", "dotgate.rcode=SERVFAIL", "error.type=failed", "dotgate.ede=22 (no upstream answered)")
	if len(attempts) < 2 || root.Status.Message == "" {
		t.Errorf("it took %d attempts, and fails for %q", len(attempts), root.Status.GetMessage())
	}
	for _, a := range attempts {
		has(t, a, true, "dotgate.outcome=failed")
	}
	for _, s := range c.spans {
		if strings.Contains(s.String(), "127.0.0.1\"") {
			t.Errorf("the client is visible: %v", s)
		}
	}
	for _, h := range c.heads {
		if h.Get("Authorization") != "Bearer of-the-collector" {
			t.Errorf("a request comes with %v", h)
		}
	}
	if g.output.contains("of-the-collector") {
		t.Error("the token is told")
	}
}

// A failed query has a span for each attempt, with its upstream and the reason of its
// failure, although it was not sampled.
func TestFailedQueriesAreAlwaysTraced(t *testing.T) {
	t.Parallel()
	c := startCollector(t)
	servers, urls := startUpstreams(t, time.Millisecond, time.Millisecond)
	g := startGateway(t, urls, "DOTGATE_TRACING_ENDPOINT="+c.URL, "DOTGATE_TRACING_SAMPLE=1000000", "DOTGATE_TRACING_SERVICE=under-test")
	warmUp(t, g.addr)
	for _, s := range servers {
		s.Set(dottest.Fault{Mangle: dottest.WrongQuestion})
	}
	ask(t, g.addr, "failed.example.com")
	g.stop(t)
	root, attempts := c.tree(t, "failed.example.com")
	has(t, root, true, "dotgate.rcode=SERVFAIL", "error.type=failed")
	if len(attempts) < 2 || len(c.spans) != 1+len(attempts) {
		t.Errorf("%d spans, of which %d are of its attempts", len(c.spans), len(attempts))
	}
	for _, a := range attempts {
		has(t, a, true, "dotgate.outcome=failed", "error.type=wrong_question")
		if len(a.Events) > 0 {
			t.Errorf("it has steps: %v", a.Events)
		}
	}
}

// A collector that is down, or never answers, delays no query, nor the end of the
// gateway.
func TestADeadCollectorDelaysNoQuery(t *testing.T) {
	t.Parallel()
	_, urls := startUpstreams(t, 2*time.Millisecond, 3*time.Millisecond)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	for what, at := range map[string]net.Addr{"silent": silent.Addr(), "gone": gone.Addr()} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			operators := ownAddr()
			g := startGateway(t, urls, "DOTGATE_TRACING_ENDPOINT=http://"+at.String(), "DOTGATE_TRACING_SAMPLE=1", "DOTGATE_ADMIN_LISTEN="+operators.String())
			warmUp(t, g.addr)
			o := dottestLoad(g.addr, what, 2000, 1000).run(t)
			o.mustBeWhole(t)
			dropped := `dotgate_tracing_spans_total{result="dropped"} `
			if text := metrics(t, operators); !strings.Contains(text, dropped) || strings.Contains(text, dropped+"0\n") {
				t.Errorf("of some 4000 spans none is dropped:\n%s", text)
			}
			if took := g.stop(t); took > 4*time.Second {
				t.Errorf("it took %v to end", took)
			}
		})
	}
}

// metrics returns the metrics page.
func metrics(t *testing.T, operators netip.AddrPort) string {
	t.Helper()
	r, err := http.Get("http://" + operators.String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A reload switches tracing on and off.
func TestTracingIsReloaded(t *testing.T) {
	t.Parallel()
	c := startCollector(t)
	_, urls := startUpstreams(t, time.Millisecond)
	file := filepath.Join(t.TempDir(), "dotgate.yaml")
	g := (*gateway)(nil)
	configure := func(text string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
		if g != nil {
			before := strings.Count(g.output.String(), "the configuration was reloaded")
			within(t, 5*time.Second, "it is reloaded", func() bool { return strings.Count(g.output.String(), "the configuration was reloaded") > before })
		}
	}
	configure("reload: {watch: true}\n")
	g = startGateway(t, urls, "DOTGATE_CONFIG="+file)
	ask(t, g.addr, "before.example.com")
	configure("tracing: {endpoint: \"" + c.URL + "\", sample: 1, service: under-test}\n")
	ask(t, g.addr, "now.example.com")
	c.mu.Lock()
	n := len(c.spans)
	c.mu.Unlock()
	if n != 0 {
		t.Errorf("%d spans came at once, not in a batch", n)
	}
	within(t, 10*time.Second, "a batch comes", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.spans) > 0
	})
	configure("reload: {watch: true}\n")
	ask(t, g.addr, "after.example.com")
	g.stop(t)
	c.tree(t, "now.example.com")
	for _, s := range c.spans {
		if name := attribute(s.Attributes, "dns.question.name"); name == "before.example.com" || name == "after.example.com" {
			t.Errorf("%s has a trace", name)
		}
	}
}

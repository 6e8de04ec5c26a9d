package tracing

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"dotgate/configs/secret"
	"dotgate/gateway/wire"
)

// decode returns what a request brings to a collector.
func decode(t testing.TB, r *http.Request) *collectorpb.ExportTraceServiceRequest {
	t.Helper()
	message := new(collectorpb.ExportTraceServiceRequest)
	zip, err := gzip.NewReader(r.Body)
	if err != nil {
		t.Error(err)
		return message
	}
	text, err := io.ReadAll(zip)
	if err != nil {
		t.Error(err)
	}
	if err := proto.Unmarshal(text, message); err != nil {
		t.Error(err)
	}
	return message
}

// A collector is one without a network. It does what its answers say, one after the
// other, and the last from then on: a code, with seconds to Retry-After behind it;
// "gone" or "silent".
type collector struct {
	*testing.T
	answers []string
	began   time.Time

	mu   sync.Mutex
	came []string // how many spans, and when
}

func (c *collector) RoundTrip(r *http.Request) (*http.Response, error) {
	spans := decode(c.T, r).ResourceSpans[0].ScopeSpans[0].Spans
	c.mu.Lock()
	c.came = append(c.came, fmt.Sprintf("%d@%v", len(spans), time.Since(c.began).Round(time.Second)))
	answer := c.answers[0]
	if len(c.answers) > 1 {
		c.answers = c.answers[1:]
	}
	c.mu.Unlock()
	switch answer {
	case "gone":
		return nil, errors.New("connection refused")
	case "silent":
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	w := httptest.NewRecorder()
	var code, seconds int
	n, err := fmt.Sscan(answer, &code, &seconds)
	if n == 0 {
		c.Error(err)
	}
	if n == 2 {
		w.Header().Set("Retry-After", fmt.Sprint(seconds))
	}
	w.WriteHeader(code)
	return w.Result(), nil
}

func (c *collector) saw() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.came, " ")
}

// collecting runs f beside a tracer that runs, in a bubble where time is fake. Stop
// has it end, and waits for that.
func collecting(t *testing.T, answers string, f func(tracer *Tracer, c *collector, stop func())) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &collector{T: t, answers: strings.Split(answers, ", "), began: time.Now()}
		tracer := newTracer(t, nil)
		tracer.client.Transport = c
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- tracer.Run(ctx) }()
		f(tracer, c, sync.OnceFunc(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}))
	})
}

// spans puts n spans before a tracer.
func spans(t *testing.T, tracer *Tracer, n int) {
	t.Helper()
	for range n {
		tracer.End(context.Background(), traced(t, wire.NoError))
	}
}

func TestBatchesAreFullOrFiveSecondsOld(t *testing.T) {
	t.Parallel()
	collecting(t, "200", func(tracer *Tracer, c *collector, stop func()) {
		spans(t, tracer, 1)
		time.Sleep(3 * time.Second)
		spans(t, tracer, 2)
		time.Sleep(3 * time.Second)
		spans(t, tracer, batchMax+1) // of which one waits
		time.Sleep(time.Second)
		spans(t, tracer, 4)
		time.Sleep(time.Minute)
		stop()
		if got := c.saw(); got != "3@5s 512@6s 5@11s" {
			t.Errorf("got %s", got)
		}
		if n := tracer.Counts(); n != (Counts{Exported: 3 + batchMax + 5}) {
			t.Errorf("%+v", n)
		}
	})
}

func TestWhatMayPassIsTriedAgain(t *testing.T) {
	t.Parallel()
	f := func(answers, want string, counts Counts) {
		t.Helper()
		collecting(t, answers, func(tracer *Tracer, c *collector, stop func()) {
			spans(t, tracer, 2)
			time.Sleep(5 * time.Minute)
			stop()
			if got := c.saw(); !strings.HasPrefix(got+" ", want+" ") {
				t.Errorf("%s: got %s, want %s", answers, got, want)
			}
			if n := tracer.Counts(); n != counts {
				t.Errorf("%s: %+v", answers, n)
			}
		})
	}
	f("503 7, 200", "2@5s 2@12s", Counts{Exported: 2})
	f("429 7, 502 3, 504 4, 200", "2@5s 2@12s 2@15s 2@19s", Counts{Exported: 2})
	f("503 3600, 200", "2@5s 2@1m5s", Counts{Exported: 2}) // an hour is too long
	f("503 50, 503 50, 200", "2@5s 2@55s 2@1m45s", Counts{Exported: 2})
	f("503 50", "2@5s 2@55s 2@1m45s", Counts{Failed: 2})
	f("gone, 200 ", "2@5s", Counts{Exported: 2})
	f("400", "2@5s", Counts{Failed: 2})
	f("500", "2@5s", Counts{Failed: 2})
	f("302", "2@5s", Counts{Failed: 2})
}

// It is left alone for ever longer, and what is too old is given up.
func TestACollectorThatIsGoneIsNotAskedAllTheTime(t *testing.T) {
	t.Parallel()
	for _, answer := range []string{"503", "gone", "silent"} {
		collecting(t, answer, func(tracer *Tracer, c *collector, stop func()) {
			spans(t, tracer, 2)
			time.Sleep(5*time.Second + retryFor + exportLimit)
			synctest.Wait()
			tries := len(strings.Fields(c.saw()))
			if tries < 4 || tries > 15 {
				t.Errorf("%s: %s", answer, c.saw())
			}
			if n := tracer.Counts(); n != (Counts{Failed: 2}) {
				t.Errorf("%s: %+v", answer, n)
			}
			stop()
		})
	}
}

func TestRetryAfterMayBeADate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := func(text string, want time.Duration) {
			t.Helper()
			if got := retryAfter(http.Header{"Retry-After": {text}}); got != want {
				t.Errorf("%q: got %v, want %v", text, got, want)
			}
		}
		f(time.Now().UTC().Add(40*time.Second).Format(http.TimeFormat), 40*time.Second)
		f("12", 12*time.Second)
		f("", 0)
		f("soon", 0)
		f("-1", 0)
	})
}

func TestOnlySoMuchWaits(t *testing.T) {
	t.Parallel()
	collecting(t, "silent", func(tracer *Tracer, c *collector, stop func()) {
		spans(t, tracer, batchMax)
		synctest.Wait() // it has taken these
		spans(t, tracer, queueMax+100)
		if n := tracer.Counts(); n.Dropped != 100 {
			t.Errorf("%+v", n)
		}
		stop()
		if n := tracer.Counts(); n != (Counts{Dropped: 100, Failed: batchMax + queueMax}) {
			t.Errorf("%+v", n)
		}
	})
}

func TestTheEndWaitsForWhatIsThereButNotForLong(t *testing.T) {
	t.Parallel()
	f := func(answers string, before time.Duration, want string, took time.Duration, counts Counts) {
		t.Helper()
		collecting(t, answers, func(tracer *Tracer, c *collector, stop func()) {
			spans(t, tracer, 3)
			time.Sleep(before)
			spans(t, tracer, 600)
			began := time.Now()
			stop()
			if time.Since(began) != took {
				t.Errorf("%s: it took %v", answers, time.Since(began))
			}
			if got := c.saw(); got != want {
				t.Errorf("%s: got %s, want %s", answers, got, want)
			}
			if n := tracer.Counts(); n != counts {
				t.Errorf("%s: %+v", answers, n)
			}
		})
	}
	f("200", time.Second, "512@1s 91@1s", 0, Counts{Exported: 603})
	f("503 50, 200", 10*time.Second, "3@5s 3@10s 512@10s 88@10s", 0, Counts{Exported: 603}) // no pause is left at the end
	f("503", 5500*time.Millisecond, "3@5s 3@6s 512@6s 88@6s", 0, Counts{Failed: 603})
	f("silent", time.Second, "512@1s 91@3s", flushLimit, Counts{Failed: 603})
}

func TestWhatACollectorDoesNotWantIsCounted(t *testing.T) {
	t.Parallel()
	log := new(lines)
	e := exporter{Tracer: newTracer(t, func(o *Options) { o.Log = log.logger() })}
	f := func(p *collectorpb.ExportTracePartialSuccess, want int, logged string) {
		t.Helper()
		text, err := proto.Marshal(&collectorpb.ExportTraceServiceResponse{PartialSuccess: p})
		if err != nil {
			t.Fatal(err)
		}
		if got := e.refused(text); got != want {
			t.Errorf("got %d, want %d", got, want)
		}
		if got := log.take(); !strings.Contains(got, logged) || logged == "" && got != "" {
			t.Errorf("logged %q, want %q", got, logged)
		}
		e.logged = time.Time{}
	}
	f(nil, 0, "")
	f(&collectorpb.ExportTracePartialSuccess{RejectedSpans: 3, ErrorMessage: "too old"}, 3, `rejected=3 message="too old"`)
	f(&collectorpb.ExportTracePartialSuccess{ErrorMessage: "please use another name"}, 0, "please use another name")
	if got := e.refused([]byte("{}")); got != 0 { // which is no message
		t.Errorf("got %d", got)
	}
}

// lines are what was logged.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.text.String()
	l.text.Reset()
	return text
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func TestTroubleIsToldOnceInAWhile(t *testing.T) {
	t.Parallel()
	log := new(lines)
	synctest.Test(t, func(t *testing.T) {
		e := exporter{Tracer: newTracer(t, func(o *Options) { o.Log, o.Endpoint = log.logger(), "http://192.0.2.1/?token=secret" })}
		logged := func(want string) {
			t.Helper()
			got := log.take()
			if !strings.Contains(got, want) || want == "" && got != "" || strings.Contains(got, "secret") {
				t.Errorf("logged %q, want %q", got, want)
			}
		}
		for range 100 {
			e.failed("it does not work", errGone)
		}
		if got := log.take(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "error=gone") {
			t.Errorf("logged %q", got)
		}
		time.Sleep(logEvery)
		e.failed("it does not work", errGone)
		logged("it does not work")
		e.succeeded()
		logged("accepts traces again")
		e.succeeded()
		logged("")
		e.failed("it does not work", errGone)
		logged("it does not work")
	})
}

// TestARequestIsWhatOTLPWants has one sent through real sockets.
func TestARequestIsWhatOTLPWants(t *testing.T) {
	t.Parallel()
	requests, messages := make(chan *http.Request, 1), make(chan *collectorpb.ExportTraceServiceRequest, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		messages <- decode(t, r)
		requests <- r
		text, _ := proto.Marshal(&collectorpb.ExportTraceServiceResponse{PartialSuccess: &collectorpb.ExportTracePartialSuccess{RejectedSpans: 1}})
		_, _ = w.Write(text)
	}))
	defer server.Close()
	tracer := newTracer(t, func(o *Options) {
		o.Endpoint, o.Service, o.Headers = secret.URL(server.URL), "resolver-7", []Header{{"Authorization", "Bearer secret"}, {"x-tenant", "a"}, {"x-tenant", "b"}}
	})
	spans(t, tracer, 3)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tracer.Run(ctx); err != nil {
		t.Fatal(err)
	}
	r, m := <-requests, <-messages
	if r.Method != "POST" || r.URL.Path != "/v1/traces" {
		t.Errorf("%s %s", r.Method, r.URL)
	}
	for name, want := range map[string]string{
		"Content-Type": "[application/x-protobuf]", "Content-Encoding": "[gzip]", "User-Agent": "[dotgate]",
		"Authorization": "[Bearer secret]", "X-Tenant": "[a b]",
	} {
		if got := fmt.Sprint(r.Header[name]); got != want {
			t.Errorf("%s is %s, not %s", name, got, want)
		}
	}
	resource := make(map[string]string)
	for _, a := range m.ResourceSpans[0].Resource.Attributes {
		resource[a.Key] = a.Value.GetStringValue()
	}
	if resource["service.name"] != "resolver-7" || resource["service.version"] != "v1" || resource["host.name"] == "" {
		t.Errorf("%v", resource)
	}
	if n := len(m.ResourceSpans[0].ScopeSpans[0].Spans); n != 3 {
		t.Errorf("%d spans", n)
	}
	if n := tracer.Counts(); n != (Counts{Exported: 2, Rejected: 1}) {
		t.Errorf("%+v", n)
	}
}

// Headers are for the configured collector, not for the target of a redirect.
func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it is followed") }))
	defer elsewhere.Close()
	server := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer server.Close()
	tracer := newTracer(t, func(o *Options) { o.Endpoint = secret.URL(server.URL) })
	spans(t, tracer, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = tracer.Run(ctx)
	if n := tracer.Counts(); n != (Counts{Failed: 1}) {
		t.Errorf("%+v", n)
	}
}

func TestOtherOptionsHoldForWhatIsNotSentYet(t *testing.T) {
	t.Parallel()
	var names []string
	collecting(t, "503, 200", func(tracer *Tracer, c *collector, stop func()) {
		tracer.client.Transport = transport(func(r *http.Request) (*http.Response, error) {
			names = append(names, r.URL.Host+" "+r.Header.Get("x-key"))
			return c.RoundTrip(r)
		})
		follow := func(change func(*Options)) {
			o := Defaults()
			o.Sample = 1
			change(&o)
			commit, err := tracer.Prepare(o)
			if err != nil {
				t.Error(err)
				return
			}
			commit()
		}
		spans(t, tracer, 2)
		time.Sleep(batchWait)
		synctest.Wait()
		follow(func(o *Options) { o.Endpoint, o.Headers = "http://other", []Header{{"x-key", "7"}} })
		time.Sleep(batchWait) // for the second try
		follow(func(o *Options) { o.Clients = "full" })
		spans(t, tracer, 1) // by a gateway that does not know yet that it is not exported
		time.Sleep(2 * batchWait)
		if n := tracer.Counts(); n != (Counts{Exported: 2, Failed: 1}) {
			t.Errorf("%+v", n)
		}
		if _, err := tracer.Prepare(Options{}); err == nil || !strings.Contains(err.Error(), "tracing.sample") || !strings.Contains(err.Error(), "tracing.service") {
			t.Errorf("got %v", err)
		}
		stop()
	})
	if got := strings.Join(names, ", "); got != "127.0.0.1:1 , other 7" {
		t.Errorf("sent to %s", got)
	}
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// What comes from the network is no reason for a batch not to be encoded.
func TestWhatIsNoTextIsSentAllTheSame(t *testing.T) {
	t.Parallel()
	e := exporter{Tracer: newTracer(t, nil), zip: gzip.NewWriter(nil)}
	q := later(t, wire.ServFail)
	q.Err, q.EDE.Text = errors.New("one: \xff\xfe"), "\xff"
	e.End(e.Begin(), q)
	if body, err := e.encode([]*tracepb.Span{<-e.queue}); err != nil || len(body) == 0 {
		t.Error(err)
	}
}

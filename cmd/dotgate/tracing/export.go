package tracing

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

const (
	// batchMax is how many spans are sent at once, and batchWait how long the first of
	// them waits for others: what OpenTelemetry's own batches have.
	batchMax  = 512
	batchWait = 5 * time.Second
	// exportLimit is how long a collector may take for them, and dialLimit how much of
	// that until there is a connection.
	exportLimit, dialLimit = 10 * time.Second, 3 * time.Second
	// retryMin and retryMax bound the time between two tries, which grows, and retryFor
	// is the age of a batch from which on there is no other.
	retryMin, retryMax, retryFor = time.Second, 10 * time.Second, time.Minute
	// laterMax is how long we do as a collector wants that has us wait.
	laterMax = time.Minute
	// flushLimit is how long what there is at the end may take: those who stop a process
	// give it ten seconds, of which others need some.
	flushLimit = 2 * time.Second
	// tellEvery is how often an operator is told that it still does not work.
	tellEvery = 10 * time.Minute
	// responseMax is what is read of a collector's response.
	responseMax = 64 << 10
)

// newTransport returns the way to a collector: the one that the configuration names,
// whatever the environment says of proxies.
func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: dialLimit}).DialContext,
		TLSHandshakeTimeout: dialLimit,
		IdleConnTimeout:     6 * batchWait,
	}
}

// stay has redirects not followed: headers are for the collector that is configured.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Run sends spans until ctx is done, and then what waits, for two seconds more at the
// most. It blocks, and returns nil: what can't be sent is counted and logged, for it
// is no reason not to serve.
func (t *Tracer) Run(ctx context.Context) error {
	defer t.client.CloseIdleConnections()
	last, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	context.AfterFunc(ctx, func() {
		select {
		case <-time.After(flushLimit):
			stop()
		case <-last.Done():
		}
	})
	e := exporter{Tracer: t, zip: gzip.NewWriter(nil)}
	for ctx.Err() == nil || len(t.queue) > 0 {
		if batch := t.gather(ctx); len(batch) > 0 {
			e.export(ctx, last, batch)
		}
	}
	return nil
}

// gather waits for a batch. It is smaller if no others come for a while, or ctx is
// done.
func (t *Tracer) gather(ctx context.Context) (batch []*tracepb.Span) {
	var enough <-chan time.Time
	for len(batch) < batchMax {
		select {
		case s := <-t.queue:
			if batch = append(batch, s); len(batch) == 1 {
				enough = time.After(batchWait)
			}
		case <-enough:
			return batch
		case <-ctx.Done():
			for len(batch) < batchMax && len(t.queue) > 0 { // nobody else takes any
				batch = append(batch, <-t.queue)
			}
			return batch
		}
	}
	return batch
}

// An exporter is Run's: it sends one batch after the other.
type exporter struct {
	*Tracer
	zip      *gzip.Writer
	troubled bool      // which was told
	told     time.Time // when it was last; zero if never
}

// export sends a batch, and counts what became of it.
func (e *exporter) export(ctx, last context.Context, batch []*tracepb.Span) {
	rejected, err := e.deliver(ctx, last, batch)
	if err != nil {
		e.counts.failed.Add(uint64(len(batch)))
		if !errors.Is(err, errNowhere) { // as the operator wants it
			e.fails("traces can't be sent (tracing.endpoint)", err)
		}
		return
	}
	rejected = min(max(rejected, 0), len(batch)) // who knows what a collector says
	e.counts.rejected.Add(uint64(rejected))
	e.counts.exported.Add(uint64(len(batch) - rejected))
	e.works()
}

// deliver sends a batch, again and again while that may help, but once at the most
// when ctx is done, and not at all when last is. It returns how many spans the
// collector did not want.
func (e *exporter) deliver(ctx, last context.Context, batch []*tracepb.Span) (rejected int, err error) {
	body, err := e.encode(batch)
	if err != nil {
		return 0, err
	}
	again := backoff.NewExponentialBackOff(backoff.WithInitialInterval(retryMin), backoff.WithMaxInterval(retryMax), backoff.WithMaxElapsedTime(retryFor))
	for {
		rejected, err = e.post(last, body)
		later, passes := errors.AsType[*laterError](err)
		wait := again.NextBackOff()
		if !passes || wait == backoff.Stop || ctx.Err() != nil {
			return rejected, err
		}
		e.fails("the collector takes no traces, and is tried again (tracing.endpoint)", err)
		select {
		case <-time.After(max(wait, min(later.after, laterMax))):
		case <-ctx.Done():
		}
	}
}

// encode returns what is sent.
func (e *exporter) encode(batch []*tracepb.Span) ([]byte, error) {
	r := e.rules.Load()
	text, err := proto.Marshal(&collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource: r.resource(),
		ScopeSpans: []*tracepb.ScopeSpans{{
			Scope: &commonpb.InstrumentationScope{Name: "dotgate", Version: r.Version},
			Spans: batch,
		}},
	}}})
	if err != nil {
		return nil, fmt.Errorf("BUG: spans can't be encoded: %w", err)
	}
	var out bytes.Buffer
	e.zip.Reset(&out)
	_, _ = e.zip.Write(text) // to memory: there is nothing to fail
	_ = e.zip.Close()
	return out.Bytes(), nil
}

// post sends a body, and returns how many of its spans the collector did not want. An
// error is a *laterError if it is worth another try.
func (e *exporter) post(ctx context.Context, body []byte) (rejected int, err error) {
	r := e.rules.Load()
	if r.url == "" {
		return 0, errNowhere
	}
	ctx, cancel := context.WithTimeout(ctx, exportLimit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	for name, values := range r.headers {
		request.Header[name] = values
	}
	request.Header.Set("Content-Type", "application/x-protobuf")
	request.Header.Set("Content-Encoding", "gzip")
	request.Header.Set("User-Agent", "dotgate")
	response, err := e.client.Do(request)
	if err != nil {
		if of, ok := errors.AsType[*url.Error](err); ok {
			err = of.Err // without the URL, which may have a secret in it
		}
		return 0, &laterError{err: err}
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, responseMax)) // taken is taken, whatever becomes of the response
	switch {
	case response.StatusCode/100 == 2:
		return e.partly(text), nil
	case slices.Contains(passing, response.StatusCode):
		return 0, &laterError{errors.New(response.Status), retryAfter(response.Header)}
	}
	return 0, errors.New(response.Status)
}

// errNowhere is that there is no endpoint any more.
var errNowhere = errors.New("there is nowhere to send traces")

// passing are the codes that another try may help against (OTLP 1.x, section
// "Retryable Response Codes").
var passing = []int{
	http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
}

// partly returns how many spans a collector did not want, which else has taken them.
// If it has anything to say of that, so is the operator.
func (e *exporter) partly(text []byte) (rejected int) {
	var response collectorpb.ExportTraceServiceResponse
	if proto.Unmarshal(text, &response) != nil {
		return 0
	}
	part := response.GetPartialSuccess()
	if n := part.GetRejectedSpans(); n != 0 || part.GetErrorMessage() != "" {
		e.tell("the collector of traces does not want all of them", "rejected", n, "says", part.GetErrorMessage())
	}
	return int(part.GetRejectedSpans())
}

// A laterError may be over soon.
type laterError struct {
	err   error
	after time.Duration // what the collector asks for; 0 if it does not say
}

func (l *laterError) Error() string { return l.err.Error() }
func (l *laterError) Unwrap() error { return l.err }

// retryAfter returns how long a collector wants us to wait (RFC 9110 section 10.2.3).
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return time.Until(at)
	}
	return 0
}

// fails takes note that it does not work.
func (e *exporter) fails(what string, err error) {
	if !e.troubled {
		e.told = time.Time{}
	}
	e.troubled = true
	e.tell(what, "error", err)
}

// works takes note that it does.
func (e *exporter) works() {
	if r := e.rules.Load(); e.troubled {
		r.logger().Info("the collector takes traces again", "endpoint", r.shown())
	}
	e.troubled = false
}

// tell tells the operator, but not all the time.
func (e *exporter) tell(what string, args ...any) {
	if !e.told.IsZero() && time.Since(e.told) < tellEvery {
		return
	}
	e.told = time.Now()
	r := e.rules.Load()
	r.logger().Warn(what, append([]any{"endpoint", r.shown()}, args...)...)
}

// shown returns the endpoint without what may be a secret in it.
func (r *rules) shown() string {
	before, _, _ := strings.Cut(r.url, "?")
	return before
}

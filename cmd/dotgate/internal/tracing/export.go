package tracing

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"dotgate/gateway/statelog"

	"github.com/cenkalti/backoff/v4"
	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

const (
	// batchMax bounds the spans of a batch, and batchWait the time that the first of them
	// waits for others: the defaults of OpenTelemetry's batch processor.
	batchMax  = 512
	batchWait = 5 * time.Second
	// exportLimit bounds one request, and dialLimit its connect and its TLS handshake.
	exportLimit, dialLimit = 10 * time.Second, 3 * time.Second
	// retryMin and retryMax bound the growing pause between two attempts. A batch is
	// given up after retryFor.
	retryMin, retryMax, retryFor = time.Second, 10 * time.Second, time.Minute
	// laterMax bounds the pause that a collector can ask for (Retry-After).
	laterMax = time.Minute
	// flushLimit bounds the export of queued spans at the end: service managers give a
	// process ten seconds, and other parts need some of them.
	flushLimit = 2 * time.Second
	// logEvery is the time between two log lines about a failing collector.
	logEvery = 10 * time.Minute
	// responseMax bounds what is read of a response.
	responseMax = 64 << 10
)

// Run exports spans until ctx is done, and then the queued ones for flushLimit at most. It
// blocks. It returns nil, because a failing collector is logged and counted and does not
// stop the gateway.
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

// gather waits for a batch: batchMax spans, or fewer after batchWait or when ctx is done.
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
			for len(batch) < batchMax && len(t.queue) > 0 { // Run is the only receiver
				batch = append(batch, <-t.queue)
			}
			return batch
		}
	}
	return batch
}

// An exporter sends one batch after the other, for Run.
type exporter struct {
	*Tracer
	zip     *gzip.Writer
	failing bool // the last batch could not be sent
	state   statelog.State
	logged  time.Time // of the last log line; zero if none
}

// export sends a batch and counts the result.
func (e *exporter) export(ctx, last context.Context, batch []*tracepb.Span) {
	rejected, err := e.deliver(ctx, last, batch)
	if err != nil {
		e.counts.failed.Add(uint64(len(batch)))
		if !errors.Is(err, errNoEndpoint) { // tracing was switched off
			e.failed("traces could not be sent (tracing.endpoint)", err)
		}
		return
	}
	rejected = min(max(rejected, 0), len(batch)) // the collector may send any number
	e.counts.rejected.Add(uint64(rejected))
	e.counts.exported.Add(uint64(len(batch) - rejected))
	e.succeeded()
}

// deliver sends a batch and retries while the error may be temporary: at most once after
// ctx is done, and not at all after last is. It returns the number of spans that the
// collector refused.
func (e *exporter) deliver(ctx, last context.Context, batch []*tracepb.Span) (rejected int, err error) {
	body, err := e.encode(batch)
	if err != nil {
		return 0, err
	}
	again := backoff.NewExponentialBackOff(backoff.WithInitialInterval(retryMin), backoff.WithMaxInterval(retryMax), backoff.WithMaxElapsedTime(retryFor))
	for {
		rejected, err = e.post(last, body)
		temporary, ok := errors.AsType[*temporaryError](err)
		wait := again.NextBackOff()
		if !ok || wait == backoff.Stop || ctx.Err() != nil {
			return rejected, err
		}
		e.failed("the collector did not accept traces: trying again (tracing.endpoint)", err)
		select {
		case <-time.After(max(wait, min(temporary.after, laterMax))):
		case <-ctx.Done():
		}
	}
}

// encode returns the body of a request.
func (e *exporter) encode(batch []*tracepb.Span) ([]byte, error) {
	c := e.config.Load()
	text, err := proto.Marshal(&collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource: c.resource(),
		ScopeSpans: []*tracepb.ScopeSpans{{
			Scope: &commonpb.InstrumentationScope{Name: "dotgate", Version: c.Version},
			Spans: batch,
		}},
	}}})
	if err != nil {
		return nil, fmt.Errorf("BUG: spans can't be encoded: %w", err)
	}
	var out bytes.Buffer
	e.zip.Reset(&out)
	_, _ = e.zip.Write(text) // cannot fail: it writes to memory
	_ = e.zip.Close()
	return out.Bytes(), nil
}

// post sends a body and returns the number of its spans that the collector refused. An
// error that may be temporary is a *temporaryError.
func (e *exporter) post(ctx context.Context, body []byte) (rejected int, err error) {
	c := e.config.Load()
	if c.url == "" {
		return 0, errNoEndpoint
	}
	ctx, cancel := context.WithTimeout(ctx, exportLimit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	for name, values := range c.headers {
		request.Header[name] = values
	}
	request.Header.Set("Content-Type", "application/x-protobuf")
	request.Header.Set("Content-Encoding", "gzip")
	request.Header.Set("User-Agent", "dotgate")
	response, err := e.client.Do(request)
	if err != nil {
		if of, ok := errors.AsType[*url.Error](err); ok {
			err = of.Err // without the URL, which may contain a secret
		}
		return 0, &temporaryError{err: err}
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, responseMax)) // the status alone says that the spans were accepted
	switch {
	case response.StatusCode/100 == 2:
		return e.refused(text), nil
	case slices.Contains(temporaryCodes, response.StatusCode):
		return 0, &temporaryError{errors.New(response.Status), retryAfter(response.Header)}
	}
	return 0, errors.New(response.Status)
}

// errNoEndpoint: a reload has removed the endpoint.
var errNoEndpoint = errors.New("tracing.endpoint is not set any more")

// temporaryCodes are the status codes that allow a retry (OTLP 1.x, section
// "Retryable Response Codes").
var temporaryCodes = []int{
	http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
}

// refused returns the number of spans that the collector refused although it accepted the
// request. Its message, if any, is logged.
func (e *exporter) refused(text []byte) (rejected int) {
	var response collectorpb.ExportTraceServiceResponse
	if proto.Unmarshal(text, &response) != nil {
		return 0
	}
	part := response.GetPartialSuccess()
	if n := part.GetRejectedSpans(); n != 0 || part.GetErrorMessage() != "" {
		e.warn("the collector refused some spans", "rejected", n, "message", part.GetErrorMessage())
	}
	return int(part.GetRejectedSpans())
}

// A temporaryError may be over at the next attempt.
type temporaryError struct {
	err   error
	after time.Duration // the pause that the collector asks for, or 0
}

func (l *temporaryError) Error() string { return l.err.Error() }
func (l *temporaryError) Unwrap() error { return l.err }

// retryAfter returns the pause that the collector asks for (RFC 9110 section 10.2.3).
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

// failed records a failed request.
func (e *exporter) failed(what string, err error) {
	if e.failing {
		e.warn(what, "error", err)
		return
	}
	e.failing, e.logged = true, time.Now()
	c := e.config.Load()
	e.state.Fail(func(skipped int) {
		c.logger().Warn(what, "endpoint", c.shown(), "error", err, "failures_not_logged", skipped)
	})
}

// succeeded records a successful request.
func (e *exporter) succeeded() {
	if e.failing {
		c := e.config.Load()
		e.state.Work(func() { c.logger().Info("the collector accepts traces again", "endpoint", c.shown()) })
	}
	e.failing = false
}

// warn logs a warning, at most once in logEvery.
func (e *exporter) warn(what string, args ...any) {
	if !e.logged.IsZero() && time.Since(e.logged) < logEvery {
		return
	}
	e.logged = time.Now()
	c := e.config.Load()
	c.logger().Warn(what, append([]any{"endpoint", c.shown()}, args...)...)
}

// shown returns the endpoint without its query, which may contain a secret.
func (c *config) shown() string {
	before, _, _ := strings.Cut(c.url, "?")
	return before
}

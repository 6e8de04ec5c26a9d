package upstreams

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A Trace records the steps of attempts.
type Trace struct {
	mu    sync.Mutex
	steps []Step
}

// A Step is something that happened to an attempt.
type Step struct {
	At       time.Time
	Upstream string
	Address  netip.AddrPort // where it happened, if that is known
	What     string
}

type traceKey struct{}

// WithTrace returns a context with which Ask records its steps in t.
func WithTrace(ctx context.Context, t *Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// A callTrace records the steps of one call. All methods may be called on nil, which is
// what a call has that is not traced.
type callTrace struct {
	trace    *Trace
	upstream string
}

// traceOf returns the callTrace for the Trace in ctx, nil if there is none.
func (u *Upstream) traceOf(ctx context.Context) *callTrace {
	t, _ := ctx.Value(traceKey{}).(*Trace)
	if t == nil {
		return nil
	}
	return &callTrace{t, u.o.Name}
}

// note records a step. The hot path checks for nil before, so that no arguments are made.
func (t *callTrace) note(format string, args ...any) {
	t.noteAt(netip.AddrPort{}, format, args...)
}

func (t *callTrace) noteAt(address netip.AddrPort, format string, args ...any) {
	if t == nil {
		return
	}
	t.trace.mu.Lock()
	defer t.trace.mu.Unlock()
	t.trace.steps = append(t.trace.steps, Step{time.Now(), t.upstream, address, fmt.Sprintf(format, args...)})
}

// Steps returns the steps so far, in order.
func (t *Trace) Steps() []Step {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.steps)
}

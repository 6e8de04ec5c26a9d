package upstreams

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"dotgate/gateway/wire"
)

// A Trace is what attempts went through, for who wants to know.
type Trace struct {
	mu    sync.Mutex
	steps []Step
}

// A Step is something that happened to an attempt.
type Step struct {
	At       time.Time
	Upstream string
	Address  netip.AddrPort // where; invalid if that is not said
	What     string
}

type traceKey struct{}

// WithTrace returns a context with which AskFor tells t what it does.
func WithTrace(ctx context.Context, t *Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

func traceOf(ctx context.Context) *Trace {
	t, _ := ctx.Value(traceKey{}).(*Trace)
	return t
}

// AskFor is Ask for who wants to know: what is done is told to the Trace in ctx,
// if there is one. Nothing else of ctx matters.
func (u *Upstream) AskFor(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	u.ask(q, done, traceOf(ctx))
}

// note tells what u does for who wants to know, if anybody does.
func (u *Upstream) note(t *Trace, format string, args ...any) {
	u.noteAt(t, netip.AddrPort{}, format, args...)
}

// noteAt tells what u does at an address.
func (u *Upstream) noteAt(t *Trace, address netip.AddrPort, format string, args ...any) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.steps = append(t.steps, Step{time.Now(), u.o.Name, address, fmt.Sprintf(format, args...)})
}

// Steps returns what was told so far, in the order in which it was.
func (t *Trace) Steps() []Step {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.steps)
}

package upstreams

import (
	"context"
	"fmt"
	"slices"
	"time"

	"dotgate/gateway/wire"
)

const (
	// lost is how long a dial may take at least before another is started beside
	// it, for whoever wants a connection then: its packets may have been lost, and
	// the system sends them again after a second only.
	lost = 250 * time.Millisecond
	// waitMax is how long a query waits for a connection that others were faster to
	// get.
	waitMax = time.Second
	// rush is how many times as many connections as usual are made at once when each
	// brings one answer only; fewer when it brings a few.
	rush = 8
	// dialsMax is how many dials are under way at most for one connection.
	dialsMax = 5
)

// A dial is a connection being made, and everybody who waits for it.
type dial struct {
	begun  int64 // instant
	cancel context.CancelFunc
	calls  []*call       // to be entered on it; guarded by mu of the Upstream
	done   chan struct{} // closed when one of the others is set
	conn   *conn
	err    error
}

func (d *dial) over() bool { return d.conn != nil || d.err != nil }

// Connect returns when a connection is open, and at once if one is. It blocks
// until none can be had, or ctx is done; a dial that it started goes on without
// it.
func (u *Upstream) Connect(ctx context.Context) error {
	if u.open.Load() > 0 {
		return nil
	}
	if _, err := u.connect(ctx); err != nil {
		return fmt.Errorf("%s: %w", u.o.Name, err)
	}
	return nil
}

// connect waits for a fresh connection.
func (u *Upstream) connect(ctx context.Context) (*conn, error) {
	u.mu.Lock()
	d := u.dialLocked()
	u.mu.Unlock()
	select {
	case <-d.done:
		return d.conn, d.err
	case <-ctx.Done():
		return nil, fmt.Errorf("still connecting to %v: %w", u.Addresses(), context.Cause(ctx))
	}
}

// dialLocked returns a dial to wait for: one under way, or a new one if that has
// taken so long that it may be lost, or its connection won't do for all who wait.
func (u *Upstream) dialLocked() *dial {
	n, limit := len(u.dials), int(u.allowance.limit.Load())
	if n == 0 {
		return u.newDialLocked()
	}
	d := u.dials[n-1]
	if limit > 0 {
		d = slices.MinFunc(u.dials, func(a, b *dial) int { return len(a.calls) - len(b.calls) })
	}
	switch {
	case limit > 0 && len(d.calls) >= limit && n < u.o.Connections*max(1, rush/limit), n < dialsMax && u.mayBeLost(d):
		return u.newDialLocked()
	}
	return d
}

// mayBeLost reports whether to start another dial beside d.
func (u *Upstream) mayBeLost(d *dial) bool {
	usual, _ := u.rtt.usual()
	late := max(lost, 4*usual) // it takes three round trips
	return time.Duration(u.now()-d.begun) >= late && u.dialer.pace.would(time.Now())
}

// startDialLocked starts a dial, unless one is under way.
func (u *Upstream) startDialLocked() {
	if len(u.dials) == 0 {
		u.newDialLocked()
	}
}

// newDialLocked starts a dial. It outlives the caller: a client that is less
// patient than a handshake takes long would otherwise keep everybody from ever
// connecting.
func (u *Upstream) newDialLocked() *dial {
	d := &dial{done: make(chan struct{}), begun: u.now()}
	if u.closed {
		d.err = ErrClosed
		close(d.done)
		return d
	}
	var ctx context.Context
	ctx, d.cancel = context.WithCancel(u.ctx)
	first := len(u.dials) == 0
	u.dials = append(u.dials, d)
	u.wg.Go(func() { u.runDial(ctx, d, first) })
	return d
}

// runDial makes d's connection. Those who wait for other dials get it as well:
// the first that succeeds ends them all, unless it will not do for all.
func (u *Upstream) runDial(ctx context.Context, d *dial, first bool) {
	defer d.cancel()
	secured, from, err := u.dialer.dial(ctx, first)
	var c *conn
	u.mu.Lock()
	ended := u.endDialsLocked(d, err == nil && u.allowance.limit.Load() == 0)
	switch {
	case err != nil:
	case len(ended) == 0 || u.closed:
		secured.NetConn().Close()
		err = ErrClosed
	default:
		c = newConn(u, secured, from)
		c.dialled = u.dialer.course(secured, from)
		u.conns = append(u.conns, c)
		u.open.Store(int32(len(u.conns)))
		u.wg.Go(c.readLoop)
		u.wg.Go(c.writeLoop)
	}
	u.mu.Unlock()
	if c != nil {
		c.drill().welcome(c)
	}
	for _, e := range ended {
		e.conn, e.err = c, err
		u.endDial(e)
	}
}

// endDial tells everybody who waits for d.
func (u *Upstream) endDial(d *dial) {
	d.cancel()
	close(d.done)
	calls := d.calls
	if limit := int(u.allowance.limit.Load()); d.conn != nil && limit > 0 && len(calls) > limit {
		u.awaitAnother(calls[limit:])
		calls = calls[:limit]
	}
	for _, call := range calls {
		if d.conn != nil {
			u.enter(d.conn, call, u.now())
		} else {
			u.fail(call, d.err)
		}
	}
}

// awaitAnother has calls, the oldest first, entered on connections after the one
// that they waited for. Those that have waited for too long won't be: their
// clients would not get to see the answers.
func (u *Upstream) awaitAnother(calls []*call) {
	now, late := u.now(), 0
	for late < len(calls) && time.Duration(now-calls[late].sent) > waitMax {
		late++
	}
	u.mu.Lock()
	d := u.dialLocked()
	over := d.over()
	if !over {
		d.calls = append(calls[late:], d.calls...)
	}
	u.mu.Unlock()
	for i, call := range calls {
		switch {
		case i < late:
			call.complete(wire.Answer{}, fmt.Errorf("%s: %w", u.o.Name, ErrBusy))
		case over:
			u.fail(call, d.err)
		}
	}
}

// endDialsLocked takes d, and all others if they are of no use any more, from
// those under way. It returns none if another has ended d.
func (u *Upstream) endDialsLocked(d *dial, all bool) (ended []*dial) {
	i := slices.Index(u.dials, d)
	switch {
	case i < 0:
		return nil
	case all:
		ended, u.dials = u.dials, nil
	default:
		ended, u.dials = []*dial{d}, slices.Delete(u.dials, i, i+1)
	}
	return ended
}

// NetworkChanged tells that routes, addresses or links of this machine came up:
// an upstream that can't be reached is dialled at once. It reports whether there
// is such trouble, so that it is worth asking again.
func (u *Upstream) NetworkChanged() bool {
	if !u.dialer.pace.changed(time.Now()) {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.dials) < dialsMax && u.dialer.pace.would(time.Now()) {
		u.newDialLocked()
	}
	return true
}

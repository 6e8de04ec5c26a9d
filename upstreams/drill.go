package upstreams

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"dotgate/gateway/wire"
)

// delayMax is the longest delay that a drill may ask for. Nobody waits longer
// for an answer, so that more would be a black hole.
const delayMax = 10 * time.Second

// ErrDrill means that the upstream has a drill already.
var ErrDrill = errors.New("a drill is under way already")

// A Drill is a fault that an upstream pretends to have, so that operators can
// rehearse it. It strikes where the real one would: all that notices and
// survives failures meets it unprepared.
type Drill struct {
	Fault Fault
	Delay time.Duration // of each answer; with Late
	Share int           // of the answers, in percent; with ServFail
}

// A Fault is what a drill does to an upstream.
type Fault uint8

const (
	// Blackhole: open connections take queries, and nothing ever comes back, not
	// even their end; new ones are not made within their time limit.
	Blackhole Fault = iota
	// Late: every answer comes later.
	Late
	// ServFail: some answers are replaced by SERVFAIL.
	ServFail
	// Hangup: all connections are closed, and new ones right after the handshake.
	Hangup

	faults int = iota
)

var faultNames = [faults]string{Blackhole: "blackhole", Late: "delay", ServFail: "servfail", Hangup: "close"}

func (f Fault) String() string {
	if int(f) < faults {
		return faultNames[f]
	}
	return fmt.Sprintf("Fault(%d)", uint8(f))
}

// String returns the form that ParseDrill reads.
func (d Drill) String() string {
	switch d.Fault {
	case Late:
		return d.Fault.String() + "=" + d.Delay.String()
	case ServFail:
		return fmt.Sprintf("%v=%d%%", d.Fault, d.Share)
	}
	return d.Fault.String()
}

// ParseDrill reads "blackhole", "delay=300ms", "servfail=20%" or "close".
func ParseDrill(text string) (Drill, error) {
	name, value, valued := strings.Cut(text, "=")
	fault := Fault(max(slices.Index(faultNames[:], name), 0))
	d := Drill{Fault: fault}
	switch {
	case fault.String() != name:
		return Drill{}, fmt.Errorf("%q is no fault; there are blackhole, delay=300ms, servfail=20%%, close", text)
	case fault == Late:
		var err error
		if d.Delay, err = time.ParseDuration(value); err != nil {
			return Drill{}, fmt.Errorf("%q is no delay; write one such as delay=300ms", text)
		}
		if d.Delay <= 0 || d.Delay > delayMax {
			return Drill{}, fmt.Errorf("%q must be above 0 and at most %v; an answer later than that is none, as with blackhole", text, delayMax)
		}
	case fault == ServFail:
		number, percent := strings.CutSuffix(value, "%")
		var err error
		if d.Share, err = strconv.Atoi(number); err != nil || !percent {
			return Drill{}, fmt.Errorf("%q is no share of the answers; write one such as servfail=20%%", text)
		}
		if d.Share < 1 || d.Share > 100 {
			return Drill{}, fmt.Errorf("%q must be between 1%% and 100%%", text)
		}
	case valued:
		return Drill{}, fmt.Errorf("%q: %v takes no value", text, fault)
	}
	return d, nil
}

// Drill makes u have the fault until ctx is done or u is closed. It blocks until
// then, and returns an error at once, ErrDrill, if u has one already.
//
// What the fault held back when it ends is late, not lost, unless it fell into a
// black hole.
func (u *Upstream) Drill(ctx context.Context, d Drill) error {
	r := &rehearsal{Drill: d, over: make(chan struct{})}
	if !u.dialer.drill.CompareAndSwap(nil, r) {
		return fmt.Errorf("%s: %w", u.o.Name, ErrDrill)
	}
	if d.Fault == Hangup {
		u.mu.Lock()
		conns := slices.Clone(u.conns)
		u.mu.Unlock()
		for _, c := range conns {
			r.welcome(c)
		}
	}
	select {
	case <-ctx.Done():
	case <-u.ctx.Done():
	}
	u.dialer.drill.Store(nil)
	close(r.over)
	return nil
}

// A rehearsal is a drill under way. All of its methods may be called on nil,
// which is what there is when nobody drills: then they do nothing.
type rehearsal struct {
	Drill
	over chan struct{} // closed when it ends
}

// drill returns the rehearsal under way, or nil.
func (c *conn) drill() *rehearsal { return c.upstream.dialer.drill.Load() }

// stall holds up the making of a connection. It returns an error after limit, as
// if packets were lost, or when ctx is done.
func (r *rehearsal) stall(ctx context.Context, limit time.Duration) error {
	if r == nil || r.Fault != Blackhole {
		return nil
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-r.over:
		return nil
	case <-timer.C:
		return noConnection(limit)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// welcome ends c, a connection that was just made.
func (r *rehearsal) welcome(c *conn) {
	if r != nil && r.Fault == Hangup {
		c.close(fmt.Errorf("%w: %w", errHungUp, io.EOF)) // what readLoop would have met
	}
}

// swallows reports whether what is written gets lost.
func (r *rehearsal) swallows() bool { return r != nil && r.Fault == Blackhole }

// conceal keeps from c that its peer is gone, until somebody else finds out.
func (r *rehearsal) conceal(c *conn) {
	if !r.swallows() {
		return
	}
	select {
	case <-r.over:
	case <-c.gone:
	}
}

// pass hands a message that came on c to its receive, as it is or otherwise. It
// reports what receive does, and unasked if that is not known yet.
func (r *rehearsal) pass(c *conn, message []byte) quality {
	if r == nil {
		return c.receive(message)
	}
	switch r.Fault {
	case Blackhole:
		return unasked
	case Late:
		late := slices.Clone(message) // it is readLoop's to reuse
		c.upstream.wg.Go(func() { r.passLater(c, late) })
		return unasked
	case ServFail:
		if rand.IntN(100) < r.Share {
			message = c.servFail(message)
		}
	}
	return c.receive(message)
}

// passLater passes a message on after the delay, or when c or the drill ends.
func (r *rehearsal) passLater(c *conn, message []byte) {
	timer := time.NewTimer(r.Delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.over:
	case <-c.gone:
		return
	}
	c.receive(message)
}

// servFail returns the SERVFAIL that could have come instead of message, which
// is also what it returns if nobody waits for it.
func (c *conn) servFail(message []byte) []byte {
	if len(message) < 2 {
		return message
	}
	id := wire.ID(message)
	query, ok := c.waitsFor(id)
	if !ok {
		return message
	}
	failure := query.AppendError(nil, wire.ServFail, wire.EDE{})
	binary.BigEndian.PutUint16(failure, id)
	return failure
}

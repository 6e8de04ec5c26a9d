package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	// probeUsual is how long a probe may take if no limit is set and the upstream is
	// near. It grows to Options.Patience, which is patienceMin or more.
	probeUsual  = 2 * time.Second
	patienceMin = 4 * time.Second
	// idlePause is the largest number of intervals (Options.Interval) between two probes
	// while no query is placed.
	idlePause = 10
)

var errProbeErrored = errors.New("probe was answered with an error")

// pacing has what Run knows about its probes.
type pacing struct {
	pause    time.Duration // between the probes of an upstream that is up and answers nothing else
	took     time.Duration // duration of the last probe that was answered
	slow     bool          // a probe of this outage took longer than probeUsual
	wasLate  bool          // the end of the last probe was noticed late
	nameErrs bool          // the upstream answers probes with errors, and all other queries well
}

// The values of interest: whether queries are placed.
const (
	unused  uint32 = iota
	used           // the state was asked for since the last probe
	resting        // the state was not asked for, and Run probes more seldom
)

// noteInterest records that the state decides where a query goes. If the state may be old,
// a probe is sent.
func (m *Monitor) noteInterest() {
	if m.interest.Load() != used && m.interest.Swap(used) == resting {
		m.wakeProbe()
	}
}

// setPause sets the pause until the next probe: Options.Interval while queries are placed.
// Otherwise each probe, which costs a handshake, doubles the pause.
func (m *Monitor) setPause(woken bool) {
	switch {
	case m.interest.CompareAndSwap(used, unused):
		m.run.pause = m.o.Interval
	case !woken:
		m.run.pause = min(2*m.run.pause, idlePause*m.o.Interval)
		m.interest.CompareAndSwap(unused, resting)
	}
}

// untilProbe returns the time until the next probe of an upstream that is up.
func (m *Monitor) untilProbe() time.Duration {
	if m.failures.Load() > 0 {
		return m.o.RecoveryMin // something failed: look again soon
	}
	return m.run.pause - time.Duration(m.now()-m.lastAnswer.Load())
}

// probeMax returns how long a probe may take if the upstream is up.
func (o Options) probeMax() time.Duration { return cmp.Or(o.ProbeTimeout, o.Patience) }

// silenceLimit returns for how long an upstream that is up must be silent for its probe to
// have failed. It follows earlier answers unless the operator has set a limit, since a
// distant upstream is not at fault. An upstream that was reached may be distant, or the
// network may have become slow.
func (m *Monitor) silenceLimit() time.Duration {
	usual, patience := m.upstream.Latency()
	switch {
	case m.upstream.Reached():
		return m.o.probeMax()
	case usual > 0:
		return min(max(silenceMin, 3*patience, m.run.took*3/2), m.o.probeMax())
	}
	return min(silenceMinUnknown, m.o.probeMax())
}

// probeUp probes an upstream that is up, if its state is in question, and takes it out if
// the probe fails, too.
func (m *Monitor) probeUp(ctx context.Context, woken bool) {
	if !woken && m.failures.Load() == 0 && m.now()-m.lastAnswer.Load() < int64(m.run.pause) {
		return // a live answer came meanwhile
	}
	reported := woken && m.reported()
	p := m.probe(ctx, m.silenceLimit, m.o.probeMax())
	weak := errors.Is(p.err, errProbeErrored)
	again := p.late && !m.run.wasLate
	m.run.wasLate = p.late
	if ctx.Err() != nil || !m.known().IsUp() {
		return
	}
	why := fmt.Errorf("probe for %s: %w", m.query, p.err)
	switch {
	case again: // the answer may be here, unread
		m.wakeProbe()
	case p.err == nil, weak && !reported:
		// It answers. The name of the probe may be the cause of the error.
		m.run.nameErrs = weak
		m.recordLive(nil)
		m.refresh()
	case weak:
		m.eject(Erroring, why)
	case m.upstream.Silent() >= m.silenceLimit():
		m.eject(Down, why)
	default:
		m.recordProbe(why)
	}
}

// probeDown probes an upstream that is down, and takes it back if it answers. It waits for
// a connection until the next probe would begin: that is the fastest way to notice the
// return of an upstream.
func (m *Monitor) probeDown(ctx context.Context) {
	limit := m.o.ProbeTimeout
	if limit == 0 {
		if limit = probeUsual; m.run.slow {
			limit = m.o.Patience
		}
	}
	err := m.connect(ctx, m.o.RecoveryMax)
	if err == nil {
		p := m.probe(ctx, func() time.Duration { return limit }, limit)
		m.run.slow = p.took >= limit || p.err == nil && p.took > probeUsual/2
		err = p.err
	}
	if ctx.Err() != nil {
		return
	}
	if errors.Is(err, errProbeErrored) && m.run.nameErrs && !m.hasErred() {
		err = nil // it answers as well as it did before
	}
	if err != nil {
		err = fmt.Errorf("probe for %s: %w", m.query, err)
		m.answersWrongly(err)
	}
	m.recordProbe(err)
	m.run.pause = m.o.Interval
}

func (m *Monitor) connect(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := m.upstream.Connect(ctx)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("no connection within %v (%v)", limit, err) // not wrapped, as in probe
	}
	return err
}

// A probeResult is the result of a probe.
type probeResult struct {
	err  error
	took time.Duration
	late bool // this process noticed the end of the limit late
}

// probe asks the upstream for the name of the probes. It ends once the upstream has been
// silent for as long as silence returns, and after most in any case, whatever the upstream
// does: without an end, there would be no further probe.
func (m *Monitor) probe(ctx context.Context, silence func() time.Duration, most time.Duration) (p probeResult) {
	began := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	var due time.Time // the end of the limit; zero if the probe ended before
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if due = m.waitSilence(ctx, began, silence, most); !due.IsZero() {
			cancel(context.DeadlineExceeded)
		}
	}()
	a, err := m.upstream.Exchange(ctx, m.query)
	cancel(nil)
	<-watched
	m.counts.probed(err)
	p.took = time.Since(began)
	if err != nil {
		p.late = !due.IsZero() && time.Since(due) > schedulerLag
		if p.err = err; !due.IsZero() {
			// Not wrapped: the context's error would be excused.
			p.err = errors.New(m.unanswered(due.Sub(began), err))
		}
		return p
	}
	m.run.took = p.took
	m.lastAnswer.Store(m.now())
	if r := a.RCode(); !r.IsResult() {
		p.err = fmt.Errorf("%w: %v", errProbeErrored, r)
	}
	return p
}

// waitSilence waits for the end of the limit of a probe that began at the given time, and
// returns it; or zero, if ctx ends before.
func (m *Monitor) waitSilence(ctx context.Context, began time.Time, silence func() time.Duration, most time.Duration) time.Time {
	for wait := silence(); ; {
		due := time.Now().Add(wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return time.Time{}
		case <-timer.C:
		}
		if wait = min(silence()-m.upstream.Silent(), most-time.Since(began)); wait <= 0 {
			return due
		}
	}
}

// unanswered returns the text that no answer came within limit, with the reason in err.
func (m *Monitor) unanswered(limit time.Duration, err error) string {
	text := fmt.Sprintf("no answer within %v", limit.Round(time.Millisecond))
	if more := strings.TrimSuffix(err.Error(), ": "+context.DeadlineExceeded.Error()); more != m.String() {
		text += " (" + more + ")"
	}
	return text
}

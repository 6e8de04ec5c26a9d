package health

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"dotgate/gateway/wire"
)

// settle probes an upstream that is up, if something is in question, and ejects
// it if the probe fails too.
func (m *Monitor) settle(ctx context.Context, woken bool) {
	if !woken && m.failures.Load() == 0 && m.now()-m.lastAnswer.Load() < int64(m.o.Interval) {
		return // a live answer came while we waited
	}
	if !m.up.Load() { // condemned meanwhile
		return
	}
	accused := woken && m.accused()
	silence, limit := verdictMin, verdictUnknown
	if usual, patience := m.upstream.Latency(); usual > 0 {
		silence = max(verdictMin, 3*patience)
		limit = silence
	}
	silence, limit = min(silence, m.o.ProbeTimeout), min(limit, m.o.ProbeTimeout)
	begun := time.Now()
	err := m.probe(ctx, limit)
	weak := errors.Is(err, errWeakProbe)
	late := err != nil && !weak && time.Since(begun) > limit+tardy
	again := late && !m.wasLate
	m.wasLate = late
	switch {
	case ctx.Err() != nil || !m.up.Load():
	case again: // the answer may lie here unread
		m.nudge()
	case err == nil:
		m.failures.Store(0)
	case weak && !accused:
		// It lives. That it can't resolve the probe's name may be the name's fault.
		m.failures.Store(0)
	case weak:
		m.liar.Store(true)
		m.condemn(fmt.Errorf("probe for %s: %w", m.query, err))
	case m.upstream.Silent() >= silence, m.failures.Add(1) >= int32(m.o.Failures):
		m.condemn(fmt.Errorf("probe for %s: %w", m.query, err))
	default:
		m.setReason(err)
		m.vote(err)
	}
}

// accused reports whether live traffic speaks against the upstream.
func (m *Monitor) accused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.faulty) > 0 && time.Since(m.opened) <= window
}

// tryAgain probes an upstream that is down, and takes it back if it answers. It
// waits for a connection for as long as the next probe would be waited for:
// nothing sees an upstream's return sooner.
func (m *Monitor) tryAgain(ctx context.Context) {
	err := m.connect(ctx, m.o.RecoveryMax)
	if err == nil {
		err = m.probe(ctx, m.o.ProbeTimeout)
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		m.setReason(fmt.Errorf("probe for %s: %w", m.query, err))
	}
	m.vote(err)
	if m.up.Load() {
		m.failures.Store(0)
		m.changedState()
	}
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

func (m *Monitor) answeredSince(t time.Time) bool {
	return m.lastAnswer.Load() > int64(t.Sub(m.epoch))
}

// probe asks the upstream for the probe's name. The limit holds whatever the
// upstream does: a probe that never ends would be the last.
func (m *Monitor) probe(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	a, err := m.upstream.Exchange(ctx, m.query)
	m.counts.probed(err)
	if err != nil {
		if ctx.Err() != nil {
			// Not wrapped: the context's error would be excused.
			return errors.New(m.unanswered(limit, err))
		}
		return err
	}
	m.lastAnswer.Store(m.now())
	if r := a.RCode(); r != wire.NoError && r != wire.NXDomain {
		return fmt.Errorf("%w: %v", errWeakProbe, r)
	}
	return nil
}

// unanswered says that no answer came within limit, and what err adds to that.
func (m *Monitor) unanswered(limit time.Duration, err error) string {
	text := fmt.Sprintf("no answer within %v", limit)
	if more := strings.TrimSuffix(err.Error(), ": "+context.DeadlineExceeded.Error()); more != m.String() {
		text += " (" + more + ")"
	}
	return text
}

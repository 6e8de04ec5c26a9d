package health

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// peerReportFor is how long the report of a peer makes an upstream Suspect. The probe
	// that it causes tells more by then.
	peerReportFor = time.Second
	// peerReportBurst is the number of unconfirmed reports that are accepted at once, and
	// peerReportEvery the interval at which further ones are. A peer that reports wrongly
	// all the time, or has a bad network, costs six probes a minute. A peer that reports
	// wrongly now and then is still accepted when it is right.
	peerReportBurst, peerReportEvery = 5, 10 * time.Second
)

// A peerReport is the report of a peer that an upstream fails.
type peerReport struct {
	at atomic.Int64 // instant; 0: there was none

	mu   sync.Mutex // guards the rest
	from string
	in   float64   // recent reports that were accepted and not confirmed
	last time.Time // when in was updated
}

// accept records a report, and returns whether it counts.
func (d *peerReport) accept(from string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.in = max(0, d.in-float64(now.Sub(d.last))/float64(peerReportEvery))
	d.last = now
	if d.in > peerReportBurst-1 {
		return false
	}
	d.in++
	d.from = from
	return true
}

// confirmed records that the upstream went down.
func (d *peerReport) confirmed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.in = 0
}

func (d *peerReport) text() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.from + " finds it failing"
}

// PeerReport records that a peer finds the upstream failing. The upstream is Suspect until
// it answers or a second has passed, and is probed at once: only what this Monitor sees
// itself takes it down. PeerReport returns whether the report counts. It does not if the
// upstream is down anyway, or after too many reports that were not confirmed.
func (m *Monitor) PeerReport(from string) bool {
	if !m.known().IsUp() || !m.peerReport.accept(from) {
		return false
	}
	m.peerReport.at.Store(m.now())
	m.refresh()
	m.wakeProbe()
	return true
}

// reportedByPeer returns whether a report counts that no answer has refuted.
func (m *Monitor) reportedByPeer() bool {
	at := m.peerReport.at.Load()
	return at != 0 && m.lastAnswer.Load() < at && m.now()-at < int64(peerReportFor)
}

// notifyChanged puts an element into Options.Changed, if there is room.
func (m *Monitor) notifyChanged() {
	select {
	case m.o.Changed <- struct{}{}:
	default: // there is no reader, or it has one already
	}
}

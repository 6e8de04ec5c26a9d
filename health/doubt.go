package health

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// doubtLimit is how long the word of another gateway counts at the most. What
	// the probe that it led to finds out counts from then on: silence of our own is
	// noticed sooner than that.
	doubtLimit = time.Second
	// doubtBurst is how many words are heard at once that are not borne out, and
	// doubtEvery how long it takes until one more is. Who cries wolf, or has a bad
	// line of its own, costs six probes a minute; who has a hiccup now and then is
	// heard when it is in earnest.
	doubtBurst, doubtEvery = 5, 10 * time.Second
)

// A doubt is the word of another gateway against an upstream.
type doubt struct {
	at atomic.Int64 // the instant when it came; 0 if there was none

	mu   sync.Mutex // guards the rest
	from string
	in   float64   // words heard, as far as they are not borne out or forgotten
	last time.Time // when in was brought up to date
}

// hear takes note of a word, and reports whether it is to be heeded.
func (d *doubt) hear(from string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.in = max(0, d.in-float64(now.Sub(d.last))/float64(doubtEvery))
	d.last = now
	if d.in > doubtBurst-1 {
		return false
	}
	d.in++
	d.from = from
	return true
}

// borneOut tells that the word was true.
func (d *doubt) borneOut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.in = 0
}

func (d *doubt) text() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.from + " finds it failing"
}

// Doubt tells that another gateway, from, finds the upstream failing. That makes it
// suspect until it answers or a second has passed, and has it probed at once; only
// what this Monitor sees itself takes it down. It reports whether the word was
// heeded: it is not if the upstream is down anyway, nor after too many that were not
// borne out.
func (m *Monitor) Doubt(from string) bool {
	if !m.up.Load() || !m.doubt.hear(from) {
		return false
	}
	m.doubt.at.Store(m.now())
	m.nudge()
	return true
}

// doubted reports whether there is a word against the upstream that it has not
// disproved.
func (m *Monitor) doubted() bool {
	at := m.doubt.at.Load()
	return at != 0 && m.lastAnswer.Load() < at && m.now()-at < int64(doubtLimit)
}

// tell lets others know that Status may say something else.
func (m *Monitor) tell() {
	select {
	case m.o.Changed <- struct{}{}:
	default: // there is nobody, or they know already
	}
}

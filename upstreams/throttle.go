package upstreams

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// unthrottledFor is how long an upstream that is out of reach is dialled without a
	// limit: most outages end sooner.
	unthrottledFor = 25 * time.Second
	// throttleInterval is the time between two dials after that: 8 dials a minute.
	throttleInterval = time.Minute / 8
	// networkDialsMax is how many changes of the network in a minute allow one more dial
	// each.
	networkDialsMax = 2
	// longDialAfter is how old the outage must be for a dial to wait for throttleInterval.
	// The system retransmits its SYN each second at first, and so notices the end of the
	// outage sooner than the few dials that are allowed.
	longDialAfter = 3 * time.Second
)

// A dialThrottle limits how often an upstream is dialled that is out of reach, or whose
// connections bring no answer.
type dialThrottle struct {
	offset   time.Duration // of its turns from those of other upstreams
	unproven atomic.Bool   // a connection was made, and no answer has come since

	mu      sync.Mutex
	since   time.Time // start of the outage, which ends with an answer; zero if there is none
	turn    int64     // of the last dial
	granted bool      // one dial may be made out of turn
	changes [networkDialsMax]time.Time
	problem error // of the last dial
}

// Turns count from throttleEpoch. throttles is how many throttles have turns.
var (
	throttleEpoch = time.Now()
	throttles     atomic.Uint32
)

// assignTurn gives p turns at other times than other upstreams have them: when all are
// out of reach, their dials are spread over time. Multiples of the golden ratio are far
// from each other, however many there are.
func (p *dialThrottle) assignTurn() {
	_, part := math.Modf(float64(throttles.Add(1)) * math.Phi)
	p.offset = time.Duration(part * float64(throttleInterval))
}

func (p *dialThrottle) turnAt(now time.Time) int64 {
	return int64(math.Floor(float64(now.Sub(throttleEpoch)+p.offset) / float64(throttleInterval)))
}

// allow reports whether to dial now. After true, the turn is used.
func (p *dialThrottle) allow(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.allowedLocked(now) {
		return false
	}
	p.turn, p.granted = p.turnAt(now), false
	return true
}

// wouldAllow reports what allow would, without using the turn.
func (p *dialThrottle) wouldAllow(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.allowedLocked(now)
}

func (p *dialThrottle) allowedLocked(now time.Time) bool {
	return p.since.IsZero() || now.Sub(p.since) < unthrottledFor || p.granted || p.turnAt(now) != p.turn
}

// connectLimit returns how long a dial may wait for a connection: usual, or longer when
// the upstream has been out of reach for long.
func (p *dialThrottle) connectLimit(now time.Time, usual time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since.IsZero() || now.Sub(p.since) < longDialAfter {
		return usual
	}
	return max(usual, throttleInterval)
}

// networkChanged records a change of the network. It reports whether there is an outage,
// which may have ended.
func (p *dialThrottle) networkChanged(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since.IsZero() {
		return false
	}
	if now.Sub(p.changes[0]) >= time.Minute {
		copy(p.changes[:], p.changes[1:])
		p.changes[networkDialsMax-1] = now
		p.granted = true
	}
	return true
}

// failed records the failure of a dial that began at the given time, or of its connection.
func (p *dialThrottle) failed(began time.Time, problem error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since.IsZero() {
		p.since = began
	}
	p.problem = problem
}

// answered ends the outage. It costs little when there is none.
func (p *dialThrottle) answered() {
	if !p.unproven.Load() {
		return
	}
	p.unproven.Store(false)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since, p.granted = time.Time{}, false
}

func (p *dialThrottle) refusal() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &failure{DialThrottled, fmt.Errorf("no answer since %s, dialled every %v only: %w", p.since.Format(time.TimeOnly), throttleInterval, p.problem)}
}

package upstreams

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// eager is how long a service that can't be reached is dialled whenever
	// anybody wants it: most outages are over by then.
	eager = 25 * time.Second
	// paced is how often it is dialled after that: 8 times a minute.
	paced = time.Minute / 8
	// heeded is how many changes of the network are heeded in a minute, with a
	// dial each.
	heeded = 2
	// patientAfter is how old the trouble must be for a dial to wait as long as
	// paced. The system sends its SYN again each second at first, which finds the
	// return of the service sooner than as many dials may.
	patientAfter = 3 * time.Second
)

// A pace keeps a service that can't be reached from being flooded with dials,
// whoever asks for them.
type pace struct {
	offset time.Duration // of its turns from those of others

	mu      sync.Mutex
	since   time.Time // of the trouble; zero if there is none
	turn    int64     // of the last dial
	granted bool      // one dial may be made out of turn
	changes [heeded]time.Time
	problem error // the last
}

// origin is what turns count from, and paces how many there are that take them.
var (
	origin = time.Now()
	paces  atomic.Uint32
)

// spread gives p's turns a place of their own among those of all services: when
// nobody can be reached, somebody is dialled every now and then. Multiples of
// the golden ratio are far from each other, however many there are.
func (p *pace) spread() {
	_, part := math.Modf(float64(paces.Add(1)) * math.Phi)
	p.offset = time.Duration(part * float64(paced))
}

func (p *pace) turnAt(now time.Time) int64 {
	return int64(math.Floor(float64(now.Sub(origin)+p.offset) / float64(paced)))
}

// allows reports whether to dial now.
func (p *pace) allows(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.wouldAllow(now) {
		return false
	}
	p.turn, p.granted = p.turnAt(now), false
	return true
}

// would reports whether allows would say yes.
func (p *pace) would(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wouldAllow(now)
}

func (p *pace) wouldAllow(now time.Time) bool {
	return p.since.IsZero() || now.Sub(p.since) < eager || p.granted || p.turnAt(now) != p.turn
}

// limit returns how long a dial may wait for a connection: usual, or longer when
// the service is long gone.
func (p *pace) limit(now time.Time, usual time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since.IsZero() || now.Sub(p.since) < patientAfter {
		return usual
	}
	return max(usual, paced)
}

// changed takes note that the network is not what it was. It reports whether
// there is trouble that may be over now.
func (p *pace) changed(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since.IsZero() {
		return false
	}
	if now.Sub(p.changes[0]) >= time.Minute {
		copy(p.changes[:], p.changes[1:])
		p.changes[heeded-1] = now
		p.granted = true
	}
	return true
}

// failed takes note of a dial that began at the given time.
func (p *pace) failed(began time.Time, problem error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since.IsZero() {
		p.since = began
	}
	p.problem = problem
}

func (p *pace) succeeded() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since, p.granted = time.Time{}, false
}

// refusal is why there is no dial.
func (p *pace) refusal() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &failure{DialPaced, fmt.Errorf("not reached since %s, dialled every %v only: %w", p.since.Format(time.TimeOnly), paced, p.problem)}
}

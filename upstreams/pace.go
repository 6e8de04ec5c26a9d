package upstreams

import (
	"fmt"
	"sync"
	"time"
)

const (
	// eager is how long a service that can't be reached is dialled whenever
	// anybody wants it: most outages are over by then.
	eager = 25 * time.Second
	// paced is how often it is dialled after that: 8 times a minute.
	paced = time.Minute / 8
)

// A pace keeps a service that can't be reached from being flooded with dials,
// whoever asks for them.
type pace struct {
	mu      sync.Mutex
	since   time.Time // of the trouble; zero if there is none
	next    time.Time // when one dial may be made, if the trouble lasts
	problem error     // the last
}

// allows reports whether to dial now.
func (p *pace) allows(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since.IsZero() || now.Sub(p.since) < eager {
		return true
	}
	if now.Before(p.next) {
		return false
	}
	p.next = now.Add(paced)
	return true
}

func (p *pace) failed(now time.Time, problem error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since.IsZero() {
		p.since = now
	}
	p.problem = problem
}

func (p *pace) succeeded() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since = time.Time{}
}

// refusal is why there is no dial.
func (p *pace) refusal() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Errorf("not reached since %s, dialled every %v only: %w", p.since.Format(time.TimeOnly), paced, p.problem)
}

package server

import (
	"context"
	"sync"
	"sync/atomic"

	"dotgate/balancer"
	"dotgate/gateway/wire"
	"dotgate/health"
)

// A loopWatch is an upstream's monitor that remembers which queries are under way
// there, while queries come back from it.
type loopWatch struct {
	*health.Monitor
	upstream upstream
	zones    atomic.Pointer[[]string] // what Zones returns
	tracking atomic.Bool

	mu    sync.Mutex     // guards names
	names map[uint64]int // queries under way, by the hash of the name
}

// Exchange asks the upstream, without its monitor.
func (w *loopWatch) Exchange(ctx context.Context, q wire.Query) (wire.Answer, error) {
	return w.upstream.Exchange(ctx, q)
}

// State returns the monitor's State in the words of the balancer.
func (w *loopWatch) State() balancer.State { return balancerStates[w.Monitor.State()] }

var balancerStates = [...]balancer.State{
	health.Up: balancer.Up, health.Suspect: balancer.Suspect, health.Erroring: balancer.Erroring, health.Down: balancer.Down,
}

// Zones returns names that the upstream is asked for.
func (w *loopWatch) Zones() []string { return *w.zones.Load() }

// Track has the names remembered that the upstream is asked for from now on, or none.
func (w *loopWatch) Track(on bool) { w.tracking.Store(on) }

// Asked reports whether a query for the name in q is under way.
func (w *loopWatch) Asked(q wire.Query) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.names[q.NameHash()] > 0
}

// Ask asks the upstream.
func (w *loopWatch) Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	if w.tracking.Load() {
		done = w.track(q, done)
	}
	w.Monitor.Ask(ctx, q, done)
}

// track notes that q is under way until the function that it returns is called.
func (w *loopWatch) track(q wire.Query, done func(wire.Answer, error)) func(wire.Answer, error) {
	hash := q.NameHash()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.names == nil {
		w.names = make(map[uint64]int)
	}
	w.names[hash]++
	return func(a wire.Answer, err error) {
		w.mu.Lock()
		if w.names[hash]--; w.names[hash] <= 0 {
			delete(w.names, hash)
		}
		w.mu.Unlock()
		done(a, err)
	}
}

// zones returns the first name that a list is for, and any other of its names; "." for
// the main one.
func (l *memberList) zones() []string {
	if l.label == "" {
		return []string{"."}
	}
	zones := make([]string, 0, 2)
	for _, name := range []string{l.label, l.names.RandomPattern(l.route)} {
		apex, _ := wire.Apex(name)
		zones = append(zones, apex)
	}
	return zones
}

package gateway

import (
	"context"
	"errors"
	"sync"
	"time"

	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
)

// A flight is one exchange with the Resolver, however many clients wait for it.
// The first of them leads: it makes the exchange or has it made. Nobody who
// leaves ends it.
type flight struct {
	key   string
	began time.Time
	limit limit
	// landed is closed when the rest is set; nil until somebody waits.
	landed chan struct{}

	// What became of it: an answer and the terms to pass it on, or an error.
	answer wire.Answer
	terms  wire.Terms
	err    error
}

// A limit is a context with a deadline that is left to whoever reads it: its Done
// is that of the context around it. A timer and its channel for each query would
// cost more than all else that the gateway does about one.
type limit struct {
	context.Context
	deadline time.Time
}

func (l *limit) Deadline() (time.Time, bool) { return l.deadline, true }

// flights are those under way, one for each key. There are no more of them than
// there are slots, nor more who wait.
type flights struct {
	mu   sync.Mutex // guards open and the landed of each flight; not held during I/O
	open map[string]*flight
}

// join returns the flight for q, and whether the caller leads it. Who doesn't
// lead may wait until it has landed.
func (fs *flights) join(q wire.Query) (f *flight, leads bool) {
	var room [wire.MaxKey]byte
	key := q.AppendKey(room[:0])
	now := time.Now()
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f, ok := fs.open[string(key)]; ok {
		if f.landed == nil {
			f.landed = make(chan struct{})
		}
		return f, false
	}
	f = &flight{key: string(key), began: now}
	fs.open[f.key] = f
	return f, true
}

// underWay reports whether there is a flight for q.
func (fs *flights) underWay(q wire.Query) bool {
	var room [wire.MaxKey]byte
	key := q.AppendKey(room[:0])
	fs.mu.Lock()
	defer fs.mu.Unlock()
	_, ok := fs.open[string(key)]
	return ok
}

// expect lets the leader of f wait for it too.
func (fs *flights) expect(f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f.landed == nil {
		f.landed = make(chan struct{})
	}
}

// land ends f: what became of it is set.
func (fs *flights) land(f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	delete(fs.open, f.key)
	if f.landed != nil {
		close(f.landed)
	}
}

// fetch returns the Resolver's answer to q, with one exchange for all who ask
// the same at the same time. It gives up when the client's time is over, or when
// the cache has a stale answer and would not let the client wait any longer; the
// exchange goes on then, and fills the cache. The flight that it returns has
// landed, or is nil.
func (g *Gateway) fetch(work context.Context, q wire.Query, t *tally) *flight {
	deadline := time.Now().Add(g.now().Timeout)
	if q.Scoped() { // for this client alone
		f := new(flight)
		g.fly(work, deadline, f, q)
		return f
	}
	for {
		f, leads := g.flights.join(q)
		if !leads {
			t.coalesced.Add(1)
		}
		// Not before: another flight may have landed since the read loop looked.
		found := g.cache.Look(q)
		stale := found == cache.Stale
		switch {
		case !leads:
		case found == cache.Fresh && g.landKnown(f, q):
			return f
		case !stale:
			g.fly(work, deadline, f, q)
			return f
		default:
			g.flights.expect(f)
			g.flyBehind(work, f, q)
		}
		if !f.await(deadline, stale, g.cache.StaleAfter()) {
			return nil
		}
		// Its leader may have run out of time when we have not.
		if leads || !errors.Is(f.err, context.DeadlineExceeded) || time.Until(deadline) < g.now().Timeout/8 || work.Err() != nil {
			return f
		}
	}
}

// landKnown lands f with the answer that the cache has by now, if it has one.
func (g *Gateway) landKnown(f *flight, q wire.Query) (landed bool) {
	if f.answer, f.terms, landed = g.cache.Get(q); landed {
		g.flights.land(f)
	}
	return landed
}

// await waits until f has landed, and reports whether it did: by the deadline
// and, if there is a stale answer, within patience from its begin. So only
// those who come first wait for long.
func (f *flight) await(deadline time.Time, stale bool, patience time.Duration) bool {
	if soon := f.began.Add(patience); stale && soon.Before(deadline) {
		deadline = soon
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-f.landed:
		return true
	case <-timer.C:
		return false
	}
}

// fly makes the exchange of f and lands it. A panic becomes an error: a bug that
// one name brings out must not end the service for all others.
func (g *Gateway) fly(work context.Context, deadline time.Time, f *flight, q wire.Query) {
	defer g.flights.land(f)
	defer func() {
		if v := recover(); v != nil {
			g.panics.report(v)
			f.answer, f.err = wire.Answer{}, errCrashed
		}
	}()
	domain, err := g.domains.enter(q)
	if err != nil {
		f.err = err
		return
	}
	answered := false
	defer func() { g.domains.leave(domain, answered) }()
	f.limit = limit{work, deadline}
	answer, err := g.now().resolver.Exchange(&f.limit, q)
	answered = err == nil && answer.Kind() != wire.Failure
	switch {
	case err != nil:
		f.err = err
	case answer.IsZero():
		f.err = errNothing
	default:
		if !q.Scoped() {
			g.cache.Put(q, answer)
		}
		f.answer, f.terms = answer, g.cache.Terms(answer)
	}
}

// flyBehind is fly in a goroutine, with a slot of its own.
func (g *Gateway) flyBehind(work context.Context, f *flight, q wire.Query) {
	if !g.slots.take() {
		f.err = errShed
		g.flights.land(f)
		return
	}
	g.behind.Go(func() {
		defer g.slots.release()
		g.fly(work, time.Now().Add(g.now().Timeout), f, q)
	})
}

var errShed = errors.New("too many queries under way")

// renew asks the Resolver for what the cache is about to lose, unless somebody
// does so already. It doesn't wait.
func (g *Gateway) renew(work context.Context, q wire.Query, t *tally) {
	if f, leads := g.flights.join(q); leads {
		t.prefetches.Add(1)
		g.flyBehind(work, f, q)
	}
}

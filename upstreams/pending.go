package upstreams

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"time"
)

// errDisplaced is why a query ended that had been without an answer for long when all
// sockets were in use.
var errDisplaced = fmt.Errorf("no answer in time, and newer queries need its place: %w", ErrBusy)

// pendingQueries are the queries in progress, at most limit. Names that are never
// answered would take all places for as long as they are waited for: the oldest query,
// which is probably for one of them, makes room for a new one, which probably is not.
type pendingQueries struct {
	limit int

	mu  sync.Mutex
	all list.List // of *pendingQuery, the oldest first
}

// A pendingQuery is one query in progress.
type pendingQuery struct {
	ctx   context.Context // ends when the query loses its place
	end   context.CancelCauseFunc
	began time.Time
	place *list.Element
}

// add adds a query. If there is no place, it takes that of the oldest one which is
// older than least, and fails if there is none.
func (p *pendingQueries) add(ctx context.Context, least time.Duration) (q *pendingQuery, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.all.Len() >= p.limit {
		oldest := p.all.Front().Value.(*pendingQuery)
		if now.Sub(oldest.began) <= least {
			return nil, false
		}
		p.all.Remove(oldest.place)
		oldest.end(errDisplaced)
	}
	q = &pendingQuery{began: now}
	q.ctx, q.end = context.WithCancelCause(ctx)
	q.place = p.all.PushBack(q)
	return q, true
}

// remove takes a query out that has ended.
func (p *pendingQueries) remove(q *pendingQuery) {
	p.mu.Lock()
	p.all.Remove(q.place) // nothing happens if it lost its place
	p.mu.Unlock()
	q.end(nil)
}

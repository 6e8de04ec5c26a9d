package upstreams

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// queriesPerConnMax is the highest limit that is learnt: beyond it, the queries that
	// are sent again because a connection has ended hardly count.
	queriesPerConnMax = 100
	// queriesPerConnSeen is how many connections in a row must have ended after the same
	// number of answers.
	queriesPerConnSeen = 3
	// queriesPerConnDelay is how soon after its last answer a connection must end for the
	// number of answers to be the reason, and queriesPerConnRetry how long one that has
	// reached the limit must stay open until it is tried with one more query.
	queriesPerConnDelay = 20 * time.Millisecond
	queriesPerConnRetry = 500 * time.Millisecond
)

// errExhausted means that a connection takes no more queries: the upstream is about to
// close it.
var errExhausted = errors.New("connection has had all queries that the upstream answers on one")

// queriesPerConn learns how many queries an upstream answers on one connection before
// it closes it. Queries sent after them would have to be sent again.
type queriesPerConn struct {
	limit atomic.Int32 // 0 means any number

	mu      sync.Mutex
	answers int // of each of the connections that ended last
	seen    int // how many these are
}

// ended records that the upstream closed a connection after a number of answers, promptly
// after the last one or not. It reports whether the limit has changed.
func (q *queriesPerConn) ended(answers int, promptly bool) (changed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case !promptly || answers == 0 || answers > queriesPerConnMax:
		q.seen = 0
	case answers != q.answers:
		q.answers, q.seen = answers, 1
	default:
		q.seen++
	}
	return q.seen >= queriesPerConnSeen && q.limit.Swap(int32(answers)) != int32(answers)
}

// exceeded records that a connection brought this number of answers. One beyond the limit shows
// that there is no limit any more.
func (q *queriesPerConn) exceeded(answers int) {
	if limit := int(q.limit.Load()); limit == 0 || answers <= limit {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.seen = 0
	q.limit.Store(0)
}

// exhausted reports whether the stream has been sent all queries that it will get
// answered.
func (s *stream) exhausted(now int64) bool {
	if s.shared.queriesPerConn.limit.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exhaustedLocked(now)
}

// exhaustedLocked makes an exception for a stream that has reached the limit and was left
// open nevertheless: it may be worth another query.
func (s *stream) exhaustedLocked(now int64) bool {
	limit := int(s.shared.queriesPerConn.limit.Load())
	if limit == 0 || s.sent < limit {
		return false
	}
	leftOpen := s.answered == s.sent && now-s.lastRead.Load() > int64(queriesPerConnRetry)
	return !leftOpen
}

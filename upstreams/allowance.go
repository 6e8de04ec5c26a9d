package upstreams

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// allowanceMax is the most answers after which a closed connection is thought
	// to have had its share: beyond, what was under way is sent again and
	// hardly counts.
	allowanceMax = 100
	// allowanceSeen is how many connections in a row must have ended after as many
	// answers.
	allowanceSeen = 3
	// allowanceDelay is how soon after its last answer a connection must end for
	// the one to be the reason of the other, and allowanceOver how long one that
	// has had its share must be left open to be tried with one more.
	allowanceDelay = 20 * time.Millisecond
	allowanceOver  = 500 * time.Millisecond
)

// errSpent means that a connection takes no more queries: it is about to be
// closed by the upstream.
var errSpent = errors.New("connection has had its share of queries")

// An allowance is how many queries an upstream answers on one connection before
// it closes it. What is sent behind them would have to be sent again.
type allowance struct {
	limit atomic.Int32 // learnt; 0 means any number

	mu      sync.Mutex
	answers int // on each of the connections that ended last
	seen    int // how many these are
}

// ended takes note of a connection that the upstream closed after so many
// answers, promptly after the last. It reports whether that taught something.
func (a *allowance) ended(answers int, promptly bool) (learnt bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !promptly || answers == 0 || answers > allowanceMax:
		a.seen = 0
	case answers != a.answers:
		a.answers, a.seen = answers, 1
	default:
		a.seen++
	}
	return a.seen >= allowanceSeen && a.limit.Swap(int32(answers)) != int32(answers)
}

// exceeded takes note that a connection brought so many answers. One beyond its
// share tells that there is no such thing any more.
func (a *allowance) exceeded(answers int) {
	if limit := int(a.limit.Load()); limit == 0 || answers <= limit {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen = 0
	a.limit.Store(0)
}

// spent reports whether c has been sent all the queries that it will get answered.
func (c *conn) spent(limit int32, now int64) bool {
	if limit == 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spentLocked(limit, now)
}

// spentLocked takes one that has had its share and was left open nevertheless for
// one that may be worth another query.
func (c *conn) spentLocked(limit int32, now int64) bool {
	if limit == 0 || c.sent < int(limit) {
		return false
	}
	leftOpen := c.answered == c.sent && now-c.lastRead.Load() > int64(allowanceOver)
	return !leftOpen
}

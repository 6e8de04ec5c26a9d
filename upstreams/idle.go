package upstreams

import (
	"sync/atomic"
	"time"
)

const (
	// idleLimitMin is the shortest time that idle connections are kept, however soon a
	// middlebox seems to drop them.
	idleLimitMin = 200 * time.Millisecond
	// idleLimitFor is how long a learnt limit is used.
	idleLimitFor = 10 * time.Minute
)

// idleTimeout is how long a connection may be idle: as configured, or shorter for a while
// because a middlebox drops idle connections sooner, as many home routers do.
type idleTimeout struct {
	configured time.Duration
	learnt     atomic.Pointer[idleLimit] // or nil
	dropped    atomic.Int64              // instant at which a connection seemed to have been dropped, or 0
}

// An idleLimit is a learnt limit.
type idleLimit struct {
	limit time.Duration
	until int64 // instant
}

func (t *idleTimeout) limit(now int64) time.Duration {
	if learnt := t.learnt.Load(); learnt != nil && now < learnt.until {
		return learnt.limit
	}
	return t.configured
}

// learn records that a connection was dropped after it had been idle for so long. Once
// may be chance, or a machine that is too busy. Twice within idleLimitFor is not: then it
// returns the new limit, else 0.
func (t *idleTimeout) learn(now int64, idle time.Duration) (limit time.Duration) {
	limit = max(idle/2, idleLimitMin)
	if limit >= t.limit(now) {
		return 0
	}
	if before := t.dropped.Swap(now); before == 0 || now-before > int64(idleLimitFor) {
		return 0
	}
	t.learnt.Store(&idleLimit{limit: limit, until: now + int64(idleLimitFor)})
	return limit
}

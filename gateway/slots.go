package gateway

import (
	"log/slog"
	"sync/atomic"

	"dotgate/gateway/access"
	"dotgate/gateway/statelog"
)

// checkSlots is how many health checks may wait for the Resolver beyond
// Options.MaxQueries: an overloaded gateway must not look dead.
const checkSlots = 16

// slots bounds the queries that wait for the Resolver.
type slots struct {
	taken atomic.Int64
	max   atomic.Int64
	full  atomic.Bool // from when a take failed until half of the slots are free
	state statelog.State
	log   *slog.Logger
}

// take takes a slot. It reports false if there is none; health checks have some of their own.
func (s *slots) take(check access.Check) bool {
	most := s.max.Load()
	if check != access.NoCheck {
		most += checkSlots
	}
	if s.taken.Add(1) <= most {
		return true
	}
	s.taken.Add(-1)
	if !s.full.Load() && s.full.CompareAndSwap(false, true) {
		s.state.Fail(func(skipped int) {
			s.log.Warn("too many queries in progress, further ones get SERVFAIL (gateway.max_queries)", "max", s.max.Load(), "times_not_logged", skipped)
		})
	}
	return false
}

// scarce reports whether more than a quarter of the slots are taken.
func (s *slots) scarce() bool { return s.taken.Load() > s.max.Load()/4 }

// crowded reports whether more than half of the slots are taken.
func (s *slots) crowded() bool { return s.taken.Load() > s.max.Load()/2 }

// release gives a slot back.
func (s *slots) release() {
	if left := s.taken.Add(-1); left <= s.max.Load()/2 && s.full.Load() && s.full.CompareAndSwap(true, false) {
		s.state.Work(func() { s.log.Info("queries no longer exceed gateway.max_queries", "in_progress", left) })
	}
}

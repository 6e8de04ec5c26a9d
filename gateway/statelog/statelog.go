// Package statelog limits the rate at which changes of a state are logged, so that a
// failure that comes and goes does not fill the log. It calls functions that log, and
// logs nothing itself.
package statelog

import (
	"sync"
	"time"
)

// Interval is the least time between two logged failures of a State.
const Interval = 10 * time.Second

// A State is the state of an output or a socket: working or failing. The start of a
// failure is logged at most once per Interval: sooner after the last one, it is logged
// when the Interval is over, if the failure lasts until then. The end of a failure is
// logged if its start was. The zero State is working. Methods may be called
// concurrently.
type State struct {
	mu      sync.Mutex
	failing bool
	logged  bool      // the current failure was logged
	last    time.Time // when a failure was logged last
	skipped int       // number of failures since then that were not logged
	timer   *time.Timer
	log     func(skipped int)
}

// Fail changes the state to failing, and does not block. If it was working, log is
// called once the failure is to be logged, now or later, with the number of failures
// before it that were not logged.
func (s *State) Fail(log func(skipped int)) {
	s.mu.Lock()
	if s.failing {
		s.mu.Unlock()
		return
	}
	s.failing, s.log = true, log
	wait := Interval - time.Since(s.last)
	if s.last.IsZero() {
		wait = 0
	}
	if wait > 0 {
		s.skipped++
		if s.timer == nil {
			s.timer = time.AfterFunc(wait, s.logLate)
		}
		s.mu.Unlock()
		return
	}
	s.logLocked()
}

// logLate logs a failure that has lasted until the end of the Interval.
func (s *State) logLate() {
	s.mu.Lock()
	s.timer = nil
	if !s.failing || s.logged {
		s.mu.Unlock()
		return
	}
	s.skipped--
	s.logLocked()
}

// logLocked logs the current failure, and unlocks s.
func (s *State) logLocked() {
	log, skipped := s.log, s.skipped
	s.logged, s.last, s.skipped = true, time.Now(), 0
	s.mu.Unlock()
	log(skipped)
}

// Work changes the state to working. It calls log if the state was failing and that was
// logged.
func (s *State) Work(log func()) {
	s.mu.Lock()
	logEnd := s.failing && s.logged
	s.failing, s.logged, s.log = false, false, nil
	s.mu.Unlock()
	if logEnd {
		log()
	}
}

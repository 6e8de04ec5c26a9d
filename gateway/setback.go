package gateway

import (
	"context"
	"log/slog"
	"time"
)

// A setback is a series of errors of a socket. None of them ends a server: a
// host that is out of descriptors or memory gets better, and a loop that gave
// up would not.
type setback struct {
	log   *slog.Logger
	doing string
	delay time.Duration // zero: all is well
}

const (
	minDelay = 5 * time.Millisecond
	maxDelay = time.Second
)

// wait pauses, longer each time, or until ctx is done.
func (s *setback) wait(ctx context.Context, err error) {
	if s.delay == 0 {
		s.log.Warn(s.doing+" fails, trying on", "err", err)
	}
	s.delay = min(max(2*s.delay, minDelay), maxDelay)
	t := time.NewTimer(s.delay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// over ends the series.
func (s *setback) over() {
	if s.delay > 0 {
		s.delay = 0
		s.log.Info(s.doing + " works again")
	}
}

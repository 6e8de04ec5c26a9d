package transport

import (
	"context"
	"log/slog"
	"time"

	"dotgate/gateway/statelog"
)

// A socketBackoff pauses a loop while its socket returns errors, longer each time. No
// error ends a loop: a host that is out of descriptors or memory recovers.
type socketBackoff struct {
	log   *slog.Logger
	doing string
	delay time.Duration // zero after a success
	state statelog.State
}

const (
	minBackoff = 5 * time.Millisecond
	maxBackoff = time.Second
)

// wait pauses after err, longer each time, or until ctx is done.
func (b *socketBackoff) wait(ctx context.Context, err error) {
	if b.delay == 0 {
		b.state.Fail(func(skipped int) {
			b.log.Warn(b.doing+" failed and is tried again", "error", err, "failures_not_logged", skipped)
		})
	}
	b.delay = min(max(2*b.delay, minBackoff), maxBackoff)
	t := time.NewTimer(b.delay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// reset ends a series of errors.
func (b *socketBackoff) reset() {
	if b.delay > 0 {
		b.delay = 0
		b.state.Work(func() { b.log.Info(b.doing + " works again") })
	}
}

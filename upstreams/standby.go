package upstreams

import (
	"context"
	"time"
)

const (
	// standbyInterval is how often a transport that stands by is tried while queries are
	// asked over the best one.
	standbyInterval = 30 * time.Second
	// standbyFor is how long an endpoint that failed then is dialled after the others.
	standbyFor = 5 * time.Minute
)

// standbyLaterLocked has the transports that stand by tried, unless that is planned.
func (u *Upstream) standbyLaterLocked() {
	if u.standby == nil && !u.isClosed && len(u.dialer.ladder) > 1 {
		u.standby = time.AfterFunc(standbyInterval, u.tryStandby)
	}
}

// tryStandby tries one of the transports behind the best one, by turn, so that it is known
// before it is needed which of them works. It does so as long as the best one is in use and
// queries are sent; climb has the dials of other times.
func (u *Upstream) tryStandby() {
	u.mu.Lock()
	defer u.mu.Unlock()
	sent := u.counts.sent.Load()
	if u.isClosed || sent == u.standbySent {
		u.standby = nil
		return
	}
	u.standbySent = sent
	u.standby.Reset(standbyInterval)
	if len(u.streams) == 0 || u.rungLocked() > 0 {
		return
	}
	u.standbys++
	rung := 1 + u.standbys%(len(u.dialer.ladder)-1)
	u.wg.Go(func() { u.dialer.tryRung(u.ctx, rung) })
}

// tryRung finds out whether the best endpoint of a rung works. It takes one that the system
// has a route to.
func (d *dialer) tryRung(ctx context.Context, rung int) {
	for _, e := range d.ordered() {
		if e.rung != rung {
			continue
		}
		a := d.dialOne(ctx, dialAttempt{to: e, began: time.Now(), test: d.test}, e.via.limits())
		if a.err == nil {
			a.link.abort()
			return
		}
		if ctx.Err() != nil {
			return
		}
		e.suspected.learn(time.Now(), standbyFor)
		if noRoute(a.err) == 0 {
			return
		}
	}
}

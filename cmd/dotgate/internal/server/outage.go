package server

import (
	"context"
	"time"
)

// outageCheck is how often an outage is looked at for its end: a reload ends it
// without any upstream's going up.
const outageCheck = 5 * time.Second

// noteOutages logs when no upstream is up, of those for most names or of a route, and
// when that ends. It blocks until ctx is done.
func (ps *pools) noteOutages(ctx context.Context) {
	check := time.NewTicker(outageCheck)
	check.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ps.states:
		case <-check.C:
		}
		open := false
		for _, p := range ps.all() {
			p.noteOutage()
			open = open || !p.outage.IsZero()
		}
		if check.Stop(); open {
			check.Reset(outageCheck)
		}
		select {
		case ps.changed <- struct{}{}:
		default: // there is a word already
		}
	}
}

// Outage returns why no upstream is up, of those for most names, the cause that matters
// first. It is empty if one is.
func (ps *pools) Outage() string {
	if ps.main.isUp() {
		return ""
	}
	return ps.main.balancer.Outage()
}

// isUp reports whether an upstream of p is up, or p has none any more.
func (p *pool) isUp() bool {
	list := p.list.Load()
	up := len(list.members) == 0
	for _, m := range list.members {
		up = up || m.monitor.Status().State.IsUp()
	}
	return up
}

// noteOutage logs if an outage of p has begun or ended. Only noteOutages calls it.
func (p *pool) noteOutage() {
	list, up := p.list.Load(), p.isUp()
	log := p.pools.log
	if list.label != "" {
		log = log.With("route", list.label)
	}
	switch {
	case !up && p.outage.IsZero():
		p.outage = time.Now()
		p.outages.Fail(func(skipped int) {
			args := []any{"reason", p.balancer.Outage()}
			if skipped > 0 {
				args = append(args, "outages_not_logged", skipped)
			}
			log.Error("no upstream is up: queries that the cache can't answer fail", args...)
		})
	case up && !p.outage.IsZero():
		p.outages.Work(func() {
			log.Info("the outage is over: an upstream is up again", "duration", time.Since(p.outage).Round(time.Millisecond))
		})
		p.outage = time.Time{}
	}
}

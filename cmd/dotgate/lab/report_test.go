//go:build linux && lab

package lab

import (
	"slices"
	"time"
)

// A report is what clients saw of a scenario, and what it cost.
type report struct {
	scenario              scenario
	before, during, after figures
	late                  time.Duration // from the strike until no query was late any more
	recovered             time.Duration // from the end of the fault to the usual share, or the first answer; -1 if not seen
	healthyCost           float64       // upstream queries per client query before
	faultCost             float64       // the most in any 2 s of the fault after the first 2
	dials                 int           // to struck upstreams during the fault
	problems              []string
	figures               []string // those that are not as promised, although nothing failed
	absolute              bool     // not all problems are ones that a machine can make by being late
	tries                 int
}

// figures sum up the queries of a phase, those for odd names aside.
type figures struct {
	sent, failed, slow int
	p50, p99, max      time.Duration
}

// between returns the outcomes of queries sent in a time.
func (line timeline) between(from, to time.Time, odd bool) (some []outcome) {
	for _, o := range line.outs {
		if o.odd == odd && !o.at.Before(from) && o.at.Before(to) {
			some = append(some, o)
		}
	}
	return some
}

// parts returns the outcomes of queries before the fault, during it, and after
// it. One that was still waiting when it struck, or began while it lasted, has
// met it.
func (line timeline) parts() (before, during, after []outcome) {
	for _, o := range line.outs {
		switch {
		case o.odd:
		case o.at.Before(line.strike) && o.end().Before(line.strike):
			before = append(before, o)
		case o.at.Before(line.lift):
			during = append(during, o)
		default:
			after = append(after, o)
		}
	}
	return before, during, after
}

func sum(outs []outcome) figures {
	f := figures{sent: len(outs)}
	if f.sent == 0 {
		return f
	}
	var times []time.Duration
	for _, o := range outs {
		if o.failed() {
			f.failed++
		}
		if o.took > clientLimit {
			f.slow++
		}
		times = append(times, o.took)
	}
	slices.Sort(times)
	f.p50, f.p99, f.max = times[f.sent/2], times[f.sent*99/100], times[f.sent-1]
	return f
}

// healthy returns the figures to hold those of the fault against.
func (r report) healthy() figures {
	if r.before.sent == 0 {
		return r.after
	}
	return r.before
}

// at returns the first sample at t or later.
func (line timeline) at(t time.Time) sample {
	i, _ := slices.BinarySearchFunc(line.samples, t, func(s sample, t time.Time) int { return s.at.Compare(t) })
	return line.samples[min(i, len(line.samples)-1)]
}

// cost returns the upstream queries per client query in a time.
func (line timeline) cost(from, to time.Time) float64 {
	a, b := line.at(from), line.at(to)
	n := len(line.between(a.at, b.at, false)) + len(line.between(a.at, b.at, true))
	return float64(b.total()-a.total()) / float64(max(n, 1))
}

// worstCost returns the highest cost in any 2 s of the fault after the first 2.
func (line timeline) worstCost() (worst float64) {
	const window = 2 * time.Second
	from := line.strike.Add(window)
	for ; !from.Add(window).After(line.lift.Add(window / 10)); from = from.Add(window / 4) {
		worst = max(worst, line.cost(from, from.Add(window)))
	}
	return worst
}

// dialled returns how many dials struck upstreams saw in a time.
func (line timeline) dialled(on []int, from, to time.Time) (n int) {
	a, b := line.at(from), line.at(to)
	for _, i := range on {
		n += b.dials[i] - a.dials[i]
	}
	return n
}

// recovery returns how long after the end of the fault upstream i had its share
// of the queries again, -1 if it was not seen to or never had one worth counting.
func (line timeline) recovery(i int) time.Duration {
	share := func(from, to time.Time) float64 {
		a, b := line.at(from), line.at(to)
		return float64(b.queries[i]-a.queries[i]) / float64(max(b.total()-a.total(), 1))
	}
	usual := share(line.begin, line.strike)
	if usual < 0.1 {
		return -1
	}
	end := line.samples[len(line.samples)-1].at
	for from := line.lift; from.Add(time.Second).Before(end); from = from.Add(100 * time.Millisecond) {
		if share(from, from.Add(time.Second)) >= 0.8*usual {
			return from.Sub(line.lift)
		}
	}
	return -1
}

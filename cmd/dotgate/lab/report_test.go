//go:build linux && lab

package lab

import (
	"slices"
	"time"
)

// A report has the measurements of a scenario.
type report struct {
	scenario              scenario
	before, during, after figures
	late                  time.Duration // from the start of the fault until no query was late any more
	recovered             time.Duration // from the end of the fault until the upstream had its usual share, or until the first answer; -1 if never
	healthyCost           float64       // upstream queries per client query before
	switchCost            float64       // in the first second of the fault
	faultCost             float64       // the most in 2 s of the fault, after the first 2 s
	dials                 int           // to upstreams with the fault, while it lasted
	problems              []string
	figures               []string // figures over a limit, although no query failed
	definite              bool     // not all problems can be due to a stalled machine
	tries                 int
}

// figures are statistics of the queries of a phase, except those for special names.
type figures struct {
	sent, failed, slow int
	p50, p99, max      time.Duration
}

// between returns the outcomes of queries that were sent from one time to another.
func (line timeline) between(from, to time.Time, special bool) (some []outcome) {
	for _, o := range line.outcomes {
		if o.special == special && !o.at.Before(from) && o.at.Before(to) {
			some = append(some, o)
		}
	}
	return some
}

// parts returns the outcomes of queries before the fault, during it, and after
// it. A query that was pending at its start, or was sent while it lasted, counts as
// during.
func (line timeline) parts() (before, during, after []outcome) {
	for _, o := range line.outcomes {
		switch {
		case o.special:
		case o.at.Before(line.start) && o.end().Before(line.start):
			before = append(before, o)
		case o.at.Before(line.end):
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
		if o.took > slowLimit {
			f.slow++
		}
		times = append(times, o.took)
	}
	slices.Sort(times)
	f.p50, f.p99, f.max = times[f.sent/2], times[f.sent*99/100], times[f.sent-1]
	return f
}

// healthy returns the figures without the fault.
func (r report) healthy() figures {
	if r.before.sent == 0 {
		return r.after
	}
	return r.before
}

// at returns the first sample not before t.
func (line timeline) at(t time.Time) sample {
	i, _ := slices.BinarySearchFunc(line.samples, t, func(s sample, t time.Time) int { return s.at.Compare(t) })
	return line.samples[min(i, len(line.samples)-1)]
}

// cost returns the upstream queries per client query from one time to another.
func (line timeline) cost(from, to time.Time) float64 {
	a, b := line.at(from), line.at(to)
	n := len(line.between(a.at, b.at, false)) + len(line.between(a.at, b.at, true))
	return float64(b.total()-a.total()) / float64(max(n, 1))
}

// worstCost returns the highest cost in 2 s of the fault, after the first 2 s.
func (line timeline) worstCost() (worst float64) {
	const window = 2 * time.Second
	from := line.start.Add(window)
	for ; !from.Add(window).After(line.end.Add(window / 10)); from = from.Add(window / 4) {
		worst = max(worst, line.cost(from, from.Add(window)))
	}
	return worst
}

// backOnBest returns the time from the end of the fault until all queries went over the best
// transport, or -1 if they did not.
func (line timeline) backOnBest() time.Duration {
	other := func(s sample) (n int) {
		for i := range s.queries {
			n += s.queries[i] - s.best[i]
		}
		return n
	}
	last := line.samples[len(line.samples)-1]
	for i, s := range line.samples {
		if other(s) < other(last) {
			continue
		}
		if i > len(line.samples)-4 {
			return -1
		}
		return max(0, s.at.Sub(line.end))
	}
	return -1
}

// shareOf returns the part of the queries that went to an upstream, in percent.
func (line timeline) shareOf(i int, from, to time.Time) float64 {
	a, b := line.at(from), line.at(to)
	return 100 * float64(b.queries[i]-a.queries[i]) / float64(max(b.total()-a.total(), 1))
}

// dialled returns the number of dials to upstreams with the fault.
func (line timeline) dialled(on []int, from, to time.Time) (n int) {
	a, b := line.at(from), line.at(to)
	for _, i := range on {
		n += b.dials[i] - a.dials[i]
	}
	return n
}

// recovery returns the time from the end of the fault until upstream i had its share of
// the queries again, or -1 if it did not, or never had a tenth of them.
func (line timeline) recovery(i int) time.Duration {
	usual := line.shareOf(i, line.begin, line.start)
	if usual < 10 {
		return -1
	}
	end := line.samples[len(line.samples)-1].at
	for from := line.end; from.Add(time.Second).Before(end); from = from.Add(100 * time.Millisecond) {
		if line.shareOf(i, from, from.Add(time.Second)) >= 0.8*usual {
			return from.Sub(line.end)
		}
	}
	return -1
}

//go:build linux && lab

package lab

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"dotgate/gateway/wire"
)

const (
	healthyCostLimit = 1.05
	faultCostLimit   = 1.5
	switchCostLimit  = 1.15 // in the second in which queries move to another transport
	specialCostLimit = 2.01 // two upstreams are asked, and sometimes a third one
	// startPatience is the time after its start that a gateway may be slow.
	startPatience = 500 * time.Millisecond
	// knownLimit is the limit for errors once all upstreams are known to be down.
	knownLimit = 20 * time.Millisecond
	// returnLimit is the limit for the first good answer after an outage.
	returnLimit = time.Second
	// refusedReturnLimit is the same after more than dialPatience of refused dials, when
	// dials have become rare. Dials without any reply last longer, so one is always in
	// progress.
	refusedReturnLimit = 4 * time.Second
	// dialRate is the limit of dials a minute to an upstream that has been down for longer
	// than dialPatience.
	dialRate     = 10
	dialPatience = 30 * time.Second
	// With fewQueries or less, the 99th percentile is the slowest query, which may take
	// fewLimit: it is the one that detects the fault.
	fewQueries = 100
	fewLimit   = 500 * time.Millisecond
	// steadyRate is the longest interval of queries for which ratios are checked.
	steadyRate = 10 * time.Millisecond
)

// A checker compares the measurements with the limits.
type checker struct {
	report
	line  timeline
	world world
	asked int // upstream queries for the repeated special name
}

// judge computes the figures of a scenario, and checks them.
func judge(w world, s scenario, line timeline, asked int) report {
	c := checker{report{scenario: s, recovered: -1}, line, w, asked}
	before, during, after := line.parts()
	c.before, c.during, c.after = sum(before), sum(during), sum(after)
	limit := c.healthy().p99 + s.p99Limit()
	for _, o := range during {
		if o.took > limit || o.failed() {
			c.late = max(c.late, o.end().Sub(line.start))
		}
	}
	// The first sample after the start has some of the fault in it.
	c.healthyCost = line.cost(line.begin, line.start.Add(-w.pause()*3/2))
	if c.before.sent == 0 {
		c.healthyCost = line.cost(line.end, line.end.Add(time.Hour))
	}
	c.faultCost, c.switchCost = line.worstCost(), line.cost(line.start, line.start.Add(time.Second))
	c.dials = line.dialled(s.on, line.start, line.end)
	if len(s.on) > 0 && *long && s.expect != outage {
		c.recovered = line.recovery(s.on[0])
	}
	if s.checksBack() {
		c.recovered = line.backOnBest()
	}
	c.replies()
	switch s.expect {
	case outage:
		c.outage()
	case servfail:
		if c.during.max > slowLimit {
			c.failUnlessLate("an error took %v", c.during.max)
		}
	default:
		c.latencies()
	}
	c.costs()
	c.transports()
	c.specialNames()
	c.verification()
	c.dialling()
	c.logged()
	return c.report
}

// failAlways adds a problem that can't be due to a stalled machine.
func (c *checker) failAlways(format string, args ...any) {
	c.definite = true
	c.failUnlessLate(format, args...)
}

// figure adds a figure that is over its limit.
func (c *checker) figure(format string, args ...any) {
	c.figures = append(c.figures, fmt.Sprintf(format, args...))
}

// failUnlessLate adds a problem that can be due to a stalled machine.
func (c *checker) failUnlessLate(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

// replies checks that each query got a reply, and that no reply was wrong.
func (c *checker) replies() {
	wrong, silent := 0, 0
	var first error
	for _, o := range c.line.outcomes {
		switch {
		case o.err == nil:
			continue
		case errors.Is(o.err, errWrongAnswer):
			wrong++
		default:
			silent++
		}
		if first == nil {
			first = fmt.Errorf("%v after the start of the fault: %w", o.at.Sub(c.line.start).Round(time.Millisecond), o.err)
		}
	}
	if wrong+silent > 0 {
		c.failUnlessLate("%d replies were wrong, %d queries got none; the first was sent %v", wrong, silent, first)
		c.definite = c.definite || wrong > 0
	}
}

// latencies checks that no query failed or was slow.
func (c *checker) latencies() {
	for _, phase := range []struct {
		name string
		f    figures
	}{{"before", c.before}, {"during", c.during}, {"after", c.after}} {
		if phase.f.failed > 0 || phase.f.slow > 0 && c.scenario.expect != distant {
			c.failUnlessLate("%s the fault, %d of %d queries failed and %d took over %v (at most %v)",
				phase.name, phase.f.failed, phase.f.sent, phase.f.slow, slowLimit, phase.f.max)
		}
	}
	if c.scenario.expect == slower || c.scenario.expect == distant {
		return
	}
	p99 := c.during.p99
	if !c.scenario.start.empty() { // there are no connections at first
		p99 = sum(c.line.between(c.line.start.Add(startPatience), c.line.end, false)).p99
	}
	healthy := c.healthy()
	switch {
	case c.during.sent < fewQueries && c.during.max > fewLimit:
		c.figure("a query took %v during the fault", c.during.max)
	case c.during.sent >= fewQueries && p99 > healthy.p99+c.scenario.p99Limit():
		c.figure("p99 is %v during the fault and %v without", p99, healthy.p99)
	}
}

// outage checks that errors take at most a second at first, and are immediate once the
// outage is known, and that answers come within a second after the end.
func (c *checker) outage() {
	if c.before.failed > 0 {
		c.failUnlessLate("%d queries failed before the fault", c.before.failed)
	}
	if c.during.slow > 0 {
		c.failUnlessLate("an error took %v", c.during.max)
	}
	since := c.line.start.Add(900 * time.Millisecond)
	for _, o := range c.line.outcomes {
		if o.failed() { // the query that detects the outage
			since = later(since, o.end())
			break
		}
	}
	known := sum(c.line.between(since.Add(600*time.Millisecond), c.line.end.Add(-50*time.Millisecond), false))
	if known.p99 > knownLimit {
		c.figure("once the outage was known, errors took %v (p99)", known.p99)
	}
	unexplained := 0
	for _, o := range c.line.outcomes {
		if o.failed() && o.err == nil && !o.why {
			unexplained++
		}
		since := o.end().Sub(c.line.end)
		if !o.failed() && since > 0 && (c.recovered < 0 || since < c.recovered) {
			c.recovered = since
		}
	}
	if unexplained > 0 {
		c.failAlways("%d errors came without an Extended DNS Error", unexplained)
	}
	limit := returnLimit
	if c.line.end.Sub(c.line.start) > dialPatience && c.scenario.fault.refuses() {
		limit = refusedReturnLimit
	}
	if c.recovered < 0 || c.recovered > limit+c.scenario.interval {
		c.failUnlessLate("the first good answer came %v after the end", c.recovered.Round(time.Millisecond))
	}
	if f := sum(c.line.between(c.line.end.Add(limit), c.line.end.Add(time.Hour), false)); f.failed > 0 || f.slow > 0 {
		c.failUnlessLate("of %d queries sent more than %v after the end, %d failed and %d took over %v", f.sent, limit, f.failed, f.slow, slowLimit)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (c *checker) costs() {
	if c.scenario.interval > steadyRate {
		return
	}
	// For a special name a second upstream is asked, and sometimes a third one.
	limit := healthyCostLimit + 2*float64(c.scenario.special.share)/100
	if c.healthyCost > min(limit, faultCostLimit) {
		c.figure("%.2f upstream queries per query without the fault", c.healthyCost)
	}
	// When all fail, a second upstream is asked for each query.
	if c.faultCost > faultCostLimit && c.scenario.special.repeat == 0 && c.scenario.expect != servfail {
		c.figure("%.2f upstream queries per query during the fault", c.faultCost)
	}
	half := c.line.start.Add(c.line.end.Sub(c.line.start) / 2)
	if cost := c.line.cost(half, c.line.end); c.scenario.learntCost > 0 && cost > c.scenario.learntCost {
		c.figure("%.3f upstream queries per query in the second half of the fault", cost)
	}
}

// transports checks how queries move from one transport to another and back.
func (c *checker) transports() {
	s := c.scenario
	limit := cmp.Or(s.switchCost, switchCostLimit)
	if len(s.transports) > 1 && s.interval <= steadyRate && s.start.empty() && c.switchCost > limit {
		c.figure("%.2f upstream queries per query in the first second of the fault", c.switchCost)
	}
	if s.checksBack() && (c.recovered < 0 || c.recovered > s.back) {
		c.failUnlessLate("queries went over the best transport again %v after the end", c.recovered.Round(time.Millisecond))
	}
	if first := c.line.firstAnswer(); s.first > 0 && (first < 0 || first > s.first) {
		c.failUnlessLate("the first answer came after %v", first.Round(time.Millisecond))
	}
	if s.share > 0 {
		before := c.line.shareOf(s.on[0], c.line.begin, c.line.start)
		during := c.line.shareOf(s.on[0], c.line.start.Add(time.Second), c.line.end)
		if math.Abs(before-during) > float64(s.share) {
			c.figure("the share of the first upstream was %.0f %% before and %.0f %% during the fault", before, during)
		}
	}
}

// firstAnswer returns how long the first good answer took from the start of the clients, or
// -1 if there was none.
func (line timeline) firstAnswer() time.Duration {
	first := time.Duration(-1)
	for _, o := range line.outcomes {
		if took := o.end().Sub(line.begin); !o.failed() && (first < 0 || took < first) {
			first = took
		}
	}
	return first
}

// specialNames checks that slow names are answered, that names without an answer get an
// error, and that names that one upstream does not answer are answered by the others,
// in time.
func (c *checker) specialNames() {
	special := c.scenario.special
	if special.label == "" {
		return
	}
	outs := c.line.between(c.line.begin, c.line.end.Add(time.Hour), true)
	for _, o := range outs {
		want := wire.ServFail
		if special.only != 0 || strings.HasPrefix(special.label, "d") {
			want = wire.NoError
		}
		if o.err == nil && o.rcode != want {
			c.failUnlessLate("a special name got %v, not %v", o.rcode, want)
			break
		}
	}
	if f := sum(outs); special.only != 0 && f.slow > 0 {
		c.failUnlessLate("%d of %d special names took over %v (at most %v)", f.slow, f.sent, slowLimit, f.max)
	}
	if special.repeat > 0 {
		if len(outs) < special.repeat*9/10 {
			c.failUnlessLate("only %d queries for the special name were sent", len(outs))
		}
		if each := float64(c.asked) / float64(len(outs)); each > specialCostLimit {
			c.figure("a query for the special name cost %.3f upstream queries", each)
		}
	}
}

// verification checks that no handshake is completed with, and no query sent to, an
// upstream whose certificate can't be verified. Those in progress when the fault began
// are allowed.
func (c *checker) verification() {
	const settling = 300 * time.Millisecond
	for _, s := range c.line.spells {
		if !s.fault.mute() {
			continue
		}
		i := slices.IndexFunc(c.line.samples, func(x sample) bool { return x.at.After(s.from.Add(settling)) })
		var last sample
		for _, x := range c.line.samples {
			if x.at.Before(s.to) {
				last = x
			}
		}
		if i < 0 || last.at.Before(c.line.samples[i].at) {
			continue
		}
		first := c.line.samples[i]
		if n := last.handshakes[s.upstream] - first.handshakes[s.upstream]; n != 0 {
			c.failAlways("%d connections were made to an upstream that is not verified", n)
		}
		// Established connections may continue, unless they were reset.
		if n := last.best[s.upstream] - first.best[s.upstream]; n != 0 && (s.fault.has("reset") || !c.scenario.start.empty()) {
			c.failAlways("%d queries reached an upstream that is not verified", n)
		}
	}
}

// dialling checks that dials are rare in a long outage.
func (c *checker) dialling() {
	from := c.line.start.Add(dialPatience)
	minutes := c.line.end.Sub(from).Minutes()
	if minutes < 0.5 || c.scenario.shape != steady || c.scenario.fault.behaviour.CloseIdle > 0 { // where each dial gets a connection
		return
	}
	for _, i := range c.scenario.on {
		n := float64(c.line.at(c.line.end).dials[i] - c.line.at(from).dials[i])
		if n > dialRate*minutes+1 {
			c.failAlways("%.0f dials to one upstream in %.1f minutes, after the first %v", n, minutes, dialPatience)
		}
	}
	if n := float64(c.line.at(c.line.end).unroutable - c.line.at(from).unroutable); n > upstreams*(dialRate*minutes+1) {
		c.failAlways("%.0f dials without a route in %.1f minutes, after the first %v", n, minutes, dialPatience)
	}
}

// logged checks that the gateway's log reports exactly the right upstreams as down.
func (c *checker) logged() {
	if c.scenario.down == "" {
		return
	}
	wanted := []int{}
	if c.scenario.down != "none" {
		var err error
		if wanted, err = parseUpstreams(c.scenario.down); err != nil {
			c.failAlways("%v", err)
		}
	}
	for i := range upstreams {
		was, should := c.world.gateway().downs(c.world.addr(i)), slices.Contains(wanted, i)
		switch {
		case was > 0 && !should:
			c.failUnlessLate("upstream %c was reported as down %d times", 'a'+i, was)
		case was == 0 && should:
			c.failAlways("upstream %c was not reported as down", 'a'+i)
		}
	}
}

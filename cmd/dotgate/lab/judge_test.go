//go:build linux && lab

package lab

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"dotgate/gateway/wire"
)

const (
	healthyCostLimit = 1.05
	faultCostLimit   = 1.5
	oddCostLimit     = 2.01 // two opinions, and a third one once in a while
	// startPatience is how long after its start a gateway may be slow.
	startPatience = 500 * time.Millisecond
	// knownLimit is how long an error takes while everybody is known to be down.
	knownLimit = 20 * time.Millisecond
	// returnLimit is how long after an outage the first good answer may take.
	returnLimit = time.Second
	// refusedReturnLimit is the same after more than dialPatience of refusals: each
	// ends a dial at once, and dials have become rare. Where dials get no answer at
	// all, one is always under way.
	refusedReturnLimit = 4 * time.Second
	// dialRate is how many dials a minute each upstream may see when it has been
	// away for longer than dialPatience.
	dialRate     = 10
	dialPatience = 30 * time.Second
	// Of fewQueries and less, a hundredth is none: the 99th percentile is the
	// slowest one, which may take fewLimit. It is the one that finds out.
	fewQueries = 100
	fewLimit   = 500 * time.Millisecond
	// steadyRate is how fast queries must come for ratios to mean anything.
	steadyRate = 10 * time.Millisecond
)

// A court holds what happened against what was promised.
type court struct {
	report
	line  timeline
	world world
	asked int // upstream queries for the odd name that was repeated
}

// judge works out the figures of a scenario, and what is wrong with them.
func judge(w world, s scenario, line timeline, asked int) report {
	c := court{report{scenario: s, recovered: -1}, line, w, asked}
	before, during, after := line.parts()
	c.before, c.during, c.after = sum(before), sum(during), sum(after)
	limit := c.healthy().p99 + p99Limit
	for _, o := range during {
		if o.took > limit || o.failed() {
			c.late = max(c.late, o.end().Sub(line.strike))
		}
	}
	// The first sample after the strike has some of the fault in it.
	c.healthyCost = line.cost(line.begin, line.strike.Add(-w.pause()*3/2))
	if c.before.sent == 0 {
		c.healthyCost = line.cost(line.lift, line.lift.Add(time.Hour))
	}
	c.faultCost = line.worstCost()
	c.dials = line.dialled(s.on, line.strike, line.lift)
	if len(s.on) > 0 && *long && s.expect != outage {
		c.recovered = line.recovery(s.on[0])
	}
	c.truth()
	switch s.expect {
	case outage:
		c.outage()
	case servfail:
		if c.during.max > clientLimit {
			c.tooLate("an error took %v", c.during.max)
		}
	default:
		c.latencies()
	}
	c.costs()
	c.oddNames()
	c.verification()
	c.dialling()
	c.logs()
	return c.report
}

// complain puts down what a late machine can't be the reason of.
func (c *court) complain(format string, args ...any) {
	c.absolute = true
	c.tooLate(format, args...)
}

// missed puts down a figure that is not as promised.
func (c *court) missed(format string, args ...any) {
	c.figures = append(c.figures, fmt.Sprintf(format, args...))
}

// tooLate puts down what a late machine can be the reason of.
func (c *court) tooLate(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

// truth wants every query to get a reply, and no reply to be wrong.
func (c *court) truth() {
	wrong, silent := 0, 0
	var first error
	for _, o := range c.line.outs {
		switch {
		case o.err == nil:
			continue
		case errors.Is(o.err, errWrongAnswer):
			wrong++
		default:
			silent++
		}
		if first == nil {
			first = fmt.Errorf("%v after the strike: %w", o.at.Sub(c.line.strike).Round(time.Millisecond), o.err)
		}
	}
	if wrong+silent > 0 {
		c.tooLate("%d replies were wrong, %d queries got none; the first was sent %v", wrong, silent, first)
		c.absolute = c.absolute || wrong > 0
	}
}

// latencies wants clients to see nothing.
func (c *court) latencies() {
	for _, phase := range []struct {
		name string
		f    figures
	}{{"before", c.before}, {"during", c.during}, {"after", c.after}} {
		if phase.f.failed > 0 || phase.f.slow > 0 {
			c.tooLate("%s the fault, %d of %d queries failed and %d took over %v (at most %v)",
				phase.name, phase.f.failed, phase.f.sent, phase.f.slow, clientLimit, phase.f.max)
		}
	}
	if c.scenario.expect == slower {
		return
	}
	p99 := c.during.p99
	if !c.scenario.start.empty() { // nothing is connected at first
		p99 = sum(c.line.between(c.line.strike.Add(startPatience), c.line.lift, false)).p99
	}
	healthy := c.healthy()
	switch {
	case c.during.sent < fewQueries && c.during.max > fewLimit:
		c.missed("a query took %v during the fault", c.during.max)
	case c.during.sent >= fewQueries && p99 > healthy.p99+p99Limit:
		c.missed("p99 is %v during the fault and %v without", p99, healthy.p99)
	}
}

// outage wants errors within a second at first and at once when it is known, and
// answers within a second of the end.
func (c *court) outage() {
	if c.before.failed > 0 {
		c.tooLate("%d queries failed before the fault", c.before.failed)
	}
	if c.during.slow > 0 {
		c.tooLate("an error took %v", c.during.max)
	}
	since := c.line.strike.Add(900 * time.Millisecond)
	for _, o := range c.line.outs {
		if o.failed() { // the first that finds out
			since = later(since, o.end())
			break
		}
	}
	known := sum(c.line.between(since.Add(600*time.Millisecond), c.line.lift.Add(-50*time.Millisecond), false))
	if known.p99 > knownLimit {
		c.missed("once the outage was known, errors took %v (p99)", known.p99)
	}
	unexplained := 0
	for _, o := range c.line.outs {
		if o.failed() && o.err == nil && !o.why {
			unexplained++
		}
		since := o.end().Sub(c.line.lift)
		if !o.failed() && since > 0 && (c.recovered < 0 || since < c.recovered) {
			c.recovered = since
		}
	}
	if unexplained > 0 {
		c.complain("%d errors came without an Extended DNS Error", unexplained)
	}
	limit := returnLimit
	if c.line.lift.Sub(c.line.strike) > dialPatience && c.scenario.fault.refuses() {
		limit = refusedReturnLimit
	}
	if c.recovered < 0 || c.recovered > limit+c.scenario.interval {
		c.tooLate("the first good answer came %v after the end", c.recovered.Round(time.Millisecond))
	}
	if f := sum(c.line.between(c.line.lift.Add(limit), c.line.lift.Add(time.Hour), false)); f.failed > 0 || f.slow > 0 {
		c.tooLate("of %d queries sent more than %v after the end, %d failed and %d took over %v", f.sent, limit, f.failed, f.slow, clientLimit)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (c *court) costs() {
	if c.scenario.interval > steadyRate {
		return
	}
	// An odd name is worth a second opinion, and a third one at times.
	limit := healthyCostLimit + 2*float64(c.scenario.odd.share)/100
	if c.healthyCost > min(limit, faultCostLimit) {
		c.missed("%.2f upstream queries per query without the fault", c.healthyCost)
	}
	// When all fail, each query is worth a second opinion.
	if c.faultCost > faultCostLimit && c.scenario.odd.repeat == 0 && c.scenario.expect != servfail {
		c.missed("%.2f upstream queries per query during the fault", c.faultCost)
	}
}

// oddNames wants those that are slow to be answered, those that nobody answers
// to get an error, and those that only one upstream has trouble with to be
// answered by the others, in time.
func (c *court) oddNames() {
	odd := c.scenario.odd
	if odd.label == "" {
		return
	}
	outs := c.line.between(c.line.begin, c.line.lift.Add(time.Hour), true)
	for _, o := range outs {
		want := wire.ServFail
		if odd.only != 0 || strings.HasPrefix(odd.label, "d") {
			want = wire.NoError
		}
		if o.err == nil && o.rcode != want {
			c.tooLate("an odd name got %v, not %v", o.rcode, want)
			break
		}
	}
	if f := sum(outs); odd.only != 0 && f.slow > 0 {
		c.tooLate("%d of %d odd names took over %v (at most %v)", f.slow, f.sent, clientLimit, f.max)
	}
	if odd.repeat > 0 {
		if len(outs) < odd.repeat*9/10 {
			c.tooLate("only %d queries for the odd name were sent", len(outs))
		}
		if each := float64(c.asked) / float64(len(outs)); each > oddCostLimit {
			c.missed("a query for the odd name cost %.3f upstream queries", each)
		}
	}
}

// verification wants no query, and not even a handshake, to come to an upstream
// that can't prove who it is. What was under way when that began is allowed for.
func (c *court) verification() {
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
			c.complain("%d connections were made to an upstream that is not verified", n)
		}
		// Established connections may go on, where they were left.
		if n := last.queries[s.upstream] - first.queries[s.upstream]; n != 0 && (s.fault.has("reset") || !c.scenario.start.empty()) {
			c.complain("%d queries reached an upstream that is not verified", n)
		}
	}
}

// dialling wants a long outage to be quiet.
func (c *court) dialling() {
	from := c.line.strike.Add(dialPatience)
	minutes := c.line.lift.Sub(from).Minutes()
	if minutes < 0.5 || c.scenario.shape != steady || c.scenario.fault.behaviour.CloseIdle > 0 { // where each dial gets a connection
		return
	}
	for _, i := range c.scenario.on {
		n := float64(c.line.at(c.line.lift).dials[i] - c.line.at(from).dials[i])
		if n > dialRate*minutes+1 {
			c.complain("%.0f dials to one upstream in %.1f minutes, after the first %v", n, minutes, dialPatience)
		}
	}
	if n := float64(c.line.at(c.line.lift).unroutable - c.line.at(from).unroutable); n > upstreams*(dialRate*minutes+1) {
		c.complain("%.0f dials without a route in %.1f minutes, after the first %v", n, minutes, dialPatience)
	}
}

// logs wants the gateway's log to call down who is, and nobody else.
func (c *court) logs() {
	if c.scenario.down == "" {
		return
	}
	wanted := []int{}
	if c.scenario.down != "nobody" {
		var err error
		if wanted, err = parseUpstreams(c.scenario.down); err != nil {
			c.complain("%v", err)
		}
	}
	for i := range upstreams {
		was, should := c.world.gateway().downs(c.world.addr(i)), slices.Contains(wanted, i)
		switch {
		case was > 0 && !should:
			c.tooLate("upstream %c was called down %d times", 'a'+i, was)
		case was == 0 && should:
			c.complain("upstream %c was not called down", 'a'+i)
		}
	}
}

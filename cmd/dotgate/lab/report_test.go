//go:build lab

package lab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"dotgate/gateway/wire"
)

// A report is what clients saw of a scenario, and what it cost.
type report struct {
	scenario    scenario
	before      figures
	during      figures
	after       figures
	noticed     time.Duration // from the strike to the last query that was late for it
	recovered   time.Duration // from the end of the fault to a normal share; -1 if not seen
	healthyCost float64       // upstream queries per client query before
	faultCost   float64       // the most in any 2 s of the fault after the first
	dials       int           // connections accepted by struck upstreams during the fault
	problems    []string
}

// figures sum up the queries of a phase.
type figures struct {
	sent, failed, slow int
	p50, p99, max      time.Duration
}

func (r report) order() string { return r.scenario.group }

// A sample is what the servers have received by an instant.
type sample struct {
	at       time.Time
	queries  [3]int
	accepted [3]int
}

func (w *world) sample() sample {
	s := sample{at: time.Now()}
	for i, server := range w.servers {
		stats := server.Stats()
		s.queries[i], s.accepted[i] = stats.Queries, stats.Accepted
	}
	return s
}

func (s sample) total() int { return s.queries[0] + s.queries[1] + s.queries[2] }

// play runs a scenario.
func play(t *testing.T, s scenario) report {
	w := newWorld(t, s)
	p := duration()
	c := dial(t, w.address)
	waitUntilListening(t, w.address)
	if s.start.empty() {
		waitUntilServing(t, c)
	}
	done := make(chan struct{})
	finished := make(chan struct{})
	go func() { c.run(s, done); close(finished) }()

	samples := []sample{w.sample()}
	stopSampling := make(chan struct{})
	sampled := make(chan struct{})
	go func() {
		defer close(sampled)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stopSampling:
				return
			case <-tick.C:
				samples = append(samples, w.sample())
			}
		}
	}()

	begin := time.Now()
	time.Sleep(p.before)
	if !s.start.empty() {
		for _, i := range s.on {
			w.lift(i, s.start)
		}
	}
	strike := time.Now()
	w.rehearse(s, p)
	lift := time.Now()
	time.Sleep(p.after)
	close(done)
	<-finished
	close(stopSampling)
	<-sampled
	return evaluate(s, c.outs, samples, begin, strike, lift)
}

func waitUntilListening(t *testing.T, addr netip.AddrPort) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		conn, err := net.Dial("tcp", addr.String())
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the gateway does not listen within 5 s of its start: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
}

func waitUntilServing(t *testing.T, c *client) {
	t.Helper()
	for range 50 {
		if o := c.ask("ready.example.com", 100*time.Millisecond); o.err == nil && o.rcode == wire.NoError {
			return
		}
	}
	t.Fatal("the gateway does not answer within 5 s of its start")
}

func evaluate(s scenario, outs []outcome, samples []sample, begin, strike, lift time.Time) report {
	r := report{scenario: s}
	slices.SortFunc(outs, func(a, b outcome) int { return a.at.Compare(b.at) })
	pick := func(from, to time.Time) []outcome {
		var some []outcome
		for _, o := range outs {
			if !o.odd && !o.at.Before(from) && o.at.Before(to) {
				some = append(some, o)
			}
		}
		return some
	}
	during := pick(strike, lift)
	r.before, r.during, r.after = sum(pick(begin, strike)), sum(during), sum(pick(lift, lift.Add(time.Hour)))
	for _, o := range during {
		if o.took > r.before.p99+20*time.Millisecond || o.failed() {
			r.noticed = o.at.Add(o.took).Sub(strike)
		}
	}
	r.costs(samples, outs, begin, strike, lift)
	r.judge(outs, samples, strike, lift)
	return r
}

func (o outcome) failed() bool {
	return o.err != nil || o.rcode != wire.NoError
}

func sum(outs []outcome) figures {
	f := figures{sent: len(outs)}
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
	if len(times) == 0 {
		return f
	}
	slices.Sort(times)
	f.p50, f.p99, f.max = times[len(times)/2], times[len(times)*99/100], times[len(times)-1]
	return f
}

// costs works out upstream queries per client query, dials, and when the struck
// upstreams had their share again.
func (r *report) costs(samples []sample, outs []outcome, begin, strike, lift time.Time) {
	at := func(t time.Time) sample {
		i, _ := slices.BinarySearchFunc(samples, t, func(s sample, t time.Time) int { return s.at.Compare(t) })
		return samples[min(i, len(samples)-1)]
	}
	asked := func(from, to time.Time) int {
		n := 0
		for _, o := range outs {
			if !o.at.Before(from) && o.at.Before(to) {
				n++
			}
		}
		return max(n, 1)
	}
	cost := func(from, to time.Time) float64 {
		a, b := at(from), at(to)
		return float64(b.total()-a.total()) / float64(asked(a.at, b.at))
	}
	r.healthyCost = cost(begin.Add(time.Second/2), strike)
	const window = 2 * time.Second
	for from := strike.Add(window); !from.Add(window).After(lift); from = from.Add(window / 4) {
		r.faultCost = max(r.faultCost, cost(from, from.Add(window)))
	}
	if r.faultCost == 0 {
		r.faultCost = cost(strike, lift)
	}
	for _, i := range r.scenario.on {
		r.dials += at(lift).accepted[i] - at(strike).accepted[i]
	}
	r.recovered = -1
	if len(r.scenario.on) == 0 {
		return
	}
	i := r.scenario.on[0]
	share := func(from, to time.Time) float64 {
		a, b := at(from), at(to)
		return float64(b.queries[i]-a.queries[i]) / float64(max(b.total()-a.total(), 1))
	}
	usual := share(begin, strike)
	for from := lift; from.Add(time.Second).Before(samples[len(samples)-1].at); from = from.Add(100 * time.Millisecond) {
		if share(from, from.Add(time.Second)) >= 0.8*usual {
			r.recovered = from.Sub(lift)
			break
		}
	}
}

// judge holds the figures against what was promised.
func (r *report) judge(outs []outcome, samples []sample, strike, lift time.Time) {
	complain := func(format string, args ...any) { r.problems = append(r.problems, fmt.Sprintf(format, args...)) }
	for _, o := range outs {
		if o.err != nil && !o.odd {
			complain("a query sent %v after the strike: %v", o.at.Sub(strike).Round(time.Millisecond), o.err)
			break
		}
	}
	switch r.scenario.expect {
	case "down":
		r.judgeOutage(outs, strike, lift, complain)
		return
	case "servfail":
		if r.during.max > clientLimit {
			complain("an error took %v", r.during.max)
		}
		return
	}
	for _, phase := range []struct {
		name string
		f    figures
	}{{"before", r.before}, {"during", r.during}, {"after", r.after}} {
		if phase.f.failed > 0 || phase.f.slow > 0 {
			complain("%s the fault, %d of %d queries failed and %d took over %v (at most %v)",
				phase.name, phase.f.failed, phase.f.sent, phase.f.slow, clientLimit, phase.f.max)
		}
	}
	if r.during.p99 > r.before.p99+p99Limit && r.scenario.expect != "blip" {
		complain("p99 is %v during the fault and %v before", r.during.p99, r.before.p99)
	}
	if odd := float64(r.scenario.oddShare) / 100; r.healthyCost > 1.05+1.1*odd && r.scenario.start.empty() && r.scenario.rate >= 100 {
		complain("%.2f upstream queries per query before the fault", r.healthyCost)
	}
	if r.faultCost > 1.5 && r.scenario.rate >= 100 {
		complain("%.2f upstream queries per query during the fault", r.faultCost)
	}
	r.judgeOdd(outs, complain)
	r.judgeMute(samples, strike, lift, complain)
}

// judgeOutage wants errors within a second at first and within 20 ms once it is
// known, and answers within a second of the end.
func (r *report) judgeOutage(outs []outcome, strike, lift time.Time, complain func(string, ...any)) {
	if !r.scenario.start.empty() {
		strike, lift = strike.Add(-duration().before), strike
	}
	var known []time.Duration
	firstGood, longest := time.Duration(-1), time.Duration(0)
	for _, o := range outs {
		since := o.at.Sub(strike)
		if since >= 0 && o.at.Before(lift) && o.took > clientLimit && o.took > longest {
			longest = o.took
		}
		if since > 1500*time.Millisecond && o.at.Before(lift.Add(-50*time.Millisecond)) {
			known = append(known, o.took)
		}
		if end := o.at.Add(o.took); !o.failed() && end.After(lift) && (firstGood < 0 || end.Sub(lift) < firstGood) {
			firstGood = end.Sub(lift)
		}
	}
	if longest > 0 {
		complain("an error took %v", longest)
	}
	slices.Sort(known)
	if len(known) > 0 && known[len(known)*99/100] > 20*time.Millisecond {
		complain("once the outage was known, errors took %v (p99)", known[len(known)*99/100])
	}
	if firstGood < 0 || firstGood > time.Second {
		complain("the first good answer came %v after the end", firstGood)
	}
	r.recovered = firstGood
}

// judgeOdd looks at names that carry an instruction: those that are slow must be
// answered, those that nobody answers must get an error.
func (r *report) judgeOdd(outs []outcome, complain func(string, ...any)) {
	for _, o := range outs {
		switch {
		case !o.odd:
		case o.err != nil:
			complain("an odd name: %v", o.err)
			return
		case strings.HasPrefix(r.scenario.odd, "d") && o.rcode != wire.NoError:
			complain("a slow name got %v", o.rcode)
			return
		case !strings.HasPrefix(r.scenario.odd, "d") && o.rcode != wire.ServFail:
			complain("a dead name got %v", o.rcode)
			return
		}
	}
}

func (r *report) judgeMute(samples []sample, strike, lift time.Time, complain func(string, ...any)) {
	for _, i := range r.scenario.mute {
		var first, last sample
		for _, s := range samples {
			if s.at.Before(strike.Add(300 * time.Millisecond)) {
				first = s
			}
			if s.at.Before(lift) {
				last = s
			}
		}
		if n := last.queries[i] - first.queries[i]; n != 0 {
			complain("%d queries reached an upstream that they must not reach", n)
		}
	}
}

// table prints reports as Markdown.
func table(reports []report) string {
	var b strings.Builder
	ms := func(d time.Duration) string { return fmt.Sprintf("%d", d.Round(time.Millisecond).Milliseconds()) }
	fmt.Fprintln(&b, "\n| scenario | failed | over 1 s | p50/p99/max ms before | during | after | last late query after | share back after | queries per query before, during | dials |")
	fmt.Fprintln(&b, "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
	group := ""
	for _, r := range reports {
		if r.scenario.group != group {
			group = r.scenario.group
			fmt.Fprintf(&b, "| **%s** | | | | | | | | | |\n", group)
		}
		times := func(f figures) string { return ms(f.p50) + "/" + ms(f.p99) + "/" + ms(f.max) }
		noticed, recovered := "-", "-"
		if r.noticed > 0 {
			noticed = ms(r.noticed) + " ms"
		}
		if r.recovered >= 0 {
			recovered = ms(r.recovered) + " ms"
		}
		mark := ""
		if len(r.problems) > 0 {
			mark = " (!)"
		}
		fmt.Fprintf(&b, "| %s%s | %d | %d | %s | %s | %s | %s | %s | %.2f, %.2f | %d |\n", r.scenario.name, mark,
			r.before.failed+r.during.failed+r.after.failed, r.before.slow+r.during.slow+r.after.slow,
			times(r.before), times(r.during), times(r.after), noticed, recovered, r.healthyCost, r.faultCost, r.dials)
	}
	return b.String()
}

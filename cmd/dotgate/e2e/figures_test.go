//go:build linux && figures

package e2e

import (
	"bytes"
	"fmt"
	"testing"
	"text/tabwriter"
	"time"

	"dotgate/upstreams/dottest"
)

// TestFigures measures dotgate on this machine, beside the upstreams and the clients, and
// prints a table.
func TestFigures(t *testing.T) {
	var rows table
	rows.add("what", "figure", "bound")
	t.Run("one upstream", func(t *testing.T) { oneUpstream(t, &rows) })
	t.Run("equal upstreams", func(t *testing.T) { equalUpstreams(t, &rows) })
	t.Run("unequal upstreams", func(t *testing.T) { unequalUpstreams(t, &rows) })
	t.Run("start", func(t *testing.T) { startup(t, &rows) })
	t.Run("processor", func(t *testing.T) { processor(t, &rows) })
	t.Logf("\n%s", rows.String())
}

// A table has rows of three cells.
type table struct{ rows [][3]string }

func (t *table) add(what, figure, bound string) {
	t.rows = append(t.rows, [3]string{what, figure, bound})
}

// check adds a figure, and fails if it is out of bounds.
func (t *table) check(test *testing.T, what, figure, bound string, holds bool) {
	test.Helper()
	t.add(what, figure, bound)
	if !holds {
		test.Errorf("%s: %s, but should be %s", what, figure, bound)
	}
}

func (t *table) String() string {
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	for _, row := range t.rows {
		fmt.Fprintf(w, "%s\t%s\t%s\n", row[0], row[1], row[2])
	}
	w.Flush()
	return out.String()
}

// loss adds the number of failed queries.
func (t *table) loss(test *testing.T, what string, o outcome) {
	test.Helper()
	test.Log(o)
	t.check(test, what+": failed, mismatched", fmt.Sprintf("%d, %d of %d", o.failed(), o.mismatched, o.queries), "0, 0", o.failed() == 0 && o.mismatched == 0)
	t.add(what+": p50, p99, max", fmt.Sprintf("%v, %v, %v", o.quantile(0.5), o.quantile(0.99), o.quantile(1)), "")
}

func oneUpstream(t *testing.T, rows *table) {
	servers, urls := startUpstreams(t, 20*time.Millisecond)
	g := startGateway(t, urls)
	o := dottestLoad(g.addr, "one", 20_000, 2000).run(t)
	const what = "1 upstream at 20 ms, 2000 q/s for 10 s"
	rows.loss(t, what, o)
	s := servers[0].Stats()
	rows.check(t, what+": connections", fmt.Sprint(s.MaxOpen), "≤ 4", s.MaxOpen <= 4)
	rows.add(what+": most under way on one", fmt.Sprint(s.MaxOutstanding), "")
}

func equalUpstreams(t *testing.T, rows *table) {
	const rtt = 20 * time.Millisecond
	servers, urls := startUpstreams(t, rtt, rtt, rtt)
	g := startGateway(t, urls)
	warmUp(t, g.addr)
	before := asked(servers)
	o := dottestLoad(g.addr, "equal", 10_000, 1000).run(t)
	got := since(before, servers)
	const what = "3 upstreams at 20 ms, 10000 queries"
	rows.loss(t, what, o)
	shares, even := got.shares(), true
	for _, s := range shares {
		even = even && s >= 28 && s <= 38
	}
	rows.check(t, what+": shares", fmt.Sprintf("%.1f %% each", shares), "33 ± 5 %", even)
	ratio := float64(got.sum()) / float64(o.queries)
	rows.check(t, what+": upstream queries per query", fmt.Sprintf("%.4f", ratio), "≤ 1.05", ratio <= 1.05)
}

func unequalUpstreams(t *testing.T, rows *table) {
	servers, urls := startUpstreams(t, 10*time.Millisecond, 20*time.Millisecond, 100*time.Millisecond)
	g := startGateway(t, urls)
	warmUp(t, g.addr)
	before := asked(servers)
	o := dottestLoad(g.addr, "unequal", 10_000, 1000).run(t)
	got := since(before, servers)
	const what = "upstreams at 10, 20, 100 ms, 10000 queries"
	rows.loss(t, what, o)
	shares := got.shares()
	rows.check(t, what+": shares", fmt.Sprintf("%.1f %%", shares), "the last ≥ 1 %", shares[2] >= 1)
	rows.add(what+": upstream queries per query", fmt.Sprintf("%.4f", float64(got.sum())/float64(o.queries)), "")
}

func startup(t *testing.T, rows *table) {
	_, urls := startUpstreams(t, 0)
	median := firstAnswers(t, urls, 10)
	const limit = 50 * time.Millisecond
	rows.check(t, "exec to first answer, handshake on loopback included: median", median.String(), "≤ 50 ms", median <= limit)
}

func processor(t *testing.T, rows *table) {
	servers, urls := startUpstreams(t, 10*time.Millisecond)
	g := startGateway(t, urls)
	warmUp(t, g.addr)
	before, used := asked(servers), g.processorTime(t)
	o := dottestLoad(g.addr, "processor", 25_000, 5000).run(t)
	used = g.processorTime(t) - used
	const what = "1 upstream at 10 ms, 5000 q/s for 5 s"
	rows.loss(t, what, o)
	rows.add(what+": processor time per query", fmt.Sprintf("%.1f µs", float64(used.Microseconds())/float64(o.queries)), "")
	rows.add(what+": upstream queries per query", fmt.Sprintf("%.4f", float64(since(before, servers).sum())/float64(o.queries)), "")
}

// counts are queries by upstream.
type counts []int

func asked(servers []*dottest.Server) (c counts) {
	for _, s := range servers {
		c = append(c, s.Stats().Queries)
	}
	return c
}

func since(before counts, servers []*dottest.Server) counts {
	now := asked(servers)
	for i := range now {
		now[i] -= before[i]
	}
	return now
}

func (c counts) sum() (sum int) {
	for _, n := range c {
		sum += n
	}
	return sum
}

// shares are in percent.
func (c counts) shares() (shares []float64) {
	for _, n := range c {
		shares = append(shares, 100*float64(n)/float64(max(c.sum(), 1)))
	}
	return shares
}

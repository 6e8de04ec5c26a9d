//go:build linux && load

package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	quick = flag.Bool("quick", false, "one run of 2 s of each row; bounds are told, but fail nothing")
	alone = flag.Bool("alone", false, "dotgate without the peers")
)

// A work is a load for a gateway.
type work struct {
	name        string
	network     string
	links       int
	outstanding int // pending queries; or:
	rate        int // queries a second
	delay       time.Duration
	names       func() func() (number uint32, ok bool)
	against     string  // the peer to compare with
	bound       float64 // limit of dotgate's cost as a multiple of the peer's
}

const hotNames = 100

// New names start here, apart from hot ones and those of the warm-up.
const (
	firstNew  = 1 << 24
	warmNames = 1 << 20
)

var hotOverUDP = work{name: "100 hot names over UDP, as fast as they come", network: "udp", links: 8, outstanding: 256, names: hot, against: "Unbound", bound: 0.80}

var works = []work{
	hotOverUDP,
	{name: "the same at 20 000 a second", network: "udp", links: 8, rate: 20_000, names: hot, against: "dnsdist", bound: 1},
	{name: "100 hot names over TCP, 10 connections, 100 outstanding", network: "tcp", links: 10, outstanding: 100, names: hot, against: "dnsdist", bound: 0.65},
	{name: "every name new, upstream answers at once", network: "udp", links: 8, outstanding: 128, names: fresh(1 << 30), against: "dnsdist", bound: 0.80},
	{name: "every name new at 5 000 a second, upstream takes 10 ms", network: "udp", links: 8, rate: 5_000, delay: 10 * time.Millisecond, names: fresh(1 << 30), against: "dnsdist", bound: 1},
	{name: "a million names, Zipf 1.0, from an empty cache", network: "udp", links: 8, outstanding: 128, names: zipf, against: "dnsdist", bound: 0.90},
}

func hot() func() (uint32, bool) {
	next := uint32(0)
	return func() (uint32, bool) {
		next = (next + 1) % hotNames
		return next, true
	}
}

func fresh(names uint32) func() func() (uint32, bool) {
	return func() func() (uint32, bool) {
		next := uint32(0)
		return func() (uint32, bool) {
			next++
			return firstNew + next, next <= names
		}
	}
}

// zipf draws from a million names, of which the second is asked for half as
// often as the first, the third a third as often, and so on.
func zipf() func() (uint32, bool) {
	rest := zipfSequence()
	return func() (uint32, bool) {
		if len(rest) == 0 {
			return 0, false
		}
		number := rest[0]
		rest = rest[1:]
		return firstNew + number, true
	}
}

var zipfSequence = sync.OnceValue(func() []uint32 { return drawZipf(1_000_000, 1_000_000) })

func drawZipf(names, draws int) []uint32 {
	sums := make([]float64, names)
	sum := 0.0
	for i := range sums {
		sum += 1 / float64(i+1)
		sums[i] = sum
	}
	random := rand.New(rand.NewPCG(1, 2))
	sequence := make([]uint32, draws)
	for i := range sequence {
		rank, _ := slices.BinarySearch(sums, random.Float64()*sum)
		sequence[i] = uint32(rank)
	}
	return sequence
}

// TestLoad measures the cost of a query: the gateway alone on one processor, the load and
// its upstream on the other, alternating with the peers.
func TestLoad(t *testing.T) {
	holdLoad(t)
	contenders := []contender{ourselves("DOTGATE_CACHE_SIZE=1GiB")}
	if !*alone {
		contenders = append(contenders, peers()...)
	}
	rows := &loadTable{rows: []string{"| processor time a query, µs | dotgate | Unbound | dnsdist | bound | |", "|---|--:|--:|--:|--:|---|"}}
	for _, w := range works {
		t.Run(w.name, func(t *testing.T) { w.compare(t, rows, contenders) })
	}
	t.Run("transports", func(t *testing.T) { transportCosts(t, rows) })
	t.Run("two processors", func(t *testing.T) { twoProcessors(t, rows) })
	t.Run("memory", func(t *testing.T) { memory(t, rows) })
	fmt.Printf("\n%s\n", strings.Join(rows.rows, "\n"))
}

// loadTable is the bench's result, in Markdown.
type loadTable struct{ rows []string }

// add adds a row. If dotgate's figure is over its bound, the test fails, unless the runs
// were too short.
func (table *loadTable) add(t *testing.T, what, format string, figures map[string]float64, bound string, limit float64) {
	t.Helper()
	cells := []string{what}
	for _, name := range []string{"dotgate", "Unbound", "dnsdist"} {
		if f, ok := figures[name]; ok {
			cells = append(cells, fmt.Sprintf(format, f))
		} else {
			cells = append(cells, "–")
		}
	}
	verdict := "met"
	switch {
	case limit == 0:
		verdict = ""
	case figures["dotgate"] > limit:
		verdict = "**missed**"
		if !*quick {
			t.Errorf("%s: "+format+", but should be at most "+format, what, figures["dotgate"], limit)
		}
	}
	table.rows = append(table.rows, "| "+strings.Join(append(cells, bound, verdict), " | ")+" |")
}

// A figure has the measurements of a run.
type figure struct {
	cost                  float64 // microseconds of the gateway's processor a query
	asked, answered, lost int
	rate                  float64 // answers a second
	p50, p99              time.Duration
	// Shares of their processors.
	gateway, client, upstream float64
}

func (f figure) String() string {
	return fmt.Sprintf("%5.2f µs a query, %d queries, %d lost, %.0f a second, p50 %v, p99 %v, processor: gateway %.0f %%, client %.0f %%, upstream %.0f %%",
		f.cost, f.asked, f.lost, f.rate, f.p50.Round(time.Microsecond), f.p99.Round(time.Microsecond), 100*f.gateway, 100*f.client, 100*f.upstream)
}

// compare runs the work five times with each contender, alternating.
func (w work) compare(t *testing.T, rows *loadTable, contenders []contender) {
	figures := make(map[string][]figure)
	for range runs() {
		for _, c := range contenders {
			f := w.measure(t, c)
			t.Logf("%-8s %v", c.name, f)
			figures[c.name] = append(figures[c.name], f)
		}
	}
	costs := medians(figures, func(f figure) float64 { return f.cost })
	rows.add(t, w.name+lossesOf(figures), "%.2f", costs, fmt.Sprintf("%.2f × %s", w.bound, w.against), w.bound*costs[w.against])
	if w.delay == 0 {
		return
	}
	direct := w.direct(t)
	t.Logf("without a gateway, over UDP: p50 %v, p99 %v", direct.p50, direct.p99)
	beyond := func(wait time.Duration) float64 { return float64(wait-w.delay) / float64(time.Millisecond) }
	for _, q := range []struct {
		name  string
		of    func(f figure) time.Duration
		bound float64
	}{
		{"p50", func(f figure) time.Duration { return f.p50 }, 0.3},
		{"p99", func(f figure) time.Duration { return f.p99 }, 0.8},
	} {
		what := fmt.Sprintf("… %s of the latency, ms beyond the upstream's 10 (without any gateway: %.2f)", q.name, beyond(q.of(direct)))
		rows.add(t, what, "%.2f", medians(figures, func(f figure) float64 { return beyond(q.of(f)) }), fmt.Sprint(q.bound), q.bound)
	}
}

func runs() int {
	if *quick {
		return 1
	}
	return 5
}

func medians(figures map[string][]figure, of func(figure) float64) map[string]float64 {
	result := make(map[string]float64)
	for name, all := range figures {
		var values []float64
		for _, f := range all {
			values = append(values, of(f))
		}
		slices.Sort(values)
		result[name] = values[len(values)/2]
	}
	return result
}

// lossesOf returns the contenders that lost queries.
func lossesOf(figures map[string][]figure) string {
	var losses []string
	for name, all := range figures {
		asked, lost := 0, 0
		for _, f := range all {
			asked, lost = asked+f.asked, lost+f.lost
		}
		if lost > 0 {
			losses = append(losses, fmt.Sprintf("%s lost %d of %d", name, lost, asked))
		}
	}
	if len(losses) == 0 {
		return ""
	}
	slices.Sort(losses)
	return " (" + strings.Join(losses, ", ") + ")"
}

// measure runs the work once with a contender.
func (w work) measure(t *testing.T, c contender) (f figure) {
	t.Run(c.name, func(t *testing.T) {
		b := startBench(t, c, w.delay)
		defer b.stop()
		if *alone {
			fmt.Printf("%s: process %d for %v\n", w.name, b.gateway.cmd.Process.Pid, w.length())
		}
		f = w.run(t, b)
		if f.lost > 0 && c.name == "dotgate" {
			t.Errorf("%d of %d queries were lost", f.lost, f.asked)
		}
	})
	return f
}

// direct runs the work with the upstream alone, over UDP.
func (w work) direct(t *testing.T) figure {
	upstream, addr := startBenchUpstream(t, w.delay)
	defer upstream.kill()
	return w.run(t, &bench{gateway: upstream, upstream: upstream, addr: addr})
}

func (w work) length() time.Duration {
	if *quick {
		return 2 * time.Second
	}
	return 5 * time.Second
}

func (w work) run(t *testing.T, b *bench) figure {
	t.Helper()
	client := newClient(t, b.addr, w.network, w.links)
	defer client.close()
	client.next = w.names()
	begin, gateway, upstream, own := time.Now(), b.gateway.processorTime(t), b.upstream.processorTime(t), ownProcessorTime(t)
	if w.rate > 0 {
		client.paced(t, w.rate, w.length())
	} else {
		client.closed(w.outstanding, w.length())
	}
	elapsed := time.Since(begin).Seconds()
	gateway, upstream, own = b.gateway.processorTime(t)-gateway, b.upstream.processorTime(t)-upstream, ownProcessorTime(t)-own
	if len(client.problems) > 0 {
		t.Errorf("%d queries: %v", client.asked, client.problems)
	}
	answered := len(client.waits)
	return figure{
		cost:  1e6 * gateway.Seconds() / float64(max(answered, 1)),
		asked: client.asked, answered: answered, lost: client.lost, rate: float64(answered) / elapsed,
		p50: client.wait(0.5), p99: client.wait(0.99),
		gateway: gateway.Seconds() / elapsed, upstream: upstream.Seconds() / elapsed, client: own.Seconds() / elapsed,
	}
}

// warm returns when the gateway answers, has its connections, and has the hot
// names in its cache.
func warm(t *testing.T, to netip.AddrPort) {
	t.Helper()
	within(t, startLimit, "the first answer", func() bool { return answers(to) })
	c := newClient(t, to, "udp", 8)
	defer c.close()
	asked := uint32(0)
	c.next = func() (uint32, bool) {
		asked++
		if asked <= hotNames {
			return asked - 1, true
		}
		return warmNames + asked, asked <= 5000
	}
	c.closed(64, time.Minute)
	if c.lost > 0 || len(c.problems) > 0 {
		t.Logf("while it warmed up, of %d queries: %d lost, %v", c.asked, c.lost, c.problems)
	}
}

// answers reports whether there is an answer within 100 ms.
func answers(at netip.AddrPort) bool {
	c, err := net.Dial("udp", at.String())
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
	_, _ = c.Write(numbered)
	reply := make([]byte, receiveRoom)
	n, err := c.Read(reply)
	return err == nil && problemOf(reply[:n], 0) == ""
}

func ownProcessorTime(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// twoProcessors measures dotgate's cost with two processors, one of them shared with the
// load.
func twoProcessors(t *testing.T, rows *loadTable) {
	figures := make(map[string][]figure)
	for range runs() {
		for _, processors := range [][]int{gatewayAlone, {gatewayProcessor, loadProcessor}} {
			c := ourselves()
			c.processors = processors
			f := hotOverUDP.measure(t, c)
			name := fmt.Sprint(len(processors))
			t.Logf("on %s: %v", name, f)
			figures[name] = append(figures[name], f)
		}
	}
	costs := medians(figures, func(f figure) float64 { return f.cost })
	rows.add(t, "100 hot names over UDP with two processors, in what it costs with one", "%.2f",
		map[string]float64{"dotgate": costs["2"] / costs["1"]}, "1.15", 1.15)
}

// memory measures the memory for a cached answer.
func memory(t *testing.T, rows *loadTable) {
	names := 1_000_000
	if *quick {
		names = 200_000
	}
	growth := make(map[string]float64)
	contenders := []contender{ourselves("DOTGATE_CACHE_SIZE=1GiB")}
	if !*alone {
		contenders = append(contenders, peers()...)
	}
	for _, c := range contenders {
		growth[c.name] = float64(grow(t, c, names)) / float64(names)
	}
	rows.add(t, fmt.Sprintf("memory a cached name, octets (%d names of 30 octets, type A)", names), "%.0f", growth, "250", 250)
	const limit = 16
	grown := grow(t, ourselves(fmt.Sprintf("DOTGATE_CACHE_SIZE=%dMiB", limit)), names)
	rows.add(t, fmt.Sprintf("memory that they take with `cache.size: %dMiB`, MiB", limit), "%.1f",
		map[string]float64{"dotgate": float64(grown) / (1 << 20)}, fmt.Sprint(1.1*limit), 1.1*limit)
}

// grow returns the growth of a gateway's memory after queries for some names.
func grow(t *testing.T, c contender, names int) (growth int) {
	t.Run(c.name, func(t *testing.T) {
		b := startBench(t, c, 0)
		defer b.stop()
		before := b.gateway.memory(t)
		client := newClient(t, b.addr, "udp", 8)
		defer client.close()
		client.next = fresh(uint32(names))()
		client.closed(128, time.Minute)
		if len(client.problems) > 0 || client.asked < names || client.lost > names/100 {
			t.Errorf("%d queries: %d lost, %v", client.asked, client.lost, client.problems)
		}
		growth = b.gateway.memory(t) - before
		t.Logf("%s: %d MiB more", c.name, growth>>20)
	})
	return growth
}

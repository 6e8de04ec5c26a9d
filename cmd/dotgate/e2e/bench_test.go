//go:build linux && load

package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	quick = flag.Bool("quick", false, "one run of 2 s of each row; bounds are not checked")
	alone = flag.Bool("alone", false, "dotgate without the peers; bounds are not checked")
)

// A work is a row of the bench's table.
type work struct {
	name        string
	network     string
	links       int
	outstanding int // queries under way; or:
	rate        int // queries a second
	delay       time.Duration
	names       func() func() (number uint32, ok bool)
	against     string  // the peer to compare with
	bound       float64 // dotgate's cost, in the peer's, at most
}

const hotNames = 100

// newNames start here, clear of hot ones and of those that warm up.
const (
	newNames  = 1 << 24
	warmNames = 1 << 20
)

func works() []work {
	return []work{
		{name: "100 hot names over UDP, as fast as they come", network: "udp", links: 8, outstanding: 256, names: hot, against: "Unbound", bound: 0.80},
		{name: "100 hot names over UDP, 20 000 a second", network: "udp", links: 8, rate: 20_000, names: hot, against: "dnsdist", bound: 1},
		{name: "100 hot names over 10 TCP connections, 100 outstanding", network: "tcp", links: 10, outstanding: 100, names: hot, against: "dnsdist", bound: 0.65},
		{name: "every name new, upstream answers at once", network: "udp", links: 8, outstanding: 128, names: fresh, against: "dnsdist", bound: 0.80},
		{name: "every name new, 5 000 a second, upstream takes 10 ms", network: "udp", links: 8, rate: 5_000, delay: 10 * time.Millisecond, names: fresh, against: "dnsdist", bound: 1},
		{name: "a million names, Zipf 1.0, cold start", network: "udp", links: 8, outstanding: 128, names: zipf, against: "dnsdist", bound: 0.90},
	}
}

func hot() func() (uint32, bool) {
	next := uint32(0)
	return func() (uint32, bool) {
		next = (next + 1) % hotNames
		return next, true
	}
}

func fresh() func() (uint32, bool) {
	next := uint32(newNames)
	return func() (uint32, bool) {
		next++
		return next, true
	}
}

// TestLoad measures what a query costs: the gateway alone on one processor, the
// load and its upstream on the other, in turns with peers.
func TestLoad(t *testing.T) {
	holdLoad(t)
	contenders := []contender{ourselves()}
	if !*alone {
		contenders = append(contenders, contender{"Unbound", peerUnbound}, contender{"dnsdist", peerDnsdist})
	}
	rows := []string{"| processor time a query, µs | dotgate | Unbound | dnsdist | bound |", "|---|--:|--:|--:|--:|"}
	for _, w := range works() {
		t.Run(strings.ReplaceAll(w.name, " ", "-"), func(t *testing.T) {
			rows = append(rows, w.compare(t, contenders))
		})
	}
	fmt.Println(strings.Join(rows, "\n"))
}

// A figure is what a run of a work showed.
type figure struct {
	cost           float64 // microseconds of the gateway's processor a query
	answered, lost int
	rate           float64 // answers a second
	p50, p99       time.Duration
	// The shares of their processors.
	gateway, client, upstream float64
}

func (f figure) String() string {
	return fmt.Sprintf("%5.2f µs a query, %d answers, %.0f a second, %d lost, p50 %v, p99 %v, processor: gateway %.0f %%, client %.0f %%, upstream %.0f %%",
		f.cost, f.answered, f.rate, f.lost, f.p50.Round(time.Microsecond), f.p99.Round(time.Microsecond), 100*f.gateway, 100*f.client, 100*f.upstream)
}

// compare returns a row of the table.
func (w work) compare(t *testing.T, contenders []contender) string {
	runs := 5
	if *quick {
		runs = 1
	}
	figures := make(map[string][]figure)
	for range runs {
		for _, c := range contenders {
			f := w.measure(t, c)
			t.Logf("%-8s %v", c.name, f)
			figures[c.name] = append(figures[c.name], f)
		}
	}
	cell := func(name string) string {
		if len(figures[name]) == 0 {
			return "–"
		}
		return fmt.Sprintf("%.2f", median(figures[name]))
	}
	bound := fmt.Sprintf("%.2f × %s", w.bound, w.against)
	if !*alone {
		limit := w.bound * median(figures[w.against])
		bound += fmt.Sprintf(" = %.2f", limit)
		if median(figures["dotgate"]) > limit {
			bound += ", missed"
			if !*quick {
				t.Errorf("a query costs %s µs, but should at most %.2f", cell("dotgate"), limit)
			}
		}
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s |", w.name, cell("dotgate"), cell("Unbound"), cell("dnsdist"), bound)
}

func median(figures []figure) float64 {
	costs := make([]float64, 0, len(figures))
	for _, f := range figures {
		costs = append(costs, f.cost)
	}
	slices.Sort(costs)
	return costs[len(costs)/2]
}

// measure lets a contender do the work once.
func (w work) measure(t *testing.T, c contender) (f figure) {
	t.Run(c.name, func(t *testing.T) {
		upstream, upstreamAddr := startBenchUpstream(t, w.delay)
		listen := freeAddr(t)
		var g *process
		on(t, func() { g = c.start(t, listen, upstreamAddr) }, gatewayProcessor)
		if *alone {
			fmt.Printf("%s: process %d\n", w.name, g.cmd.Process.Pid)
		}
		f = w.run(t, listen, g, upstream)
		g.kill()
		upstream.kill()
	})
	return f
}

func (w work) run(t *testing.T, to netip.AddrPort, g, upstream *process) figure {
	warm(t, to)
	client := newClient(t, to, w.network, w.links)
	defer client.close()
	client.next = w.names()
	length := 5 * time.Second
	if *quick {
		length = 2 * time.Second
	}
	begin, before := time.Now(), [...]time.Duration{g.processorTime(t), upstream.processorTime(t), ownProcessorTime(t)}
	if w.rate > 0 {
		client.paced(t, w.rate, length)
	} else {
		client.closed(w.outstanding, length)
	}
	elapsed := time.Since(begin).Seconds()
	used := [...]float64{(g.processorTime(t) - before[0]).Seconds(), (upstream.processorTime(t) - before[1]).Seconds(), (ownProcessorTime(t) - before[2]).Seconds()}
	if len(client.problems) > 0 || client.lost > 0 {
		t.Errorf("%d queries: %d lost, %v", client.asked, client.lost, client.problems)
	}
	answered := len(client.waits)
	return figure{
		cost: 1e6 * used[0] / float64(max(answered, 1)), answered: answered, lost: client.lost, rate: float64(answered) / elapsed,
		p50: client.wait(0.5), p99: client.wait(0.99), gateway: used[0] / elapsed, upstream: used[1] / elapsed, client: used[2] / elapsed,
	}
}

// warm returns when the gateway answers, has its connections, and has the hot
// names in its cache.
func warm(t *testing.T, to netip.AddrPort) {
	t.Helper()
	for deadline := time.Now().Add(startLimit); ; {
		c := newClient(t, to, "udp", 8)
		asked := uint32(0)
		c.next = func() (uint32, bool) {
			asked++
			if asked <= hotNames {
				return asked - 1, true
			}
			return warmNames + asked, asked < 2000
		}
		c.closed(64, time.Minute)
		c.close()
		if len(c.waits) == c.asked {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the gateway does not answer properly: %d lost, %v", c.lost, c.problems)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func ownProcessorTime(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
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
		return newNames + number, true
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

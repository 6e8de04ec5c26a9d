//go:build linux && lab

// Package lab rehearses everything that can go wrong with upstreams, against the
// real program, and measures what clients see of it.
//
// There are two kinds of world. Most scenarios have three servers of
// upstreams/dottest, which misbehave on request. Those of testdata/network.txt
// have three real Unbound servers, each in a network namespace of its own, with
// nftables and links that fail between them and the gateway. They need root and
// the Debian packages iproute2, nftables and unbound, and fail without.
//
// Not run, and reported as such: the scenarios of testdata/network.txt where not
// even root may create network namespaces, as in most containers.
package lab

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

var (
	long     = flag.Bool("long", false, "all scenarios and all their variants, with 10 s of fault, and time to recover")
	keepLogs = flag.Bool("logs", false, "print what the gateways logged")
)

const (
	clientLimit = time.Second           // a client that is less patient than most
	p99Limit    = 80 * time.Millisecond // how much a fault may add
)

// program is what is under test.
var program string

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "dotgate-lab")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "dotgate")
	build := exec.Command("go", "build", "-o", program, "dotgate/cmd/dotgate")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the gateway:", err)
		os.Exit(1)
	}
	go watchMachine()
	go printWhenStopped(dir)
	code := m.Run()
	results.print()
	os.RemoveAll(dir)
	os.Exit(code)
}

// printWhenStopped prints what is known when somebody has had enough. What is
// left of networks, the next run removes.
func printWhenStopped(dir string) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	<-signals
	results.print()
	os.RemoveAll(dir)
	os.Exit(1)
}

func TestNoClientNoticesAFault(t *testing.T) {
	if deadline, ok := t.Deadline(); ok {
		// The testing package will end the process; what is known is worth having.
		timer := time.AfterFunc(time.Until(deadline)-5*time.Second, results.print)
		defer timer.Stop()
	}
	scenarios := readScenarios(t)
	// The longest first, so that nothing is left to wait for in the end.
	slices.SortStableFunc(scenarios, func(a, b scenario) int {
		return int(b.phases().total() - a.phases().total())
	})
	var total time.Duration
	for _, s := range scenarios {
		total += s.phases().total()
	}
	fmt.Printf("%d scenarios in at least %v, %d at once\n", len(scenarios), (total / time.Duration(parallel())).Round(time.Second), parallel())
	// Not t.Parallel, which starts subtests in no order.
	var group errgroup.Group
	group.SetLimit(parallel())
	for _, s := range scenarios {
		group.Go(func() error {
			t.Run(s.group+"/"+s.name, func(t *testing.T) { rehearse(t, s) })
			return nil
		})
	}
	_ = group.Wait()
}

// tries is how often a scenario is played before it has failed, unless it takes
// longer than retryLimit, and stallLimit how late the machine itself must have
// been for a try not to count.
const (
	tries      = 3
	retryLimit = time.Minute
	stallLimit = 50 * time.Millisecond
)

// rehearse plays a scenario and puts down what came of it, whatever that is. It
// is played again if latencies are all that is wrong with it, and the machine
// had some of its own: gateways can't be blamed for those.
func rehearse(t *testing.T, s scenario) {
	var r report
	for n := range tries {
		r = report{scenario: s, recovered: -1, absolute: true, problems: []string{"it was cut short"}}
		begin := time.Now()
		t.Run(fmt.Sprintf("try %d", n+1), func(t *testing.T) { r = play(t, s) })
		r.tries = n + 1
		if why := results.skipped(); why != "" && s.network {
			t.Skip(why)
		}
		stalled := longestStall(begin, time.Now())
		if len(r.problems)+len(r.figures) > 0 {
			t.Logf("%q, during %v, back after %v, %d dials; the machine itself was late by up to %v",
				append(r.problems, r.figures...), r.during, r.recovered, r.dials, stalled.Round(time.Millisecond))
		}
		if len(r.problems)+len(r.figures) == 0 || r.absolute || stalled < stallLimit || s.phases().total() > retryLimit {
			break
		}
	}
	results.add(r)
	for _, problem := range r.problems {
		t.Error(problem)
	}
	// In the short form, a share of a second on whatever machine this is fails
	// nothing. It is in the table, and the long form insists.
	for _, figure := range r.figures {
		if *long {
			t.Error(figure)
		} else {
			t.Log("not as promised: ", figure)
		}
	}
}

func parallel() int {
	n := flag.Lookup("test.parallel").Value.(flag.Getter).Get().(int)
	return max(n, 1)
}

//go:build linux && lab

// Package lab tests the real program with every fault that upstreams and networks can
// have, and measures the effect on clients. The result is a table (RESULTS.md).
//
// A scenario is a block of text in testdata: the upstreams it concerns, the fault, and
// the limits if they are not the usual ones. Most scenarios have three servers of
// upstreams/dottest. Those with "world: network" have three Unbound servers, each in a
// network namespace of its own, with nftables and links that fail between them and the
// gateway. They need root and the Debian packages iproute2, nftables and unbound, and
// fail without.
//
// The scenarios of networks are not run, and reported so, if network namespaces can't be
// created, as in most containers.
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
	keepLogs = flag.Bool("logs", false, "print the logs of the gateways")
)

const (
	slowLimit   = time.Second            // within the timeout of all common clients
	p99Limit    = 80 * time.Millisecond  // that a fault may add to p99
	p99Switched = 100 * time.Millisecond // the same where queries move to another transport
)

// program is the path of the program under test.
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
	go watchStalls()
	go printWhenStopped(dir)
	code := m.Run()
	results.print()
	os.RemoveAll(dir)
	os.Exit(code)
}

// printWhenStopped prints the results so far on SIGINT or SIGTERM. The next run removes
// network namespaces that are left.
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
		// Print the results before the testing package ends the process.
		timer := time.AfterFunc(time.Until(deadline)-5*time.Second, results.print)
		defer timer.Stop()
	}
	scenarios := readScenarios(t)
	// The longest first, so that no long one runs alone at the end.
	slices.SortStableFunc(scenarios, func(a, b scenario) int {
		return int(b.phases().total() - a.phases().total())
	})
	var total time.Duration
	for _, s := range scenarios {
		total += s.phases().total()
	}
	fmt.Printf("%d scenarios in at least %v, %d at once\n", len(scenarios), (total / time.Duration(parallel())).Round(time.Second), parallel())
	// Not t.Parallel, which starts subtests in any order.
	var group errgroup.Group
	group.SetLimit(parallel())
	for _, s := range scenarios {
		group.Go(func() error {
			t.Run(s.group+"/"+s.name, func(t *testing.T) { runScenario(t, s) })
			return nil
		})
	}
	_ = group.Wait()
}

// tries is how often a scenario is run before it has failed, unless it takes longer than
// retryLimit. stallLimit is the least stall of the machine for which it is run again.
const (
	tries      = 3
	retryLimit = time.Minute
	stallLimit = 50 * time.Millisecond
)

// runScenario runs a scenario and adds its report to the results. It runs it again if only
// latencies were over a limit and the machine itself stalled meanwhile.
func runScenario(t *testing.T, s scenario) {
	var r report
	for n := range tries {
		r = report{scenario: s, recovered: -1, definite: true, problems: []string{"it did not end"}}
		begin := time.Now()
		t.Run(fmt.Sprintf("try %d", n+1), func(t *testing.T) { r = runOnce(t, s) })
		r.tries = n + 1
		if why := results.notRunReason(); why != "" && s.network {
			t.Skip(why)
		}
		stalled := longestStall(begin, time.Now())
		if len(r.problems)+len(r.figures) > 0 {
			t.Logf("%q, during %v, back after %v, %d dials; the machine itself was late by up to %v",
				append(r.problems, r.figures...), r.during, r.recovered, r.dials, stalled.Round(time.Millisecond))
		}
		if len(r.problems)+len(r.figures) == 0 || r.definite || stalled < stallLimit || s.phases().total() > retryLimit {
			break
		}
	}
	results.add(r)
	for _, problem := range r.problems {
		t.Error(problem)
	}
	// In the short form, which runs on any machine, a broken limit of a figure is only
	// logged. In the long form it fails the test.
	for _, figure := range r.figures {
		if *long {
			t.Error(figure)
		} else {
			t.Log("over the limit: ", figure)
		}
	}
}

func parallel() int {
	n := flag.Lookup("test.parallel").Value.(flag.Getter).Get().(int)
	return max(n, 1)
}

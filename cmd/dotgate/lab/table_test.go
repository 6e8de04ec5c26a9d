//go:build linux && lab

package lab

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// results has the reports of all scenarios that ended.
var results reportTable

type reportTable struct {
	mu      sync.Mutex
	reports []report
	notRun  string
	printed bool
}

func (l *reportTable) add(r report) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reports = append(l.reports, r)
}

// setNotRun sets the reason why some scenarios were not run.
func (l *reportTable) setNotRun(why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notRun = why
}

func (l *reportTable) notRunReason() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.notRun
}

// print prints the table, once.
func (l *reportTable) print() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.printed {
		return
	}
	l.printed = true
	if len(l.reports) > 0 {
		fmt.Print(table(l.reports))
	}
	if l.notRun != "" {
		fmt.Printf("\n%s\n\n", l.notRun)
	}
}

// table returns reports as Markdown.
func table(reports []report) string {
	slices.SortFunc(reports, func(a, b report) int { return a.scenario.order - b.scenario.order })
	var b strings.Builder
	fmt.Fprint(&b, `
Times in ms, as p50/p99/max. *Late*: until no query was late any more. *Back*: until
the first upstream with the fault had its share again; in an outage, until the first
answer. *Cost*: upstream queries per query, before the fault, in its first
second where upstreams have several transports, and the most in 2 s of it.
*Try*: it was run again, as the machine itself had stalled. **(!)**: a limit was broken.

| scenario | failed | >1 s | before | during | after | late | back | cost | dials |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|
`)
	group, broken := "", 0
	for _, r := range reports {
		if r.scenario.group != group {
			group = r.scenario.group
			fmt.Fprintf(&b, "| **%s** | | | | | | | | | |\n", group)
		}
		name := r.scenario.name
		if len(r.problems)+len(r.figures) > 0 {
			name += " **(!)**"
			broken++
		}
		if r.tries > 1 {
			name += fmt.Sprintf(" (try %d)", r.tries)
		}
		failed, slow := 0, 0
		for _, f := range []figures{r.before, r.during, r.after} {
			failed, slow = failed+f.failed, slow+f.slow
		}
		cost := "-"
		if r.scenario.interval <= steadyRate && r.healthyCost > 0 {
			cost = fmt.Sprintf("%.2f, %.2f", r.healthyCost, r.faultCost)
			if r.scenario.transports != nil {
				cost = fmt.Sprintf("%.2f, %.2f, %.2f", r.healthyCost, r.switchCost, r.faultCost)
			}
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %v | %v | %v | %s | %s | %s | %d |\n", name, failed, slow,
			r.before, r.during, r.after, ms(r.late, r.late > 0), ms(r.recovered, r.recovered >= 0), cost, r.dials)
	}
	fmt.Fprintf(&b, "\n%d scenarios, %d with a broken limit\n", len(reports), broken)
	return b.String()
}

func (f figures) String() string {
	if f.sent == 0 {
		return "-"
	}
	return ms(f.p50, true) + "/" + ms(f.p99, true) + "/" + ms(f.max, true)
}

// ms formats d, if it is known.
func ms(d time.Duration, known bool) string {
	if !known {
		return "-"
	}
	return fmt.Sprint(d.Round(time.Millisecond).Milliseconds())
}

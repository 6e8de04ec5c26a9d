package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/control"
	"dotgate/upstreams"
)

// lastWord is how long the report may take after an interrupt.
const lastWord = 2 * time.Second

// A rehearsal is what the command line asks for.
type rehearsal struct {
	upstream, fault string
	length, before  time.Duration
	asJSON          bool
}

func drillCommand(s *sources) *cobra.Command {
	var r rehearsal
	c := &cobra.Command{
		Use:   "drill --upstream NAME --fault FAULT",
		Short: "Rehearse the failure of an upstream, and report what clients saw",
		Long: `drill makes the running gateway treat one of its upstreams as if it failed, and
reports what clients saw before, meanwhile and afterwards. The upstream itself
notices nothing.

The fault is one of

  blackhole      connections stay open and nothing comes back; no new ones can be made
  delay=300ms    every answer comes that much later
  servfail=20%   that share of the answers becomes SERVFAIL
  close          connections are closed, and new ones right after the handshake

It ends when its time is up, when this command is interrupted or dies, and when
no other upstream is up any more. It does not begin unless another one is up.`,
		Args: noArguments,
	}
	flags := c.Flags()
	flags.StringVar(&r.upstream, "upstream", "", "`name` of the upstream, as status shows it")
	flags.StringVar(&r.fault, "fault", "", "`fault` that it is to have")
	flags.DurationVar(&r.length, "for", 30*time.Second, "how `long` it is to have it, at most "+control.DrillMax.String())
	flags.DurationVar(&r.before, "before", 5*time.Second, "how `long` to watch the clients first, to compare")
	flags.BoolVar(&r.asJSON, "json", false, "print the report as JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		if r.upstream == "" || r.fault == "" {
			return usageError{fmt.Errorf("--upstream and --fault are needed; see %s --help", c.CommandPath())}
		}
		if _, err := upstreams.ParseDrill(r.fault); err != nil {
			return usageError{fmt.Errorf("--fault: %w", err)}
		}
		return s.withClient(0, r.run)(c, args)
	}
	return c
}

// run prints the report. That clients lost queries, or that the upstream did not
// return, is an error.
func (r *rehearsal) run(ctx context.Context, client *control.Client, out io.Writer) error {
	request := control.Request{
		Upstream: r.upstream, Fault: r.fault, For: control.Millis(r.length), Before: control.Millis(r.before),
	}
	// An interrupt ends the drill, but not the report.
	work, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	defer context.AfterFunc(ctx, func() {
		defer time.AfterFunc(lastWord, abandon)
		if client.EndDrill(work) != nil {
			abandon()
		}
	})()
	report, err := client.Drill(work, request, func(text string) { fmt.Fprintln(os.Stderr, "drill:", text) })
	if err != nil {
		return fmt.Errorf("drill: %w", err)
	}
	if r.asJSON {
		err = writeJSON(out, report)
	} else {
		err = writeReport(out, report)
	}
	switch {
	case err != nil:
		return err
	case report.Lost() > 0:
		return fmt.Errorf("drill: clients lost %d queries", report.Lost())
	case report.Back == nil && ctx.Err() == nil:
		return fmt.Errorf("drill: %s is not back after %s", report.Upstream, ago(time.Duration(report.After.Lasted)))
	}
	return nil
}

func writeReport(out io.Writer, r control.Report) error {
	sent := "sent to " + r.Upstream
	line := func(name, before, during, after string) {
		fmt.Fprintf(out, "%-*s %9s %9s %9s\n", max(len(sent), 11), name, before, during, after)
	}
	row := func(name string, cell func(control.Phase) string) {
		line(name, cell(r.Before), cell(r.During), cell(r.After))
	}
	count := func(name string, of func(control.Phase) uint64) {
		row(name, func(p control.Phase) string { return fmt.Sprint(of(p)) })
	}
	latency := func(name string, of func(control.Phase) control.Millis) {
		row(name, func(p control.Phase) string { return milliseconds(of(p)) })
	}
	line("", "before", "during", "after")
	row("lasted", func(p control.Phase) string { return ago(time.Duration(p.Lasted)) })
	count("queries", func(p control.Phase) uint64 { return p.Queries })
	count("lost", func(p control.Phase) uint64 { return p.Lost })
	count("SERVFAIL", func(p control.Phase) uint64 { return p.ServFail })
	count("from cache", func(p control.Phase) uint64 { return p.Cached })
	latency("p50", func(p control.Phase) control.Millis { return p.P50 })
	latency("p99", func(p control.Phase) control.Millis { return p.P99 })
	latency("max", func(p control.Phase) control.Millis { return p.Max })
	count("asked twice", func(p control.Phase) uint64 { return p.Extra })
	count(sent, func(p control.Phase) uint64 { return p.Asked })
	_, err := fmt.Fprintf(out, "\n%s, %s: %s. The fault ended because %s.\n", r.Upstream, r.Fault, course(r), r.Ended)
	return err
}

// course tells what became of the upstream.
func course(r control.Report) string {
	var steps []string
	if r.Suspected != nil {
		steps = append(steps, fmt.Sprintf("suspect after %s", milliseconds(*r.Suspected)))
	}
	if r.Down != nil {
		steps = append(steps, fmt.Sprintf("down after %s", milliseconds(*r.Down)))
	}
	if steps == nil {
		steps = append(steps, "never suspect")
	}
	switch {
	case r.Back == nil:
		steps = append(steps, "not back when last seen")
	case *r.Back == 0:
		steps = append(steps, "in rotation at the end")
	default:
		steps = append(steps, fmt.Sprintf("back %s after the end", milliseconds(*r.Back)))
	}
	return strings.Join(steps, ", ")
}

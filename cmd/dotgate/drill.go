package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/upstreams"
)

// lastWord bounds the time for the report after an interrupt.
const lastWord = 2 * time.Second

// A drillRequest has the flags of drill.
type drillRequest struct {
	api.Request
	asJSON bool
}

func drillCommand(s *configFlags) *cobra.Command {
	var r drillRequest
	c := &cobra.Command{
		Use:   "drill --upstream NAME --fault FAULT",
		Short: "Inject a fault into one upstream, and report what clients noticed",
		Long: `drill injects a fault between the running gateway and one of its upstreams, and
reports what clients saw before, during and after it. The upstream itself is not
affected.

The fault is one of

  blackhole      connections stay open without responses, and dials fail
  delay=300ms    every answer is delayed by this duration
  servfail=20%   this share of the answers is replaced by SERVFAIL
  close          connections are closed, and new ones right after the handshake
  block=853      blackhole for connections to this port, over TCP
  block=853/udp  blackhole for connections to this port, over QUIC
  http=503       every answer over HTTPS is replaced by this HTTP status

The fault ends after --for, when this command is interrupted or killed, and when no
other upstream is up. A drill does not begin unless another upstream is up.`,
		Args: noArguments,
	}
	flags := c.Flags()
	flags.StringVar(&r.Upstream, "upstream", "", "`NAME` of the upstream, as in status")
	flags.StringVar(&r.Fault, "fault", "", "`FAULT` to inject (see above)")
	flags.DurationVar((*time.Duration)(&r.For), "for", 30*time.Second, "`DURATION` of the fault, at most "+api.DrillMax.String())
	flags.DurationVar((*time.Duration)(&r.Before), "before", 5*time.Second, "`DURATION` of the measurement before the fault, for comparison")
	flags.BoolVar(&r.asJSON, "json", false, "print the report as JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		if r.Upstream == "" || r.Fault == "" {
			return usageError{fmt.Errorf("--upstream and --fault are needed; see %s --help", c.CommandPath())}
		}
		if _, err := upstreams.ParseDrill(r.Fault); err != nil {
			return usageError{fmt.Errorf("--fault: %w", err)}
		}
		return s.withClient(0, r.run)(c, args)
	}
	return c
}

// run prints the report. Lost queries and an upstream that did not come back are errors.
func (r *drillRequest) run(ctx context.Context, client *api.Client, out io.Writer) error {
	// An interrupt ends the drill. The report is still printed.
	work, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	defer context.AfterFunc(ctx, func() {
		defer time.AfterFunc(lastWord, abandon)
		if client.EndDrill(work) != nil {
			abandon()
		}
	})()
	report, err := client.Drill(work, r.Request, func(text string) { fmt.Fprintln(os.Stderr, "drill:", text) })
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

func writeReport(out io.Writer, r api.Report) error {
	sent := "sent to " + r.Upstream
	line := func(name, before, during, after string) {
		fmt.Fprintf(out, "%-*s %9s %9s %9s\n", max(len(sent), 11), name, before, during, after)
	}
	row := func(name string, cell func(api.Phase) string) {
		line(name, cell(r.Before), cell(r.During), cell(r.After))
	}
	count := func(name string, of func(api.Phase) uint64) {
		row(name, func(p api.Phase) string { return fmt.Sprint(of(p)) })
	}
	latency := func(name string, of func(api.Phase) api.Millis) {
		row(name, func(p api.Phase) string { return milliseconds(of(p)) })
	}
	line("", "before", "during", "after")
	row("lasted", func(p api.Phase) string { return ago(time.Duration(p.Lasted)) })
	count("queries", func(p api.Phase) uint64 { return p.Queries })
	count("lost", func(p api.Phase) uint64 { return p.Lost })
	count("SERVFAIL", func(p api.Phase) uint64 { return p.ServFail })
	count("from cache", func(p api.Phase) uint64 { return p.Cached })
	latency("p50", func(p api.Phase) api.Millis { return p.P50 })
	latency("p99", func(p api.Phase) api.Millis { return p.P99 })
	latency("max", func(p api.Phase) api.Millis { return p.Max })
	count("asked twice", func(p api.Phase) uint64 { return p.Extra })
	count(sent, func(p api.Phase) uint64 { return p.Asked })
	_, err := fmt.Fprintf(out, "\n%s, %s: %s. The fault ended: %s.\n", r.Upstream, r.Fault, course(r), r.Ended)
	return err
}

// course returns the state changes of the upstream.
func course(r api.Report) string {
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
		steps = append(steps, "up at the end")
	default:
		steps = append(steps, fmt.Sprintf("back %s after the end", milliseconds(*r.Back)))
	}
	return strings.Join(steps, ", ")
}

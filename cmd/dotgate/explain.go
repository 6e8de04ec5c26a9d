package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/internal/api"
)

// explainLimit bounds the time for a query that is explained.
const explainLimit = 6 * time.Second

func explainCommand(s *configFlags) *cobra.Command {
	var asJSON bool
	var recent int
	c := &cobra.Command{
		Use:   "explain [NAME [TYPE]]",
		Short: "Show how the running gateway answers a query, step by step, with reasons",
		Long: `explain sends a query through the running gateway and shows every step: the state
of the cache, the order of the upstreams with reasons, each attempt, and its
result. Upstreams are asked even if the cache has the answer.

With --recent, explain shows the latest queries that failed or were sent to more
than one upstream. The gateway keeps 1000 of them.`,
		Args: func(c *cobra.Command, args []string) error {
			if recent < 0 {
				return usageError{fmt.Errorf("--recent: %d is below 1", recent)}
			}
			if (len(args) == 0) == (recent == 0) || len(args) > 2 {
				return usageError{fmt.Errorf("%s takes a name and perhaps a type, or --recent; see %s --help", c.CommandPath(), c.CommandPath())}
			}
			return cleanNames(c, args[:min(1, len(args))])
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().IntVar(&recent, "recent", 0, "show the latest `COUNT` queries that failed or were sent more than once")
	c.RunE = func(c *cobra.Command, args []string) error {
		return s.withClient(explainLimit, func(ctx context.Context, client *api.Client, out io.Writer) (err error) {
			var all []api.Explanation
			if recent > 0 {
				all, err = client.RecentQueries(ctx)
				all = all[:min(recent, len(all))]
			} else {
				var one api.Explanation
				one, err = client.Explain(ctx, args[0], strings.Join(args[1:], ""))
				all = append(all, one)
			}
			switch {
			case err != nil:
				return err
			case asJSON:
				return writeJSON(out, all)
			}
			for i, e := range all {
				if i > 0 {
					fmt.Fprintln(out)
				}
				writeExplanation(out, e)
			}
			return nil
		})(c, args)
	}
	return c
}

func writeExplanation(out io.Writer, e api.Explanation) {
	fmt.Fprintf(out, "%s: %s in %s, at %s\n", e.Query, e.Outcome, milliseconds(e.Took), e.Began.Format(time.TimeOnly))
	if e.Error != "" {
		fmt.Fprintf(out, "  error: %s\n", e.Error)
	}
	if e.EDE != "" {
		fmt.Fprintf(out, "  clients get the extended error %s\n", e.EDE)
	}
	if e.Detail != "" {
		fmt.Fprintf(out, "  trusted clients (gateway.trusted) get it with: %s\n", e.Detail)
	}
	if e.Cache != "" {
		fmt.Fprintf(out, "  cache: %s\n", map[string]string{"nothing": "no answer", "fresh": "a fresh answer", "stale": "a stale answer"}[e.Cache])
	}
	if e.Route != "" {
		fmt.Fprintf(out, "  route: %s\n", e.Route)
	}
	if e.Policy != "" {
		fmt.Fprintf(out, "  policy: %s\n", e.Policy)
	}
	writeCandidates(out, e.Candidates)
	for _, a := range e.Attempts {
		writeAttempt(out, a, e.Steps)
	}
	for line := range strings.Lines(e.Answer) {
		if line = strings.TrimRight(line, "\n"); line != "" && !strings.HasPrefix(line, ";") {
			fmt.Fprintf(out, "  answer    %s\n", strings.ReplaceAll(line, "\t", " "))
		}
	}
}

// writeCandidates writes the table of the upstreams that could be asked.
func writeCandidates(out io.Writer, candidates []api.CandidateStatus) {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  ORDER\tSTATE\tTIER\tLATENCY\tPATIENCE\tLOSSES\tIN FLIGHT\tSCORE\tASKED\tREASON")
	for i, c := range candidates {
		fmt.Fprintf(t, "  %d. %s\t%s\t%d\t%s\t%s\t%.1f%%\t%d\t%s\t%s\t%s\n", i+1, c.Name, c.State, c.Tier,
			milliseconds(c.Usual), milliseconds(c.Patience), c.Losses*100, c.Outstanding, milliseconds(c.Cost), either(c.Asked, "yes", "no"), c.Why)
	}
	t.Flush()
}

// writeAttempt writes what became of one attempt, and the steps of its upstream.
func writeAttempt(out io.Writer, a api.AttemptStatus, steps []api.StepStatus) {
	fmt.Fprintf(out, "  %8s  %s (%s): %s", "+"+moment(a.After), a.Name, a.Reason, a.Outcome)
	switch {
	case a.Error != "":
		fmt.Fprintf(out, " after %s: %s", milliseconds(a.Took), a.Error)
	case a.Outcome == "open":
		fmt.Fprint(out, ", no response until the query ended")
	default:
		fmt.Fprintf(out, " after %s", milliseconds(a.Took))
	}
	fmt.Fprintln(out)
	for _, step := range steps {
		if step.Upstream == a.Name {
			fmt.Fprintf(out, "  %8s    %s\n", "+"+moment(step.After), step.What)
		}
	}
}

// moment formats a duration that may be 0.
func moment(m api.Millis) string {
	if m <= 0 {
		return "0ms"
	}
	return milliseconds(m)
}

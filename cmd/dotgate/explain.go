package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/control"
	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
	"dotgate/upstreams"
)

// explainLimit is how long a query that is explained may take.
const explainLimit = 6 * time.Second

// Stories returns those of queries that failed or were sent more than once.
func (p *process) Stories() *control.Stories { return p.stories }

// Explain asks upstreams for a name, whatever the cache has, and tells how that
// went. The cache does not learn from it.
func (p *process) Explain(ctx context.Context, name, recordType string) (control.Explanation, error) {
	query, err := wire.NewQuery(name, strings.ToUpper(recordType))
	if err != nil {
		return control.Explanation{}, err
	}
	found := p.answers.Look(query)
	trace := new(upstreams.Trace)
	ctx, cancel := context.WithTimeout(ctx, explainLimit-time.Second)
	defer cancel()
	fleet := p.fleetFor(query)
	answer, story := fleet.balancer.Explain(upstreams.WithTrace(ctx, trace), query)
	e := control.Explain(story, fleet.route, trace.Steps())
	e.Policy = fleet.policy()
	e.Cache = map[cache.Found]string{cache.Nothing: "nothing", cache.Fresh: "fresh", cache.Stale: "stale"}[found]
	if !answer.IsZero() {
		e.Answer = answer.String()
	}
	return e, nil
}

func explainCommand(s *sources) *cobra.Command {
	var asJSON bool
	var recent int
	c := &cobra.Command{
		Use:   "explain [NAME [TYPE]]",
		Short: "Tell how the running gateway answers a query, and why like that",
		Long: `explain has the running gateway ask for a name and tells how that goes: what the
cache has, in what order upstreams come and why, whom it asks and when, and what
becomes of it. The answer is asked for even if the cache has it.

With --recent, it tells of the latest queries that failed, or were sent to more
than one upstream; a thousand of them are kept.`,
		Args: func(c *cobra.Command, args []string) error {
			if recent < 0 {
				return usageError{fmt.Errorf("--recent: %d is below 1", recent)}
			}
			if (len(args) == 0) == (recent == 0) || len(args) > 2 {
				return usageError{fmt.Errorf("%s takes a name and perhaps a type, or --recent; see %s --help", c.CommandPath(), c.CommandPath())}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().IntVar(&recent, "recent", 0, "tell of so `many` of the latest that failed or were sent twice")
	c.RunE = func(c *cobra.Command, args []string) error {
		return s.withClient(explainLimit, func(ctx context.Context, client *control.Client, out io.Writer) (err error) {
			var all []control.Explanation
			if recent > 0 {
				all, err = client.Stories(ctx)
				all = all[:min(recent, len(all))]
			} else {
				var one control.Explanation
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

func writeExplanation(out io.Writer, e control.Explanation) {
	fmt.Fprintf(out, "%s: %s in %s, at %s\n", e.Query, e.Outcome, milliseconds(e.Took), e.Began.Format(time.TimeOnly))
	if e.Error != "" {
		fmt.Fprintf(out, "  because %s\n", e.Error)
	}
	if e.EDE != "" {
		fmt.Fprintf(out, "  clients are told EDE %s\n", e.EDE)
	}
	if e.Detail != "" {
		fmt.Fprintf(out, "  those of gateway.trusted: %s\n", e.Detail)
	}
	if e.Cache != "" {
		fmt.Fprintf(out, "  the cache had %s\n", map[string]string{"nothing": "nothing", "fresh": "a fresh answer", "stale": "a stale answer"}[e.Cache])
	}
	if e.Route != "" {
		fmt.Fprintf(out, "  the route is %s\n", e.Route)
	}
	if e.Policy != "" {
		fmt.Fprintf(out, "  the policy is %s\n", e.Policy)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  ORDER\tSTATE\tTIER\tUSUAL\tPATIENCE\tLOSSES\tOUTSTANDING\tSCORE\tASKED\tWHY")
	for i, c := range e.Candidates {
		asked := "no"
		if c.Asked {
			asked = "yes"
		}
		fmt.Fprintf(t, "  %d. %s\t%s\t%d\t%s\t%s\t%.1f%%\t%d\t%s\t%s\t%s\n", i+1, c.Name, c.State, c.Tier,
			milliseconds(c.Usual), milliseconds(c.Patience), c.Losses*100, c.Outstanding, milliseconds(c.Cost), asked, c.Why)
	}
	t.Flush()
	for _, a := range e.Attempts {
		fmt.Fprintf(out, "  %8s  %s is asked (%s): %s", "+"+moment(a.After), a.Name, a.Reason, a.Outcome)
		switch {
		case a.Error != "":
			fmt.Fprintf(out, " after %s: %s", milliseconds(a.Took), a.Error)
		case a.Outcome == "open":
			fmt.Fprint(out, ", when it was over")
		default:
			fmt.Fprintf(out, " after %s", milliseconds(a.Took))
		}
		fmt.Fprintln(out)
		for _, step := range e.Steps {
			if step.Upstream == a.Name {
				fmt.Fprintf(out, "  %8s    %s\n", "+"+moment(step.After), step.What)
			}
		}
	}
	for line := range strings.Lines(e.Answer) {
		if line = strings.TrimRight(line, "\n"); line != "" && !strings.HasPrefix(line, ";") {
			fmt.Fprintf(out, "  answer    %s\n", strings.ReplaceAll(line, "\t", " "))
		}
	}
}

// moment is milliseconds that may be none.
func moment(m control.Millis) string {
	if m <= 0 {
		return "0ms"
	}
	return milliseconds(m)
}

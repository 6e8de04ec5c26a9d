package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/control"
	"dotgate/configs"
	"dotgate/gateway/wire"
	"dotgate/upstreams"
)

func queryCommand(s *sources) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "query NAME [TYPE] [@UPSTREAM]",
		Short: "Ask upstreams for a name from here, as a gateway would, without one",
		Long: `query asks the configured upstreams for a name, by the same code as a gateway but
in this process, and tells how that goes. @UPSTREAM has only one asked: by its
name in the configuration, or a preset or URL as there.`,
		Example: "  dotgate query example.com AAAA\n  dotgate query example.com @quad9\n  dotgate query example.com MX @tls://192.0.2.53#dns.example",
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		q, err := parseAsked(args)
		if err != nil {
			return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
		}
		return s.with(func(ctx context.Context, config *configs.Config, out io.Writer) error {
			e, err := q.ask(ctx, config)
			switch {
			case err != nil:
				return err
			case asJSON:
				err = writeJSON(out, e)
			default:
				writeExplanation(out, e)
			}
			if err == nil && e.Error != "" {
				err = errors.New("query: there is no answer")
			}
			return err
		})(c, args)
	}
	return c
}

// Asked is what the command line asks, and whom.
type asked struct {
	query    wire.Query
	upstream string // empty: all
}

func parseAsked(args []string) (a asked, err error) {
	recordType, name := "A", ""
	for i, arg := range args {
		switch {
		case strings.HasPrefix(arg, "@") && len(arg) > 1 && a.upstream == "":
			a.upstream = arg[1:]
		case name == "" && !strings.HasPrefix(arg, "@"):
			name = arg
		case i > 0 && recordType == "A" && !strings.HasPrefix(arg, "@"):
			recordType = strings.ToUpper(arg)
		default:
			return a, fmt.Errorf("%q is one too many", arg)
		}
	}
	if name == "" {
		return a, errors.New("a name is needed")
	}
	a.query, err = wire.NewQuery(name, recordType)
	return a, err
}

func (a asked) ask(ctx context.Context, config *configs.Config) (control.Explanation, error) {
	if a.upstream != "" {
		u, err := config.Upstream(a.upstream)
		if err != nil {
			return control.Explanation{}, usageError{err}
		}
		config.Upstreams, config.Routes = []configs.Upstream{u}, nil
	}
	fleets, _, err := newFleets(config, func(string, balancer.Story) {}, slog.New(slog.DiscardHandler))
	if err != nil {
		return control.Explanation{}, err
	}
	defer fleets.Close()
	trace := new(upstreams.Trace)
	ctx, cancel := context.WithTimeout(upstreams.WithTrace(ctx, trace), explainLimit)
	defer cancel()
	fleet := fleets.fleetFor(a.query)
	answer, story := fleet.balancer.Explain(ctx, a.query)
	e := control.Explain(story, fleet.route, trace.Steps())
	if !answer.IsZero() {
		e.Answer = answer.String()
	}
	return e, nil
}

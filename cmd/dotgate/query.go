package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/server"
	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/gateway/wire"
)

func queryCommand(s *configFlags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "query NAME [TYPE] [@UPSTREAM]",
		Short: "Ask upstreams for a name from this machine, without a gateway",
		Long: `query asks the configured upstreams for a name, with the code of the gateway but in
this process, and shows every step as explain does. @UPSTREAM asks only one: a name
of the configuration, a preset or a URL.`,
		Example: "  dotgate query example.com AAAA\n  dotgate query example.com @quad9\n  dotgate query example.com MX @tls://192.0.2.53#dns.example",
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		q, err := parseAsked(args)
		if err != nil {
			return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
		}
		return s.with(func(ctx context.Context, config *settings.Config, out io.Writer) error {
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
				err = errors.New("query: no answer")
			}
			return err
		})(c, args)
	}
	return c
}

// asked is the query of the command line.
type asked struct {
	query    wire.Query
	upstream string // empty for all
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
			return a, fmt.Errorf("unexpected argument %q", arg)
		}
	}
	if name == "" {
		return a, errors.New("NAME is missing")
	}
	if name, err = wire.CleanPattern(name); err != nil {
		return a, err
	}
	a.query, err = wire.NewQuery(name, recordType)
	return a, err
}

func (a asked) ask(ctx context.Context, config *settings.Config) (api.Explanation, error) {
	if a.upstream != "" {
		u, err := config.Upstream(a.upstream)
		if err != nil {
			return api.Explanation{}, usageError{err}
		}
		config.Upstreams, config.Routes = []settings.Upstream{u}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, explainLimit)
	defer cancel()
	return server.Query(ctx, config, builtAt(), a.query)
}

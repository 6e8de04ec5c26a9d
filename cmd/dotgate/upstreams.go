package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/health"
)

// upstreamsCommand lists the upstreams of the running gateway, and sets them by hand.
func upstreamsCommand(s *configFlags) *cobra.Command {
	var asJSON bool
	ask := func(do func(context.Context, *api.Client) (api.Status, error)) func(*cobra.Command, []string) error {
		return s.withClient(statusLimit, func(ctx context.Context, client *api.Client, out io.Writer) error {
			status, err := do(ctx, client)
			switch {
			case err != nil:
				return err
			case asJSON:
				return writeJSON(out, status.Upstreams)
			}
			return writeUpstreams(out, status.Upstreams, time.Now())
		})
	}
	list := ask(func(ctx context.Context, c *api.Client) (api.Status, error) { return c.Status(ctx) })
	c := &cobra.Command{
		Use:   "upstreams",
		Short: "List the upstreams of the running gateway; drain them, or force them up or down",
		Args:  noArguments,
		RunE:  list,
	}
	c.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON")
	for _, o := range []struct {
		state health.AdminState
		short string
	}{
		{health.Drained, "Ask the upstream only if no other one is up"},
		{health.ForcedDown, "Never ask the upstream"},
		{health.ForcedUp, "Ask the upstream even if it fails"},
		{health.Auto, "Let health checks decide again"},
	} {
		c.AddCommand(&cobra.Command{
			Use:   o.state.String() + " NAME",
			Short: o.short,
			Args:  oneArgument("the name of an upstream"),
			RunE: func(c *cobra.Command, args []string) error {
				return ask(func(ctx context.Context, client *api.Client) (api.Status, error) {
					return client.SetAdminState(ctx, args[0], o.state)
				})(c, args)
			},
		})
	}
	return c
}

func oneArgument(what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == 1 {
			return nil
		}
		return usageError{fmt.Errorf("%s takes %s; see %s --help", c.CommandPath(), what, c.CommandPath())}
	}
}

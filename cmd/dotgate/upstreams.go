package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/control"
	"dotgate/health"
)

// upstreamsCommand lists the upstreams of the running gateway, and takes orders
// for them.
func upstreamsCommand(s *sources) *cobra.Command {
	var asJSON bool
	ask := func(do func(context.Context, *control.Client) (control.Status, error)) func(*cobra.Command, []string) error {
		return s.withClient(statusLimit, func(ctx context.Context, client *control.Client, out io.Writer) error {
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
	list := ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Status(ctx) })
	c := &cobra.Command{
		Use:   "upstreams",
		Short: "List the upstreams of the running gateway; drain them, set them up or down",
		Args:  noArguments,
		RunE:  list,
	}
	c.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON")
	for _, o := range []struct {
		order health.Order
		short string
	}{
		{health.Drained, "Ask an upstream no more, unless nobody else is up"},
		{health.ForcedDown, "Ask an upstream no more, whatever happens"},
		{health.ForcedUp, "Ask an upstream, even if it fails"},
		{health.Auto, "Leave it to what is known of an upstream whether it is asked"},
	} {
		c.AddCommand(&cobra.Command{
			Use:   o.order.String() + " NAME",
			Short: o.short,
			Args:  oneArgument("the name of an upstream"),
			RunE: func(c *cobra.Command, args []string) error {
				return ask(func(ctx context.Context, client *control.Client) (control.Status, error) {
					return client.Order(ctx, args[0], o.order)
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

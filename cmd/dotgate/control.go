package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/settings"
)

// withClient returns the RunE of a command that asks the running gateway. A mistake that
// is in the configuration by now does not matter, and is reported. limit bounds the time; 0
// is no limit.
func (s *configFlags) withClient(limit time.Duration, run func(context.Context, *api.Client, io.Writer) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, _ []string) error {
		config, err := settings.LoadPartly(s.from())
		if err != nil {
			fmt.Fprintln(c.ErrOrStderr(), "dotgate: the configuration has mistakes (see dotgate check); the running gateway is asked nevertheless")
		}
		client, err := api.Find(config.Control.Socket, s.path())
		if err != nil {
			return err
		}
		ctx := c.Context()
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		return run(ctx, client, c.OutOrStdout())
	}
}

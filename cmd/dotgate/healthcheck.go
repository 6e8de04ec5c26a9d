package main

import (
	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/internal/healthcheck"
	"dotgate/cmd/dotgate/internal/signals"
)

func healthcheckCommand(s *configFlags) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "healthcheck",
		Short: "Check whether the running gateway is ready and answers over UDP and TCP",
		Long: `healthcheck sends queries to the running gateway over UDP and TCP. From the control
socket it gets the addresses in use, the readiness, and a token that marks its queries
as health checks: clients' limits do not apply to them, and no log or metric includes
them. The configuration file may be broken, empty or gone by then.

If control.socket is off, belongs to another user, or does not respond within 200 ms,
healthcheck queries as an ordinary client, and says so. Then gateway.allow and
gateway.rate_limit apply, and the addresses are those of the configuration.

Exit codes: 0 if the gateway answers and is ready; 1 if it does not answer, answers
with an error, is not ready or about to stop, or can't be asked; 2 if it can't be asked
because of a mistake in the configuration or the command line.`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if file != "" {
				signals.KeepWriting()
				signals.Serving()
				return healthcheck.Watch(c.Context(), s.from(), file, c.OutOrStdout())
			}
			return healthcheck.Once(c.Context(), s.from(), c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&file, "watch", "", "check until stopped, and keep the result in this `FILE` for keepalived's track_file: 0 if the gateway can answer, 1 if it has no upstream, 2 if it can't answer or is about to stop")
	return c
}

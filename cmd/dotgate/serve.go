package main

import (
	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/internal/server"
)

func serveCommand(s *configFlags) *cobra.Command {
	var takeover bool
	c := &cobra.Command{
		Use:   "serve",
		Short: "Answer queries until told to stop (the default)",
		Args:  noArguments,
		RunE:  func(c *cobra.Command, args []string) error { return s.serve(takeover)(c, args) },
	}
	c.Flags().BoolVar(&takeover, "takeover", false, "take over from the gateway that runs on this machine without losing a query; without one, start as usual")
	return c
}

// serve returns the RunE of serve.
func (s *configFlags) serve(takeover bool) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, _ []string) error {
		return server.Serve(c.Context(), server.Options{From: s.from(), Takeover: takeover, Version: versionText(), Built: builtAt()})
	}
}

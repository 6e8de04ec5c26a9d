// Command dotgate is a DNS gateway: plain DNS in, verified DNS-over-TLS out, to
// several resolvers, so that clients don't notice when one of them fails.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"dotgate/configs"
)

// Exit codes.
const (
	exitFailure = 1
	exitConfig  = 2 // the configuration or the command line can't be used
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := rootCommand().ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var problems configs.Problems
	if errors.As(err, &problems) {
		fmt.Fprintln(os.Stderr, err) // a line each, which says where
		return exitConfig
	}
	text := err.Error()
	if !strings.HasPrefix(text, "dotgate ") { // as those do that name a command
		text = "dotgate: " + text
	}
	fmt.Fprintln(os.Stderr, text)
	var usage usageError
	if errors.As(err, &usage) {
		return exitConfig
	}
	return exitFailure
}

// A usageError is a mistake on the command line.
type usageError struct{ error }

func rootCommand() *cobra.Command {
	var s sources
	root := &cobra.Command{
		Use:   "dotgate",
		Short: "A DNS gateway that asks several DNS-over-TLS resolvers, so that no client notices when one fails",
		Long: `dotgate answers plain DNS over UDP and TCP. It asks several resolvers over
DNS-over-TLS, verifies who they are and what they say, and goes to the next one
when one is slow or fails.

Without a command it serves. Without a configuration it listens on
127.0.0.1:5300 and [::1]:5300 and asks Cloudflare, Quad9 and Google.`,
		Args:          noArguments,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          s.with(s.serve),
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	s.addFlags(root.PersistentFlags())
	serve := &cobra.Command{Use: "serve", Short: "Answer queries until told to stop (the default)", Args: noArguments, RunE: s.with(s.serve)}
	serve.Flags().BoolVar(&s.takeover, "takeover", false, "take over from the gateway that runs here, without losing a query; start as usual if there is none")
	root.AddCommand(
		serve,
		&cobra.Command{Use: "check", Short: "Check the configuration and print what is in effect, and from where", Args: noArguments, RunE: s.with(check)},
		healthcheckCommand(&s),
		statusCommand(&s),
		upstreamsCommand(&s),
		reloadCommand(&s),
		explainCommand(&s),
		queryCommand(&s),
		probeCommand(&s),
		topCommand(&s),
		drillCommand(&s),
		cacheCommand(&s),
		referenceCommand(),
		manCommand(),
		&cobra.Command{Use: "version", Short: "Print the version", Args: noArguments, Run: printVersion},
	)
	return root
}

func noArguments(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !c.HasSubCommands() {
		return usageError{fmt.Errorf("%s takes no argument, but there is %q; see %s --help", c.CommandPath(), args[0], c.CommandPath())}
	}
	c.SuggestionsMinimumDistance = 3 // letters that may be wrong
	meant := ""
	if like := c.SuggestionsFor(args[0]); len(like) > 0 {
		meant = "; did you mean " + strings.Join(like, " or ") + "?"
	}
	return usageError{fmt.Errorf("%s has no command %q%s; see %s --help", c.CommandPath(), args[0], meant, c.CommandPath())}
}

// Command dotgate is a DNS failover gateway. It answers plain DNS queries of clients by
// asking several resolvers over TLS and HTTPS, so that clients don't notice when one fails.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/internal/signals"
	"dotgate/configs"
)

// Exit codes.
const (
	exitFailure = 1
	exitConfig  = 2 // a mistake in the configuration or the command line
)

func main() { os.Exit(run()) }

func run() int {
	ctx := signals.Context(interruptLimit, func() {
		printError("dotgate: interrupted")
		os.Exit(exitFailure)
	})
	root, out := rootCommand(), &output{file: os.Stdout}
	root.SetOut(out)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = out.failure()
	}
	if err == nil {
		return 0
	}
	if _, ok := errors.AsType[configs.Problems](err); ok {
		printError(err.Error()) // a line for each mistake, with its place
		return exitConfig
	}
	text := configs.Clip(err.Error())
	if !strings.HasPrefix(text, "dotgate ") { // usage errors begin with the command
		text = "dotgate: " + text
	}
	printError(text)
	if _, ok := errors.AsType[usageError](err); ok {
		return exitConfig
	}
	return exitFailure
}

// An output is standard output. It keeps the first error, so that no command succeeds
// whose output is lost, as on a full disk. That its reader is gone is no error.
type output struct {
	file *os.File
	mu   sync.Mutex
	err  error
}

func (o *output) Write(text []byte) (int, error) {
	n, err := o.file.Write(text)
	if err != nil && !errors.Is(err, syscall.EPIPE) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.err == nil {
			o.err = err
		}
	}
	return n, err
}

func (o *output) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// interruptLimit bounds the time that a command takes to end after SIGINT or SIGTERM.
const interruptLimit = time.Second

// printError writes to standard error, for half a second at most: its reader may be
// blocked.
func printError(text string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fmt.Fprintln(os.Stderr, text)
	}()
	select {
	case <-done:
	case <-time.After(500 * time.Millisecond):
	}
}

// A usageError is a mistake on the command line.
type usageError struct{ error }

func rootCommand() *cobra.Command {
	var s configFlags
	root := &cobra.Command{
		Use:   "dotgate",
		Short: "A DNS failover gateway: plain DNS for clients, several resolvers over TLS and HTTPS behind it",
		Long: `dotgate answers plain DNS over UDP and TCP. It asks several resolvers over
DNS-over-TLS or DNS-over-HTTPS, verifies their certificates and answers, and fails
over to another resolver when one is slow or fails.

Without a command it serves. Without a configuration it listens on
127.0.0.1:5300 and [::1]:5300 and asks Cloudflare, Quad9 and Google.`,
		Args:          noArguments,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          s.serve(false),
		PersistentPreRun: func(c *cobra.Command, _ []string) {
			if c.HasParent() && c.Name() != "serve" {
				signals.Default()
			}
		},
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	s.addFlags(root.PersistentFlags())
	root.AddCommand(
		serveCommand(&s),
		&cobra.Command{Use: "check", Short: "Check the configuration and print every option in effect, with its source", Args: noArguments, RunE: s.with(check)},
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
		&cobra.Command{Use: "version", Short: "Print the version", Args: noArguments, Run: func(c *cobra.Command, _ []string) {
			fmt.Fprintln(c.OutOrStdout(), "dotgate", versionText())
		}},
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
	c.SuggestionsMinimumDistance = 3 // wrong letters
	meant := ""
	if like := c.SuggestionsFor(args[0]); len(like) > 0 {
		meant = "; did you mean " + strings.Join(like, " or ") + "?"
	}
	return usageError{fmt.Errorf("%s has no command %q%s; see %s --help", c.CommandPath(), args[0], meant, c.CommandPath())}
}

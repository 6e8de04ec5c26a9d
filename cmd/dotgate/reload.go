package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/settings"
)

func reloadCommand(s *configFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Reload the configuration of the running gateway",
		Long: `reload makes the running gateway read its configuration again, as SIGHUP and a
change of the file do. If the new configuration has a mistake, it is reported and
the old one stays in effect. Upstreams without changes keep their connections and
state, addresses without changes keep their sockets, and the cache keeps its
answers.`,
		Args: noArguments,
		RunE: s.with(func(ctx context.Context, config *settings.Config, out io.Writer) error {
			client, err := api.Find(config.Control.Socket, s.path())
			if err != nil {
				return err
			}
			done, err := client.Reload(ctx)
			if err != nil {
				return errors.New("reload: " + err.Error())
			}
			switch {
			case len(done.Changed) == 0 && len(done.Restart) == 0:
				fmt.Fprintln(out, "nothing has changed")
			case len(done.Changed) > 0:
				fmt.Fprintln(out, "in effect:", strings.Join(done.Changed, ", "))
			}
			if len(done.Restart) > 0 {
				fmt.Fprintln(out, "in effect after a restart:", strings.Join(done.Restart, ", "))
			}
			return nil
		}),
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/control"
	"dotgate/configs"
)

// listenControl makes the control socket. It returns nil if there is to be none,
// or none is possible and nobody asked for it; unless patient, for then another
// try may help.
func listenControl(c configs.Control, patient bool, log *slog.Logger) (*control.Listener, error) {
	switch c.Socket {
	case configs.SocketOff:
		return nil, nil
	case configs.SocketAuto:
		l, err := control.ListenSomewhere(control.Places())
		if err != nil && patient && errors.Is(err, control.ErrInUse) {
			return nil, err
		}
		if err != nil {
			log.Warn("serving without status, drill and cache; another path or off may help", "error", err)
			return nil, nil
		}
		return l, nil
	}
	return control.Listen(c.Socket)
}

// newClient returns a client of the gateway that has this configuration.
func newClient(c configs.Control) (*control.Client, error) {
	switch c.Socket {
	case configs.SocketOff:
		return nil, errors.New("control.socket is off: nothing leads to the gateway")
	case configs.SocketAuto:
		return control.NewClient(control.Places()), nil
	}
	return control.NewClient([]string{c.Socket}), nil
}

// client returns a client of the running gateway, which may well run while what it
// was configured with has become useless: that is told to errors.
func (s *sources) client(errors io.Writer) (*control.Client, error) {
	c, err := configs.LoadControl(s.from())
	if err != nil {
		fmt.Fprintf(errors, "dotgate: the configuration is of no use (dotgate check tells why); the running gateway is asked all the same\n")
	}
	return newClient(c)
}

// withClient returns what cobra runs for a command that asks the running gateway
// and waits no longer than this for what it says; 0 for as long as it takes.
func (s *sources) withClient(limit time.Duration, run func(context.Context, *control.Client, io.Writer) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, _ []string) error {
		client, err := s.client(c.ErrOrStderr())
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

package main

import (
	"context"
	"errors"
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

// withClient returns what cobra runs for a command that asks the running gateway
// and waits no longer than this for what it says.
func (s *sources) withClient(limit time.Duration, run func(context.Context, *control.Client, io.Writer) error) func(*cobra.Command, []string) error {
	return s.with(func(ctx context.Context, config *configs.Config, out io.Writer) error {
		client, err := newClient(config.Control)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return run(ctx, client, out)
	})
}

package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"syscall"
	"time"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/settings"
)

const (
	// takeoverLimit bounds the time until a predecessor has ended, queries in progress
	// included. pollInterval is the time between two attempts to open its addresses.
	takeoverLimit = 10 * time.Second
	pollInterval  = 20 * time.Millisecond
	// statusLimit bounds the time for the status of the predecessor.
	statusLimit = 5 * time.Second
)

// findPredecessor returns a client of the gateway to take over from; nil without one, or
// without Takeover.
func findPredecessor(ctx context.Context, o Options, config *settings.Config, log *slog.Logger) (*api.Client, error) {
	if !o.Takeover {
		return nil, nil
	}
	if runtime.GOOS != "linux" {
		return nil, errors.New("serve --takeover: two processes can share the ports of gateway.listen on Linux only; stop the running gateway first")
	}
	client, err := api.Find(config.Control.Socket, o.From.File)
	if err != nil {
		return nil, fmt.Errorf("serve --takeover: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	status, err := client.Status(ctx)
	if err != nil {
		log.Info("there is no gateway to take over from", "error", err)
		return nil, nil
	}
	log.Info("taking over", "from", status.PID)
	return client, nil
}

// takeOver makes the predecessor stop, now that both serve, and opens the addresses for
// operators as they become free.
func (s *server) takeOver(ctx context.Context, predecessor *api.Client) {
	if _, err := predecessor.Yield(ctx); err != nil {
		s.log.Error("the other gateway did not stop: both serve", "error", err)
	}
	tick := time.Tick(pollInterval)
	var err error
	for deadline := time.Now().Add(takeoverLimit); time.Now().Before(deadline); {
		if err = s.openListeners(s.current()); err == nil {
			s.log.Info("took over", "admin", s.adminText(s.current()))
			return
		}
		if !errors.Is(err, api.ErrInUse) && !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
	}
	s.log.Error("serving without the control socket or the admin address", "error", err)
}

// Yield ends the service: another process, which has taken over, serves already.
func (s *server) Yield() {
	s.log.Info("another gateway takes over")
	s.stop()
}

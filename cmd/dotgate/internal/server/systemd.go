package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"dotgate/cmd/dotgate/internal/healthcheck"
	"dotgate/gateway"
)

// A service manager, such as systemd, may hand over sockets and want to be told how
// we are. Without one, none of this does anything.

// listen opens the gateway's sockets, or takes those that a service manager has
// opened (LISTEN_FDS, see sd_listen_fds(3)), and reports whether it did.
func listen(server *gateway.Gateway) (handed bool, err error) {
	files := activation.Files(true)
	if len(files) == 0 {
		return false, server.Listen()
	}
	return true, adopt(server, files)
}

func adopt(server *gateway.Gateway, files []*os.File) error {
	var listeners []*net.TCPListener
	var conns []*net.UDPConn
	for _, file := range files {
		listener, noListener := net.FileListener(file)
		conn, noConn := net.FilePacketConn(file)
		file.Close() // each has a copy
		if l, ok := listener.(*net.TCPListener); ok {
			listeners = append(listeners, l)
		} else if c, ok := conn.(*net.UDPConn); ok {
			conns = append(conns, c)
		} else {
			return fmt.Errorf("the service manager handed over %s, which is neither a TCP nor a UDP socket: %w", file.Name(), errors.Join(noListener, noConn))
		}
	}
	return server.Adopt(listeners, conns)
}

// reportToManager tells the service manager that we are ready, until ctx is done
// that we answer (WatchdogSec=), and then that we are stopping. What it tells is
// true: a client of ours asks.
func reportToManager(ctx context.Context, server *gateway.Gateway, log *slog.Logger) error {
	tell := func(state string) {
		if err := notify(state); err != nil {
			log.Warn("the service manager could not be told", "what", state, "error", err)
		}
	}
	tell(daemon.SdNotifyReady)
	defer tell(daemon.SdNotifyStopping)
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval <= 0 {
		<-ctx.Done()
		return nil
	}
	for tick := time.Tick(interval / 3); ; {
		if err := answersItself(ctx, server, interval/3); err == nil {
			tell(daemon.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			log.Error("no answer from ourselves; the service manager will start us again if that lasts", "error", err)
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return nil
		}
	}
}

// notify is daemon.SdNotify for notifyLimit: its write waits for a service manager that
// stands still, for ever.
func notify(state string) error {
	done := make(chan error, 1)
	go func() {
		_, err := daemon.SdNotify(false, state)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(notifyLimit):
		return fmt.Errorf("it took nothing for %v", notifyLimit)
	}
}

const notifyLimit = 500 * time.Millisecond

// answersItself asks for localhost, which needs no upstream, as a health check. Any
// answer is a sign of life.
func answersItself(ctx context.Context, server *gateway.Gateway, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	token := server.CheckToken()
	return healthcheck.Itself(ctx, server.Addrs(), token[:])
}

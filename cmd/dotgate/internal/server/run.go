package server

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/signals"
	"dotgate/gateway/access"
	"dotgate/upstreams"
)

// Serve loads the configuration, builds the gateway, and runs it until ctx is done.
func Serve(ctx context.Context, o Options) error {
	source := source(o.From)
	config, read, err := source.loadAndDigest()
	if err != nil {
		return err
	}
	signals.KeepWriting()
	log := openLog(config.Log)
	defer log.close()
	predecessor, err := findPredecessor(ctx, o, config, log.Logger)
	if err != nil {
		return err
	}
	s, err := newServer(o, newConfiguration(&source, config, read, log.Logger), predecessor != nil, log)
	if err != nil {
		return err
	}
	defer s.close()
	if predecessor == nil {
		if err := s.openListeners(config); err != nil {
			return err
		}
	} else {
		s.pools.main.warmUp(ctx)
	}
	if s.handed, err = listen(s.gateway); err != nil {
		return err
	}
	s.log.Info("dotgate is serving", "on", api.JoinAddrs(s.gateway.Addrs()), "upstreams", s.pools.String(),
		"policy", config.Balancer.Policy, "admin", s.adminText(config), access.OnLinkWord, access.LinksText(s.gateway.OnLink()))
	signals.Serving()
	s.pools.release.later()
	return s.run(ctx, predecessor)
}

// run runs all parts until ctx is done, and a while longer (see drain).
func (s *server) run(ctx context.Context, predecessor *api.Client) error {
	serving, stop := s.drain(ctx)
	s.stop = stop
	group, ctx := errgroup.WithContext(serving)
	group.Go(func() error { return s.pools.Run(ctx) })
	group.Go(func() error { return s.handleSignals(ctx) })
	group.Go(func() error { return s.watchFiles(ctx, func() { _, _ = s.Reload() }) }) // which logs the result
	group.Go(func() error {
		changed := func() {
			s.pools.network.Changed()
			s.gateway.NetworkChanged()
		}
		if err := upstreams.WatchNetwork(ctx, s.pools.recheck, changed); err != nil {
			s.log.Info("the end of an outage may be noticed a few seconds later", "reason", err)
		}
		return nil
	})
	group.Go(func() error { return s.gateway.WatchClients(ctx) })
	group.Go(func() error { return s.gateway.WatchLoops(ctx, s.pools.loopSuspects) })
	group.Go(func() error { return s.answers.Run(ctx) })
	group.Go(func() error { return s.shared.Run(ctx) })
	group.Go(func() error { return s.gateway.Serve(ctx) })
	group.Go(func() error { return reportToManager(ctx, s.gateway, s.log.Logger) })
	// The last queries are logged and traced, too.
	logging, logged := context.WithCancel(context.WithoutCancel(ctx))
	var writers sync.WaitGroup
	writers.Go(func() { _ = s.queries.Run(logging) })
	writers.Go(func() { _ = s.tracer.Run(logging) })
	// The admin address reports that the gateway stops until the last client is served.
	operating, closed := context.WithCancel(context.WithoutCancel(ctx))
	var operators sync.WaitGroup
	operators.Go(func() { s.control.run(ctx) })
	operators.Go(func() { s.http.run(operating) })
	operators.Go(func() { s.runAbsent(ctx, s.openAbsentAdmin) })
	operators.Go(func() {
		if predecessor != nil {
			s.takeOver(ctx, predecessor)
		}
		s.peering.run(ctx)
	})
	stopping := make(chan time.Time, 1)
	defer context.AfterFunc(serving, func() { stopping <- time.Now(); s.log.forceEnd() })()
	err := group.Wait()
	closed()
	logged()
	operators.Wait()
	stop()
	waitUntil(&writers, (<-stopping).Add(stopLimit))
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	s.log.Info("dotgate has stopped")
	return nil
}

const (
	// stopLimit bounds the time after the end of the service in which the query log and
	// traces are written, as it bounds queries in progress. They have at least lastWait
	// after the last of these queries.
	stopLimit = 1500 * time.Millisecond
	lastWait  = 250 * time.Millisecond
	// forceEnd is the time after the end of the service after which the process ends in
	// any case, for instance with a disk that does not respond. Docker kills after 10 s.
	forceEnd = 8 * time.Second
)

// waitUntil waits for writing to be done, until deadline or for lastWait. The
// goroutines that still write then end with the process.
func waitUntil(writing *sync.WaitGroup, deadline time.Time) {
	done := make(chan struct{})
	go func() {
		writing.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(max(time.Until(deadline), lastWait)):
	}
}

// forceEnd ends the process soon, if it has not ended by itself.
func (o *logOutput) forceEnd() {
	time.AfterFunc(forceEnd, func() {
		o.Error("dotgate did not end by itself and was ended", "after", forceEnd)
		o.close()
		os.Exit(1)
	})
}

// drain returns a context that ends gateway.lameduck after ctx, or with a second signal.
// From the end of ctx on, the gateway still answers but reports that it is not ready.
// stop ends the context at once.
func (s *server) drain(ctx context.Context) (serving context.Context, stop func()) {
	serving, stop = context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		defer stop()
		s.admin.Drain()
		left := s.current().Gateway.Lameduck
		if left == 0 {
			return
		}
		s.log.Info("dotgate is about to stop, and still answers", "for", left)
		again := make(chan os.Signal, 1)
		signal.Notify(again, syscall.SIGINT, syscall.SIGTERM)
		defer signal.Stop(again)
		select {
		case <-again:
		case <-time.After(left):
		}
	})
	return serving, stop
}

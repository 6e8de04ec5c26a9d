package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"dotgate/cmd/dotgate/admin"
	"dotgate/cmd/dotgate/control"
	"dotgate/configs"
	"dotgate/gateway"
	"dotgate/gateway/querylog"
	"dotgate/upstreams"
)

// serve builds the gateway from the inside out, and runs it until ctx is done.
func (s *sources) serve(ctx context.Context, config *configs.Config, _ io.Writer) error {
	log, level := newLogger(config.Log)
	asked, deaf := signals()
	defer deaf()
	config.Gateway.Log, config.Cache.Log = log, log

	stories := new(control.Stories)
	fleet, err := newFleet(config, stories.Keep, log)
	if err != nil {
		return err
	}
	defer fleet.Close()
	answers, err := openCache(config.Cache, log)
	if err != nil {
		return err
	}
	defer answers.Close()
	config.Gateway.Cache = answers
	former, err := s.former(ctx, config, log)
	if err != nil {
		return err
	}
	config.Gateway.Share = former != nil
	config.QueryLog.Log = log
	queries, err := querylog.New(config.QueryLog)
	if err != nil {
		return err
	}
	if queries != nil {
		config.Gateway.QueryLog = queries
	}
	var routed parts
	defer routed.close()
	with := *config // routes add to what is forwarded
	with.Balancer.Tell, with.Balancer.Log, with.Health.Log = stories.Keep, log, log
	resolver, err := routed.router(&with, fleet.balancer)
	if err != nil {
		return err
	}
	members := func() []control.Member { return append(fleet.Members(), routed.members...) }
	server, err := gateway.New(resolver, with.Gateway)
	if err != nil {
		return err
	}
	process := &process{fleet: fleet, sources: s, stories: stories, answers: answers, log: log, level: level, config: config, reloads: admin.Reloads{Last: time.Now()}}
	process.operator = control.New(control.Options{
		Version: versionText(), Gateway: server, Balancer: fleet.balancer, Cache: answers, Members: members, Process: process, Log: log,
	})
	if err := process.makeWeb(server, members, queries); err != nil {
		return err
	}
	defer process.closeDoors()
	if former == nil {
		if err := process.openDoors(); err != nil {
			return err
		}
	} else {
		fleet.warmUp(ctx)
	}
	if err := listen(server); err != nil {
		return err
	}
	log.Info("dotgate is serving", "on", joined(server.Addrs(), netip.AddrPort.String),
		"asking", fleet, "policy", config.Balancer.Policy, "admin", process.adminText())

	serving, stop := lameduck(ctx, config.Gateway.Lameduck, process.web, log)
	process.stop = stop
	group, ctx := errgroup.WithContext(serving)
	group.Go(func() error { return fleet.Run(ctx) })
	group.Go(func() error { return process.heed(ctx, asked) })
	if config.Reload.Watch {
		group.Go(func() error { return process.watchFiles(ctx) })
	}
	for _, m := range routed.monitors {
		group.Go(func() error { return m.Run(ctx) })
	}
	group.Go(func() error { watchNetwork(ctx, func() { fleet.recheck(); routed.recheck() }, log); return nil })
	group.Go(func() error {
		return server.WatchLoops(ctx, func() map[string]gateway.Suspect { return suspects(append(fleet.upstreams(), routed.upstreams...)) })
	})
	group.Go(func() error { return answers.Run(ctx) })
	// What is asked to the end is logged.
	logging, logged := context.WithCancel(context.WithoutCancel(ctx))
	var writer sync.WaitGroup
	writer.Go(func() { _ = queries.Run(logging) })
	group.Go(func() error { return server.Serve(ctx) })
	group.Go(func() error { return reportToManager(ctx, server.Addrs(), log) })
	// Who follows readiness is told that we stop until nobody is served any more.
	operating, closed := context.WithCancel(context.WithoutCancel(ctx))
	var operators sync.WaitGroup
	operators.Go(func() {
		if former != nil {
			process.takeOver(ctx, former)
		}
		process.serveDoors(ctx, operating)
	})
	err = group.Wait()
	closed()
	logged()
	operators.Wait()
	writer.Wait()
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	log.Info("dotgate has stopped")
	return nil
}

// watchNetwork has upstreams retried as soon as a link, an address or a route
// comes up.
func watchNetwork(ctx context.Context, retry func(), log *slog.Logger) {
	if err := upstreams.WatchNetwork(ctx, retry); err != nil {
		log.Info("the end of an outage may be noticed a few seconds later", "reason", err)
	}
}

// lameduck returns a context that ends so long after ctx, or with a second
// signal. From the end of ctx on, web says that clients should not come.
// Stop ends it at once.
func lameduck(ctx context.Context, long time.Duration, web *admin.Server, log *slog.Logger) (serving context.Context, stop func()) {
	serving, stop = context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		defer stop()
		if web != nil {
			web.Lameduck()
		}
		if long == 0 {
			return
		}
		log.Info("dotgate is about to stop, and still answers", "for", long)
		again := make(chan os.Signal, 1)
		signal.Notify(again, syscall.SIGINT, syscall.SIGTERM)
		defer signal.Stop(again)
		timer := time.NewTimer(long)
		defer timer.Stop()
		select {
		case <-again:
		case <-timer.C:
		}
	})
	return serving, stop
}

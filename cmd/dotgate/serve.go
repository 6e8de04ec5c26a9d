package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/admin"
	"dotgate/cmd/dotgate/control"
	"dotgate/cmd/dotgate/peers"
	"dotgate/cmd/dotgate/tracing"
	"dotgate/configs"
	"dotgate/gateway"
	"dotgate/gateway/querylog"
	"dotgate/upstreams"
)

// serve builds the gateway from the inside out, and runs it until ctx is done.
func (s *sources) serve(ctx context.Context, config *configs.Config, _ io.Writer) error {
	asked, deaf := signals()
	defer deaf()
	p, former, err := s.newProcess(ctx, config)
	if err != nil {
		return err
	}
	defer p.close()
	if former == nil {
		if err := p.openDoors(); err != nil {
			return err
		}
	} else {
		p.main.warmUp(ctx)
	}
	if p.handed, err = listen(p.gateway); err != nil {
		return err
	}
	p.log.Info("dotgate is serving", "on", joined(p.gateway.Addrs(), netip.AddrPort.String),
		"asking", p.fleets.String(), "policy", config.Balancer.Policy, "admin", p.adminText())

	serving, stop := p.lameduck(ctx)
	p.stop = stop
	group, ctx := errgroup.WithContext(serving)
	group.Go(func() error { return p.fleets.Run(ctx) })
	group.Go(func() error { return p.heed(ctx, asked) })
	group.Go(func() error { return p.watchFiles(ctx) })
	group.Go(func() error { watchNetwork(ctx, p.recheck, p.log); return nil })
	group.Go(func() error { return p.gateway.WatchLoops(ctx, p.suspects) })
	group.Go(func() error { return p.answers.Run(ctx) })
	group.Go(func() error { return p.shared.Run(ctx) })
	// What is asked to the end is logged, and traced.
	logging, logged := context.WithCancel(context.WithoutCancel(ctx))
	var writer sync.WaitGroup
	writer.Go(func() { _ = p.queries.Run(logging) })
	writer.Go(func() { _ = p.tracer.Run(logging) })
	group.Go(func() error { return p.gateway.Serve(ctx) })
	group.Go(func() error { return reportToManager(ctx, p.gateway.Addrs, p.log) })
	// Who follows readiness is told that we stop until nobody is served any more.
	operating, closed := context.WithCancel(context.WithoutCancel(ctx))
	var operators sync.WaitGroup
	operators.Go(func() { p.control.run(ctx) })
	operators.Go(func() { p.http.run(operating) })
	operators.Go(func() {
		if former != nil {
			p.takeOver(ctx, former)
		}
		p.company.run(ctx)
	})
	err = group.Wait()
	closed()
	logged()
	operators.Wait()
	writer.Wait()
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	p.log.Info("dotgate has stopped")
	return nil
}

// newProcess makes all parts of a gateway, and the client of one to take over from,
// nil if there is none. It opens no socket and starts nothing.
func (s *sources) newProcess(ctx context.Context, config *configs.Config) (p *process, former *control.Client, err error) {
	p = &process{sources: s, stories: new(control.Stories), voice: newVoice(config.Log), config: config, reloads: admin.Reloads{Last: time.Now()}}
	p.setRecent(config.Health)
	p.answersAs.Store(new(digestOf(config)))
	p.seen = p.contents()
	p.applied = p.seen
	p.log = slog.New(p.voice)
	config.Cache.Log, config.QueryLog.Log, config.Tracing.Log = p.log, p.log, p.log
	config.Tracing.Version = versionText()
	var resolver balancer.Resolver
	if p.fleets, resolver, err = newFleets(config, p.stories.Keep, p.log); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.answers, err = openCache(config.Cache, p.log); err != nil {
		return p, nil, err
	}
	if former, err = s.former(ctx, config, p.log); err != nil {
		return p, nil, err
	}
	p.patient = former != nil
	if p.queries, err = querylog.New(config.QueryLog); err != nil {
		return p, nil, err
	}
	if p.tracer, err = tracing.New(config.Tracing); err != nil {
		return p, nil, err
	}
	if p.shared, err = p.shareCache(config.Redis); err != nil {
		return p, nil, err
	}
	o := p.gatewayOptions(config)
	o.Share = p.patient
	if p.gateway, err = gateway.New(p.shared.Before(resolver), o); err != nil {
		return p, nil, err
	}
	if p.company, err = newCompany(config, peers.Parts{
		Upstreams: p.watched, Changed: p.changed, Cache: p.answers,
		Admit: p.gateway.Admits, Digest: p.answersDigest, Version: versionText(), Log: p.log,
	}); err != nil {
		return p, nil, err
	}
	p.operator = control.New(control.Options{
		Version: versionText(), Gateway: p.gateway, Balancer: p.fleets, Cache: p.answers, Members: p.Members, Process: p, Log: p.log,
		Peers: p.company.Status, Redis: p.shared.Counts,
	})
	p.web, err = admin.New(config.Admin, admin.Parts{
		Control: p.operator, Members: p.Members, Gateway: p.gateway, Balancer: p.fleets, Cache: p.answers,
		Recent: func() time.Duration { return time.Duration(p.recent.Load()) }, Version: versionText(), Log: p.log, Reloads: p.Reloads, QueryLog: p.queries.Counts, Tracing: p.tracer.Counts,
		Peers: p.company.Status, Redis: p.shared.Counts,
	})
	p.control.serve, p.http.serve = p.operator.Serve, func(ctx context.Context, l net.Listener) {
		var watching sync.WaitGroup
		watching.Go(func() { p.web.Run(ctx) })
		p.web.Serve(ctx, l)
		watching.Wait()
	}
	return p, former, err
}

// close gives back what a process has that does not run.
func (p *process) close() {
	p.control.close()
	p.http.close()
	p.company.close()
	p.fleets.Close()
	if p.answers != nil {
		p.answers.Close()
	}
}

// watchNetwork has upstreams retried as soon as a link, an address or a route
// comes up.
func watchNetwork(ctx context.Context, retry func(), log *slog.Logger) {
	if err := upstreams.WatchNetwork(ctx, retry); err != nil {
		log.Info("the end of an outage may be noticed a few seconds later", "reason", err)
	}
}

// lameduck returns a context that ends some time after ctx (gateway.lameduck), or
// with a second signal. From the end of ctx on, operators are told that clients
// should not come. Stop ends it at once.
func (p *process) lameduck(ctx context.Context) (serving context.Context, stop func()) {
	serving, stop = context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		defer stop()
		p.web.Lameduck()
		p.loading.Lock()
		long := p.config.Gateway.Lameduck
		p.loading.Unlock()
		if long == 0 {
			return
		}
		p.log.Info("dotgate is about to stop, and still answers", "for", long)
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

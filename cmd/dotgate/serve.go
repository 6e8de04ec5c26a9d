package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"

	"golang.org/x/sync/errgroup"

	"dotgate/cmd/dotgate/control"
	"dotgate/configs"
	"dotgate/gateway"
	"dotgate/upstreams"
)

// serve builds the gateway from the inside out, and runs it until ctx is done.
func serve(ctx context.Context, config *configs.Config, _ io.Writer) error {
	log := newLogger(config.Log)
	config.Gateway.Log, config.Cache.Log, config.Balancer.Log, config.Health.Log = log, log, log, log

	var p parts
	defer p.close()
	asked, err := p.resolver(config, config.Upstreams, config.Balancer, config.Health)
	if err != nil {
		return err
	}
	resolver, err := p.router(config, asked)
	if err != nil {
		return err
	}
	answers, err := openCache(config.Cache, log)
	if err != nil {
		return err
	}
	defer answers.Close()
	config.Gateway.Cache = answers
	server, err := gateway.New(resolver, config.Gateway)
	if err != nil {
		return err
	}
	socket, err := listenControl(config.Control, log)
	if err != nil {
		return err
	}
	if socket != nil {
		defer socket.Close()
	}
	if err := listen(server); err != nil {
		return err
	}
	log.Info("dotgate is serving", "on", joined(server.Addrs(), netip.AddrPort.String),
		"asking", joined(config.Upstreams, func(u configs.Upstream) string { return u.Name }), "policy", config.Balancer.Policy)

	group, ctx := errgroup.WithContext(ctx)
	for _, m := range p.monitors {
		group.Go(func() error { return m.Run(ctx) })
	}
	if socket != nil {
		operator := control.New(control.Options{
			Version: versionText(), Gateway: server, Balancer: asked, Cache: answers, Members: p.members, Log: log,
		})
		group.Go(func() error { operator.Serve(ctx, socket); return nil })
	}
	group.Go(func() error { watchNetwork(ctx, p.retries, log); return nil })
	group.Go(func() error { return answers.Run(ctx) })
	group.Go(func() error { return server.WatchLoops(ctx, p.suspects()) })
	group.Go(func() error { return server.Serve(ctx) })
	group.Go(func() error { return reportToManager(ctx, server.Addrs(), log) })
	if err := group.Wait(); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	log.Info("dotgate has stopped")
	return nil
}

// watchNetwork retries upstreams as soon as a link, an address or a route comes
// up.
func watchNetwork(ctx context.Context, retries []func(), log *slog.Logger) {
	err := upstreams.WatchNetwork(ctx, func() {
		for _, retry := range retries {
			retry()
		}
	})
	if err != nil {
		log.Info("the end of an outage may be noticed a few seconds later", "reason", err)
	}
}

func joined[T any](items []T, text func(T) string) string {
	var texts []string
	for _, item := range items {
		texts = append(texts, text(item))
	}
	return strings.Join(texts, ", ")
}

package main

import (
	"net/netip"
	"slices"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/control"
	"dotgate/configs"
	"dotgate/gateway"
	"dotgate/health"
	"dotgate/upstreams"
)

// parts are the upstreams of routes and those who watch them.
type parts struct {
	upstreams []upstream
	monitors  []*health.Monitor
	members   []control.Member
	retries   []func() // to be called when the network has changed
}

func (p *parts) close() {
	for _, u := range p.upstreams {
		u.Close()
	}
}

// recheck retries upstreams, as the network has changed.
func (p *parts) recheck() {
	for _, retry := range p.retries {
		retry()
	}
}

// suspects returns the upstreams, by name, that may ask us in turn: those on this
// host and in private networks.
func suspects(all []upstream) map[string]gateway.Suspect {
	found := make(map[string]gateway.Suspect)
	for _, u := range all {
		if slices.ContainsFunc(u.Addresses(), func(a netip.AddrPort) bool { return !upstreams.IsPublic(a.Addr()) }) {
			found[u.String()] = u
		}
	}
	return found
}

// resolver returns a Balancer over list, whose members are then among the parts.
func (p *parts) resolver(config *configs.Config, list []configs.Upstream, o balancer.Options, watch health.Options) (*balancer.Balancer, error) {
	var candidates []balancer.Candidate
	for _, c := range list {
		c.Log = config.Gateway.Log
		upstream, err := newUpstream(c.Options)
		if err != nil {
			return nil, err
		}
		p.upstreams = append(p.upstreams, upstream)
		monitor, err := health.New(upstream, watch)
		if err != nil {
			return nil, err
		}
		p.monitors = append(p.monitors, monitor)
		p.retries = append(p.retries, func() {
			if upstream.NetworkChanged() {
				monitor.Recheck()
			}
		})
		p.members = append(p.members, control.Member{Upstream: upstream, Monitor: monitor})
		candidates = append(candidates, balancer.Candidate{Member: monitor, Weight: c.Weight, Tier: c.Tier})
	}
	return balancer.New(candidates, o)
}

// router returns who answers, with a Balancer of its own for each route, and rest
// for all names that have none. Whether a route's upstreams are well is found out
// with the very name that they are for: servers of one's own network need not know
// any other.
func (p *parts) router(config *configs.Config, rest balancer.Resolver) (balancer.Resolver, error) {
	if len(config.Routes) == 0 {
		return rest, nil
	}
	routes := make(map[string]balancer.Resolver)
	for _, r := range config.Routes {
		o, watch := config.Balancer, config.Health
		o.Policy, watch.ProbeName, watch.ProbeType = r.Policy, r.Name, "SOA"
		resolver, err := p.resolver(config, r.Upstreams, o, watch)
		if err != nil {
			return nil, err
		}
		routes[r.Name] = resolver
		config.Gateway.ForwardLocal = append(config.Gateway.ForwardLocal, r.Name)
		config.Gateway.AllowPrivate = append(config.Gateway.AllowPrivate, r.Name)
	}
	return balancer.NewRouter(rest, routes)
}

// An upstream is any of those in package upstreams.
type upstream interface {
	health.Upstream
	control.Upstream
	NetworkChanged() (matters bool)
	Close() error
}

func newUpstream(o upstreams.Options) (upstream, error) {
	if o.Protocol == upstreams.TLS {
		return upstreams.New(o)
	}
	return upstreams.NewPlain(o)
}

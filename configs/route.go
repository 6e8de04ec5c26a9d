package configs

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"dotgate/balancer"
	"dotgate/gateway/wire"
	"dotgate/upstreams"
)

// A Route is for a name, and all names below it, that have upstreams of their own.
type Route struct {
	// Name is the name, without a dot at its end.
	Name string
	// Upstreams are never empty.
	Upstreams []Upstream
	// Policy orders them for a query. Default: balancer.policy.
	Policy string
}

func (r Route) key() string { return "routes." + r.Name }

// routes reads the mapping of routes: each name has a list of upstreams, or a
// mapping with upstreams and a policy. In the environment, which has no mappings,
// it is a list: corp.example=udp://10.0.0.53.
func (l *loader) routes(g given) (all []Route) {
	value := resolve(g.value)
	switch value.Kind {
	case yaml.SequenceNode:
		value = l.routesOf(g.from, value)
	case yaml.MappingNode:
	default:
		if !isNull(value) {
			l.report(g.from, "routes", "is %s; it takes names with upstreams, as in {corp.example: [udp://10.0.0.53]}", kindOf(value))
		}
		return nil
	}
	for i := 0; i+1 < len(value.Content); i += 2 {
		name, upstreams := resolve(value.Content[i]), resolve(value.Content[i+1])
		at := elementSource(g.from, value.Content[i])
		r := Route{Name: strings.ToLower(strings.TrimSuffix(name.Value, "."))}
		if _, err := wire.PackName(r.Name); name.Kind != yaml.ScalarNode || err != nil {
			l.report(at, "routes", "%s is no domain name", kindOf(name))
			continue
		}
		if slices.ContainsFunc(all, func(other Route) bool { return other.Name == r.Name }) {
			l.report(at, r.key(), "is given twice")
			continue
		}
		l.config.sources[r.key()] = at
		all = append(all, l.route(r, at, upstreams))
	}
	return all
}

// route reads what stands beside the name of r.
func (l *loader) route(r Route, at source, value *yaml.Node) Route {
	list := given{at, value}
	if value.Kind == yaml.MappingNode {
		written := make(map[string]any)
		policy, upstreams := r.key()+".policy", r.key()+".upstreams"
		l.readSection(r.key()+".", value, []string{policy, upstreams}, written)
		if g, ok := written[policy].(given); ok {
			r.Policy = resolve(g.value).Value
			l.config.sources[policy] = g.from
		}
		var ok bool
		if list, ok = written[upstreams].(given); !ok {
			l.report(at, upstreams, "is missing; it takes a list, as in [udp://10.0.0.53]")
			return r
		}
	}
	r.Upstreams = l.upstreams(r.key()+".upstreams", list)
	return r
}

// sharePolicy gives the common policy to each route that has none.
func (l *loader) sharePolicy() {
	for i := range l.config.Routes {
		if r := &l.config.Routes[i]; r.Policy == "" {
			r.Policy = l.config.Balancer.Policy
			l.config.sources[r.key()+".policy"] = l.config.sources["balancer.policy"]
			l.bad[r.key()+".policy"] = true // checked once, where it is from
		}
	}
}

// routesOf makes a mapping of a list whose elements are NAME=UPSTREAM. Those with
// the same name belong together.
func (l *loader) routesOf(from source, list *yaml.Node) *yaml.Node {
	mapping := &yaml.Node{Kind: yaml.MappingNode}
	for _, element := range list.Content {
		node, at := resolve(element), elementSource(from, element)
		name, upstream, ok := strings.Cut(strings.TrimSpace(node.Value), "=")
		if node.Kind != yaml.ScalarNode || !ok {
			l.report(at, "routes", "%s is not NAME=UPSTREAM, as in corp.example=udp://10.0.0.53", kindOf(node))
			continue
		}
		value := textNode(upstream)
		value.Line = element.Line
		known := slices.IndexFunc(mapping.Content, func(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && strings.EqualFold(n.Value, name) })
		if known >= 0 {
			upstreams := mapping.Content[known+1]
			upstreams.Content = append(upstreams.Content, value)
			continue
		}
		key := textNode(name)
		key.Line = element.Line
		mapping.Content = append(mapping.Content, key, &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{value}})
	}
	return mapping
}

// checkRoutes reports what is wrong with routes besides their upstreams, and
// upstreams in clear text beside others: they would be their fallback.
func (l *loader) checkRoutes() {
	l.checkMixed("upstreams", l.config.Upstreams)
	for _, r := range l.config.Routes {
		l.checkMixed(r.key()+".upstreams", r.Upstreams)
		balancer.Options{Policy: r.Policy}.Check(l.reporter(r.key()))
	}
}

func (l *loader) checkMixed(list string, all []Upstream) {
	secure := slices.ContainsFunc(all, func(u Upstream) bool { return u.Protocol == upstreams.TLS })
	for i, u := range all {
		if key := entryKey(list, i); secure && u.Protocol != upstreams.TLS && !l.bad[key] {
			l.report(l.config.sources[key], key, "asks in clear text, beside others with TLS, and would be their fallback; give it a route of its own")
		}
	}
}

package configs

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"dotgate/upstreams"
)

// upstreams reads the list of upstreams that a key has.
func (l *loader) upstreams(list string, g given) []Upstream {
	entries := resolve(g.value)
	switch {
	case entries.Kind != yaml.SequenceNode:
		l.report(g.from, list, "is %s; it takes a list, as in [cloudflare, quad9]", kindOf(entries))
		return nil
	case len(entries.Content) == 0:
		l.report(g.from, list, "is an empty list: there would be nobody to ask")
		return nil
	}
	all := make([]Upstream, len(entries.Content))
	for i, entry := range entries.Content {
		key, at := entryKey(list, i), elementSource(g.from, entry)
		l.config.sources[key] = at
		switch entry = resolve(entry); {
		case entry.Kind == yaml.MappingNode:
			all[i] = l.mapped(key, at, entry)
		case isNull(entry) || entry.Kind != yaml.ScalarNode:
			l.reject(at, key, "is %s; it takes a preset, a URL or a mapping", kindOf(entry))
		default:
			if base, ok := l.named(key, at, entry); ok {
				u, _ := l.upstreamOn(key, base, viaPreset(at, base))
				all[i] = *u
			}
		}
	}
	l.nameUnnamed(list, all)
	return all
}

func entryKey(list string, i int) string { return fmt.Sprintf("%s[%d]", list, i) }

func (l *loader) named(key string, at source, value *yaml.Node) (upstreams.Options, bool) {
	base, err := named(strings.TrimSpace(value.Value))
	if err != nil {
		l.reject(at, key, "%v", err)
	}
	return base, err == nil
}

func viaPreset(at source, base upstreams.Options) source {
	at.preset = base.Name // URLs have none
	return at
}

// upstreamOn returns an upstream with the defaults, and over them what base
// has, which is from there; and the settings of the upstream.
func (l *loader) upstreamOn(key string, base upstreams.Options, from source) (*Upstream, []setting) {
	u := &Upstream{Options: upstreams.Defaults(), Weight: 1}
	u.Log = nil
	settings := settingsOf(key+".", reflect.ValueOf(u).Elem())
	for i, s := range settingsOf(key+".", reflect.ValueOf(&Upstream{Options: base}).Elem()) {
		l.config.sources[s.key] = source{}
		if !s.field.IsZero() {
			settings[i].field.Set(s.field)
			l.config.sources[s.key] = from
		}
	}
	return u, settings
}

// mapped reads an upstream that is written as a mapping: on a preset or a URL
// if it names one, or else on the defaults.
func (l *loader) mapped(key string, at source, entry *yaml.Node) Upstream {
	_, settings := l.upstreamOn(key, upstreams.Options{}, at)
	keys := append([]string{key + ".preset", key + ".url"}, keysOf(settings)...)
	written := make(map[string]any)
	l.readSection(key+".", entry, keys, written)

	base, from := l.base(key, at, written)
	u, settings := l.upstreamOn(key, base, from)
	for _, s := range settings {
		if g, ok := written[s.key].(given); ok {
			l.decode(s, g, serverAddress)
			l.config.sources[s.key] = g.from
		}
	}
	return *u
}

// base reads what a mapping builds on.
func (l *loader) base(key string, at source, written map[string]any) (upstreams.Options, source) {
	p, hasPreset := written[key+".preset"].(given)
	url, hasURL := written[key+".url"].(given)
	switch {
	case hasPreset && hasURL:
		l.report(url.from, key+".url", "is given beside a preset; one of them must go")
		l.giveUp(key)
	case hasPreset:
		if _, known := presets[p.value.Value]; !known {
			l.report(p.from, key+".preset", "%s is not a preset; there are %s", kindOf(p.value), strings.Join(Presets(), ", "))
			l.giveUp(key)
			break
		}
		base, _ := preset(p.value.Value)
		return base, viaPreset(p.from, base)
	case hasURL:
		return l.baseURL(key, url, written), url.from
	}
	return upstreams.Options{}, at
}

func (l *loader) baseURL(key string, url given, written map[string]any) upstreams.Options {
	if scheme, _, isURL := strings.Cut(url.value.Value, "://"); !isURL || !spoken(scheme) {
		l.report(url.from, key+".url", "%s is not a URL; write tls://ADDRESS[:PORT][#NAME] or tls://HOST[:PORT][#NAME]", kindOf(url.value))
		l.giveUp(key)
		return upstreams.Options{}
	}
	base, ok := l.named(key+".url", url.from, url.value)
	if !ok {
		l.giveUp(key)
	}
	said := []string{"addresses", "host", "port", "protocol"}
	if base.ServerName != "" {
		said = append(said, "server_name")
	}
	for _, option := range said {
		if g, twice := written[key+"."+option].(given); twice {
			l.report(g.from, key+"."+option, "is given beside url, which says it too; one of them must go")
		}
	}
	return base
}

// giveUp keeps quiet about what an upstream lacks because the text that should
// have said so could not be read.
func (l *loader) giveUp(key string) {
	for _, option := range []string{"addresses", "host", "bootstrap"} {
		l.bad[key+"."+option] = true
	}
}

// nameUnnamed gives a name to each upstream without one: that of its
// certificate, else its host, else its address. If several would have the same
// (two servers of one service, in a variable that has no room for names), the
// address tells them apart.
func (l *loader) nameUnnamed(list string, all []Upstream) {
	var unnamed []int
	count := make(map[string]int)
	for i := range all {
		u, key := &all[i], entryKey(list, i)
		if u.Host != "" && u.ServerName == "" {
			u.ServerName = u.Host
			l.config.sources[key+".server_name"] = l.config.sources[key+".host"]
		}
		if u.Name == "" && !l.bad[key+".name"] {
			u.Name = cmp.Or(u.ServerName, serverText(*u))
			l.bad[key+".name"] = u.Name == "" // there is nothing, and that is reported
			if route, ok := strings.CutPrefix(list, "routes."); ok && u.Name != "" {
				u.Name = strings.TrimSuffix(route, ".upstreams") + "/" + u.Name
			}
			l.config.sources[key+".name"] = l.config.sources[key]
			unnamed = append(unnamed, i)
		}
		count[u.Name]++
	}
	for _, i := range unnamed {
		if u := &all[i]; u.Name != "" && count[u.Name] > 1 {
			u.Name += "@" + serverText(*u)
		}
	}
}

// serverText is the first server of an upstream, without the port if it is the
// usual one.
func serverText(u Upstream) string {
	switch {
	case u.Host != "" && u.Port == dotPort:
		return u.Host
	case u.Host != "":
		return fmt.Sprintf("%s:%d", u.Host, u.Port)
	case len(u.Addresses) == 0:
		return ""
	case u.Addresses[0].Port() == usualPort(u.Protocol):
		return u.Addresses[0].Addr().String()
	}
	return u.Addresses[0].String()
}

// shareBootstrap gives the common resolvers to each upstream that needs some
// and has none.
func (l *loader) shareBootstrap() {
	for key, u := range l.config.allUpstreams() {
		key += ".bootstrap"
		if u.Host != "" && len(u.Bootstrap) == 0 && len(l.config.Bootstrap) > 0 {
			u.Bootstrap = slices.Clone(l.config.Bootstrap)
			l.config.sources[key] = l.config.sources["bootstrap"]
			l.bad[key] = true // checked once, where it is from
		}
	}
}

// checkBootstrap asks the package that uses them about the common resolvers.
func (l *loader) checkBootstrap() {
	if len(l.config.Bootstrap) == 0 {
		return
	}
	user := upstreams.Options{Protocol: upstreams.TLS, Host: "dns.example", Bootstrap: l.config.Bootstrap}
	user.Check(func(option, problem string) {
		if option == "bootstrap" {
			l.report(l.config.sources[option], option, "%s", problem)
		}
	})
}

func (l *loader) checkUpstreams() {
	first := make(map[string]string) // the key of who has a name first
	for key, u := range l.config.allUpstreams() {
		if l.bad[key] {
			continue
		}
		l.checkUpstream(key, *u)
		if other, twice := first[u.Name]; twice {
			l.report(l.blame(key, "name", ""), key+".name", "%q is the name of %s too; give one of them another", u.Name, other)
		} else if u.Name != "" {
			first[u.Name] = key
		}
	}
}

// allUpstreams yields all upstreams with their keys, those of routes too.
func (c *Config) allUpstreams() func(yield func(key string, u *Upstream) bool) {
	return func(yield func(string, *Upstream) bool) {
		for i := range c.Upstreams {
			if !yield(entryKey("upstreams", i), &c.Upstreams[i]) {
				return
			}
		}
		for _, r := range c.Routes {
			for i := range r.Upstreams {
				if !yield(entryKey(r.key()+".upstreams", i), &r.Upstreams[i]) {
					return
				}
			}
		}
	}
}

func (l *loader) checkUpstream(key string, u Upstream) {
	report := l.reporter(key)
	u.Check(func(option, problem string) {
		if option == "bootstrap" && len(u.Bootstrap) == 0 {
			if l.bad["bootstrap"] {
				return // it would have been the common ones
			}
			problem += "; resolvers for all upstreams go into the section bootstrap (" + variable("bootstrap") + ")"
		}
		report(option, problem)
	})
}

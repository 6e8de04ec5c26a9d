package settings

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"dotgate/configs"
	"dotgate/upstreams"
)

// texts returns a list of texts as a Value.
func texts(at configs.Source, all ...string) configs.Value {
	elements := make([]configs.Value, len(all))
	for i, text := range all {
		elements[i] = configs.TextOf(at, text)
	}
	return configs.ListOf(at, elements...)
}

// upstreams reads the list of upstreams at a key.
func (l *loader) upstreams(key string, list configs.Value) []Upstream {
	if !list.IsList() {
		l.Report(list.At, key, "is %s; it takes a list, as in [cloudflare, quad9]", list.Kind())
		return nil
	}
	entries := list.List()
	if len(entries) == 0 {
		l.Report(list.At, key, "is an empty list: there would be no upstream to ask")
		return nil
	}
	all := make([]Upstream, len(entries))
	for i, entry := range entries {
		all[i] = l.upstream(entryKey(key, i), entry)
	}
	l.nameUnnamed(key, all)
	return all
}

// upstream reads an entry of a list of upstreams.
func (l *loader) upstream(key string, entry configs.Value) Upstream {
	l.config.origins[key] = entry.At
	switch {
	case entry.IsMapping():
		return l.mapped(key, entry)
	case entry.IsNull() || !entry.IsScalar():
		l.Reject(entry.At, key, "is %s; it takes a preset, a URL or a mapping", entry.Kind())
	default:
		if base, ok := l.named(key, entry); ok {
			u, _ := l.upstreamOn(key, base, viaPreset(entry.At, base))
			return *u
		}
	}
	return Upstream{}
}

// Identity returns a text that is the same for upstreams that differ in nothing
// but their names, weights and tiers: they can be one, with one set of connections
// and one state. The content of their files is not compared. Another process can't use the
// text, and none may show it.
func (u Upstream) Identity() string {
	u.Name, u.Weight, u.Tier, u.Log = "", 0, 0, nil
	return fmt.Sprintf("%#v %s", u, string(u.Proxy)) // of which the first hides a part
}

func entryKey(list string, i int) string { return fmt.Sprintf("%s[%d]", list, i) }

// listOf returns the list of which key is an entry.
func listOf(key string) string { return key[:strings.LastIndexByte(key, '[')] }

func (l *loader) named(key string, text configs.Value) (upstreams.Options, bool) {
	base, err := named(strings.TrimSpace(text.Text()))
	if err != nil {
		l.Reject(text.At, key, "%v", err)
	}
	return base, err == nil
}

func viaPreset(at configs.Source, base upstreams.Options) configs.Source {
	at.Preset = base.Name // URLs have none
	return at
}

// upstreamOn returns an upstream with the defaults, and over them the options of base,
// which are from there; and the settings of the upstream.
func (l *loader) upstreamOn(key string, base upstreams.Options, from configs.Source) (*Upstream, []configs.Setting) {
	u := &Upstream{Options: upstreams.Defaults(), Weight: 1}
	u.Log = nil
	settings := configs.SettingsOf(key+".", u)
	for i, s := range configs.SettingsOf(key+".", &Upstream{Options: base}) {
		if !s.Field.IsZero() {
			settings[i].Field.Set(s.Field)
			l.config.origins[s.Key] = from
		}
	}
	return u, settings
}

// mapped reads an upstream that is written as a mapping: on a preset or a URL
// if it names one, or else on the defaults.
func (l *loader) mapped(key string, entry configs.Value) Upstream {
	names := []string{"preset", "url", "urls"}
	for _, s := range configs.SettingsOf("", new(Upstream)) {
		names = append(names, s.Key)
	}
	written := l.Section(key, entry, names...)
	base, from := l.base(key, entry.At, written)
	if has(written, "addresses", "host") && !has(written, "doh_addresses", "transports") {
		base.DoHAddresses, base.DoHName, base.DoHPath, base.Transports = nil, "", "", nil // those of the preset are elsewhere
	}
	if has(written, "preset") && leavesOutDoH(written) {
		base.DoHAddresses, base.DoHName, base.DoHPath = nil, "", ""
	}
	if has(written, "preset") && has(written, "proxy") {
		base.Transports = slices.DeleteFunc(base.Transports, func(t string) bool { return t == upstreams.DoQ || t == upstreams.DoH3 })
	}
	u, settings := l.upstreamOn(key, base, from)
	protocol := u.Protocol
	if v, ok := written["protocol"]; ok {
		protocol = v.Text()
	}
	for _, s := range settings {
		if v, ok := written[s.Name()]; ok {
			port := usualPort(protocol)
			if s.Name() == "doh_addresses" {
				port = dohPort
			}
			l.Set(s, v, addressesBy(func(text string) (netip.AddrPort, error) { return serverAddress(text, port) }))
			l.config.origins[s.Key] = v.At
		}
	}
	return *u
}

// has reports whether one of these options is written.
func has(written map[string]configs.Value, options ...string) bool {
	return slices.ContainsFunc(options, func(option string) bool { _, ok := written[option]; return ok })
}

// leavesOutDoH reports whether a list of other transports is written.
func leavesOutDoH(written map[string]configs.Value) bool {
	transports, ok := written["transports"]
	return ok && transports.IsList() && len(transports.List()) > 0 &&
		!slices.ContainsFunc(transports.List(), func(v configs.Value) bool { return v.Text() == upstreams.DoH || v.Text() == upstreams.DoH3 })
}

// base reads the preset or the URLs that a mapping builds on.
func (l *loader) base(key string, at configs.Source, written map[string]configs.Value) (upstreams.Options, configs.Source) {
	found := ""
	for _, option := range []string{"preset", "url", "urls"} {
		switch v, ok := written[option]; {
		case ok && found != "":
			l.Report(v.At, key+"."+option, "is set, and %s too; remove one of them", found)
			l.muteServer(key)
			return upstreams.Options{}, at
		case ok:
			found = option
		}
	}
	v := written[found]
	switch found {
	case "preset":
		base, known := preset(v.Text())
		if !known {
			l.Report(v.At, key+".preset", "%s is not a preset; there are %s", v.Kind(), strings.Join(Presets(), ", "))
			l.muteServer(key)
			return upstreams.Options{}, at
		}
		return base, viaPreset(v.At, base)
	case "url":
		return l.baseURL(key+".url", key, v, written), v.At
	case "urls":
		return l.baseURLs(key, v, written), v.At
	}
	return upstreams.Options{}, at
}

// baseURLs reads the URLs of one upstream.
func (l *loader) baseURLs(key string, urls configs.Value, written map[string]configs.Value) upstreams.Options {
	var texts []string
	for _, url := range urls.List() {
		texts = append(texts, url.Text())
	}
	if len(texts) == 0 {
		l.Report(urls.At, key+".urls", "is %s; it takes the URLs of one upstream, as in [tls://dns.example, https://dns.example/dns-query]", urls.Kind())
		l.muteServer(key)
		return upstreams.Options{}
	}
	return l.baseURL(key+".urls", key, configs.TextOf(urls.At, strings.Join(texts, urlSeparator)), written)
}

func (l *loader) baseURL(option, key string, url configs.Value, written map[string]configs.Value) upstreams.Options {
	if !strings.Contains(url.Text(), "://") {
		l.Report(url.At, option, "%s is not a URL; write %s", url.Kind(), urlForms)
		l.muteServer(key)
		return upstreams.Options{}
	}
	base, ok := l.named(option, url)
	if !ok {
		l.muteServer(key)
	}
	said := []string{"addresses", "host", "port", "protocol"}
	if len(base.Transports) > 0 {
		said = append(said, "transports", "doh_addresses", "doh_port", "doh_path", "doq_port")
	}
	if base.ServerName != "" {
		said = append(said, "server_name")
	}
	if len(base.CertHashes) > 0 {
		said = append(said, "cert_hashes")
	}
	for _, set := range said {
		if v, twice := written[set]; twice {
			l.Report(v.At, key+"."+set, "is set, and %s has it too; remove one of them", strings.TrimPrefix(option, key+"."))
		}
	}
	return base
}

// muteServer mutes the options of an upstream's server whose URL or preset could not be
// read: they are missing for that reason only.
func (l *loader) muteServer(key string) {
	for _, option := range []string{"addresses", "host", "bootstrap"} {
		l.Mute(key + "." + option)
	}
}

// nameUnnamed gives a name to each upstream without one: that of its
// certificate, else its host, else its address.
func (l *loader) nameUnnamed(list string, all []Upstream) {
	for i := range all {
		u, key := &all[i], entryKey(list, i)
		if u.Host != "" && u.ServerName == "" {
			u.ServerName = u.Host
			l.config.origins[key+".server_name"] = l.config.origins[key+".host"]
		}
		if u.Name == "" && !l.IsMuted(key+".name") {
			u.Name = cmp.Or(u.ServerName, serverText(*u))
			if u.Name == "" { // reported already
				l.Mute(key + ".name")
			}
			l.config.origins[key+".name"] = l.config.origins[key]
			l.unnamed[key] = true
		}
	}
}

// serverText is the first server of an upstream, without the port if it is the
// usual one.
func serverText(u Upstream) string {
	switch {
	case u.Host != "" && u.Port == dotPort && u.DoHPort == dohPort:
		return u.Host
	case u.Host != "":
		return fmt.Sprintf("%s:%d", u.Host, cmp.Or(u.Port, u.DoHPort))
	}
	first, usual := u.Addresses, usualPort(u.Protocol)
	if len(first) == 0 {
		first, usual = u.DoHAddresses, dohPort
	}
	switch {
	case len(first) == 0:
		return ""
	case first[0].Port() == usual:
		return first[0].Addr().String()
	}
	return first[0].String()
}

// shareBootstrap gives the common resolvers to each upstream that needs some
// and has none.
func (l *loader) shareBootstrap() {
	for key, u := range l.config.allUpstreams() {
		key += ".bootstrap"
		if u.Host != "" && len(u.Bootstrap) == 0 && len(l.config.Bootstrap) > 0 {
			u.Bootstrap = slices.Clone(l.config.Bootstrap)
			l.config.origins[key] = l.config.origins["bootstrap"]
			l.Mute(key) // checked once, where it is from
		}
	}
}

// checkBootstrap has package upstreams check the common resolvers.
func (l *loader) checkBootstrap() {
	if len(l.config.Bootstrap) == 0 {
		return
	}
	user := upstreams.Options{Protocol: upstreams.TLS, Host: "dns.example", Bootstrap: l.config.Bootstrap}
	user.Check(func(option, problem string, beside ...string) {
		if option == "bootstrap" {
			l.Report(l.config.origins[option], option, "%s", problem)
		}
	})
}

func (l *loader) checkUpstreams() {
	l.renameDuplicates()
	type owner struct{ key, identity string }
	first := make(map[string]owner)   // of each name
	latest := make(map[string]string) // the key of each identity's last upstream
	for key, u := range l.config.allUpstreams() {
		if l.IsMuted(key) {
			continue
		}
		l.checkUpstream(key, *u)
		if u.Name == "" {
			continue
		}
		identity := u.Identity()
		other, again := latest[identity]
		latest[identity] = key
		if again && listOf(other) == listOf(key) {
			l.Report(l.config.origins[key], key, "is the same upstream as %s; remove one of them", other)
			continue
		}
		if other, twice := first[u.Name]; !twice {
			first[u.Name] = owner{key, identity}
		} else if other.identity != identity {
			l.Report(l.Blame(key, "name"), key+".name", "%q is the name of %s too, which is another upstream; give one of them another name", u.Name, other.key)
		}
	}
}

// notePresets notes each upstream that has some address of a preset, but neither all of
// them nor its name.
func (l *loader) notePresets() {
	for key, u := range l.config.allUpstreams() {
		for _, a := range slices.Concat(u.Addresses, u.DoHAddresses) {
			name := presetOf(a.Addr())
			if name == "" || u.Name == name {
				continue
			}
			if o := presets[name]; slices.ContainsFunc(o.Addresses, func(b netip.AddrPort) bool { return !slices.Contains(u.Addresses, b) }) {
				l.Note("%s: %v is an address of the preset %s, which has all addresses of that service and the name in its certificate", key, a.Addr(), name)
				break
			}
		}
	}
}

// renameDuplicates makes the names of nameUnnamed longer if another upstream has the same:
// two servers of one service, or one server over two protocols.
func (l *loader) renameDuplicates() {
	identities := make(map[string]string)
	shared := make(map[string]bool)
	for _, u := range l.config.allUpstreams() {
		identity := u.Identity()
		if other, ok := identities[u.Name]; ok && other != identity {
			shared[u.Name] = true
		}
		identities[u.Name] = identity
	}
	for key, u := range l.config.allUpstreams() {
		switch {
		case !shared[u.Name] || !l.unnamed[key]:
		case u.Protocol == upstreams.TLS && u.ServerName != "" && !strings.Contains(u.Name, "@"):
			u.Name += "@" + serverText(*u)
		case u.Protocol != upstreams.TLS:
			u.Name = u.Protocol + "://" + serverText(*u)
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
				if !yield(entryKey(r.key+".upstreams", i), &r.Upstreams[i]) {
					return
				}
			}
		}
	}
}

func (l *loader) checkUpstream(key string, u Upstream) {
	report := l.Reporter(key)
	u.Check(func(option, problem string, beside ...string) {
		if option == "bootstrap" && len(u.Bootstrap) == 0 {
			if l.IsMuted("bootstrap") {
				return // it would have been the common ones
			}
			problem += "; resolvers for all upstreams go into the section bootstrap (" + configs.Variable("bootstrap") + ")"
		}
		report(option, problem, beside...)
	})
}

// Upstream returns the upstream of a name, or what a preset or URL stands for, as
// a list of upstreams would have it.
func (c *Config) Upstream(text string) (Upstream, error) {
	if i := slices.IndexFunc(c.Upstreams, func(u Upstream) bool { return u.Name == text }); i >= 0 {
		return c.Upstreams[i], nil
	}
	l := newLoader(configs.Sources{})
	l.config.Bootstrap = c.Bootstrap
	l.config.Upstreams = l.upstreams("upstreams", texts(configs.Source{Name: "command line"}, text))
	l.shareBootstrap()
	l.checkUpstreams()
	if problems, ok := l.Err().(configs.Problems); ok {
		var reasons []string
		for _, p := range problems {
			reasons = append(reasons, p.Text)
		}
		return Upstream{}, fmt.Errorf("%q is no upstream of the configuration, and %s", text, strings.Join(reasons, "; "))
	}
	return l.config.Upstreams[0], nil
}

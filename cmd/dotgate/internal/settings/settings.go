// Package settings has every option of dotgate in one struct, filled by the package
// configs from a file, the environment and flags, and checked by the packages that the
// options are for. It reads by itself what has a form of its own: lists of upstreams and
// routes, presets, URLs and addresses.
//
// The comment of an option's field is the only place of its meaning. "Timeout is the
// longest that a client waits" becomes "The longest that a client waits" in
// configs/dotgate.yaml and REFERENCE.md, which `make reference` makes; a test holds them
// to it. Of an option it is the first paragraph, the others being for users of the
// package; of a section it is the whole comment. Comments rather than tags, as they
// can be wrapped, are read by go doc, and stand where the field is changed.
package settings

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/internal/admin"
	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/peers"
	"dotgate/cmd/dotgate/internal/tracing"
	"dotgate/configs"
	"dotgate/configs/bounds"
	"dotgate/configs/files"
	"dotgate/gateway"
	"dotgate/gateway/cache"
	"dotgate/gateway/querylog"
	"dotgate/gateway/redis"
	"dotgate/gateway/wire"
	"dotgate/health"
	"dotgate/upstreams"
)

// A Config holds every option. Load makes one; all of its values are set and
// checked, but no Options have a Log yet.
type Config struct {
	// Gateway is the side of the clients: plain DNS.
	Gateway gateway.Options `config:"gateway"`
	// Cache is how answers are kept.
	Cache cache.Options `config:"cache"`
	// Redis is a second cache that several gateways share, in Redis or Valkey. It is read
	// when this gateway's own cache has no answer, written in the background, and bypassed
	// while it fails.
	Redis redis.Options `config:"cache.redis"`
	// Upstreams are the resolvers to ask, over TLS or HTTPS with verified certificates:
	// presets, URLs or mappings.
	//
	// As a variable it replaces the whole list:
	// DOTGATE_UPSTREAMS=cloudflare,quad9,tls://192.0.2.53#dns.example
	//
	//	cloudflare                          a preset: adguard, adguard-unfiltered, cloudflare,
	//	                                    cloudflare-family, cloudflare-security, controld, google,
	//	                                    mullvad, opendns, quad9, quad9-unfiltered
	//	tls://192.0.2.53#dns.example        an address (with :port if it is not 853) and, after #,
	//	                                    the name in its certificate
	//	"tls://[2001:db8::53]"              an address that the certificate itself must contain
	//	udp://10.0.0.53, tcp://10.0.0.53    a server that is asked in clear text; never beside
	//	                                    others with TLS
	//	tls://dns.example                   a host, whose addresses the resolvers of bootstrap know
	//	https://192.0.2.53/dns-query#dns.example
	//	                                    DNS over HTTPS, at an address or a host
	//	quic://192.0.2.53#dns.example       DNS over QUIC, on port 853 of UDP
	//	h3://dns.example/dns-query          DNS over HTTPS, as HTTP/3
	//	tls://dns.example|https://dns.example/dns-query
	//	                                    one upstream: the next URL is used while no connection
	//	                                    can be made by those before it
	//	{urls: [tls://192.0.2.53, https://192.0.2.53/dns-query]}
	//	                                    the same, as a mapping with further options
	//	sdns://AwAA…                        a DNS stamp of DNS over TLS, HTTPS or QUIC, with its hashes
	//	{preset: quad9, weight: 2}          a preset or a url, and the options that differ from it
	Upstreams []Upstream `config:"upstreams"`
	// Routes are names that have upstreams of their own, and are never asked elsewhere; the
	// longest name that matches counts. corp.example is that name and all names below it,
	// "*.corp.example" only the names below it.
	//
	// Addresses have names too: 10.in-addr.arpa is 10.0.0.0/8. Each name has a list of upstreams, or
	// policy and upstreams. Servers of your own network that speak plain DNS only are
	// udp://ADDRESS[:PORT] or tcp://ADDRESS[:PORT]. Several names with the same upstreams are a list of
	// {names, names_file, policy, upstreams}; names_file has a name in each line. An upstream that is in
	// several lists, whatever its weight and tier there, has one set of connections and one state. As a
	// variable:
	// DOTGATE_ROUTES=corp.example+10.in-addr.arpa=udp://10.0.0.53,@/etc/dotgate/names.txt=udp://10.0.0.54
	//
	//	routes:
	//	  corp.example: ["tls://10.0.0.53#dns.corp.example"]
	//	  10.in-addr.arpa: {policy: ordered, upstreams: ["udp://10.0.0.53", "udp://10.0.0.54"]}
	//	routes:
	//	  - {names: [corp.example, 10.in-addr.arpa], upstreams: ["udp://10.0.0.53"]}
	//	  - {names_file: /etc/dotgate/names.txt, upstreams: ["udp://10.0.0.54"]}
	Routes []Route `config:"routes"`
	// Bootstrap are the resolvers that know the addresses of upstreams given as a host:
	// 192.0.2.1 (plain DNS) or tls://192.0.2.1#dns.example.
	Bootstrap []string `config:"bootstrap"`
	// Balancer is the order in which upstreams are asked.
	Balancer balancer.Options `config:"balancer"`
	// Health is when an upstream counts as down, and when as up again.
	Health health.Options `config:"health"`
	// Admin is what operators, orchestrators and Prometheus ask over HTTP: /, /livez,
	// /readyz, /healthz, /metrics.
	Admin admin.Options `config:"admin"`
	// Peers are other gateways. They tell each other which upstreams fail, and one that
	// starts gets the answers in the cache of another. None of them needs to be reachable.
	//
	// peers: [dotgate-b] is short for nodes, and so is DOTGATE_PEERS.
	Peers peers.Options `config:"peers"`
	// Control is how `dotgate status`, `dotgate cache`, `dotgate drill` and others reach the
	// running gateway.
	Control Control `config:"control"`
	// Reload is how another configuration comes into effect, besides SIGHUP and `dotgate
	// reload`. All of it does without a restart, except cache.redis, sockets that a service
	// manager has opened, and admin.listen if its address becomes all addresses, or one of
	// them; the log says so.
	Reload Reload `config:"reload"`
	// QueryLog is a log of client queries and their answers; it is off while output is
	// empty. It never delays a query: entries that can't be written in time are dropped.
	QueryLog querylog.Options `config:"query_log"`
	// Tracing is the export of traces to OpenTelemetry (OTLP/HTTP), one span for the query and
	// one for each attempt; it is off while endpoint is empty. It never delays a query:
	// spans that the collector does not take in time are dropped. Variables OTEL_… are not
	// read.
	Tracing tracing.Options `config:"tracing"`
	// Log is the log on standard error.
	Log Log `config:"log"`

	origins configs.Origins
	notes   []string
}

// An Upstream is a resolver service and its place among the others.
type Upstream struct {
	upstreams.Options
	// Weight is its share of the queries among upstreams of its tier, if the policy uses
	// weights.
	Weight int `config:"weight" bounds:"1 1000000"`
	// Tier is when it is asked: lower tiers first; higher ones while no lower one is up, for
	// queries that lower ones lose or fail, and while one starts slowly.
	Tier int `config:"tier" bounds:"0 1000"`
	// ProbeName is the name that probes of it ask for. The default is health.probe_name, or
	// the name of its route if it is for routes only.
	ProbeName string `config:"probe_name"`
	// ProbeType is the record type that probes of it ask for. The default is
	// health.probe_type, or SOA for the name of a route.
	ProbeType string `config:"probe_type"`
}

// Check reports every option that can't be used, by its name.
func (u Upstream) Check(report func(option, problem string, beside ...string)) {
	u.Options.Check(report)
	bounds.Check(u, report)
	if _, err := wire.CleanName(cmp.Or(u.ProbeName, ".")); err != nil {
		report("probe_name", err.Error())
	}
	if _, err := wire.NewQuery(".", cmp.Or(u.ProbeType, "A")); err != nil {
		report("probe_type", fmt.Sprintf("%q is no record type", u.ProbeType))
	}
}

// What Control.Socket may be besides a path.
const (
	SocketAuto = api.SocketAuto
	SocketOff  = api.SocketOff
)

// socketPathMax leaves room for the name that the socket has at first: the system
// takes 107 octets.
const socketPathMax = 103

// Control is how status, cache and drill reach the running gateway.
type Control struct {
	// Socket is the path of a Unix socket, for the user of the gateway and root only; auto
	// for a usual place (/run/dotgate, the runtime directory of the user, or the one for
	// temporary files); or off.
	Socket string `config:"socket"`
}

// Check reports every option that can't be used, by its name.
func (c Control) Check(report func(option, problem string, beside ...string)) {
	switch {
	case c.Socket == SocketAuto || c.Socket == SocketOff:
	case !filepath.IsAbs(c.Socket):
		report("socket", fmt.Sprintf("%q is neither auto, off nor a path that starts with /", c.Socket))
	case len(c.Socket) > socketPathMax:
		report("socket", fmt.Sprintf("has %d octets; a socket's path has %d at most", len(c.Socket), socketPathMax))
	}
}

// Log is how the process speaks to its operator.
type Log struct {
	// Level is the lowest level that is logged: debug, info, warn or error.
	Level slog.Level `config:"level"`
	// Format is how lines are written: text, or json for machines.
	Format string `config:"format"`
}

// Reload is how another configuration comes into effect.
type Reload struct {
	// Watch is whether the file is read again when it changes, and the files of
	// certificates, keys, tokens and names that it names: true or false.
	Watch bool `config:"watch"`
}

// Check reports every option that can't be used, by its name.
func (l Log) Check(report func(option, problem string, beside ...string)) {
	if l.Format != "text" && l.Format != "json" {
		report("format", fmt.Sprintf("%q does not exist; there are text, json", l.Format))
	}
}

// IsDefault reports whether no source has the key.
func (c *Config) IsDefault(key string) bool { return c.origins[key].IsDefault() }

// Notes are facts that an operator may not expect of this configuration, one sentence
// each. None of them is an error.
func (c *Config) Notes() []string { return c.notes }

// Load reads all sources and returns the configuration that they make together. The error
// is configs.Problems: all that there are, not the first.
func Load(from configs.Sources) (*Config, error) {
	c, err := load(from)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// LoadPartly returns what can be read of the sources, with defaults for the rest; of a
// file that is not YAML, the sections without a mistake. It is for commands that ask the
// running gateway, which may run on in spite of a mistake in the file. The error is that
// of Load. The Config is never nil, and good for reading only.
func LoadPartly(from configs.Sources) (*Config, error) {
	from.Partly = true
	return load(from)
}

// A loader is one Load under way.
type loader struct {
	*configs.Loader
	config  *Config
	unnamed map[string]bool // keys of upstreams that were given their names here
}

func newLoader(from configs.Sources) *loader {
	from.Defaults = defaultUpstreamsText
	l := &loader{configs.NewLoader(from), defaults(), make(map[string]bool)}
	l.config.origins = l.Origins()
	return l
}

func load(from configs.Sources) (*Config, error) {
	l := newLoader(from)
	c := l.config
	l.Fill(c, addressesBy(listenAddress))
	list, ok := l.Value("upstreams")
	if !ok {
		list = texts(configs.Source{}, defaultUpstreams...)
	}
	c.Upstreams = l.upstreams("upstreams", list)
	if routes, ok := l.Value("routes"); ok {
		c.Routes = l.routes(routes)
		if routes.IsNull() { // as if it were not there
			delete(c.origins, "routes")
		}
	}
	l.cleanNames()
	l.shareBootstrap()
	l.sharePolicy()
	l.Check(c)
	l.checkUpstreams()
	l.checkRoutes()
	l.checkPorts()
	l.checkBootstrap()
	l.checkSystemRoots(from.Environ)
	l.noteApexes()
	l.notePresets()
	c.notes = l.Notes()
	return c, l.Err()
}

func defaults() *Config {
	c := &Config{
		Gateway:  gateway.Defaults(),
		Cache:    cache.Defaults(),
		Redis:    redis.Defaults(),
		Balancer: balancer.Defaults(),
		Health:   health.Defaults(),
		Admin:    admin.Defaults(),
		Peers:    peers.Defaults(),
		Control:  Control{Socket: SocketAuto},
		Reload:   Reload{Watch: true},
		QueryLog: querylog.Defaults(),
		Tracing:  tracing.Defaults(),
		Log:      Log{Level: slog.LevelInfo, Format: "text"},
	}
	// The loggers are not configuration.
	c.Gateway.Log, c.Balancer.Log, c.Health.Log = nil, nil, nil
	return c
}

// checkSystemRoots reports a variable SSL_CERT_FILE that leads to a file which can't
// be read: crypto/x509 reads it when the first upstream is asked, without a limit.
func (l *loader) checkSystemRoots(environ []string) {
	for _, v := range environ {
		path, ok := strings.CutPrefix(v, "SSL_CERT_FILE=")
		if !ok || path == "" {
			continue
		}
		if _, err := files.Read(path, files.PEMMax); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.Report(configs.Source{Name: "SSL_CERT_FILE"}, "", "%v", err)
		}
	}
}

// cleanNames puts the names of options into the form that queries are compared with.
// What can't be a name is left for Check to report.
func (l *loader) cleanNames() {
	c := l.config
	if name, err := wire.CleanName(c.Health.ProbeName); err == nil {
		c.Health.ProbeName = name
	}
	for _, u := range c.allUpstreams() {
		if name, err := wire.CleanName(u.ProbeName); err == nil {
			u.ProbeName = name
		}
	}
	for _, names := range [][]string{c.Gateway.ForwardLocal, c.Gateway.AllowPrivate} {
		for i, text := range names {
			if name, err := wire.CleanPattern(text); err == nil {
				names[i] = name
			}
		}
	}
}

// checkPorts reports addresses to listen on that stand in each other's way: each of them
// is for TCP, among others.
func (l *loader) checkPorts() {
	c := l.config
	for _, client := range c.Gateway.Listen {
		l.checkPair("admin.listen", c.Admin.Listen.AddrPort, "gateway.listen", client)
		if len(c.Peers.Nodes) > 0 {
			l.checkPair("peers.listen", c.Peers.Listen, "gateway.listen", client)
		}
	}
	if len(c.Peers.Nodes) > 0 {
		l.checkPair("peers.listen", c.Peers.Listen, "admin.listen", c.Admin.Listen.AddrPort)
	}
}

// checkPair reports two addresses that can't both be had, at the one that is written.
func (l *loader) checkPair(key string, a netip.AddrPort, otherKey string, other netip.AddrPort) {
	if !overlap(a, other) {
		return
	}
	if l.config.origins[key].IsDefault() {
		key, a, otherKey, other = otherKey, other, key, a
	}
	l.Report(l.config.origins[key], key, "%v is in the way of %s, %v; give one of them another port", a, otherKey, other)
}

// overlap reports whether no two sockets can have a and b. [::] is all addresses, of IPv4
// as well.
func overlap(a, b netip.AddrPort) bool {
	if !a.IsValid() || !b.IsValid() || a.Port() != b.Port() || a.Port() == 0 {
		return false
	}
	first, second := a.Addr(), b.Addr()
	covers := func(a, b netip.Addr) bool { return a == netip.IPv6Unspecified() || a.IsUnspecified() && b.Is4() }
	return first == second || covers(first, second) || covers(second, first)
}

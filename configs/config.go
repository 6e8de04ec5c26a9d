// Package configs is where configuration comes from: a YAML file, environment
// variables and flags, laid over the defaults of the packages that have the
// options.
//
// Nothing is read but by Load, so nothing can change under a running gateway:
// to reload is to Load again. Whatever can't be used is an error; there is no
// value that quietly becomes a default.
package configs

import (
	"fmt"
	"log/slog"
	"reflect"

	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/admin"
	"dotgate/cmd/dotgate/peers"
	"dotgate/cmd/dotgate/tracing"
	"dotgate/gateway"
	"dotgate/gateway/cache"
	"dotgate/gateway/querylog"
	"dotgate/gateway/redis"
	"dotgate/health"
	"dotgate/upstreams"
)

// A Config holds every option. Load makes one; all of its values are set and
// checked, but no Options have a Log yet.
type Config struct {
	Gateway gateway.Options `config:"gateway"`
	Cache   cache.Options   `config:"cache"`
	Redis   redis.Options   `config:"cache.redis"`
	// Upstreams are never empty, and no two have one name.
	Upstreams []Upstream `config:"upstreams"`
	// Routes are for names that have upstreams of their own. No two have one name.
	Routes []Route `config:"routes"`
	// Bootstrap serves the upstreams that have a host and no resolvers of their
	// own to find it. It is in their Options already.
	Bootstrap []string         `config:"bootstrap"`
	Balancer  balancer.Options `config:"balancer"`
	Health    health.Options   `config:"health"`
	Admin     admin.Options    `config:"admin"`
	Peers     peers.Options    `config:"peers"`
	Control   Control          `config:"control"`
	Reload    Reload           `config:"reload"`
	QueryLog  querylog.Options `config:"query_log"`
	Tracing   tracing.Options  `config:"tracing"`
	Log       Log              `config:"log"`

	sources map[string]source // of each key: where its value is from
}

// An Upstream is a resolver service and its place among the others.
type Upstream struct {
	upstreams.Options
	// Weight is its share among upstreams of one tier, where the policy minds
	// weights. Default: 1.
	Weight int `config:"weight"`
	// Tier is when it is asked: lower tiers first, higher ones when no lower
	// one is up. Default: 0.
	Tier int `config:"tier"`
}

// Check reports every option that can't be used, by its name.
func (u Upstream) Check(report func(option, problem string)) {
	u.Options.Check(report)
	if u.Weight <= 0 {
		report("weight", "must be above 0")
	}
	if u.Tier < 0 {
		report("tier", "must not be below 0")
	}
}

// Log is how the process speaks to its operator.
type Log struct {
	// Level is the least that is told: debug, info, warn or error. Default: info.
	Level slog.Level `config:"level"`
	// Format is text or json. Default: text.
	Format string `config:"format"`
}

// Reload is how another configuration comes into effect.
type Reload struct {
	// Watch has the file read again when it changes, and those that it names.
	// Default: true.
	Watch bool `config:"watch"`
}

// Check reports every option that can't be used, by its name.
func (l Log) Check(report func(option, problem string)) {
	if l.Format != "text" && l.Format != "json" {
		report("format", fmt.Sprintf("%q does not exist; there are text, json", l.Format))
	}
}

// IsDefault reports whether nobody has set the key.
func (c *Config) IsDefault(key string) bool { return c.sources[key].isDefault() }

// Sources are what Load reads, each laid over the one before: the defaults,
// the file, the environment, the flags.
type Sources struct {
	// File names the YAML file. Empty: there is none.
	File string
	// Environ are the variables, as os.Environ has them. Only those whose name
	// starts with DOTGATE_ are looked at; DOTGATE_CONFIG, which names the file,
	// is the caller's.
	Environ []string
	// Flags are the values from the command line by key: one, or for a list all
	// of them. A flag is named as the last word of its key: "gateway.listen" is
	// --listen. One without values was not given.
	Flags map[string][]string
}

// Load reads all sources and returns what they say together. Its error is
// Problems: all that there are, not the first.
func Load(s Sources) (*Config, error) {
	l := newLoader(s.File)
	if s.File != "" {
		l.readFile()
	}
	return l.load(s)
}

// LoadControl returns how to reach the running gateway, as far as the sources say
// so, be they else of no use: that is when its operator needs to. The error is what
// is wrong with them, which Load tells too.
func LoadControl(s Sources) (Control, error) {
	l := newLoader(s.File)
	if s.File != "" {
		l.readFile()
	}
	_, err := l.load(s)
	return l.config.Control, err
}

// A loader is one Load under way.
type loader struct {
	config   *Config
	settings []setting
	file     string         // its name, or empty
	given    map[string]any // by the file: a given for each key

	problems Problems
	bad      map[string]bool // keys whose value could not be read
}

// A given is what one source says about one key. It passes through viper, which
// only has to pick one of several: so each value knows where it is from.
type given struct {
	from  source
	value *yaml.Node // a scalar or a list, of the file or made of text
}

func newLoader(file string) *loader {
	c := defaults()
	return &loader{
		config:   c,
		settings: settingsOf("", reflect.ValueOf(c).Elem()),
		file:     file,
		given:    make(map[string]any),
		bad:      make(map[string]bool),
	}
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
		sources:  make(map[string]source),
	}
	// The loggers are not configuration; whoever wires the parts gives them.
	c.Gateway.Log, c.Balancer.Log, c.Health.Log = nil, nil, nil
	return c
}

func (l *loader) load(s Sources) (*Config, error) {
	layers := l.layers(s)
	for _, setting := range l.settings {
		g := layers.Get(setting.key).(given)
		l.config.sources[setting.key] = g.from
		switch setting.key {
		case "upstreams":
			l.config.Upstreams = l.upstreams("upstreams", g)
			continue
		case "routes":
			l.config.Routes = l.routes(g)
			continue
		}
		l.decode(setting, g, listenAddress)
	}
	l.shareBootstrap()
	l.sharePolicy()
	l.check()
	if len(l.problems) > 0 {
		return nil, l.problems.sorted(l.file)
	}
	return l.config, nil
}

// layers lays the sources over each other, by key.
//
// Viper reads its own file, environment and flags only for whole processes, and
// gives up the lines; it is handed values instead, in the slots whose order it
// defines: default, config (the environment merged over the file), override.
// AutomaticEnv is not used: it finds only keys that something else announces.
func (l *loader) layers(s Sources) *viper.Viper {
	// Keys are whole here: with a delimiter that is in none of them, viper
	// does not split them.
	v := viper.NewWithOptions(viper.KeyDelimiter("::"))
	for _, setting := range l.settings {
		v.SetDefault(setting.key, given{value: nodeOf(setting.field)})
	}
	v.SetDefault("upstreams", given{value: listNode(defaultUpstreams)})
	for _, layer := range []map[string]any{l.given, l.environ(s.Environ)} {
		// The error is of the signature only: nothing in there can fail.
		_ = v.MergeConfigMap(layer)
	}
	for key, g := range l.flags(s.Flags) {
		v.Set(key, g)
	}
	return v
}

// check asks the packages what they think of their options.
func (l *loader) check() {
	c := l.config
	c.Gateway.Check(l.reporter("gateway"))
	c.Cache.Check(l.reporter("cache"))
	c.Redis.Check(l.reporter("cache.redis"))
	l.checkUpstreams()
	l.checkRoutes()
	l.checkBootstrap()
	c.Balancer.Check(l.reporter("balancer"))
	c.Health.Check(l.reporter("health"))
	c.Admin.Check(l.reporter("admin"))
	c.Peers.Check(l.reporter("peers"))
	c.Control.Check(l.reporter("control"))
	c.QueryLog.Check(l.reporter("query_log"))
	c.Tracing.Check(l.reporter("tracing"))
	c.Log.Check(l.reporter("log"))
}

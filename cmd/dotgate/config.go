package main

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"os"
	"sync/atomic"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"dotgate/configs"
)

// sources are the flags that say where the configuration comes from.
type sources struct {
	file     string
	listen   []string
	takeover bool // of serve
}

func (s *sources) addFlags(flags *pflag.FlagSet) {
	flags.StringVarP(&s.file, "config", "c", "", "configuration `file` (DOTGATE_CONFIG); without one, defaults and environment apply")
	flags.StringArrayVar(&s.listen, "listen", nil, "`address:port` to serve, UDP and TCP; may be repeated (gateway.listen)")
}

// with returns what cobra runs for a command that needs the configuration.
func (s *sources) with(run func(context.Context, *configs.Config, io.Writer) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, _ []string) error {
		config, err := s.load()
		if err != nil {
			return err
		}
		return run(c.Context(), config, c.OutOrStdout())
	}
}

// path returns the name of the file, empty if there is none.
func (s *sources) path() string { return cmp.Or(s.file, os.Getenv("DOTGATE_CONFIG")) }

func (s *sources) load() (*configs.Config, error) { return configs.Load(s.from()) }

func (s *sources) from() configs.Sources {
	from := configs.Sources{File: s.path(), Environ: os.Environ()}
	if len(s.listen) > 0 {
		from.Flags = map[string][]string{"gateway.listen": s.listen}
	}
	return from
}

// check prints the effective configuration. That it could be loaded is the check.
func check(_ context.Context, config *configs.Config, out io.Writer) error {
	return config.WriteEffective(out)
}

// A voice is how the process speaks to its operator: what a logger of it tells, and
// in what form, may change.
type voice struct {
	text, json slog.Handler
	level      *slog.LevelVar
	asJSON     *atomic.Bool
}

func newVoice(l configs.Log) *voice {
	v := &voice{level: new(slog.LevelVar), asJSON: new(atomic.Bool)}
	options := &slog.HandlerOptions{Level: v.level}
	v.text, v.json = slog.NewTextHandler(os.Stderr, options), slog.NewJSONHandler(os.Stderr, options)
	v.follow(l)
	return v
}

// follow has l hold from now on.
func (v *voice) follow(l configs.Log) {
	v.level.Set(l.Level)
	v.asJSON.Store(l.Format == "json")
}

func (v *voice) handler() slog.Handler {
	if v.asJSON.Load() {
		return v.json
	}
	return v.text
}

func (v *voice) Enabled(ctx context.Context, level slog.Level) bool {
	return v.handler().Enabled(ctx, level)
}

func (v *voice) Handle(ctx context.Context, r slog.Record) error { return v.handler().Handle(ctx, r) }

func (v *voice) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &voice{v.text.WithAttrs(attrs), v.json.WithAttrs(attrs), v.level, v.asJSON}
}

func (v *voice) WithGroup(name string) slog.Handler {
	return &voice{v.text.WithGroup(name), v.json.WithGroup(name), v.level, v.asJSON}
}

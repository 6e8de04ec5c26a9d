package main

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"os"

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

func (s *sources) load() (*configs.Config, error) {
	from := configs.Sources{File: s.path(), Environ: os.Environ()}
	if len(s.listen) > 0 {
		from.Flags = map[string][]string{"gateway.listen": s.listen}
	}
	return configs.Load(from)
}

// check prints the effective configuration. That it could be loaded is the check.
func check(_ context.Context, config *configs.Config, out io.Writer) error {
	return config.WriteEffective(out)
}

// newLogger returns a logger, and what changes its level.
func newLogger(l configs.Log) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	level.Set(l.Level)
	options := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options)), level
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options)), level
}

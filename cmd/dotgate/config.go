package main

import (
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
	file   string
	listen []string
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

func (s *sources) load() (*configs.Config, error) {
	from := configs.Sources{File: s.file, Environ: os.Environ()}
	if from.File == "" {
		from.File = os.Getenv("DOTGATE_CONFIG")
	}
	if len(s.listen) > 0 {
		from.Flags = map[string][]string{"gateway.listen": s.listen}
	}
	return configs.Load(from)
}

// check prints the effective configuration. That it could be loaded is the check.
func check(_ context.Context, config *configs.Config, out io.Writer) error {
	return config.WriteEffective(out)
}

func newLogger(l configs.Log) *slog.Logger {
	options := &slog.HandlerOptions{Level: l.Level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}

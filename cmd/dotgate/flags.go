package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/configs"
)

// configFlags are the flags of all commands: where the configuration comes from.
type configFlags struct {
	file   string // by its flag; use path
	looked sync.Once
	listen []string
}

func (s *configFlags) addFlags(flags *pflag.FlagSet) {
	flags.StringVarP(&s.file, "config", "c", "", "configuration `FILE` (DOTGATE_CONFIG); without one, defaults and environment variables apply")
	flags.StringArrayVar(&s.listen, "listen", nil, "`ADDRESS:PORT` to serve over UDP and TCP; may be repeated (gateway.listen)")
}

// with returns the RunE of a command that needs the configuration.
func (s *configFlags) with(run func(context.Context, *settings.Config, io.Writer) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, _ []string) error {
		config, err := settings.Load(s.from())
		if err != nil {
			return err
		}
		return run(c.Context(), config, c.OutOrStdout())
	}
}

// path returns the name of the configuration file, empty without one. The file in the
// directory of a systemd service (ConfigurationDirectory=) is optional; path looks for it
// once, so that a file that vanishes later is noticed.
func (s *configFlags) path() string {
	s.looked.Do(func() {
		s.file = cmp.Or(s.file, os.Getenv("DOTGATE_CONFIG"))
		if dir := os.Getenv("CONFIGURATION_DIRECTORY"); s.file == "" && dir != "" {
			file := filepath.Join(dir, "dotgate.yaml")
			if _, err := os.Lstat(file); err == nil {
				s.file = file
			}
		}
	})
	return s.file
}

func (s *configFlags) from() configs.Sources {
	from := configs.Sources{File: s.path(), Environ: os.Environ()}
	if len(s.listen) > 0 {
		from.Flags = map[string][]string{"gateway.listen": s.listen}
	}
	return from
}

// withClient returns the RunE of a command that asks the running gateway. A mistake that
// is in the configuration by now does not matter, and is reported. limit bounds the time; 0
// is no limit.
func (s *configFlags) withClient(limit time.Duration, run func(context.Context, *api.Client, io.Writer) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, _ []string) error {
		config, err := settings.LoadPartly(s.from())
		if err != nil {
			fmt.Fprintln(c.ErrOrStderr(), "dotgate: the configuration has mistakes (see dotgate check); the running gateway is asked nevertheless")
		}
		client, err := api.Find(config.Control.Socket, s.path())
		if err != nil {
			return err
		}
		ctx := c.Context()
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		return run(ctx, client, c.OutOrStdout())
	}
}

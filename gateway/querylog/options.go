package querylog

import (
	"cmp"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
)

// Options of a Log. A zero field means zero; Defaults has the usual values.
type Options struct {
	// Output is where the log goes: the path of a file, or with dnstap also
	// unix:PATH, a socket where a reader listens. Empty: there is none.
	Output string `config:"output"`
	// Format is json, a line for each query, or dnstap. Default: json.
	Format string `config:"format"`
	// Sample logs one query of so many, and all that failed. Default: 1.
	Sample int `config:"sample"`
	// Clients is how clients appear: prefix (the /24 or /48 that they are in),
	// ipcrypt (encrypted with KeyFile's key, so that they can be told apart, and
	// told by who has the key), none, or full. Default: prefix.
	Clients string `config:"clients"`
	// KeyFile has the key of ipcrypt: 32 hexadecimal digits.
	KeyFile string `config:"key_file"`
	// MaxSize is how large a file may become, in bytes, before it is renamed and
	// another begun; Keep is how many renamed ones there may be. Defaults: 100 MB
	// and 3.
	MaxSize int64 `config:"max_size"`
	Keep    int   `config:"keep"`

	// Log takes what an operator should see. Default: slog.Default.
	Log *slog.Logger `config:"-"`
}

// Defaults returns the usual values.
func Defaults() Options {
	return Options{Format: "json", Sample: 1, Clients: "prefix", MaxSize: 100e6, Keep: 3}
}

// minMaxSize keeps files from being renamed all the time.
const minMaxSize = 1e6

// Check reports every option that can't be used, by its name. It reads the file
// that is named.
func (o Options) Check(report func(option, problem string)) { o.check(report) }

// check is Check, and returns how clients appear.
func (o Options) check(report func(option, problem string)) Clients {
	path, socket := strings.CutPrefix(o.Output, "unix:")
	switch {
	case o.Output == "":
	case !filepath.IsAbs(path):
		report("output", fmt.Sprintf("%q is no path that starts with /", path))
	case socket && o.Format == "json":
		report("output", "is a socket, which is for the format dnstap only")
	}
	if o.Format != "json" && o.Format != "dnstap" {
		report("format", fmt.Sprintf("%q does not exist; there are json, dnstap", o.Format))
	}
	if o.Sample < 1 {
		report("sample", "must be 1 or more: one query of so many is logged")
	}
	if o.MaxSize < minMaxSize {
		report("max_size", fmt.Sprintf("must be %d or more", int(minMaxSize)))
	}
	if o.Keep < 0 {
		report("keep", "must not be below 0")
	}
	return NewClients(o.Clients, o.KeyFile, report)
}

func (o Options) logger() *slog.Logger { return cmp.Or(o.Log, slog.Default()) }

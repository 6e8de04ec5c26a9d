package querylog

import (
	"cmp"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	"dotgate/configs/bounds"
)

// Options of a Log. A zero field means zero, not the default: see Defaults.
type Options struct {
	// Output is where the log is written: the path of a file, a FIFO or /dev/stdout, or with
	// dnstap also unix:PATH, a socket where a reader listens. Empty for no query log. A file
	// must be empty or a query log; only files are renamed.
	Output string `config:"output"`
	// Format is how queries are written: json, a line for each, or dnstap.
	Format string `config:"format"`
	// Sample is the N of one query in N that is logged; queries that failed are all logged.
	Sample int `config:"sample" bounds:"1 1000000000"`
	// Clients is how client addresses appear: prefix (their /24 or /48), ipcrypt (encrypted
	// with the key of key_file), none, or full.
	Clients string `config:"clients"`
	// KeyFile is a file with the key of ipcrypt: 32 hexadecimal digits.
	KeyFile string `config:"key_file"`
	// MaxSize is the size in bytes at which a file is renamed to .1 and another one begun.
	MaxSize int64 `config:"max_size" bounds:"1000000 1000000000000"`
	// Keep is how many renamed files are kept.
	Keep int `config:"keep" bounds:"0 10000"`

	// Log is for messages to the operator. Default: slog.Default.
	Log *slog.Logger `config:"-"`
}

// Defaults returns the usual values.
func Defaults() Options {
	return Options{Format: "json", Sample: 1, Clients: "prefix", MaxSize: 100e6, Keep: 3}
}

// Check reports every invalid option by its name. It reads KeyFile.
func (o Options) Check(report func(option, problem string, beside ...string)) { o.check(report) }

// check is Check. It returns the Clients of the options.
func (o Options) check(report func(option, problem string, beside ...string)) Clients {
	path, socket := strings.CutPrefix(o.Output, "unix:")
	switch {
	case o.Output == "":
	case !filepath.IsAbs(path):
		report("output", fmt.Sprintf("%q is no path that starts with /", path))
	case socket && o.Format == "json":
		report("output", "is a socket, which is for the format dnstap only", "format")
	}
	if o.Format != "json" && o.Format != "dnstap" {
		report("format", fmt.Sprintf("%q does not exist; there are json, dnstap", o.Format))
	}
	bounds.Check(o, report)
	return NewClients(o.Clients, o.KeyFile, report)
}

func (o Options) logger() *slog.Logger { return cmp.Or(o.Log, slog.Default()) }

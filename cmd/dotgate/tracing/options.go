package tracing

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"

	"dotgate/gateway/querylog"
)

// Options of a Tracer. A zero field means zero; Defaults has the usual values.
type Options struct {
	// Endpoint is where spans are sent: the URL of a collector that takes OTLP over
	// HTTP, http://HOST:PORT or https://HOST. Without a path, /v1/traces is added.
	// Empty: there are no traces.
	Endpoint string `config:"endpoint"`
	// Sample traces one query of so many; and, of those that failed, up to
	// failuresMax a second. Default: 100.
	Sample int `config:"sample"`
	// Clients is how clients appear: prefix (the /24 or /48 that they are in),
	// ipcrypt (encrypted with KeyFile's key), none, or full. Default: prefix.
	Clients string `config:"clients"`
	// KeyFile has the key of ipcrypt: 32 hexadecimal digits.
	KeyFile string `config:"key_file"`
	// Service is what this gateway is called in traces (service.name). Default:
	// dotgate.
	Service string `config:"service"`
	// Headers go with what is sent, as in "Authorization: Bearer …". Default: none.
	Headers []Header `config:"headers"`
	// HeadersFile has them instead, one in each line.
	HeadersFile string `config:"headers_file"`

	// Version is of the program that is traced.
	Version string `config:"-"`
	// Log takes what an operator should see. Default: slog.Default.
	Log *slog.Logger `config:"-"`
}

// Defaults returns the usual values.
func Defaults() Options {
	return Options{Sample: 100, Clients: "prefix", Service: "dotgate"}
}

// Check reports every option that can't be used, by its name. It reads the files
// that are named.
func (o Options) Check(report func(option, problem string)) { o.rules(report) }

// rules is Check, and returns what is made of the options, which is of use if nothing
// was reported.
func (o Options) rules(report func(option, problem string)) *rules {
	r := &rules{Options: o}
	var err error
	if r.url, err = o.url(); err != nil {
		report("endpoint", err.Error())
	}
	if o.Sample < 1 {
		report("sample", "must be 1 or more: one query of so many is traced")
	}
	if o.Service == "" {
		report("service", "is empty: traces need a name for what they are of")
	}
	if len(o.Headers) > 0 && o.HeadersFile != "" {
		report("headers_file", "is given beside headers; one of them must go")
	} else if r.headers, err = o.headers(); err != nil {
		report("headers_file", err.Error())
	}
	r.clients = querylog.NewClients(o.Clients, o.KeyFile, report)
	return r
}

// tracesPath is where collectors take traces (OTLP 1.x, section "OTLP/HTTP Request").
const tracesPath = "/v1/traces"

// url returns where spans are sent, empty if they are not.
func (o Options) url() (string, error) {
	if o.Endpoint == "" {
		return "", nil
	}
	// Not the parser's own error: what is written there may be a secret.
	u, err := url.Parse(o.Endpoint)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return "", errors.New("is not http://HOST:PORT or https://HOST, with or without a path")
	case u.User != nil:
		return "", errors.New("has a user in it; write an Authorization header into headers_file")
	case u.Fragment != "":
		return "", errors.New("has a # in it, which means nothing to a collector")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = tracesPath
	}
	return u.String(), nil
}

// headers returns them, from the file if there is one.
func (o Options) headers() (http.Header, error) {
	all := o.Headers
	if o.HeadersFile != "" {
		text, err := os.ReadFile(o.HeadersFile)
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(bytes.NewReader(text))
		for n := 1; lines.Scan(); n++ {
			line := strings.TrimSpace(lines.Text())
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			var h Header
			if err := h.UnmarshalText([]byte(line)); err != nil {
				return nil, fmt.Errorf("%s: line %d %w", o.HeadersFile, n, err)
			}
			all = append(all, h)
		}
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("%s: %w", o.HeadersFile, err)
		}
	}
	headers := make(http.Header)
	for _, h := range all {
		headers.Add(h.name, h.value)
	}
	return headers, nil
}

func (o Options) logger() *slog.Logger { return cmp.Or(o.Log, slog.Default()) }

// A Header is a line of a request's header. It is shown without its value, which may
// be a secret.
type Header struct{ name, value string }

var errNotHeader = errors.New("is not a header, as in Authorization: Bearer TOKEN")

// UnmarshalText reads NAME: VALUE. Its error does not have the value.
func (h *Header) UnmarshalText(text []byte) error {
	name, value, ok := strings.Cut(string(text), ":")
	value = strings.TrimSpace(value)
	if !ok || name == "" || strings.ContainsFunc(name, notOfToken) || value == "" || strings.ContainsFunc(value, notOfValue) {
		return errNotHeader
	}
	*h = Header{name, value}
	return nil
}

// notOfToken is for what a name can't have in it (RFC 9110 section 5.6.2).
func notOfToken(c rune) bool {
	letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
	return !letter && !strings.ContainsRune("!#$%&'*+-.^_`|~", c)
}

// notOfValue is for what would end a value, or what is around it.
func notOfValue(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }

// MarshalText writes the name, and that there is a value.
func (h Header) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// String returns the name, and "(hidden)".
func (h Header) String() string { return h.name + ": (hidden)" }

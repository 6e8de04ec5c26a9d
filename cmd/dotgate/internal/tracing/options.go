package tracing

import (
	"cmp"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpguts"

	"dotgate/configs/bounds"
	"dotgate/configs/files"
	"dotgate/configs/secret"
	"dotgate/gateway/querylog"
)

// Options of a Tracer. A zero field means zero; Defaults has the usual values.
type Options struct {
	// Endpoint is the URL of a collector that takes OTLP over HTTP: http://127.0.0.1:4318,
	// or https:// outside your own network, as spans contain names. Without a path,
	// /v1/traces is added. Empty for no traces.
	Endpoint secret.URL `config:"endpoint"`
	// Sample is the N of one query in N that is traced. Of failed queries, up to a hundred
	// per second are traced as well, without the steps of each attempt.
	Sample int `config:"sample" bounds:"1 1000000000"`
	// Clients is how client addresses appear: prefix (their /24 or /48), ipcrypt (encrypted
	// with the key of key_file), none, or full.
	Clients string `config:"clients"`
	// KeyFile is a file with the key of ipcrypt: 32 hexadecimal digits.
	KeyFile string `config:"key_file"`
	// Service is the name of this gateway in traces (service.name).
	Service string `config:"service"`
	// Headers are the headers of each request to the collector, as in "Authorization: Bearer
	// TOKEN".
	Headers []Header `config:"headers"`
	// HeadersFile is a file with the headers, one in each line, instead of headers.
	HeadersFile string `config:"headers_file"`

	// Version is the version of this program.
	Version string `config:"-"`
	// Log receives messages for the operator. Default: slog.Default.
	Log *slog.Logger `config:"-"`
}

// Defaults returns the usual values.
func Defaults() Options {
	return Options{Sample: 100, Clients: "prefix", Service: "dotgate"}
}

// Check reports every invalid option by its name. It reads KeyFile and HeadersFile.
func (o Options) Check(report func(option, problem string, beside ...string)) { o.config(report) }

// config does what Check does and returns the config, which is valid if nothing was
// reported.
func (o Options) config(report func(option, problem string, beside ...string)) *config {
	c := &config{Options: o}
	var err error
	if c.url, err = o.url(); err != nil {
		report("endpoint", err.Error())
	}
	bounds.Check(o, report)
	if o.Service == "" {
		report("service", "must not be empty: it names this gateway in traces")
	}
	if len(o.Headers) > 0 && o.HeadersFile != "" {
		report("headers_file", "cannot be set together with headers: remove one of them", "headers")
	} else if c.headers, err = o.headers(); err != nil {
		report("headers_file", err.Error())
	}
	c.clients = querylog.NewClients(o.Clients, o.KeyFile, report)
	return c
}

// tracesPath is the default path of collectors (OTLP 1.x, section "OTLP/HTTP Request").
const tracesPath = "/v1/traces"

// url returns the URL of the collector, empty for none.
func (o Options) url() (string, error) {
	if o.Endpoint == "" {
		return "", nil
	}
	// The parser's own error is not shown: the URL may contain a secret.
	u, err := url.Parse(string(o.Endpoint))
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return "", errors.New("is not http://HOST:PORT or https://HOST, with or without a path")
	case u.User != nil:
		return "", errors.New("contains a user: write an Authorization header into headers_file instead")
	case u.Fragment != "":
		return "", errors.New("contains a fragment (#): remove it")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = tracesPath
	}
	return u.String(), nil
}

// headers returns the headers, from HeadersFile if it is set.
func (o Options) headers() (http.Header, error) {
	all := o.Headers
	if o.HeadersFile != "" {
		var err error
		if all, err = files.Texts[Header](o.HeadersFile, files.SecretMax); err != nil {
			return nil, err
		}
	}
	headers := make(http.Header)
	for _, h := range all {
		headers.Add(h.name, h.value)
	}
	return headers, nil
}

func (o Options) logger() *slog.Logger { return cmp.Or(o.Log, slog.Default()) }

// A Header is one header of a request. Its text form hides the value, which may be a
// secret.
type Header struct{ name, value string }

var errNotHeader = errors.New("is not a header, as in Authorization: Bearer TOKEN")

// UnmarshalText parses NAME: VALUE. Its error does not contain the value.
func (h *Header) UnmarshalText(text []byte) error {
	name, value, ok := strings.Cut(string(text), ":")
	value = strings.TrimSpace(value)
	if !ok || !httpguts.ValidHeaderFieldName(name) || value == "" || !httpguts.ValidHeaderFieldValue(value) {
		return errNotHeader
	}
	*h = Header{name, value}
	return nil
}

// MarshalText returns the name and "(hidden)".
func (h Header) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// HidesSecret marks the type.
func (Header) HidesSecret() {}

// String returns the name, and "(hidden)".
func (h Header) String() string { return h.name + ": " + secret.Hidden }

// GoString is for %#v.
func (h Header) GoString() string { return h.String() }

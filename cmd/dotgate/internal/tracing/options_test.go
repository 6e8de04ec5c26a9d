package tracing

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dotgate/configs/secret"
)

func TestOptionsThatCanNotBe(t *testing.T) {
	t.Parallel()
	headers := filepath.Join(t.TempDir(), "headers")
	if err := os.WriteFile(headers, []byte("# of the collector\n\nAuthorization: Bearer one\nsecret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := func(change func(*Options), want string) {
		t.Helper()
		o := Defaults()
		change(&o)
		got := ""
		o.Check(func(option, problem string, beside ...string) { got += option + " " + problem })
		if !strings.HasPrefix(got, want) || want == "" && got != "" || strings.Contains(got, "secret") {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	f(func(*Options) {}, "")
	f(func(o *Options) { o.Endpoint = "https://otel.example/otlp/v1/traces?x=y" }, "")
	for _, endpoint := range []string{"127.0.0.1:4318", "otel.example", "grpc://otel.example:4317", "http://", "http://otel.example:secret", "/v1/traces", "://"} {
		f(func(o *Options) { o.Endpoint = secret.URL(endpoint) }, "endpoint is not http://HOST:PORT")
	}
	f(func(o *Options) { o.Endpoint = "http://me:secret@otel.example" }, "endpoint contains a user")
	f(func(o *Options) { o.Endpoint = "http://otel.example#secret" }, "endpoint contains a fragment")
	f(func(o *Options) { o.Sample = 0 }, "sample must be between 1 and")
	f(func(o *Options) { o.Service = "" }, "service must not be empty")
	f(func(o *Options) { o.Clients = "some" }, `clients "some" does not exist`)
	f(func(o *Options) { o.Clients = "ipcrypt" }, "key_file is needed with clients: ipcrypt")
	f(func(o *Options) { o.Headers, o.HeadersFile = []Header{{"a", "b"}}, headers }, "headers_file cannot be set together with headers")
	f(func(o *Options) { o.HeadersFile = headers }, "headers_file "+headers+": line 4 is not a header")
	f(func(o *Options) { o.HeadersFile = headers + "x" }, "headers_file open ")
}

func TestWithoutAPathItIsTheUsualOne(t *testing.T) {
	t.Parallel()
	for endpoint, want := range map[string]string{
		"": "", "http://127.0.0.1:4318": "http://127.0.0.1:4318/v1/traces", "https://otel.example/": "https://otel.example/v1/traces",
		"http://[::1]:4318/otlp": "http://[::1]:4318/otlp", "https://otel.example?x=y": "https://otel.example/v1/traces?x=y",
	} {
		if got, err := (Options{Endpoint: secret.URL(endpoint)}).url(); got != want || err != nil {
			t.Errorf("%s: got %s, %v", endpoint, got, err)
		}
	}
}

func TestHeadersAreReadAndNotShown(t *testing.T) {
	t.Parallel()
	var h Header
	for _, text := range []string{"Authorization: Basic secret", "Authorization:Basic secret"} {
		if err := h.UnmarshalText([]byte(text)); err != nil || h != (Header{"Authorization", "Basic secret"}) {
			t.Errorf("%q: got %v, %v", text, h, err)
		}
	}
	if text, err := h.MarshalText(); err != nil || string(text) != "Authorization: (hidden)" {
		t.Errorf("shown as %s, %v", text, err)
	}
	for _, text := range []string{"", ":", "secret", "a:", "a b: secret", ": secret", "a: secret\r\nb: secret", "ä: secret", "a: secret\x00"} {
		if err := h.UnmarshalText([]byte(text)); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

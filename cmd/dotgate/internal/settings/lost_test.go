package settings

import (
	"path/filepath"
	"strings"
	"testing"

	"dotgate/configs"
)

func TestWhatWasWrittenIsNotLostUnseen(t *testing.T) {
	t.Parallel()
	f := func(from, to string, want ...string) {
		t.Helper()
		err := mustParse(t, from).Lost(mustParse(t, to))
		if (err == nil) != (len(want) == 0) {
			t.Fatalf("%q to %q: got %v", from, to, err)
		}
		for _, text := range want {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%q to %q: got %v, want %q in it", from, to, err, text)
			}
		}
	}
	const (
		upstreams = "upstreams: [quad9]\n"
		routes    = "routes: {corp.example: [udp://10.0.0.53]}\n"
		defaults  = "upstreams: [cloudflare, quad9, google]\n"
		other     = "log: {level: debug}\n"
	)
	f(other, other)
	f(other, upstreams+routes)
	f(upstreams, defaults)
	f(upstreams+routes, upstreams+"routes: {}")
	f(upstreams+routes, upstreams+"routes: {lab.example: [udp://10.0.0.53]}")
	f(upstreams, other, "dotgate.yaml: upstreams: was removed since the last load (dotgate.yaml:1)", defaults[:len(defaults)-1])
	f(upstreams+routes, upstreams, "dotgate.yaml: routes: was removed since the last load", "write routes: {}")
	f(upstreams+routes, upstreams+"routes:", "routes: {}")
	f(upstreams+routes, other, "upstreams", "routes")
}

func TestAnEmptyFileIsRefused(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "dotgate.yaml")
	writeFile(t, file, "")
	if _, err := Load(configs.Sources{File: file}); err == nil || !strings.Contains(err.Error(), "is empty") {
		t.Errorf("a file without a single octet: %v", err)
	}
	for _, document := range []string{"\n\n", "---\n...\n", "# Only a comment.\n", "---\n", "---\n# More to come\n", "null", "~"} {
		if got := problemsOf(t, document); !strings.HasPrefix(got, "dotgate.yaml: is empty, or has only comments; for the defaults, write upstreams: [cloudflare, quad9, google]") {
			t.Errorf("%q: got %s", document, got)
		}
	}
	mustParse(t, "{}") // says that it has nothing
	mustParse(t, defaultUpstreamsText)
}

package configs

import (
	"bytes"
	"testing"
)

func TestEffectiveNestsSections(t *testing.T) {
	t.Parallel()
	f := func(open, path, want string) {
		t.Helper()
		var out bytes.Buffer
		OpenSection(&out, open, path)
		if out.String() != want {
			t.Errorf("%q then %q: got %q, want %q", open, path, &out, want)
		}
	}
	f("", "gateway", "gateway:\n")
	f("gateway", "health", "health:\n")
	f("gateway", "gateway.cache", "  cache:\n")
	f("gateway.cache", "gateway.cache", "")
	f("gateway.cache", "health.probe", "health:\n  probe:\n")
}

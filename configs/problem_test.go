package configs

import (
	"strconv"
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	t.Parallel()
	words := []string{"gateway", "upstreams", "log", "health"}
	f := func(name, want string) {
		t.Helper()
		if got := Nearest(name, words); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	f("upstream", "upstreams")
	f("gatwya", "gateway")
	f("helth", "health")
	f("balancer", "")
	f("", "")
}

func TestClip(t *testing.T) {
	long := strings.Repeat("é", 5_000_000)
	for text, want := range map[string]string{
		"":                                  "",
		`"5" has no unit; write 5s`:         `"5" has no unit; write 5s`,
		"is " + strconv.Quote(long) + ", x": `is "` + strings.Repeat("é", 99) + `…", x`,
		"a " + long + "\tb":                 "a " + strings.Repeat("é", 100) + "…\tb",
		strings.Repeat("w", 150):            strings.Repeat("w", 100) + "…",
		`"` + long:                          `"` + strings.Repeat("é", 99) + "…",
	} {
		if got := Clip(text); got != want {
			t.Errorf("%.200q: got %.300q, want %.300q", text, got, want)
		}
	}
}

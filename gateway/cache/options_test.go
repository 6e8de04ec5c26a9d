package cache

import (
	"strings"
	"testing"
	"time"
)

func TestSizesAreParsed(t *testing.T) {
	f := func(text string, want Size, again string) {
		t.Helper()
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s: got %d, %v", text, s, err)
		}
		if got := s.String(); got != again {
			t.Errorf("%s: is %s", text, got)
		}
	}
	f("off", 0, "off")
	f("0", 0, "off")
	f("0MiB", 0, "off")
	f("64MiB", 64<<20, "64MiB")
	f("64 MiB", 64<<20, "64MiB")
	f("1.5GiB", 3<<29, "1536MiB")
	f("1024KiB", 1<<20, "1MiB")
	f("100MB", 100_000_000, "100000000B")
	f("1000kB", 1_000_000, "1000000B")
	f("2GB", 2_000_000_000, "1953125KiB")
	f("1234567B", 1234567, "1234567B")
	bad := func(text, want string) {
		t.Helper()
		s := Size(7)
		if err := s.UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), want) || s != 7 {
			t.Errorf("%s: got %d, %v", text, s, err)
		}
	}
	bad("64", `"64" has no unit; write 64MiB`)
	bad("", "not a size")
	bad("-1MiB", "not a size")
	bad("+1MiB", "not a size")
	bad("MiB", "not a size")
	bad("xMiB", "not a size")
	bad("infMiB", "not a size")
	bad("64mib", "not a size")
	bad("on", "not a size")
	bad("9000000000GiB", "out of range")
}

func TestNewReportsEveryProblem(t *testing.T) {
	_, err := New(Options{Size: 1, MinTTL: time.Hour, StaleAfter: -1, MaxStale: 8 * 24 * time.Hour})
	for _, want := range []string{"cache.size ", "cache.min_ttl ", "cache.max_ttl ", "cache.max_negative_ttl ", "cache.stale_after ", "cache.max_stale "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing from: %v", want, err)
		}
	}
	Defaults().Check(func(option, problem string, beside ...string) { t.Errorf("%s %s", option, problem) })
}

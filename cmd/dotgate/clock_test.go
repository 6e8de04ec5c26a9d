package main

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// wallClock are the places that turn a time into a number or back, and so lose what
// makes it immune to steps of the wall clock, and why that is right there.
var wallClock = map[string]string{
	"cmd/dotgate/internal/admin/metrics.go": "for Prometheus",
	"cmd/dotgate/internal/admin/watch.go":   "the order of events for people",
	"cmd/dotgate/internal/tracing/span.go":  "for a collector",
	"gateway/cache/file.go":                 "when answers of a file came",
	"gateway/cache/share.go":                "differences of another machine's clock",
	"gateway/access/cookie.go":              "RFC 9018 section 4.3",
	"gateway/querylog/dnstap.go":            "for a collector",
	"gateway/redis/redis.go":                "when answers that several machines share came",
	"upstreams/dot.go":                      "the end of a certificate",
	"upstreams/stats.go":                    "the end of a certificate",
	"upstreams/probe.go":                    "a name that is new each time",
	"upstreams/network_linux.go":            "a deadline that is over",
	"upstreams/plain.go":                    "a deadline that is over",
	"upstreams/proxy.go":                    "a deadline that is over",
}

// Waits, budgets and states go by the monotonic clock: as durations since an epoch, or
// as times that keep their monotonic reading. A number of seconds since 1970 does not.
func TestTheWallClockIsForPeopleCertificatesAndFiles(t *testing.T) {
	numbers := regexp.MustCompile(`\.Unix(Nano|Milli|Micro)?\(\)|\btime\.Unix(Milli|Micro)?\(`)
	root := os.DirFS("../..")
	used := make(map[string]bool)
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != "." || d.Name() == "testdata" || path == "docker" || d.Name() == "dottest" || d.Name() == "lab" || d.Name() == "e2e") {
			if err == nil {
				err = fs.SkipDir
			}
			return err
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := fs.ReadFile(root, path)
		if err == nil && numbers.Match(text) {
			used[path] = true
			if wallClock[path] == "" {
				t.Errorf("%s reads the wall clock as a number: a wait, a budget or a state must not", path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for path := range wallClock {
		if !used[path] {
			t.Errorf("%s does not read the wall clock as a number any more", path)
		}
	}
}

func TestTheBuildTimeIsNotInTheFuture(t *testing.T) {
	if _, err := time.Parse(time.RFC3339, sourceTime); err != nil {
		t.Fatal(err)
	}
	if built := builtAt(); built.After(time.Now()) || built.Before(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("built at %v", built)
	}
}

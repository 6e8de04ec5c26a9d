package main

import (
	"runtime/debug"
	"sync"
	"time"
)

// version is set by release builds with -ldflags "-X main.version=…".
var version = ""

// sourceTime is when this source was at least. It is set anew with each release: images
// and `go run` know of no commit.
const sourceTime = "2026-11-27T00:00:00Z"

// builtAt returns the latest time at which this program can tell not to have been built
// before: its commit's, or its source's.
var builtAt = sync.OnceValue(func() time.Time {
	built, err := time.Parse(time.RFC3339, sourceTime)
	info, ok := debug.ReadBuildInfo()
	if err != nil || !ok {
		return built
	}
	for _, s := range info.Settings {
		if at, err := time.Parse(time.RFC3339, s.Value); s.Key == "vcs.time" && err == nil && at.After(built) {
			built = at
		}
	}
	return built
})

// versionText falls back to what the Go tool knows about the build.
func versionText() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	text := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			text += " " + s.Value[:min(12, len(s.Value))]
		}
	}
	return text + " " + info.GoVersion
}

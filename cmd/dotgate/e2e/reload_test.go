//go:build linux && e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// TestNoQueryFailsWhenTheConfigurationIsReloaded changes upstreams a hundred
// times at a thousand queries a second, by signal and by replacing the file.
func TestNoQueryFailsWhenTheConfigurationIsReloaded(t *testing.T) {
	const reloads = 100
	var servers []*dottest.Server
	for range 4 {
		servers = append(servers, startUpstream(t, dottest.Options{RTT: 5 * time.Millisecond}))
	}
	file := filepath.Join(t.TempDir(), "dotgate.yaml")
	write := func(turn int) {
		// The first stays, of the others one is missing each time.
		text := fmt.Sprintf("upstreams:\n  - {name: stays, url: %q}\n", url(servers[0].Addr()))
		for i, s := range servers[1:] {
			if turn%3 != i {
				text += fmt.Sprintf("  - {name: u%d, url: %q}\n", i, url(s.Addr()))
			}
		}
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	write(0)
	addr := ownAddr()
	var environ []string
	for _, v := range environment(addr, nil, "DOTGATE_CONFIG="+file) {
		if !strings.HasPrefix(v, "DOTGATE_UPSTREAMS=") {
			environ = append(environ, v)
		}
	}
	g := &gateway{addr: addr, process: start(t, environ, dotgate, "serve")}
	g.await(t, "dotgate is serving")
	warmUp(t, g.addr)
	dials := servers[0].Stats().Accepted

	l := dottestLoad(g.addr, "reload", 12_000, 1000)
	done := make(chan outcome)
	go func() { done <- l.run(t) }()
	for turn := range reloads {
		write(turn + 1)
		g.signal(syscall.SIGHUP)
		time.Sleep(100 * time.Millisecond)
	}
	(<-done).mustBeWhole(t)
	within(t, time.Second, "all reloads", func() bool {
		return strings.Count(g.output.String(), `msg="the configuration is reloaded"`) >= reloads
	})
	if again := servers[0].Stats().Accepted - dials; again > 1 {
		t.Errorf("%d more connections to the upstream that stays", again)
	}
	g.stop(t)
}

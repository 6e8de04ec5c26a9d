//go:build linux && e2e

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// TestNoQueryFailsWhenTheConfigurationIsReloaded changes the whole configuration a
// hundred times at a thousand queries a second: upstreams and routes, addresses and
// limits, the cache, logs, and the listeners for operators.
func TestNoQueryFailsWhenTheConfigurationIsReloaded(t *testing.T) {
	const reloads = 100
	var servers []*dottest.Server
	for range 4 {
		servers = append(servers, startUpstream(t, dottest.Options{RTT: 5 * time.Millisecond}))
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "dotgate.yaml")
	addr, second, operators := ownAddr(), ownAddr(), ownAddr()
	write := func(turn int) {
		// The first one stays, and one of the others is missing each time.
		text := fmt.Sprintf("upstreams:\n  - {name: stays, url: %q}\n", url(servers[0].Addr()))
		for i, s := range servers[1:] {
			if turn%3 != i {
				text += fmt.Sprintf("  - {name: u%d, url: %q}\n", i, url(s.Addr()))
			}
		}
		text += rest(turn, dir, addr, second, operators, servers[1+turn%3].Addr())
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	write(0)
	var environ []string
	for _, v := range environment(addr, nil, "DOTGATE_CONFIG="+file) {
		if !slices.ContainsFunc([]string{"UPSTREAMS", "GATEWAY", "CONTROL", "ADMIN"}, func(part string) bool { return strings.HasPrefix(v, "DOTGATE_"+part) }) {
			environ = append(environ, v)
		}
	}
	g := &gateway{addr: addr, process: start(t, environ, dotgate, "serve")}
	g.await(t, "dotgate is serving")
	warmUp(t, g.addr)
	dials := servers[0].Stats().Accepted

	l := dottestLoad(g.addr, "reload", 15_000, 1000)
	done := make(chan outcome)
	go func() { done <- l.run(t) }()
	reloaded := func() int { return strings.Count(g.output.String(), "the configuration was reloaded") }
	for turn := range reloads {
		before := reloaded()
		write(turn + 1)
		g.signal(syscall.SIGHUP)
		within(t, 5*time.Second, "a reload", func() bool { return reloaded() > before })
		time.Sleep(50 * time.Millisecond)
	}
	(<-done).mustBeWhole(t)
	for _, unwanted := range []string{"need a restart", "was not reloaded"} {
		if g.output.contains(unwanted) {
			t.Errorf("dotgate said %q:\n%s", unwanted, g.output.tail(20))
		}
	}
	if again := servers[0].Stats().Accepted - dials; again > 1 {
		t.Errorf("%d more connections to the upstream that stays", again)
	}
	g.stop(t)
}

// rest is the rest of the configuration, different each turn. Clients at addr are served
// all the time.
func rest(turn int, dir string, addr, second, operators, own netip.AddrPort) string {
	either := func(a, b any) any {
		if turn%2 == 0 {
			return a
		}
		return b
	}
	text := fmt.Sprintf("gateway:\n  listen: %v\n", either([]string{addr.String()}, fmt.Sprintf("[%q, %q]", addr, second)))
	text += fmt.Sprintf("  max_queries: %d\n  max_pipelined: %d\n  timeout: %v\n", 5000+turn, 100+turn%7, either("4s", "3s"))
	text += fmt.Sprintf("  rate_limit: %d\n  rate_burst: 10000\n  nsid: turn-%d\n  block_private: %v\n", turn%5*10_000, turn, either(true, false))
	text += fmt.Sprintf("cache: {size: %dMiB, max_ttl: %dh, max_stale: %dh}\n", 4+turn%3*4, 1+turn%4, turn%3)
	if turn%4 > 0 {
		text += fmt.Sprintf("routes:\n  corp%d.example: [%q]\n", turn%2, url(own))
	} else {
		text += "routes: {}\n"
	}
	text += fmt.Sprintf("query_log: {output: %q, sample: %d}\n", either("", filepath.Join(dir, "queries.log")), 1+turn%3)
	text += fmt.Sprintf("tracing: {endpoint: %q, sample: %d}\n", either("http://"+operators.String(), ""), 1+turn%3) // where no collector listens
	text += fmt.Sprintf("log: {format: %v}\n", either("text", "json"))
	text += fmt.Sprintf("control: {socket: %q}\n", filepath.Join(dir, fmt.Sprintf("control%d.sock", turn%2)))
	text += fmt.Sprintf("admin: {listen: %q}\n", either(operators, "off"))
	return text
}

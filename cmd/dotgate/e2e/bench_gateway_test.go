//go:build linux && load

package e2e

import (
	_ "embed"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dotgate/upstreams/dottest"
)

// A contender is a gateway that the bench measures.
type contender struct {
	name       string
	processors []int
	start      func(t *testing.T, listen, upstream netip.AddrPort) *process
}

// The processors of the gateway and of everything else.
const (
	gatewayProcessor = 0
	loadProcessor    = 1
)

var gatewayAlone = []int{gatewayProcessor}

// ourselves is dotgate with further environment variables.
func ourselves(more ...string) contender {
	return contender{"dotgate", gatewayAlone, func(t *testing.T, listen, upstream netip.AddrPort) *process {
		g := start(t, environment(listen, []string{url(upstream)}, more...), dotgate, "serve")
		g.await(t, "dotgate is serving")
		return g
	}}
}

// peers are the programs that dotgate is compared with.
func peers() []contender {
	return []contender{{"Unbound", gatewayAlone, peerUnbound}, {"dnsdist", gatewayAlone, peerDnsdist}}
}

//go:embed testdata/bench-unbound.conf
var peerUnboundConfig string

//go:embed testdata/bench-dnsdist.conf
var peerDnsdistConfig string

func peerUnbound(t *testing.T, listen, upstream netip.AddrPort) *process {
	config := peerConfig(t, "unbound.conf", peerUnboundConfig, listen, strings.ReplaceAll(upstream.String(), ":", "@"))
	return start(t, nil, program(t, "unbound", "unbound"), "-d", "-p", "-c", config)
}

func peerDnsdist(t *testing.T, listen, upstream netip.AddrPort) *process {
	config := peerConfig(t, "dnsdist.conf", peerDnsdistConfig, listen, upstream.String())
	return start(t, nil, program(t, "dnsdist", "dnsdist"), "--supervised", "--disable-syslog", "-C", config)
}

// peerConfig writes a peer's configuration and returns its path.
func peerConfig(t *testing.T, name, text string, listen netip.AddrPort, upstream string) string {
	t.Helper()
	dir := t.TempDir()
	text = strings.NewReplacer("@DIR@", dir, "@ADDR@", listen.Addr().String(), "@PORT@", fmt.Sprint(listen.Port()),
		"@UPSTREAM@", upstream, "@SERVER_NAME@", dottest.ServerName, "@CA@", caFile).Replace(text)
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A bench is a running contender and its upstream.
type bench struct {
	gateway, upstream  *process
	addr, upstreamAddr netip.AddrPort
}

// startBench returns a bench whose gateway has answered and has the hot names
// in its cache.
func startBench(t *testing.T, c contender, delay time.Duration) *bench {
	t.Helper()
	b := &bench{addr: ownAddr()}
	b.upstream, b.upstreamAddr = startBenchUpstream(t, delay)
	on(t, func() { b.gateway = c.start(t, b.addr, b.upstreamAddr) }, c.processors...)
	warm(t, b.addr)
	return b
}

// stop ends both at once.
func (b *bench) stop() {
	b.gateway.kill()
	b.upstream.kill()
}

// on runs f, and the processes that it starts, on some processors.
func on(t *testing.T, f func(), processors ...int) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	for _, p := range processors {
		set.Set(p)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		t.Fatalf("run on processors %v: %v (the bench needs two)", processors, err)
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	f()
}

// holdLoad keeps this process, and the processes that it starts, on the processor of the
// load.
func holdLoad(t *testing.T) {
	t.Helper()
	var set unix.CPUSet
	set.Set(loadProcessor)
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		var id int
		_, _ = fmt.Sscan(thread.Name(), &id)
		if err := unix.SchedSetaffinity(id, &set); err != nil && err != unix.ESRCH {
			t.Fatalf("run on processor %d: %v (the bench needs two)", loadProcessor, err)
		}
	}
	runtime.GOMAXPROCS(1)
}

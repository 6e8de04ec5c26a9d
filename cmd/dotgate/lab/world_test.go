//go:build linux && lab

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// upstreams is the number of upstreams in a world: a, b and c.
const upstreams = 3

// A world is the gateway and its three upstreams, with faults on request.
type world interface {
	// startFault starts a fault of upstream i, endFault ends it.
	startFault(i int, f fault)
	endFault(i int, f fault)
	// sample returns the counts of the upstreams.
	sample() sample
	// pause is the least time between two samples.
	pause() time.Duration
	// asked returns the number of queries for name at all upstreams.
	asked(name string) int
	addr(i int) netip.AddrPort
	gateway() *gateway
	truth() truth
}

// upstreamsFile writes a configuration with upstreams that have several transports: their
// addresses for DNS over TLS, and for HTTPS.
func upstreamsFile(t *testing.T, s scenario, dot, doh [upstreams][]netip.AddrPort, doq uint16) (file string) {
	t.Helper()
	text := "upstreams:\n"
	for i := range dot {
		if s.single && i > 0 {
			break
		}
		name := "upstream@" + append(dot[i], doh[i]...)[0].String()
		text += fmt.Sprintf("- {name: %q, server_name: %s, rate: %d, transports: [%s]", name, dottest.ServerName, s.rateLimit, strings.Join(s.transports, ", "))
		for option, list := range map[string][]netip.AddrPort{"addresses": dot[i], "doh_addresses": doh[i]} {
			if len(list) > 0 {
				text += fmt.Sprintf(", %s: [%s]", option, strings.ReplaceAll(strings.Trim(fmt.Sprint(list), "[]"), " ", ", "))
			}
		}
		if slices.Contains(s.transports, DoQ) {
			text += fmt.Sprintf(", doq_port: %d", doq)
		}
		text += "}\n"
	}
	file = filepath.Join(t.TempDir(), "dotgate.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// newWorld returns a running world, with the fault that s has at the start.
func newWorld(t *testing.T, s scenario) world {
	t.Helper()
	if s.network {
		return newNetwork(t, s)
	}
	return newServers(t, s)
}

// A sample has the counts of the upstreams at a time.
type sample struct {
	at         time.Time
	queries    [upstreams]int
	best       [upstreams]int // of these: over the best transport
	dials      [upstreams]int
	handshakes [upstreams]int // completed
	unroutable int            // packets, SYNs among them, that the gateway's kernel had no route for
}

func (s sample) total() (n int) {
	for _, q := range s.queries {
		n += q
	}
	return n
}

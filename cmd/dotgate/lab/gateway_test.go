//go:build linux && lab

package lab

import (
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A gateway is the program under test, as a process.
type gateway struct {
	t    *testing.T
	cmd  *exec.Cmd
	addr netip.AddrPort
	log  strings.Builder // may be read after the end of the process
	dial func(network, address string) (net.Conn, error)
	done bool
}

// newGateway returns a gateway that asks upstreams, as URLs, and trusts the
// authority in caFile. It listens on addr.
func newGateway(t *testing.T, addr netip.AddrPort, caFile string, urls []string) *gateway {
	g := &gateway{t: t, addr: addr, dial: net.Dial, cmd: exec.Command(program, "--listen", addr.String())}
	g.cmd.Env = []string{
		"SSL_CERT_FILE=" + caFile, "SSL_CERT_DIR=/nonexistent",
		"DOTGATE_UPSTREAMS=" + strings.Join(urls, ","),
		"DOTGATE_ADMIN_LISTEN=off",
		"DOTGATE_HEALTH_PROBE_NAME=probe.lab.example.com", "DOTGATE_HEALTH_PROBE_TYPE=A",
	}
	if len(urls) == 1 && strings.HasSuffix(urls[0], ".yaml") {
		g.cmd.Env[2] = "DOTGATE_CONFIG=" + urls[0]
	}
	g.cmd.Stderr = &g.log
	// It ends if the lab crashes.
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	t.Cleanup(g.stop)
	return g
}

// stop ends the gateway. Its log can be read then.
func (g *gateway) stop() {
	if g.done || g.cmd.Process == nil {
		return
	}
	g.done = true
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(10*time.Second, func() { _ = g.cmd.Process.Kill() })
	defer kill.Stop()
	if err := g.cmd.Wait(); err != nil {
		g.t.Errorf("the gateway ended with %v; it logged:\n%s", err, &g.log)
	} else if *keepLogs {
		g.t.Logf("the gateway logged:\n%s", &g.log)
	}
}

// downs returns how often the log reports the upstream at addr as down.
func (g *gateway) downs(addr netip.AddrPort) (n int) {
	for line := range strings.Lines(g.log.String()) {
		if strings.Contains(line, `"upstream is down"`) && strings.Contains(line, "@"+addr.String()+" ") {
			n++
		}
	}
	return n
}

func (g *gateway) waitUntilListening() {
	g.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		conn, err := g.dial("tcp", g.addr.String())
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("the gateway does not listen within 5 s of its start: %v; it logged:\n%s", err, &g.log)
		}
		time.Sleep(time.Millisecond)
	}
}

//go:build linux && (e2e || figures || load)

package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

const (
	startLimit = 10 * time.Second // until a program is ready, on a busy machine
	stopLimit  = 5 * time.Second  // until dotgate has ended
)

// A process is a program that a test has started and that ends with it.
type process struct {
	cmd    *exec.Cmd
	output output        // both streams
	ended  chan struct{} // closed after the end of the process and of its output
}

func start(t *testing.T, environ []string, program string, args ...string) *process {
	t.Helper()
	p := unstarted(program, args...)
	p.cmd.Env = environ
	p.begin(t)
	return p
}

// unstarted returns a process that is not started.
func unstarted(program string, args ...string) *process {
	return &process{cmd: exec.Command(program, args...), ended: make(chan struct{})}
}

// begin starts p.
func (p *process) begin(t *testing.T) {
	t.Helper()
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	// It ends if the tests are killed.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // its state has the exit code
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s said:\n%s", p.cmd.Path, p.output.tail(60))
		}
	})
}

func (p *process) signal(s os.Signal) { _ = p.cmd.Process.Signal(s) } // fails if it has ended

// kill ends p with SIGKILL, even if it is stopped, and waits for its end.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.ended
}

// exitCode waits for p to end by itself.
func (p *process) exitCode(t *testing.T, limit time.Duration) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(limit):
		t.Errorf("%s did not end within %v", p.cmd.Path, limit)
		p.kill()
	}
	return p.cmd.ProcessState.ExitCode()
}

// await waits until the output of p has text.
func (p *process) await(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(startLimit)
	for {
		news := p.output.news()
		if p.output.contains(text) {
			return
		}
		select {
		case <-news:
		case <-p.ended:
			if !p.output.contains(text) {
				t.Fatalf("%s ended (%v) before it said %q:\n%s", p.cmd.Path, p.cmd.ProcessState, text, p.output.tail(60))
			}
		case <-deadline:
			t.Fatalf("%s did not say %q within %v:\n%s", p.cmd.Path, text, startLimit, p.output.tail(60))
		}
	}
}

// processorTime returns the CPU time of p, in user and system mode.
func (p *process) processorTime(t *testing.T) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	// The command's name, in parentheses, may hold anything; after it comes
	// field 3, and the times are fields 14 and 15, in hundredths of a second.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks int
	for _, field := range fields[14-3 : 16-3] {
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}

// memory returns the resident memory of p, in octets.
func (p *process) memory(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize()
}

// An output stores the output of a process.
type output struct {
	mu      sync.Mutex
	text    []byte
	changed chan struct{} // closed with the next Write, or nil
}

func (o *output) Write(data []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, data...)
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
	return len(data), nil
}

// news returns a channel that is closed when there is more output.
func (o *output) news() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return o.changed
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

func (o *output) contains(text string) bool { return strings.Contains(o.String(), text) }

// tail returns the last lines.
func (o *output) tail(n int) string {
	lines := strings.Split(o.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// A gateway is a dotgate process that serves.
type gateway struct {
	*process
	addr netip.AddrPort
}

// environment returns the variables that configure dotgate: those of all tests, and more.
func environment(listen netip.AddrPort, upstreams []string, more ...string) []string {
	return append([]string{
		"SSL_CERT_FILE=" + caFile,
		"SSL_CERT_DIR=" + noCerts,
		"DOTGATE_GATEWAY_LISTEN=" + listen.String(),
		"DOTGATE_UPSTREAMS=" + strings.Join(upstreams, ","),
		"DOTGATE_HEALTH_PROBE_NAME=probe.example.com",
		"DOTGATE_CONTROL_SOCKET=off",
		"DOTGATE_ADMIN_LISTEN=off",
		"DOTGATE_HEALTH_PROBE_TYPE=A",
		"GORACE=atexit_sleep_ms=0",
	}, more...)
}

// launch starts dotgate and does not wait for it. At the end of the test it must stop on
// SIGTERM.
func launch(t *testing.T, upstreams []string, more ...string) *gateway {
	t.Helper()
	g := &gateway{addr: ownAddr()}
	g.process = start(t, environment(g.addr, upstreams, more...), dotgate, "serve")
	t.Cleanup(func() {
		g.stop(t)
		for _, alarm := range []string{"DATA RACE", "BUG:", "panic:", "goroutine "} {
			if g.output.contains(alarm) {
				t.Errorf("dotgate said %q:\n%s", alarm, g.output.String())
			}
		}
	})
	return g
}

// startGateway returns a gateway that is ready.
func startGateway(t *testing.T, upstreams []string, more ...string) *gateway {
	t.Helper()
	g := launch(t, upstreams, more...)
	g.await(t, "dotgate is serving")
	return g
}

// stop sends SIGTERM to g and returns the time until its end. It may be called twice.
func (g *gateway) stop(t *testing.T) time.Duration {
	t.Helper()
	begin := time.Now()
	g.signal(syscall.SIGTERM)
	if code := g.exitCode(t, stopLimit); code != 0 {
		t.Errorf("dotgate exits with %d, not 0", code)
	}
	return time.Since(begin)
}

// url returns the URL of an upstream.
func url(addr netip.AddrPort) string { return fmt.Sprintf("tls://%s#%s", addr, dottest.ServerName) }

// startUpstream starts an upstream of dottest in this process.
func startUpstream(t *testing.T, o dottest.Options) *dottest.Server {
	t.Helper()
	o.CA = ca
	return dottest.NewServer(t, o)
}

// startUpstreams starts one for each round-trip time.
func startUpstreams(t *testing.T, rtts ...time.Duration) (servers []*dottest.Server, urls []string) {
	t.Helper()
	for _, rtt := range rtts {
		s := startUpstream(t, dottest.Options{RTT: rtt})
		servers, urls = append(servers, s), append(urls, url(s.Addr()))
	}
	return servers, urls
}

// ownAddr returns an address that no other process or test uses.
func ownAddr() netip.AddrPort { return netip.AddrPortFrom(dottest.Loopback(), 5300) }

// within waits until condition is true, and checks it every ten milliseconds.
func within(t *testing.T, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(limit); !condition(); <-look.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

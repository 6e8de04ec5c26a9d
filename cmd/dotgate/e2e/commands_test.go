//go:build linux && e2e

package e2e

import (
	"context"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// command runs dotgate until it ends. It returns its exit code and its output.
func command(t *testing.T, environ []string, args ...string) (code int, said string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, dotgate, args...)
	cmd.Env = environ
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

func TestHealthcheckExitCodes(t *testing.T) {
	servers, urls := startUpstreams(t, 0)
	g := startGateway(t, urls)
	f := func(want int, what string, environ []string) {
		t.Helper()
		begin := time.Now()
		if code, said := command(t, environ, "healthcheck"); code != want || time.Since(begin) > 2*time.Second {
			t.Errorf("%s: exit code %d after %v, not %d: %s", what, code, time.Since(begin), want, said)
		}
	}
	f(0, "all is well", environment(g.addr, urls))
	f(1, "no process listens there", environment(ownAddr(), urls))
	servers[0].Set(dottest.Fault{Never: true})
	f(1, "the upstream is silent", environment(g.addr, urls, "DOTGATE_HEALTH_PROBE_NAME=other.example.com"))
}

func TestCheckExitCodes(t *testing.T) {
	addr := ownAddr()
	if code, said := command(t, environment(addr, []string{"tls://192.0.2.1#dns.example.com"}), "check"); code != 0 || !strings.Contains(said, addr.String()) {
		t.Errorf("exit code %d: %s", code, said)
	}
	if code, said := command(t, environment(addr, []string{"http://192.0.2.1"}), "check"); code != 2 || !strings.Contains(said, "DOTGATE_UPSTREAMS") {
		t.Errorf("exit code %d, should be 2: %s", code, said)
	}
}

func TestAPortInUseIsReported(t *testing.T) {
	_, urls := startUpstreams(t, 0)
	g := startGateway(t, urls)
	code, said := command(t, environment(g.addr, urls), "serve")
	if code != 1 || !strings.Contains(said, g.addr.String()) || !strings.Contains(said, "in use") {
		t.Errorf("exit code %d: %s", code, said)
	}
	if strings.Contains(said, "goroutine") || strings.Count(strings.TrimSpace(said), "\n") > 2 {
		t.Errorf("that is much to read: %s", said)
	}
}

func TestPendingQueriesAreAnsweredBeforeTheEnd(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			const rtt = 500 * time.Millisecond
			servers, urls := startUpstreams(t, rtt, rtt)
			g := startGateway(t, urls)
			warmUp(t, g.addr)
			before := queries(servers)

			const n = 200
			l := dottestLoad(g.addr, "last", n, 0)
			l.network = network
			var o outcome
			var clients sync.WaitGroup
			clients.Go(func() { o = l.run(t) })
			within(t, 3*time.Second, "all queries under way", func() bool { return queries(servers)-before >= n })
			took := g.stop(t)
			clients.Wait()
			o.mustBeWhole(t)
			t.Logf("ended %v after SIGTERM", took.Round(time.Millisecond))
			if took > 2500*time.Millisecond {
				t.Errorf("it took %v to end", took)
			}
		})
	}
}

func TestUnansweredQueriesDoNotDelayTheEnd(t *testing.T) {
	servers, urls := startUpstreams(t, 0, 0)
	g := startGateway(t, urls)
	const n = 20
	l := dottestLoad(g.addr, "never", n, 0) // an instruction to dottest
	l.patience = 4 * time.Second
	var o outcome
	var clients sync.WaitGroup
	clients.Go(func() { o = l.run(t) })
	within(t, 3*time.Second, "all queries under way", func() bool { return queries(servers) >= n })
	took := g.stop(t)
	clients.Wait()
	t.Logf("ended %v after SIGTERM; %v", took.Round(time.Millisecond), o)
	if took > 2500*time.Millisecond || o.problems["RCODE 2"] != n {
		t.Errorf("want SERVFAIL for each, and the end within 2.5 s; it took %v: %v", took, o)
	}
}

func TestTheFirstAnswerComesSoonAfterTheStart(t *testing.T) {
	_, urls := startUpstreams(t, 0)
	// Ten times the usual value, for busy machines.
	if median := firstAnswers(t, urls, 10); median > 500*time.Millisecond {
		t.Errorf("it takes %v", median)
	}
}

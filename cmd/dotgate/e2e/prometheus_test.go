//go:build linux && e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	neturl "net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// rulesDir has the Prometheus configuration of the pair.
const rulesDir = "../../../docker/prometheus"

func TestPrometheusAcceptsTheRules(t *testing.T) {
	for _, args := range [][]string{
		{"check", "config", "prometheus.yml"},
		{"check", "rules", "alerts.yml"},
		{"test", "rules", "alerts_test.yml"},
	} {
		promtool := exec.Command("promtool", args...)
		promtool.Dir = rulesDir
		if out, err := promtool.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// Prometheus with the rules alerts when an upstream is down.
func TestPrometheusAlerts(t *testing.T) {
	servers, upstreams := startUpstreams(t, time.Millisecond, time.Millisecond)
	operators := netip.AddrPortFrom(dottest.Loopback(), 8053)
	startGateway(t, upstreams, "DOTGATE_ADMIN_LISTEN="+operators.String(), "DOTGATE_HEALTH_INTERVAL=1s")

	dir := t.TempDir()
	config, err := os.ReadFile(filepath.Join(rulesDir, "prometheus.yml"))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := filepath.Abs(filepath.Join(rulesDir, "alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	ours := strings.NewReplacer("5s", "500ms", "alerts.yml", rules, `"node-a:8053", "node-b:8053"`, fmt.Sprintf("%q", operators)).Replace(string(config))
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(ours), 0o600); err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(dottest.Loopback(), 9090)
	prometheus := start(t, os.Environ(), "prometheus", "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+at.String())
	defer func() {
		prometheus.signal(syscall.SIGTERM)
		prometheus.exitCode(t, 10*time.Second)
	}()

	is := func(query, want string) func() bool {
		return func() bool { return value(at, query) == want }
	}
	within(t, 20*time.Second, "Prometheus scrapes the gateway", is(`up{job="dotgate"}`, "1"))
	within(t, 10*time.Second, "both upstreams are up", is(`dotgate_redundancy{route=""}`, "2"))
	servers[1].Close()
	within(t, 20*time.Second, "an upstream is missed", is(`dotgate_redundancy{route=""}`, "1"))
	within(t, 10*time.Second, "an alert is pending", is(`count(ALERTS{alertname="DotgateRedundancyLost",alertstate="pending"})`, "1"))
}

// value returns the value of a query's first result, "" if it has none.
func value(at netip.AddrPort, query string) string {
	r, err := http.Get(fmt.Sprintf("http://%s/api/v1/query?query=%s", at, neturl.QueryEscape(query)))
	if err != nil {
		return ""
	}
	defer r.Body.Close()
	var reply struct {
		Data struct {
			Result []struct{ Value [2]any }
		}
	}
	if json.NewDecoder(r.Body).Decode(&reply) != nil || len(reply.Data.Result) == 0 {
		return ""
	}
	return fmt.Sprint(reply.Data.Result[0].Value[1])
}

//go:build linux && e2e

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLateAddressesAreServed runs the gateway in a network namespace without the
// address of its DNS, HTTP and peer listeners, which is added later.
func TestLateAddressesAreServed(t *testing.T) {
	if out, err := exec.Command("unshare", "--net", "true").CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: addresses that come late, because no network namespace can be made here (root is needed): %s", out)
	}
	const present, late, later = "127.0.0.1:5300", "192.0.2.1:5300", "192.0.2.2:5300"
	dir := t.TempDir()
	key, file := filepath.Join(dir, "key"), filepath.Join(dir, "dotgate.yaml")
	if err := os.WriteFile(key, []byte(strings.Repeat("0123456789abcdef", 4)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	write := func(listen ...string) {
		t.Helper()
		text := fmt.Sprintf(`
gateway: {listen: ["%s"]}
admin: {listen: "192.0.2.1:8053"}
control: {socket: %s}
peers: {listen: "192.0.2.1:8054", nodes: ["192.0.2.3"], key_file: %s}
upstreams: ["%s"]
`, strings.Join(listen, `","`), filepath.Join(dir, "control"), key, url(netip.MustParseAddrPort("127.0.0.1:853")))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(present, late)
	environ := []string{"PATH=" + os.Getenv("PATH"), "DOTGATE_CONFIG=" + file}
	g := start(t, environ, "unshare", "--net", "sh", "-c", `ip link set lo up && exec "$0" serve`, dotgate)
	g.await(t, "dotgate is serving")
	for _, want := range []string{
		`no interface has an address of gateway.listen; clients are served there once one has" address=` + late,
		`serving without metrics, readiness and page until an interface has the address of admin.listen`,
		`serving without the other gateways until their socket can be opened`,
	} {
		g.await(t, want)
	}
	in := func(script string) string {
		t.Helper()
		out, err := exec.Command("nsenter", "--net", "--target", fmt.Sprint(g.cmd.Process.Pid), "env", "-i", environ[0], environ[1], "sh", "-ec", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return string(out)
	}
	dig := program(t, "dig", "dnsutils")
	answered := func(at string) {
		t.Helper()
		host, port, _ := strings.Cut(at, ":")
		for _, option := range []string{"+notcp", "+tcp"} {
			if out := in(fmt.Sprintf("%s %s +tries=1 +timeout=5 -p %s @%s localhost A", dig, option, port, host)); !strings.Contains(out, "NOERROR") {
				t.Errorf("%s %s:\n%s", at, option, out)
			}
		}
	}
	answered(present)
	for _, want := range []string{"gateway.listen: no interface has 192.0.2.1", "admin.listen: no interface has 192.0.2.1", "peers.listen: no interface has 192.0.2.1"} {
		if out := in(dotgate + " check"); !strings.Contains(out, want) {
			t.Errorf("%q is not in what check prints:\n%s", want, out)
		}
	}
	in("ip addr add 192.0.2.1/32 dev lo")
	g.await(t, `clients are served there" address=`+late)
	answered(late)
	g.await(t, `it is served" address=192.0.2.1:8053`)
	for deadline := time.Now().Add(startLimit); !strings.Contains(in("ss -lntu"), "192.0.2.1:8054"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("peers are not served")
		}
	}

	write(late, later) // by a reload
	g.await(t, `clients are served there once one has" address=`+later)
	answered(late)
	in("ip addr add 192.0.2.2/32 dev lo")
	g.await(t, `clients are served there" address=`+later)
	answered(later)
	in("ip addr del 192.0.2.2/32 dev lo")
	if out := in(dotgate + " healthcheck || true"); strings.Contains(out, "192.0.2.2") {
		t.Errorf("an address was asked that is on no interface:\n%s", out)
	}
}

//go:build linux && e2e

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestOnLinkFollowsInterfacesAndRoutes runs the gateway in a network namespace whose
// interfaces change, with a client in another one.
func TestOnLinkFollowsInterfacesAndRoutes(t *testing.T) {
	if out, err := exec.Command("unshare", "--net", "true").CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: gateway.allow's on_link, because no network namespace can be made here (root is needed): %s", out)
	}
	const listen = "192.0.2.1:5300"
	setUp := `set -e
echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
ip link set lo up
ip link add lan type veth peer name far
ip link set lan up
ip addr add 192.0.2.1/24 dev lan
ip addr add 203.0.113.1/20 dev lan
`
	upstream := netip.MustParseAddrPort("127.0.0.1:853")
	environ := environment(netip.MustParseAddrPort(listen), []string{url(upstream)}, "PATH="+os.Getenv("PATH"))
	g := start(t, environ, "unshare", "--net", "sh", "-c", setUp+`exec "$0" serve`, dotgate)
	g.await(t, `on_link=192.0.2.0/24`) // in the first line

	client := start(t, []string{"PATH=" + os.Getenv("PATH")}, "unshare", "--net", "sh", "-c", "echo ready; exec sleep 600")
	client.await(t, "ready")
	pid, clientPID := fmt.Sprint(g.cmd.Process.Pid), fmt.Sprint(client.cmd.Process.Pid)
	in := func(target, script string) string {
		t.Helper()
		out, err := exec.Command("nsenter", "--net", "--target", target, "sh", "-ec", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return string(out)
	}
	in(pid, "ip link set far netns "+clientPID)
	in(clientPID, "ip link set lo up; ip link set far up; ip addr add 192.0.2.9/24 dev far; ip addr add 203.0.113.9/20 dev far; ip addr add 198.51.100.9/32 dev lo")
	in(pid, "ip route add 198.51.100.0/24 dev lan")
	dig := program(t, "dig", "dnsutils")
	// served compares whether a query from an address is answered.
	served := func(from string, want bool) {
		t.Helper()
		var out string
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			out = in(clientPID, fmt.Sprintf("%s +tries=1 +timeout=2 -b %s -p 5300 @192.0.2.1 localhost A || true", dig, from))
			if got := strings.Contains(out, "NOERROR"); got == want && (got || strings.Contains(out, "REFUSED") || strings.Contains(out, "timed out")) {
				return
			}
		}
		t.Errorf("served from %s: not %t:\n%s", from, want, out)
	}
	served("192.0.2.9", true)
	served("203.0.113.9", false) // a public prefix shorter than /24
	served("198.51.100.9", false)
	g.await(t, `203.0.113.0/24 (203.0.112.0/20 of lan is not on_link: public and shorter than /24`)
	in(pid, "ip addr add 198.51.100.1/24 dev lan")
	g.await(t, `have changed" on_link="192.0.2.0/24, 198.51.100.0/24"`)
	served("198.51.100.9", true)
	in(pid, "ip addr del 198.51.100.1/24 dev lan; ip route replace 198.51.100.0/24 dev lan")
	g.await(t, `have changed" on_link=192.0.2.0/24`)
	served("198.51.100.9", false)

	// 100.64.0.0/10 is served on an overlay's interface, unless it has the default route.
	in(clientPID, "ip addr add 100.99.0.9/32 dev lo")
	in(pid, "ip link add overlay type veth peer name spare; ip link set spare up; ip link set overlay up; ip addr add 100.101.1.1/32 dev overlay; ip route add 100.99.0.9/32 dev lan")
	g.await(t, `have changed" on_link="100.64.0.0/10, 192.0.2.0/24"`)
	served("100.99.0.9", true)
	in(pid, "ip route add default dev overlay")
	served("100.99.0.9", false)
	in(pid, "ip route del default; ip route add default dev overlay table 77")
	served("100.99.0.9", false)
	in(pid, "ip route del default dev overlay table 77")
	served("100.99.0.9", true)
	out := in(pid, "env -i "+strings.Join(environ, " ")+" "+dotgate+" check")
	if want := "# gateway.allow: on_link is 100.64.0.0/10, 192.0.2.0/24; not 203.0.112.0/20 of lan (public and shorter than /24)"; !strings.Contains(out, want) {
		t.Errorf("%q is not in what check prints:\n%s", want, out)
	}
}

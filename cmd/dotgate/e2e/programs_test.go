//go:build linux && e2e

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dotgate/upstreams/dottest"
)

// TestDnsperfLosesNoQueries runs dnsperf at its maximum rate, over UDP and TCP.
func TestDnsperfLosesNoQueries(t *testing.T) {
	_, urls := startUnbounds(t)
	g := startGateway(t, urls)
	const names, rounds = 1000, 20
	var list strings.Builder
	for i := range names {
		fmt.Fprintf(&list, "%s A\n", unboundName(i))
	}
	file := writeFile(t, "queries", list.String())
	for _, network := range []string{"udp", "tcp"} {
		out, err := exec.Command(program(t, "dnsperf", "dnsperf"), "-s", g.addr.Addr().String(), "-p", fmt.Sprint(g.addr.Port()),
			"-d", file, "-n", fmt.Sprint(rounds), "-m", network, "-c", "4", "-q", "100", "-O", "suppress=timeout").CombinedOutput()
		if err != nil {
			t.Fatalf("dnsperf: %v\n%s", err, out)
		}
		for what, want := range map[string]string{
			"completed": fmt.Sprint(names * rounds), "lost": "0",
		} {
			if got := found(string(out), `Queries `+what+`: +(\d+)`); got != want {
				t.Errorf("%s: %s queries %s, not %s\n%s", network, got, what, want, out)
			}
		}
		if !strings.Contains(string(out), fmt.Sprintf("NOERROR %d (100.00%%)", names*rounds)) {
			t.Errorf("%s: not every code is NOERROR\n%s", network, out)
		}
		t.Logf("%s: %s queries a second", network, found(string(out), `Queries per second: +([\d.]+)`))
	}
}

// TestStubby has Stubby (getdns) ask the gateway over each transport. It sends cookies,
// padding and keepalive.
func TestStubby(t *testing.T) {
	_, urls := startUnbounds(t)
	g := startGateway(t, urls)
	for _, networks := range [][]string{{"UDP", "TCP"}, {"TCP"}} { // over TCP only truncated answers, or all
		listen := netip.AddrPortFrom(dottest.Loopback(), 5353)
		config := writeFile(t, "stubby.yml", fmt.Sprintf(`resolution_type: GETDNS_RESOLUTION_STUB
dns_transport_list: [GETDNS_TRANSPORT_%s]
idle_timeout: 10000
edns_client_subnet_private: 1
appdata_dir: %q
listen_addresses:
  - %s@%d
upstream_recursive_servers:
  - address_data: %s
    port: %d
`, strings.Join(networks, ", GETDNS_TRANSPORT_"), t.TempDir(), listen.Addr(), listen.Port(), g.addr.Addr(), g.addr.Port()))
		start(t, nil, program(t, "stubby", "stubby"), "-C", config, "-l").await(t, "Starting DAEMON")
		getsAnswers(t, "Stubby over "+strings.Join(networks, ", "), listen)
	}
}

// TestSystemdResolved has systemd-resolved ask the gateway. Installing it would change the
// host's resolv.conf, so its package is only unpacked, and it runs in a mount namespace.
func TestSystemdResolved(t *testing.T) {
	t.Parallel()
	_, urls := startUnbounds(t)
	g := startGateway(t, urls)
	listen := netip.AddrPortFrom(dottest.Loopback(), 5353)
	users, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	inside(t, map[string]string{
		"/etc/passwd": string(users) + "systemd-resolve:x:0:0::/:/usr/sbin/nologin\n",
		"/etc/systemd/resolved.conf": fmt.Sprintf("[Resolve]\nDNS=%s\nFallbackDNS=\nDNSSEC=no\nDNSStubListener=no\nDNSStubListenerExtra=%s\nLLMNR=no\nMulticastDNS=no\nCache=no\n",
			g.addr, listen),
		"/run/systemd/resolve/.keep": "",
	}, unpacked(t, "systemd-resolved", "lib/systemd/systemd-resolved")).await(t, "Using system hostname")
	getsAnswers(t, "systemd-resolved", listen)
}

// TestGlibc has the C library ask the gateway. It asks at port 53 only.
func TestGlibc(t *testing.T) {
	_, urls := startUnbounds(t)
	addr := netip.AddrPortFrom(dottest.Loopback(), 53)
	if ln, err := net.Listen("tcp", addr.String()); err != nil {
		t.Skipf("NOT TESTED: the C library asks at port 53, which may not be had here: %v", err)
	} else {
		ln.Close()
	}
	startGateway(t, urls, "DOTGATE_GATEWAY_LISTEN="+addr.String())
	files := map[string]string{
		"/etc/resolv.conf":   fmt.Sprintf("nameserver %s\noptions timeout:2 attempts:1 edns0 trust-ad\n", addr.Addr()),
		"/etc/nsswitch.conf": "hosts: dns\n",
	}
	for _, options := range []string{"", "\noptions use-vc\n"} {
		files["/etc/resolv.conf"] += options
		p := inside(t, files, "getent", "ahosts", "alias.example.com")
		if code := p.exitCode(t, startLimit); code != 0 {
			t.Errorf("getent exits with %d%s", code, options)
		}
		for _, want := range []string{"192.0.2.80", "2001:db8::80"} {
			if !p.output.contains(want) {
				t.Errorf("%s is missing from\n%s", want, p.output.String())
			}
		}
		if p := inside(t, files, "getent", "ahosts", "missing.example.com"); p.exitCode(t, startLimit) != 2 {
			t.Errorf("getent found a name that does not exist:\n%s", p.output.String())
		}
	}
}

// getsAnswers checks that the resolver that listens there gets answers of the gateway.
func getsAnswers(t *testing.T, resolver string, listen netip.AddrPort) {
	t.Helper()
	for question, want := range map[string]string{
		"www.example.com A": "www.example.com. A 192.0.2.80", "www.example.com AAAA": "www.example.com. AAAA 2001:db8::80",
		"example.com TXT": `example.com. TXT "v=spf1 -all"`,
	} {
		p := dig.ask(t, listen, strings.Fields(question)...)
		if p.status != "NOERROR" || len(p.answers) != 1 || p.answers[0] != want {
			t.Errorf("%s: %s is %s %q, not %q\n%s", resolver, question, p.status, p.answers, want, p.text)
		}
	}
	if p := dig.ask(t, listen, "missing.example.com"); p.status != "NXDOMAIN" {
		t.Errorf("%s: a name that does not exist is %s\n%s", resolver, p.status, p.text)
	}
	if p := dig.ask(t, listen, "big.example.com", "TXT", "+tcp"); len(p.answers) != 1 || len(p.answers[0]) < 4000 {
		t.Errorf("%s: a long answer has %d records\n%s", resolver, len(p.answers), p.text)
	}
}

// inside starts a program in a mount namespace with these files.
func inside(t *testing.T, files map[string]string, program string, args ...string) *process {
	t.Helper()
	script, dir, made := "set -e\n", t.TempDir(), make(map[string]bool)
	for path, content := range files {
		own := filepath.Join(dir, strings.ReplaceAll(path, "/", "_"))
		if err := os.WriteFile(own, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			script += fmt.Sprintf("mount --bind %s %s\n", own, path)
			continue
		}
		// Changes below the first two directories are visible in the namespace only.
		top := strings.Join(strings.SplitN(path, "/", 4)[:3], "/")
		if !made[top] {
			script += fmt.Sprintf("mkdir -p %[1]s; mount -t tmpfs none %[1]s\n", top)
			made[top] = true
		}
		script += fmt.Sprintf("mkdir -p %s; cp %s %s\n", filepath.Dir(path), own, path)
	}
	script += `exec "$@"`
	namespace := []string{"--mount"}
	if os.Geteuid() != 0 {
		namespace = append(namespace, "--map-root-user")
	}
	if out, err := exec.Command("unshare", append(namespace, "true")...).CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: no mount namespace can be had here: %s", out)
	}
	return start(t, os.Environ(), "unshare", append(append(namespace, "sh", "-c", script, "sh", program), args...)...)
}

// unpacked returns the path of a program in a Debian package that is not installed.
func unpacked(t *testing.T, debianPackage, program string) string {
	t.Helper()
	if path := filepath.Join("/usr", program); exec.Command("test", "-x", path).Run() == nil {
		return path
	}
	dir := t.TempDir()
	fetch := exec.Command("sh", "-c", fmt.Sprintf("apt-get -qq download %s && dpkg-deb -x %s_*.deb .", debianPackage, debianPackage))
	fetch.Dir = dir
	if out, err := fetch.CombinedOutput(); err != nil {
		t.Fatalf("unpack the Debian package %s: %v\n%s", debianPackage, err, out)
	}
	return filepath.Join(dir, program)
}

func writeFile(t *testing.T, name, content string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

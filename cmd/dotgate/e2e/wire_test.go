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
)

// TestCraftedPackets has dnspython send malformed packets.
func TestCraftedPackets(t *testing.T) {
	_, urls := startUnbounds(t)
	g := startGateway(t, urls)
	out, err := exec.Command("/usr/bin/python3", "testdata/crafted.py", g.addr.Addr().String(), fmt.Sprint(g.addr.Port())).CombinedOutput()
	if err != nil {
		t.Fatalf("%v (Debian has it in python3-dnspython):\n%s", err, out)
	}
	got := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		name, result, _ := strings.Cut(strings.TrimSpace(line), ": ")
		got[name] = result
	}
	// A resolver may answer ANY with any records (RFC 8482 section 4.1).
	const minimal = "ANY (RFC 8482)"
	got[minimal] = strings.TrimSuffix(got[minimal], " AAAA")
	both := func(result string) string { return result + " / " + result }
	for name, want := range map[string]string{
		"a query":                               both("NOERROR rd+ra A"),
		"a response":                            both("silence"),
		"eleven octets":                         both("silence"),
		"no question (RFC 9619)":                both("FORMERR rd+ra"),
		"two questions (RFC 9619)":              both("FORMERR rd+ra"),
		"an octet too many":                     both("FORMERR rd+ra"),
		"a pointer in the question":             both("FORMERR rd+ra"),
		"a label of 64 octets":                  both("FORMERR rd+ra"),
		"a name of 256 octets":                  both("FORMERR rd+ra"),
		"OPT not at the root (RFC 6891 6.1.1)":  both("FORMERR rd+ra edns=1232"),
		"two OPT records (RFC 6891 6.1.1)":      both("FORMERR rd+ra edns=1232"),
		"OPT in the answer section":             both("FORMERR rd+ra"),
		"OPT in the authority section":          both("FORMERR rd+ra"),
		"opcode STATUS":                         both("NOTIMP -"),
		"opcode UPDATE":                         both("NOTIMP -"),
		"opcode 15 with all flags":              both("NOTIMP -"),
		"no question but EDNS":                  both("FORMERR rd+ra edns=1232"),
		"EDNS version 1 (RFC 6891 6.1.3)":       both("BADVERS rd+ra edns=1232"),
		"AXFR":                                  both("REFUSED rd+ra"),
		"IXFR":                                  both("REFUSED rd+ra"),
		"class NONE":                            both("REFUSED rd+ra"),
		"class CHAOS":                           both("REFUSED rd+ra"),
		"an unknown type (RFC 3597)":            both("NOERROR rd+ra"),
		"an unknown option":                     both("NOERROR rd+ra edns=1232 A"),
		"a cookie of 7 octets (RFC 7873 5.2.2)": both("FORMERR rd+ra edns=1232"),
		"ANY (RFC 8482)":                        "NOERROR rd+ra HINFO / NOERROR rd+ra A",
		"Z, AD and CD set":                      both("NOERROR rd+ra+cd A"),
	} {
		if got[name] != want {
			t.Errorf("%s: got %s, want %s", name, got[name], want)
		}
		delete(got, name)
	}
	for name, result := range got {
		t.Errorf("%s: unexpected result %s", name, result)
	}
}

// TestRepliesToDigAndKdig checks each behaviour with dig and kdig.
func TestRepliesToDigAndKdig(t *testing.T) {
	_, urls := startUnbounds(t)
	g := startGateway(t, urls, "DOTGATE_GATEWAY_NSID=ns1.example", "DOTGATE_GATEWAY_VERSION_BIND=dotgate",
		"DOTGATE_GATEWAY_COOKIE_SECRET=e5e973e5a6b2a43f48e7dc849e37bfcf")
	f := func(c client, args string, want ...string) {
		t.Helper()
		text := c.run(t, g.addr, strings.Fields(args)...)
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s %s: %q is missing from\n%s", c.name, args, w, text)
			}
		}
	}
	f(dig, "www.example.com +cookie=2464c4abcf10c957", "status: NOERROR", "; COOKIE: 2464c4abcf10c95701000000", "(good)")
	f(dig, "www.example.com +nsid", `("ns1.example")`)
	f(kdig, "www.example.com +nsid +tcp", `"ns1.example"`)
	f(dig, "www.example.com +keepalive +tcp", "; TCP KEEPALIVE: 10.0 secs")
	f(dig, "CH TXT version.bind", `"dotgate"`)
	f(dig, "CH TXT id.server", "status: REFUSED")
	f(dig, "www.example.com ANY +notcp", `"RFC8482"`)
	f(dig, "www.example.com +subnet=192.0.2.0/24", "status: NOERROR")
	f(dig, "printer.local", "status: NXDOMAIN", "local.\t")
	f(dig, "-x 192.168.1.1", "status: NXDOMAIN", "168.192.in-addr.arpa.")
	f(dig, "localhost AAAA", "::1")
	f(dig, "ipv4only.arpa", "192.0.0.170", "192.0.0.171")
	f(dig, "www.example.com +edns=1 +noednsneg", "status: BADVERS")
	f(dig, "www.example.com +ednsopt=65001:abcd", "status: NOERROR")
	f(dig, "www.example.com +opcode=notify", "status: NOTIMP")
	f(dig, "www.example.com +zflag +cdflag", "flags: qr rd ra cd;")
	f(dig, "example.com AXFR +tcp", "Transfer failed")
	f(kdig, "TYPE65280 www.example.com", "NOERROR")
}

// TestSignedAnswersValidateThroughTheGateway signs example.com and has delv, and an
// Unbound that validates, ask the gateway for it.
func TestSignedAnswersValidateThroughTheGateway(t *testing.T) {
	u := newUnbound(t, unboundAddrs[0])
	anchor := sign(t, filepath.Dir(u.config))
	u.start(t)
	g := startGateway(t, []string{url(u.addr)})

	keys := filepath.Join(t.TempDir(), "anchors")
	fields := strings.Fields(anchor) // owner, TTL, class, type, flags, protocol, algorithm, key…
	text := fmt.Sprintf("trust-anchors { example.com. static-key %s %s %s %q; };\n", fields[4], fields[5], fields[6], strings.Join(fields[7:], ""))
	if err := os.WriteFile(keys, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	delv := func(want string, args ...string) {
		t.Helper()
		args = append([]string{"@" + g.addr.Addr().String(), "-p", fmt.Sprint(g.addr.Port()), "-a", keys, "+root=example.com"}, args...)
		out, _ := exec.Command(program(t, "delv", "bind9-dnsutils"), args...).CombinedOutput()
		if !strings.Contains(string(out), want) {
			t.Errorf("delv %v: %q is missing from\n%s", args, want, out)
		}
	}
	delv("; fully validated", "www.example.com", "A")
	delv("; fully validated", "alias.example.com", "A")
	delv("; negative response, fully validated", "missing.example.com", "A")
	delv("; negative response, fully validated", "mail.example.com", "AAAA")

	v := startValidator(t, g.addr, anchor)
	for question, status := range map[string]string{"www.example.com A": "NOERROR", "missing.example.com A": "NXDOMAIN", "n2.w2.example.com A": "NOERROR"} {
		if p := dig.ask(t, v, append(strings.Fields(question), "+dnssec")...); p.status != status || !p.has("ad") {
			t.Errorf("%s through a validating Unbound: %s, flags %v\n%s", question, p.status, p.flags, p.text)
		}
	}
}

// sign signs the zone in dir and returns its key-signing key.
func sign(t *testing.T, dir string) (anchor string) {
	t.Helper()
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(program(t, name, "bind9-utils"), args...)
		cmd.Dir = dir
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return strings.TrimSpace(string(out))
	}
	var zone strings.Builder
	zone.Write(exampleZone)
	for _, flags := range []string{"", "KSK"} {
		args := []string{"-a", "ECDSAP256SHA256"}
		if flags != "" {
			args = append(args, "-f", flags)
		}
		key := run("dnssec-keygen", append(args, "example.com")...)
		data, err := os.ReadFile(filepath.Join(dir, key+".key"))
		if err != nil {
			t.Fatal(err)
		}
		zone.WriteString("\n" + string(data))
		for line := range strings.Lines(string(data)) {
			if flags != "" && !strings.HasPrefix(line, ";") && strings.Contains(line, "DNSKEY") {
				anchor = strings.TrimSpace(line)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "example.com.zone"), []byte(zone.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	run("dnssec-signzone", "-o", "example.com", "-f", "signed", "example.com.zone")
	if err := os.Rename(filepath.Join(dir, "signed"), filepath.Join(dir, "example.com.zone")); err != nil {
		t.Fatal(err)
	}
	if n := len(strings.Fields(anchor)); n == 7 { // without a TTL
		anchor = strings.Replace(anchor, " IN ", " 300 IN ", 1)
	} else if !strings.Contains(anchor, " 300 IN ") {
		anchor = strings.Replace(anchor, " IN ", " 300 IN ", 1)
	}
	return anchor
}

// startValidator starts an Unbound that validates the gateway's answers.
func startValidator(t *testing.T, gateway netip.AddrPort, anchor string) netip.AddrPort {
	t.Helper()
	dir, addr := t.TempDir(), ownAddr()
	config := fmt.Sprintf(`server:
	directory: %[1]q
	pidfile: "%[1]s/unbound.pid"
	chroot: ""
	username: ""
	use-syslog: no
	logfile: ""
	interface: %[2]s@%[3]d
	access-control: 127.0.0.0/8 allow
	do-not-query-localhost: no
	module-config: "validator iterator"
	trust-anchor: %[4]q
forward-zone:
	name: "."
	forward-addr: %[5]s@%[6]d
remote-control:
	control-enable: no
`, dir, addr.Addr(), addr.Port(), anchor, gateway.Addr(), gateway.Port())
	file := filepath.Join(dir, "unbound.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, nil, program(t, "unbound", "unbound"), "-d", "-p", "-c", file).await(t, "start of service")
	return addr
}

// TestAnIPv6PrefixIsOneClient asks from IPv6 addresses, in a network namespace: those of
// one /56 share a limit, and clients that are not allowed are refused as often as from an
// IPv4 address.
func TestAnIPv6PrefixIsOneClient(t *testing.T) {
	const one, sameHome, otherHome, stranger = "2001:db8:0:100::1", "2001:db8:0:1ff::2", "2001:db8:0:200::1", "2001:db8:ffff::1"
	script := "set -e\nip link set lo up\n"
	for _, addr := range []string{one, sameHome, otherHome, stranger} {
		script += fmt.Sprintf("ip -6 addr add %s/128 dev lo nodad\n", addr)
	}
	if out, err := exec.Command("unshare", "--net", "true").CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: no network namespace can be had here: %s", out)
	}
	listen := netip.MustParseAddrPort("[::1]:5300")
	unused := netip.MustParseAddrPort("127.0.0.1:853")
	environ := environment(listen, []string{url(unused)}, "PATH="+os.Getenv("PATH"),
		"DOTGATE_GATEWAY_ALLOW=::1,2001:db8:0::/48", "DOTGATE_GATEWAY_RATE_LIMIT=1", "DOTGATE_GATEWAY_RATE_BURST=10")
	g := start(t, environ, "unshare", "--net", "sh", "-c", script+`exec "$0" serve`, dotgate)
	g.await(t, "dotgate is serving")

	const rounds = 60
	out, err := exec.Command("nsenter", "--net", "--target", fmt.Sprint(g.cmd.Process.Pid), "/usr/bin/python3", "testdata/prefixes.py",
		listen.Addr().String(), fmt.Sprint(listen.Port()), fmt.Sprint(rounds), one, sameHome, otherHome, stranger).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := make(map[string][3]int)
	for line := range strings.Lines(string(out)) {
		var addr string
		var n [3]int
		if _, err := fmt.Sscanf(line, "%s answered=%d truncated=%d refused=%d", &addr, &n[0], &n[1], &n[2]); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		got[addr] = n
	}
	for addr, answered := range map[string]int{one: 10, sameHome: 0, otherHome: 10} {
		// One more token comes each second. Every other query without one gets a truncated reply.
		n := got[addr]
		if n[0] < answered || n[0] > answered+3 || n[1] < 20 || n[1] > 32 || n[2] != 0 {
			t.Errorf("%s got %v answers, truncations and refusals", addr, n)
		}
	}
	if n := got[stranger]; n[0]+n[1] > 0 || n[2] < 20 || n[2] > 25 {
		t.Errorf("a stranger got %v answers, truncations and refusals", n)
	}
}

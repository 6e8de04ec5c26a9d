package settings

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dotgate/configs"
)

// problemsOf loads a document that should not load, and returns what is said.
func problemsOf(t *testing.T, document string, environ ...string) string {
	t.Helper()
	c, err := parse(document, environ...)
	if err == nil || c != nil {
		t.Errorf("%q, %q: loads", document, environ)
		return ""
	}
	return err.Error() + "\n"
}

func TestFileProblems(t *testing.T) {
	t.Parallel()
	// Each wanted line is the start of one that is said, and none is left over.
	f := func(document string, want ...string) {
		t.Helper()
		got := problemsOf(t, document)
		lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
		if len(lines) != len(want) {
			t.Errorf("%q: %d problems, want %d:\n%s", document, len(lines), len(want), got)
			return
		}
		for i, line := range lines {
			if !strings.HasPrefix(line, want[i]) {
				t.Errorf("%q: got\n%s\nwant\n%s", document, line, want[i])
			}
		}
	}

	// Keys.
	f("gatway: {}", "dotgate.yaml:1: gatway: does not exist; did you mean gateway?")
	f("a:\n\nxyzzy: 1", "dotgate.yaml:1: a: does not exist; there are gateway, cache, upstreams, routes, bootstrap,", "dotgate.yaml:3: xyzzy: does not exist")
	f("gateway:\n  timout: 5s", "dotgate.yaml:2: gateway.timout: does not exist; did you mean timeout?")
	f("Gateway:\n  timeout: 5s", "dotgate.yaml:1: Gateway: does not exist; did you mean gateway?")
	f("gateway.timeout: 5s", "dotgate.yaml:1: gateway.timeout: does not exist; sections have no dots")
	f("gateway:\n  timeout: 5s\n  timeout: 6s", "dotgate.yaml:3: gateway.timeout: is given twice, first in line 2")
	f("log: {}\ngateway: {}\nlog: {}", "dotgate.yaml:3: log: is given twice, first in line 1")
	f("log:\n  ? [a]\n  : b", "dotgate.yaml:2: log: has a list for a key")
	f("x: &x {level: info}\nlog: {<<: *x}", "dotgate.yaml:1: x: does not exist")
	f("log: {<<: 5}", "dotgate.yaml:1: log.<<: does not exist")

	// Kinds.
	f("5", `dotgate.yaml:1: is "5", not a mapping`)
	f("\n- gateway", "dotgate.yaml:2: is a list, not a mapping")
	f("gateway: 5", `dotgate.yaml:1: gateway: is "5"; it is a section, with keys of its own such as listen`)
	f("gateway: []", `dotgate.yaml:1: gateway: is a list; it is a section`)
	f("gateway:\n  timeout: [5s]", "dotgate.yaml:2: gateway.timeout: is a list; it takes one value")
	f("gateway:\n  timeout: {a: b}", "dotgate.yaml:2: gateway.timeout: is a mapping; it takes one value")
	f("gateway:\n  timeout:", "dotgate.yaml:2: gateway.timeout: has no value; remove the key to have the default, 4s")
	f("gateway:\n  listen: :53", `dotgate.yaml:2: gateway.listen: is ":53"; it takes a list`)
	f("gateway:\n  listen:", `dotgate.yaml:2: gateway.listen: has no value`)
	f("gateway:\n  listen: []", `dotgate.yaml:2: gateway.listen: is empty`)
	f("gateway:\n  listen:\n  - :53\n  - ''", `dotgate.yaml:4: gateway.listen: has an empty element`)
	f("gateway:\n  listen: [[::1]:53]", "dotgate.yaml:2: is not YAML: ")
	f("gateway:\n  listen: [[x]]", "dotgate.yaml:2: gateway.listen: has a list in its list; put quotes around an IPv6 address")
	f("balancer: {policy: ''}", "dotgate.yaml:1: balancer.policy: is empty; remove the key to have the default, latency")
	f("health: {probe_name: ''}", "dotgate.yaml:1: health.probe_name: is empty")

	// Values.
	f("gateway:\n  timeout: 5", `dotgate.yaml:2: gateway.timeout: "5" has no unit; write 5s or 500ms`)
	f("gateway: {timeout: 1.5}", `dotgate.yaml:1: gateway.timeout: "1.5" has no unit; write 1.5s or 500ms`)
	f("gateway: {timeout: soon}", `dotgate.yaml:1: gateway.timeout: "soon" is not a duration; write one such as`)
	f("gateway: {timeout: 99999999h}", `dotgate.yaml:1: gateway.timeout: "99999999h" is not a duration`)
	f("gateway: {timeout: 0s}", `dotgate.yaml:1: gateway.timeout: must be between 10ms and 1m`)
	f("gateway: {timeout: 1us}", `dotgate.yaml:1: gateway.timeout: must be between 10ms and 1m`)
	f("gateway: {idle_timeout: 10us}", `dotgate.yaml:1: gateway.idle_timeout: must be between 10ms and 1h`)
	f("health: {interval: 1ms}", `dotgate.yaml:1: health.interval: must be between 1s and 1h`)
	f("health: {recovery_min: 1ms}", `dotgate.yaml:1: health.recovery_min: must be between 50ms and 1h`)
	f("health: {probe_timeout: 1ms}", `dotgate.yaml:1: health.probe_timeout: must be between 50ms and 1m, or 0s`)
	f("gateway: {timeout: -5s}", `dotgate.yaml:1: gateway.timeout: must be between 10ms and 1m`)
	f("gateway: {max_queries: many}", `dotgate.yaml:1: gateway.max_queries: "many" is not a whole number`)
	f("gateway: {max_queries: 1e3}", `dotgate.yaml:1: gateway.max_queries: "1e3" is not a whole number`)
	f("gateway: {max_queries: 99999999999999999999}", `dotgate.yaml:1: gateway.max_queries: 99999999999999999999 is out of range`)
	f("gateway: {max_queries: 0}", `dotgate.yaml:1: gateway.max_queries: must be between 1 and 1000000`)
	f("gateway: {max_queries: -1}", `dotgate.yaml:1: gateway.max_queries: must be between 1 and 1000000`)
	f("gateway:\n  listen:\n  - localhost:53\n  - 192.0.2.1\n  - :99999\n  - 192.0.2.300:53\n  - '[::1]:53'",
		`dotgate.yaml:3: gateway.listen: "localhost:53" is not an address to listen on; write IP:port`,
		`dotgate.yaml:4: gateway.listen: "192.0.2.1" is not`,
		`dotgate.yaml:5: gateway.listen: ":99999" is not`,
		`dotgate.yaml:6: gateway.listen: "192.0.2.300:53" is not`)
	f("gateway:\n  listen: [':53', '[::]:53']", `dotgate.yaml:2: gateway.listen: [::]:53 is named twice`)
	f("balancer: {policy: best}", `dotgate.yaml:1: balancer.policy: "best" does not exist; there are `)
	f("log: {level: loud, format: xml}",
		`dotgate.yaml:1: log.level: "loud" does not exist; there are debug, info, warn, error`,
		`dotgate.yaml:1: log.format: "xml" does not exist; there are text, json`)
	f("health:\n  recovery_max: 100ms", "dotgate.yaml:2: health.recovery_min: is above recovery_max") // the option that was set, not the default

	// All at once, in the order of the file.
	f("log: {level: loud}\nupstreams: []\ngateway:\n  timeout: 5\n  max_querys: 5\nhealth: {failures: 0}",
		`dotgate.yaml:1: log.level`, `dotgate.yaml:2: upstreams: is an empty list`, `dotgate.yaml:4: gateway.timeout`,
		`dotgate.yaml:5: gateway.max_querys: does not exist; did you mean max_queries?`, `dotgate.yaml:6: health.failures`)
}

func TestBrokenYAMLNamesItsLine(t *testing.T) {
	t.Parallel()
	f := func(document, want string) {
		t.Helper()
		if got := problemsOf(t, document); !strings.HasPrefix(got, want) {
			t.Errorf("%.200q: got %s want %s", document, got, want)
		}
	}
	f("gateway:\n\ttimeout: 5s\n", "dotgate.yaml:2: is not YAML: found character that cannot start any token; the line starts with a tab, indent with spaces\n")
	f("\tgateway:\n", "dotgate.yaml:1: is not YAML: found character that cannot start any token; the line starts with a tab")
	f("gateway:\n  timeout: 5s\n listen: [x]\nlog:\n", "dotgate.yaml:3: is not YAML: ")
	f("gateway:\n  listen: [a,\n    b]\n  timeout: \"5s\nlog:\n  level: info\n", "dotgate.yaml:4: is not YAML: ")
	f("log:\n  level: info\ngateway:\n  listen:\n  - :53\n  - [::1]:53\n", "dotgate.yaml:6: is not YAML: did not find expected node content; put quotes around addresses such as [::1]:53 and :53\n")
	f("gateway:\n  listen: [:53]\n", "dotgate.yaml:2: is not YAML: did not find expected node content; put quotes around addresses")
	f("log:\n  level: *info\n", "dotgate.yaml:2: is not YAML: unknown anchor")
	f("log:\n  level: info\n  format: te\x00xt", "dotgate.yaml:3: is not YAML: control characters are not allowed")
	f("log:\n  level: \xff\xfe\n", "dotgate.yaml:2: is not YAML: ")
	f("log: {level: info}\n---\ngateway: {timeout: 1s}\n", "dotgate.yaml:2: a second document")
	f(strings.Repeat("a:\n", 3000)+"b: [", "dotgate.yaml: is not YAML: line 3001: ") // without the line, rather than after a long time
}

func TestProblemsAreErrors(t *testing.T) {
	t.Parallel()
	_, err := parse("gateway: {timeout: 5}", "DOTGATE_LOG_LEVEL=loud")
	var problems configs.Problems
	if !errors.As(err, &problems) {
		t.Fatalf("got %T", err)
	}
	want := configs.Problem{Source: "dotgate.yaml", Line: 1, Key: "gateway.timeout", Text: `"5" has no unit; write 5s or 500ms`}
	if len(problems) != 2 || problems[0] != want || !errors.Is(err, want) {
		t.Errorf("got %+v", problems)
	}
	if got := (configs.Problem{Source: "--listen", Key: "gateway.listen", Text: "a\nb"}).Error(); got != "--listen: gateway.listen: a�b" {
		t.Errorf("got %q: a problem has one line", got)
	}
}

// TestAHugeValueIsShownShort loads values and keys of 300 kB.
func TestAHugeValueIsShownShort(t *testing.T) {
	long := strings.Repeat("b", 300_000)
	for _, text := range []string{
		"gateway: {timeout: " + long + "}", "gateway: {listen: [" + long + "]}", "? " + long + "\n: 1", "gateway: {? " + long + " : 1}",
		"upstreams: [" + long + "]", "routes: {" + long + ".example: {upstreams: [quad9]}}", "query_log: {output: " + long + "}",
		"admin: {listen: \"" + strings.Repeat("b ", 100_000) + "\"}",
	} {
		name := filepath.Join(t.TempDir(), "dotgate.yaml")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(configs.Sources{File: name}); err == nil || len(err.Error()) > 2000 {
			t.Errorf("%.40s: %.3000v", text, err)
		}
	}
}

// TestPortProblems: the gateway would not start, and say that another program is there.
func TestPortProblems(t *testing.T) {
	t.Parallel()
	const peers = "peers: {nodes: [192.0.2.1], key: [0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef]"
	for _, test := range []struct{ document, want string }{
		{"admin: {listen: 127.0.0.1:5300}", "dotgate.yaml:1: admin.listen: 127.0.0.1:5300 is in the way of gateway.listen, 127.0.0.1:5300; give one of them another port\n"},
		{"gateway: {listen: [':8053']}", "dotgate.yaml:1: gateway.listen: [::]:8053 is in the way of admin.listen, 127.0.0.1:8053; give one of them another port\n"},
		{"gateway: {listen: [127.0.0.1:53]}\nadmin: {listen: 0.0.0.0:53}", "dotgate.yaml:2: admin.listen: 0.0.0.0:53 is in the way of gateway.listen, 127.0.0.1:53; give one of them another port\n"},
		{peers + ", listen: ':8053'}", "dotgate.yaml:1: peers.listen: [::]:8053 is in the way of admin.listen, 127.0.0.1:8053; give one of them another port\n"},
		{"gateway: {listen: ['[::1]:8054']}\n" + peers + "}", "dotgate.yaml:1: gateway.listen: [::1]:8054 is in the way of peers.listen, [::]:8054; give one of them another port\n"},
	} {
		if got := problemsOf(t, test.document); got != test.want {
			t.Errorf("%q: got\n%swant\n%s", test.document, got, test.want)
		}
	}
	for _, document := range []string{
		"gateway: {listen: ['127.0.0.1:8054', ':5300', '127.0.0.1:5300']}",
		"gateway: {listen: ['[::1]:53']}\nadmin: {listen: 0.0.0.0:53}",
		"gateway: {listen: [192.0.2.1:53]}\nadmin: {listen: 192.0.2.2:53}",
		"gateway: {listen: ['127.0.0.1:0']}\nadmin: {listen: 127.0.0.1:0}",
	} {
		if _, err := parse(document); err != nil {
			t.Errorf("%q: %v", document, err)
		}
	}
}

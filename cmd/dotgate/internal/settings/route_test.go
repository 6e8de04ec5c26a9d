package settings

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dotgate/configs"
)

func routesText(c *Config) string {
	var words []string
	for _, r := range c.Routes {
		words = append(words, strings.Join(slices.Collect(r.Names()), "+"), r.Policy)
		for _, u := range r.Upstreams {
			words = append(words, fmt.Sprintf("%s=%s:%v", u.Name, u.Protocol, u.Addresses[0]))
		}
	}
	return strings.Join(words, " ")
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	f := func(document, want string) {
		t.Helper()
		c := mustParse(t, document)
		if got := routesText(c); got != want {
			t.Errorf("%s: got %s, want %s", document, got, want)
		}
		if again := mustParse(t, effective(t, c)); routesText(again) != want {
			t.Errorf("%s: what is in effect makes %s", document, routesText(again))
		}
	}
	f("routes: {}", "")
	f("routes:", "")
	f("routes: {corp.example: [udp://10.0.0.53]}", "corp.example latency 10.0.0.53=udp:10.0.0.53:53")
	f("balancer: {policy: hash}\nroutes: {Corp.Example.: ['tcp://[fd00::1]:5353']}", "corp.example hash [fd00::1]:5353=tcp:[fd00::1]:5353")
	f("routes: {a.example: {policy: ordered, upstreams: ['tls://10.0.0.1#dns.a.example', {url: tls://10.0.0.2, name: second}]}}",
		"a.example ordered dns.a.example=tls:10.0.0.1:853 second=tls:10.0.0.2:853")
	f("routes: {a.example: [udp://10.0.0.1], 10.in-addr.arpa: [udp://10.0.0.1]}",
		"a.example+10.in-addr.arpa latency 10.0.0.1=udp:10.0.0.1:53")
	f("routes: {'*.Corp.example.': [udp://10.0.0.1], Bücher.example: [udp://10.0.0.1]}", "*.corp.example+xn--bcher-kva.example latency 10.0.0.1=udp:10.0.0.1:53")
	f("routes: {a.example: [udp://10.0.0.1], b.example: [tcp://10.0.0.1], c.example: [udp://10.0.0.1, {url: udp://10.0.0.2, weight: 2}]}",
		"a.example latency udp://10.0.0.1=udp:10.0.0.1:53 b.example latency tcp://10.0.0.1=tcp:10.0.0.1:53 c.example latency udp://10.0.0.1=udp:10.0.0.1:53 10.0.0.2=udp:10.0.0.2:53")
	f("routes: {a.example: ['tls://10.0.0.1#dns.example'], b.example: ['tls://10.0.0.2#dns.example']}",
		"a.example latency dns.example@10.0.0.1=tls:10.0.0.1:853 b.example latency dns.example@10.0.0.2=tls:10.0.0.2:853")
	f("upstreams: [quad9]\nroutes: {a.example: [quad9], b.example: [{preset: quad9, weight: 3}]}", "a.example latency quad9=tls:9.9.9.9:853 b.example latency quad9=tls:9.9.9.9:853")
	f("routes: [{names: [A.example., b.example], policy: hash, upstreams: [udp://10.0.0.1]}, c.example+d.example=udp://10.0.0.1, c.example+d.example=udp://10.0.0.2]",
		"a.example+b.example hash 10.0.0.1=udp:10.0.0.1:53 c.example+d.example latency 10.0.0.1=udp:10.0.0.1:53 10.0.0.2=udp:10.0.0.2:53")
	f("upstreams: [udp://127.0.0.1:5335]", "") // explicitly, and all of them
	c, err := Load(configs.Sources{Environ: []string{"DOTGATE_ROUTES=a.example=udp://10.0.0.1, b.example=udp://10.0.0.2,A.example=tcp://10.0.0.3:5353"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := routesText(c); got != "a.example latency 10.0.0.1=udp:10.0.0.1:53 10.0.0.3:5353=tcp:10.0.0.3:5353 b.example latency 10.0.0.2=udp:10.0.0.2:53" {
		t.Errorf("got %s", got)
	}
}

func TestRouteProblems(t *testing.T) {
	t.Parallel()
	f := func(document, want string) {
		t.Helper()
		if got := problemsOf(t, document); !strings.HasPrefix(got, want) || strings.Count(got, "\n") > 1 {
			t.Errorf("%s: got %s, want %s", document, got, want)
		}
	}
	f("routes: 5", `dotgate.yaml:1: routes: is "5"; it takes names with upstreams`)
	f("routes: [a.example]", `dotgate.yaml:1: routes: "a.example" is not NAME=UPSTREAM`)
	f("routes: {a..example: [udp://10.0.0.1]}", `dotgate.yaml:1: routes: "a..example" is no domain name`)
	f("routes:\n  a.example: [udp://10.0.0.1]\n  A.example.: [udp://10.0.0.1]", `dotgate.yaml:3: routes.a.example: is given twice`)
	f("routes: {a.example: udp://10.0.0.1}", `dotgate.yaml:1: routes.a.example.upstreams: is "udp://10.0.0.1"; it takes a list`)
	f("routes: {a.example: []}", `dotgate.yaml:1: routes.a.example.upstreams: is an empty list`)
	f("routes: {a.example: {policy: ordered}}", `dotgate.yaml:1: routes.a.example.upstreams: is missing`)
	f("routes: {a.example: {upstreams: [udp://10.0.0.1], policy: best}}", `dotgate.yaml:1: routes.a.example.policy: "best" does not exist`)
	f("routes: {a.example: {upstreams: [udp://10.0.0.1], polcy: hash}}", `dotgate.yaml:1: routes.a.example.polcy: does not exist; did you mean policy?`)
	f("routes: {a.example: [udp://dns.example]}", `dotgate.yaml:1: routes.a.example.upstreams[0]: "udp://dns.example" is not an upstream ("dns.example" is not an address`)
	f("routes: {a.example: [udp://10.0.0.1#dns.example]}", `dotgate.yaml:1: routes.a.example.upstreams[0]: "udp://10.0.0.1#dns.example" is not an upstream (a server in clear text has no certificate`)
	f("routes: {a.example: [UDP://10.0.0.1]}", `dotgate.yaml:1: routes.a.example.upstreams[0]: "UDP://10.0.0.1" is not an upstream (write udp in small letters)`)
	f("routes: {a.example: [{url: udp://10.0.0.1, server_name: x.example}]}", `dotgate.yaml:1: routes.a.example.upstreams[0].server_name: has no effect with protocol udp`)
	// Names that no query can match would be asked of public resolvers.
	f("routes: {10.0.0.0/8: [udp://10.0.0.1]}", `dotgate.yaml:1: routes: "10.0.0.0/8" is a prefix of addresses; their names are 10.in-addr.arpa`)
	f("routes: {'corp.example:53': [udp://10.0.0.1]}", `dotgate.yaml:1: routes: "corp.example:53" has a port, which names do not have; write corp.example`)
	f("routes: {bad name: [udp://10.0.0.1]}", `dotgate.yaml:1: routes: "bad name" has ' '`)
	f("routes: {.: [udp://10.0.0.1]}", `dotgate.yaml:1: routes: "." is every name; the upstreams for all names that have no route of their own go into upstreams`)
	f("routes: {'*': [udp://10.0.0.1]}", `dotgate.yaml:1: routes: "*" is every name; the upstreams for all names that have no route`)
	f("routes: {'*.': [udp://10.0.0.1]}", `dotgate.yaml:1: routes: "*." is every name; the upstreams for all names that have no route`)
	f("routes: {~corp.example: [udp://10.0.0.1]}", `dotgate.yaml:1: routes: "~corp.example" begins with ~, which names do not; write corp.example`)
	f("gateway: {forward_local: ['~.']}", `dotgate.yaml:1: gateway.forward_local: "~." begins with ~`)
	f("routes:\n  *.corp.example: [udp://10.0.0.1]", `dotgate.yaml:2: is not YAML: did not find expected alphabetic or numeric character; put quotes around names that begin with *`)
	f("routes: {'*.a.example': [udp://10.0.0.1], '*.A.example.': [udp://10.0.0.1]}", `dotgate.yaml:1: routes.*.a.example: is given twice`)
	f("gateway: {forward_local: ['bad name']}", `dotgate.yaml:1: gateway.forward_local: "bad name" has ' '`)
	f("gateway: {forward_local: [192.168.0.0/16]}", `dotgate.yaml:1: gateway.forward_local: "192.168.0.0/16" is a prefix of addresses; their names are 168.192.in-addr.arpa`)
	f("gateway: {allow_private: ['plex.direct:443']}", `dotgate.yaml:1: gateway.allow_private: "plex.direct:443" has a port`)
	f("health: {probe_name: '*.corp.example'}", `dotgate.yaml:1: health.probe_name: "*.corp.example" has a wildcard; write one name`)
	f("health: {probe_name: 9.9.9.9}", `dotgate.yaml:1: health.probe_name: "9.9.9.9" is an address; its name is 9.9.9.9.in-addr.arpa`)
	f("routes: [{upstreams: [udp://10.0.0.1]}]", `dotgate.yaml:1: routes[0].names: is missing; it takes names`)
	f("routes: [{names: [], upstreams: [udp://10.0.0.1]}]", `dotgate.yaml:1: routes[0].names: is an empty list`)
	f("routes: [{names: [a.example]}]", `dotgate.yaml:1: routes[0].upstreams: is missing; it takes a list`)
	f("routes: [{names: a.example, upstreams: [udp://10.0.0.1]}]", `dotgate.yaml:1: routes[0].names: is "a.example"; it takes a list`)
	f("routes: [{names: [a.example], upstreams: [udp://10.0.0.1]}, {names: [A.example], upstreams: [udp://10.0.0.2]}]", `dotgate.yaml:1: routes.a.example: is given twice`)
	f("routes: [{name: a.example, names: [a.example], upstreams: [udp://10.0.0.1]}]", `dotgate.yaml:1: routes[0].name: does not exist; did you mean names?`)
	f("routes: [{names_file: /nowhere, upstreams: [udp://10.0.0.1]}]", `dotgate.yaml:1: routes[0].names_file: open /nowhere: no such file or directory`)
	f("routes: [{names_file: /dev/zero, upstreams: [udp://10.0.0.1]}]", `dotgate.yaml:1: routes[0].names_file: read /dev/zero: it is larger than 33554432 octets`)
	f("routes: {a.example: [{url: udp://10.0.0.1, name: x}], b.example: [{url: udp://10.0.0.2, name: x}]}", `dotgate.yaml:1: routes.b.example.upstreams[0].name: "x" is the name of routes.a.example.upstreams[0] too`)
	f("routes: {a.example: [{url: udp://10.0.0.1, probe_name: a..b}]}", `dotgate.yaml:1: routes.a.example.upstreams[0].probe_name: "a..b" is no domain name`)
	// Clear text is never a fallback.
	f("upstreams:\n- cloudflare\n- udp://10.0.0.1", `dotgate.yaml:3: upstreams[1]: is in clear text, in one list with upstreams over TLS`)
	f("routes: {a.example: [tls://10.0.0.1, tcp://10.0.0.2]}", `dotgate.yaml:1: routes.a.example.upstreams[1]: is in clear text`)
}

func TestNamesOfRoutesAreReadFromFiles(t *testing.T) {
	t.Parallel()
	f := func(lines, wantNames, wantProblem string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "names")
		if err := os.WriteFile(file, []byte(lines), 0o600); err != nil {
			t.Fatal(err)
		}
		document := "routes: [{names: [first.example], names_file: " + file + ", upstreams: [udp://10.0.0.1]}]"
		c, err := parse(document)
		switch {
		case err != nil && (wantProblem == "" || !strings.Contains(err.Error(), wantProblem)):
			t.Errorf("%.20q: got %v, want %s", lines, err, wantProblem)
		case err == nil && wantProblem != "":
			t.Errorf("%.20q: no problem, want %s", lines, wantProblem)
		case err == nil:
			if got := strings.Join(slices.Collect(c.Routes[0].Names()), " "); got != "first.example "+wantNames {
				t.Errorf("%q: got %s, want %s", lines, got, wantNames)
			}
			sameAgain(t, c)
		}
	}
	f("a.example\n\n# of ours\n B.example. # too\r\na.example\nfirst.example", "a.example b.example", "")
	f("a.example\nb..example\n", "", `names:2: routes[0].names_file: "b..example" is no domain name`)
	f(strings.Repeat("..\n", 1000), "", "990 further lines can't be used")
}

// A list that is written alike for many names is one route, and reading takes time
// in proportion to the names. Ten times the names take ten times as long, and would
// take a hundred times if each name were compared with all others.
// processorTime returns how long this process has been on processors. On a busy machine, that
// says more than the time that passes.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func TestManyRoutesAreRead(t *testing.T) {
	document := func(names int, server func(i int) string) string {
		var text strings.Builder
		text.WriteString("routes:\n")
		for i := range names {
			fmt.Fprintf(&text, "  n%d.example: [udp://%s]\n", i, server(i))
		}
		return text.String()
	}
	f := func(what string, server func(i int) string, wantRoutes func(names int) int) {
		t.Helper()
		read := func(names int) time.Duration {
			text := document(names, server)
			begun := processorTime(t)
			c := mustParse(t, text)
			took := processorTime(t) - begun
			if len(c.Routes) != wantRoutes(names) || c.RouteNames().Len() != names {
				t.Errorf("%s: %d names: got %d routes, %d names", what, names, len(c.Routes), c.RouteNames().Len())
			}
			return took
		}
		few := min(read(1000), read(1000), read(1000))
		if many := min(read(10_000), read(10_000)); many > 40*few {
			t.Errorf("%s: 1000 names took %v, 10,000 names %v", what, few, many)
		}
	}
	f("one server", func(int) string { return "10.0.0.53" }, func(int) int { return 1 })
	f("a server each", func(i int) string { return fmt.Sprintf("10.0.%d.%d", i/250, i%250) }, func(names int) int { return names })
}

package configs

import (
	"fmt"
	"strings"
	"testing"
)

func routesText(c *Config) string {
	var words []string
	for _, r := range c.Routes {
		words = append(words, r.Name, r.Policy)
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
	f("routes: {corp.example: [udp://10.0.0.53]}", "corp.example latency corp.example/10.0.0.53=udp:10.0.0.53:53")
	f("balancer: {policy: hash}\nroutes: {Corp.Example.: ['tcp://[fd00::1]:5353']}", "corp.example hash corp.example/[fd00::1]:5353=tcp:[fd00::1]:5353")
	f("routes: {a.example: {policy: ordered, upstreams: ['tls://10.0.0.1#dns.a.example', {url: tls://10.0.0.2, name: second}]}}",
		"a.example ordered a.example/dns.a.example=tls:10.0.0.1:853 second=tls:10.0.0.2:853")
	f("routes: {a.example: [udp://10.0.0.1], 10.in-addr.arpa: [udp://10.0.0.1]}",
		"a.example latency a.example/10.0.0.1=udp:10.0.0.1:53 10.in-addr.arpa latency 10.in-addr.arpa/10.0.0.1=udp:10.0.0.1:53")
	f("upstreams: [udp://127.0.0.1:5335]", "") // explicitly, and all of them
	c, err := Load(Sources{Environ: []string{"DOTGATE_ROUTES=a.example=udp://10.0.0.1, b.example=udp://10.0.0.2,A.example=tcp://10.0.0.3:5353"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := routesText(c); got != "a.example latency a.example/10.0.0.1=udp:10.0.0.1:53 a.example/10.0.0.3:5353=tcp:10.0.0.3:5353 b.example latency b.example/10.0.0.2=udp:10.0.0.2:53" {
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
	f("routes: {a.example: {upstreams: [udp://10.0.0.1], policy: random}}", `dotgate.yaml:1: routes.a.example.policy: "random" does not exist`)
	f("routes: {a.example: {upstreams: [udp://10.0.0.1], polcy: hash}}", `dotgate.yaml:1: routes.a.example.polcy: does not exist; did you mean policy?`)
	f("routes: {a.example: [udp://dns.example]}", `dotgate.yaml:1: routes.a.example.upstreams[0]: "udp://dns.example" is not an upstream ("dns.example" is not an address`)
	f("routes: {a.example: [udp://10.0.0.1#dns.example]}", `dotgate.yaml:1: routes.a.example.upstreams[0]: "udp://10.0.0.1#dns.example" is not an upstream (a server that is asked in clear text shows no certificate`)
	f("routes: {a.example: [UDP://10.0.0.1]}", `dotgate.yaml:1: routes.a.example.upstreams[0]: "UDP://10.0.0.1" is not an upstream (write udp in small letters)`)
	f("routes: {a.example: [{url: udp://10.0.0.1, server_name: x.example}]}", `dotgate.yaml:1: routes.a.example.upstreams[0].server_name: is of no use with protocol udp`)
	// Clear text is never a fallback.
	f("upstreams:\n- cloudflare\n- udp://10.0.0.1", `dotgate.yaml:3: upstreams[1]: asks in clear text, beside others with TLS`)
	f("routes: {a.example: [tls://10.0.0.1, tcp://10.0.0.2]}", `dotgate.yaml:1: routes.a.example.upstreams[1]: asks in clear text`)
}

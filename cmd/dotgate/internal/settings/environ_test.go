package settings

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"dotgate/configs"
)

func TestEnvironment(t *testing.T) {
	t.Parallel()
	c := mustParse(t, "upstreams: [{name: mine, addresses: [192.0.2.9]}]\ngateway: {timeout: 1s}",
		"DOTGATE_UPSTREAMS=cloudflare, quad9 ,tls://192.0.2.53#dns.example",
		"DOTGATE_GATEWAY_LISTEN=192.0.2.1:53,[2001:db8::1]:53",
		"DOTGATE_HEALTH_PROBE_NAME=example.com",
		"DOTGATE_LOG_LEVEL=debug",
		"DOTGATE_CONFIG=/etc/dotgate.yaml", // the caller's
		"dotgate_log_format=json", "DOTGATE=x", "PATH=", "nonsense",
	)
	if got := upstreamNames(c); !slices.Equal(got, []string{"cloudflare", "quad9", "dns.example"}) {
		t.Errorf("upstreams %v: the variable replaces the list", got)
	}
	if len(c.Gateway.Listen) != 2 || c.Health.ProbeName != "example.com" || c.Log != (Log{slog.LevelDebug, "text"}) {
		t.Errorf("got %+v, %+v, %+v", c.Gateway, c.Health, c.Log)
	}
}

func TestEnvironmentListsMayHaveLines(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"quad9\ngoogle", "quad9\r\ngoogle\r\n", "quad9,\ngoogle", "\nquad9,\n  google,\n", "quad9 , google,\n\n"} {
		c := mustParse(t, "", "DOTGATE_UPSTREAMS="+text, "DOTGATE_GATEWAY_LISTEN=127.0.0.1:53,\n[::1]:53\n")
		if got := upstreamNames(c); !slices.Equal(got, []string{"quad9", "google"}) || len(c.Gateway.Listen) != 2 {
			t.Errorf("%q: upstreams %v, %v", text, got, c.Gateway.Listen)
		}
	}
}

// Service links must not keep a pod from starting.
func TestEnvironmentOfServicesIsNotOurs(t *testing.T) {
	t.Parallel()
	mustParse(t, "", "DOTGATE_METRICS_SERVICE_HOST=10.0.0.1", "DOTGATE_METRICS_SERVICE_PORT=8053", "DOTGATE_2_PORT=udp://10.0.0.1:53",
		"DOTGATE_DNS_UDP_PORT_53_UDP=udp://10.0.0.1:53", "DOTGATE_DNS_UDP_PORT_53_UDP_ADDR=10.0.0.1", "DOTGATE_METRICS_SERVICE_PORT_HTTP=8053")
	mustParse(t, "", "DOTGATE_SERVICE_HOST=192.0.2.1", "DOTGATE_SERVICE_PORT=53", "DOTGATE_SERVICE_PORT_DNS=53",
		"DOTGATE_PORT=udp://192.0.2.1:53", "DOTGATE_PORT_53_UDP=udp://192.0.2.1:53", "DOTGATE_PORT_53_UDP_PROTO=udp",
		"DOTGATE_PORT_53_TCP_PORT=53", "DOTGATE_PORT_53_TCP_ADDR=192.0.2.1")
	for _, s := range configs.SettingsOf("", new(Config)) {
		if configs.IsServiceVariable(configs.Variable(s.Key)) {
			t.Errorf("%s would be passed over", configs.Variable(s.Key))
		}
	}
}

func TestEnvironmentProblems(t *testing.T) {
	t.Parallel()
	f := func(variable string, want ...string) {
		t.Helper()
		got := problemsOf(t, "", variable)
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%q: got %s want %s", variable, got, w)
			}
		}
		if n := strings.Count(got, "\n"); n != 1 {
			t.Errorf("%q: %d problems:\n%s", variable, n, got)
		}
	}
	f("DOTGATE_GATEWAY_LISTN=:53", "DOTGATE_GATEWAY_LISTN: is no variable of dotgate; did you mean DOTGATE_GATEWAY_LISTEN?\n")
	f("DOTGATE_UPSTREAM=quad9", "did you mean DOTGATE_UPSTREAMS?")
	f("DOTGATE_UPSTREAMS_0_NAME=quad9", "did you mean DOTGATE_")
	f("DOTGATE_CONFG=x", "did you mean DOTGATE_CONFIG?")
	f("DOTGATE_=x", "did you mean DOTGATE_")
	f("DOTGATE_GATEWAY_LISTEN=", "DOTGATE_GATEWAY_LISTEN: gateway.listen: is set but empty; give it a value, or unset it")
	f("DOTGATE_UPSTREAMS=", "DOTGATE_UPSTREAMS: upstreams: is set but empty")
	f("DOTGATE_UPSTREAMS=quad9,", `DOTGATE_UPSTREAMS: upstreams[1]: is empty`)
	f("DOTGATE_UPSTREAMS=quad9 google", `DOTGATE_UPSTREAMS: upstreams[0]: "quad9 google" is not an upstream (write commas between several)`)
	f("DOTGATE_GATEWAY_LISTEN=:53 :54", `DOTGATE_GATEWAY_LISTEN: gateway.listen: ":53 :54" is not an address`)
	f("DOTGATE_GATEWAY_LISTEN=:53,", `has an empty element`)
	f("DOTGATE_GATEWAY_TIMEOUT=5", `DOTGATE_GATEWAY_TIMEOUT: gateway.timeout: "5" has no unit`)
	f("DOTGATE_HEALTH_RECOVERY_MAX=100ms", "DOTGATE_HEALTH_RECOVERY_MAX: health.recovery_min: is above recovery_max")
	f("DOTGATE_LOG_LEVEL=\xff", `DOTGATE_LOG_LEVEL: log.level: the value is not UTF-8`)
	f("DOTGATE_BOOTSTRAP=resolver", `DOTGATE_BOOTSTRAP: bootstrap: "resolver" `)
}

func TestFlagProblems(t *testing.T) {
	t.Parallel()
	f := func(key string, values []string, want string) {
		t.Helper()
		_, err := Load(configs.Sources{Flags: map[string][]string{key: values}})
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s %q: got %v, want %s", key, values, err, want)
		}
	}
	f("gateway.listen", []string{":53", "x"}, `--listen: gateway.listen: "x" is not an address`)
	f("gateway.listen", []string{""}, `--listen: gateway.listen: is given without a value`)
	f("health.probe_name", []string{"a", "b"}, `--probe-name: health.probe_name: is given 2 times; it takes one value`)
	f("gateway.x", []string{"y"}, `--x: gateway.x: is no key`)
}

func TestListsInVariables(t *testing.T) {
	t.Parallel()
	f := func(text string, want ...string) {
		t.Helper()
		if got := upstreamNames(mustParse(t, "", "DOTGATE_UPSTREAMS="+text)); !slices.Equal(got, want) {
			t.Errorf("%q: got %q", text, got)
		}
	}
	f("cloudflare, quad9", "cloudflare", "quad9")
	f("cloudflare\nquad9\n", "cloudflare", "quad9")
	f("cloudflare\r\nquad9\r\n", "cloudflare", "quad9")
	if got := mustParse(t, "", "DOTGATE_GATEWAY_LISTEN=[::1]:53,[2001:db8::1]:53").Gateway.Listen; len(got) != 2 {
		t.Errorf("addresses in brackets: got %v", got)
	}
	for _, text := range []string{`["cloudflare"]`, `"cloudflare,quad9"`, `'cloudflare'`} {
		if got := problemsOf(t, "", "DOTGATE_UPSTREAMS="+text); !strings.Contains(got, "without brackets and quotes: a,b") {
			t.Errorf("%s: got %s", text, got)
		}
	}
}

func TestAnchorsAndMergeKeys(t *testing.T) {
	t.Parallel()
	c := mustParse(t, "x-common: &common {timeout: 3s, max_queries: 7}\nx-limits: &limits {timeout: 1s, max_pipelined: 9}\n"+
		"gateway:\n  <<: [*common, *limits]\n  max_queries: 8\nupstreams:\n- &one {url: tls://192.0.2.1, connections: 2}\n- {<<: *one, url: tls://192.0.2.2}")
	if g := c.Gateway; g.Timeout != 3*time.Second || g.MaxQueries != 8 || g.MaxPipelined != 9 {
		t.Errorf("got %+v", g)
	}
	if u := c.Upstreams[1]; u.Connections != 2 || u.Addresses[0].String() != "192.0.2.2:853" {
		t.Errorf("got %+v", u)
	}
	if got := problemsOf(t, "gateway: {<<: 5}"); !strings.Contains(got, "gateway.<<: does not exist") {
		t.Errorf("got %s", got)
	}
	if got := problemsOf(t, "x-a: &a {timeuot: 3s}\ngateway: {<<: *a}"); !strings.Contains(got, "dotgate.yaml:1: gateway.timeuot: does not exist; did you mean timeout?") {
		t.Errorf("got %s", got)
	}
}

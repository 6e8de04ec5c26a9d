package settings

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"dotgate/configs"
)

func effective(t *testing.T, c *Config) string {
	t.Helper()
	var out strings.Builder
	if err := c.WriteEffective(&out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// effectiveLine returns the line of a key that has a source; for the upstreams,
// the first line of addresses that has it.
func effectiveLine(t *testing.T, c *Config, key string, from configs.Source) string {
	t.Helper()
	name := key[strings.LastIndexByte(key, '.')+1:]
	if key == "upstreams" || key == "routes" {
		name = "addresses"
	}
	for line := range strings.Lines(effective(t, c)) {
		if strings.HasPrefix(strings.TrimLeft(line, " "), name+": ") && strings.Contains(line, " # "+from.String()) {
			if key == "upstreams" {
				return line + strings.Join(append(upstreamNames(c), "tls://"+c.Upstreams[0].Name), " ")
			}
			if key == "routes" {
				u := c.Routes[0].Upstreams[0]
				return c.Routes[0].Name + "=" + u.Protocol + "://" + u.Addresses[0].Addr().String()
			}
			return line
		}
	}
	t.Errorf("%s: no line is from %v in:\n%s", key, from, effective(t, c))
	return ""
}

func TestEffectiveSaysWhereFrom(t *testing.T) {
	t.Parallel()
	from := documentSources(`# mine
gateway:
  timeout: 3s
upstreams:
  - quad9
  - {preset: google, weight: 3}
  - url: tls://dns.example
    connections: 2
`, "DOTGATE_HEALTH_INTERVAL=5m", "DOTGATE_BOOTSTRAP=192.0.2.1")
	from.Flags = map[string][]string{"gateway.listen": {":53"}}
	c, err := Load(from)
	if err != nil {
		t.Fatal(err)
	}
	got := effective(t, c)
	f := func(line string) {
		t.Helper()
		if !strings.Contains(got, line+"\n") {
			t.Errorf("%q is not in:\n%s", line, got)
		}
	}
	f(`  listen: ["[::]:53"] # --listen`)
	f(`  timeout: 3s # dotgate.yaml:3`)
	f(`  max_queries: 12000 # default`)
	f(`  - name: quad9 # dotgate.yaml:5, preset quad9`)
	f(`    idle_timeout: 3.5s # dotgate.yaml:5, preset quad9`)
	f(`  - name: google # dotgate.yaml:6, preset google`)
	f(`    weight: 3 # dotgate.yaml:6`)
	f(`    idle_timeout: 8s # default`)
	f(`  - name: dns.example # dotgate.yaml:7`)
	f(`    connections: 2 # dotgate.yaml:8`)
	f(`    server_name: dns.example # dotgate.yaml:7`)
	f(`    bootstrap: [192.0.2.1] # DOTGATE_BOOTSTRAP`)
	f(`bootstrap: [192.0.2.1] # DOTGATE_BOOTSTRAP`)
	f(`  interval: 5m # DOTGATE_HEALTH_INTERVAL`)
}

func TestEffectiveLoadsAgain(t *testing.T) {
	t.Parallel()
	f := func(document string, environ ...string) {
		t.Helper()
		c := mustParse(t, document, environ...)
		sameAgain(t, c)
	}
	f("")
	f(configs.Document())
	f("", "DOTGATE_UPSTREAMS=tls://192.0.2.1:8853,tls://[2001:db8::1]#dns.example,tls://dns.example.com", "DOTGATE_BOOTSTRAP=192.0.2.1")
	f(`upstreams: [{name: "a: \"b\" # \x7f\u2028 ü", addresses: [192.0.2.1], tier: 3}, {name: "null", addresses: ["2001:db8::1"]}]`)
	f(`gateway: {listen: [":53"], timeout: 3.004s, idle_timeout: 2m3.004s}`)
}

func sameAgain(t *testing.T, c *Config) {
	t.Helper()
	text := effective(t, c)
	again, err := parse(text)
	if err != nil {
		t.Fatalf("the effective configuration does not load: %v\n%s", err, text)
	}
	want, got := *c, *again
	want.origins, got.origins = nil, nil
	if !reflect.DeepEqual(want, got) {
		t.Errorf("got %+v\nwant %+v\nfrom:\n%s", got, want, text)
	}
}

func TestEffectiveReportsAFailedWrite(t *testing.T) {
	t.Parallel()
	full := errors.New("disk full")
	if err := mustParse(t, "").WriteEffective(writerFunc(func([]byte) (int, error) { return 0, full })); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

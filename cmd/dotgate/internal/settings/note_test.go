package settings

import (
	"slices"
	"strings"
	"testing"
)

func TestAWildcardsApexIsNoted(t *testing.T) {
	t.Parallel()
	f := func(routes string, want ...string) {
		t.Helper()
		c := mustParse(t, "routes: "+routes)
		if got := c.Notes(); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", routes, got, want)
		}
		for _, note := range want {
			if text := effective(t, c); !strings.Contains(text, "# Note: "+note) {
				t.Errorf("%s: check does not say %q", routes, note)
			}
		}
	}
	f("{corp.example: [udp://10.0.0.1]}")
	f("{'*.corp.example': [udp://10.0.0.1]}",
		"routes.*.corp.example is for the names below corp.example only: corp.example itself is asked at upstreams; a route corp.example is for both")
	f("{'*.corp.example': [udp://10.0.0.1], example: [udp://10.0.0.2]}",
		"routes.*.corp.example is for the names below corp.example only: corp.example itself is asked at routes.example; a route corp.example is for both")
	f("{'*.corp.example': [udp://10.0.0.1], corp.example: [udp://10.0.0.2]}")
}

func TestAnAddressOfAPresetIsNoted(t *testing.T) {
	t.Parallel()
	f := func(upstreams, want string) {
		t.Helper()
		if got := strings.Join(mustParse(t, "upstreams: "+upstreams).Notes(), "\n"); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%s: got %q, want %q", upstreams, got, want)
		}
	}
	f("[quad9, 'tls://1.1.1.1#one.one.one.one']", "upstreams[1]: 1.1.1.1 is an address of the preset cloudflare, which has")
	f("[tls://8.8.8.8]", "upstreams[0]: 8.8.8.8 is an address of the preset google")
	f("[{addresses: [192.0.2.1, '2620:fe::10']}]", "upstreams[0]: 2620:fe::10 is an address of the preset quad9-unfiltered")
	f("['https://104.16.248.249/dns-query#cloudflare-dns.com']", "upstreams[0]: 104.16.248.249 is an address of the preset cloudflare")
	f("[google, {preset: quad9, addresses: [9.9.9.9]}]", "")
	f("[tls://192.0.2.1]", "")
}

func TestNamesAreComparableOnceLoaded(t *testing.T) {
	t.Parallel()
	c := mustParse(t, "gateway: {forward_local: [Home.Arpa., '*.Bücher.local'], allow_private: [BÜCHER.example]}\nhealth: {probe_name: Bücher.example.}")
	if got := c.Gateway.ForwardLocal; !slices.Equal(got, []string{"home.arpa", "*.xn--bcher-kva.local"}) {
		t.Errorf("forward_local is %q", got)
	}
	if got := c.Gateway.AllowPrivate; !slices.Equal(got, []string{"xn--bcher-kva.example"}) {
		t.Errorf("allow_private is %q", got)
	}
	if got := c.Health.ProbeName; got != "xn--bcher-kva.example" {
		t.Errorf("probe_name is %q", got)
	}
}

func TestVariablesOfServicesAreNoted(t *testing.T) {
	t.Parallel()
	f := func(want string, environ ...string) {
		t.Helper()
		c := mustParse(t, "", environ...)
		if got := strings.Join(c.Notes(), "\n"); got != want {
			t.Errorf("%q: got %q, want %q", environ, got, want)
		}
		if text := effective(t, c); want != "" && !strings.HasPrefix(text, "# Note: "+want) {
			t.Errorf("%q: check does not say so:\n%s", environ, text)
		}
	}
	f("", "DOTGATE_GATEWAY_TIMEOUT=3s", "KUBERNETES_SERVICE_HOST=10.0.0.1")
	f("2 environment variables such as DOTGATE_METRICS_SERVICE_HOST are ignored: Kubernetes or Docker sets them for Services and links, and they are no options of dotgate",
		"DOTGATE_METRICS_SERVICE_PORT=8053", "DOTGATE_GATEWAY_TIMEOUT=3s", "DOTGATE_METRICS_SERVICE_HOST=10.0.0.1")
}

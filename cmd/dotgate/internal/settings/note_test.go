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

package configs

import (
	"slices"
	"testing"
)

func TestDifferencesAreByKey(t *testing.T) {
	t.Parallel()
	f := func(from, to string, want ...string) {
		t.Helper()
		a, b := mustParse(t, from), mustParse(t, to)
		if got := a.Differences(b); !slices.Equal(got, want) {
			t.Errorf("%q to %q: got %q, want %q", from, to, got, want)
		}
		b.Keep(a, want)
		for _, key := range a.Differences(b) {
			if key != "upstreams" { // they are not kept one by one
				t.Errorf("%s is not kept", key)
			}
		}
	}
	f("", "")
	f("upstreams: [quad9, google]", "upstreams: [quad9, {preset: google}]")
	f("upstreams: [quad9]", "upstreams: [google]", "upstreams")
	f("upstreams: [quad9]", "upstreams: [{preset: quad9, weight: 2}]", "upstreams")
	f("gateway: {timeout: 3s}", "gateway: {listen: [':53']}\nlog: {level: debug}", "gateway.listen", "gateway.timeout", "log.level")
	f("admin: {objectives: {latency: 1s}}", "", "admin.objectives.latency")
}

func TestRoutesThatDifferAreFound(t *testing.T) {
	t.Parallel()
	f := func(from, to string, want ...string) {
		t.Helper()
		a, b := mustParse(t, "routes: "+from), mustParse(t, "routes: "+to)
		if got := a.Rerouted(b); !slices.Equal(got, want) {
			t.Errorf("%s to %s: got %q, want %q", from, to, got, want)
		}
	}
	const corp, lab = `corp.example: ["udp://10.0.0.53"]`, `lab.example: ["udp://10.0.0.54"]`
	f("{"+corp+", "+lab+"}", "{"+lab+", "+corp+"}")
	f("{"+corp+"}", `{corp.example: {policy: ordered, upstreams: ["udp://10.0.0.53"]}}`)
	f("{}", "{"+corp+"}", "corp.example")
	f("{"+corp+"}", "{}", "corp.example")
	f("{"+corp+", "+lab+"}", `{lab.example: ["udp://10.0.0.54", "udp://10.0.0.55"]}`, "corp.example", "lab.example")
}

package settings

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

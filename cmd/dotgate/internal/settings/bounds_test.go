package settings

import (
	"log/slog"
	"reflect"
	"testing"
	"time"

	"dotgate/configs"
	"dotgate/configs/bounds"
	"dotgate/gateway/cache"
)

// Every duration, size and count has bounds, by its tag, and its default is within.
func TestEveryNumberHasBounds(t *testing.T) {
	t.Parallel()
	var walk func(prefix string, options reflect.Type)
	seen := 0
	walk = func(prefix string, options reflect.Type) {
		for field := range options.Fields() {
			name, tag := field.Tag.Get("config"), field.Tag.Get(bounds.Tag)
			switch kind := field.Type.Kind(); {
			case field.Anonymous, name != "" && name != "-" && configs.IsSection(field.Type):
				walk(prefix+name+".", field.Type)
			case name == "" || name == "-":
			case field.Type == reflect.TypeFor[time.Duration](), field.Type == reflect.TypeFor[cache.Size](),
				(kind == reflect.Int || kind == reflect.Int64 || kind == reflect.Uint16) && field.Type != reflect.TypeFor[slog.Level]():
				seen++
				if tag == "" {
					t.Errorf("%s%s has no bounds", prefix, name)
				}
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	walk("upstreams[].", reflect.TypeFor[Upstream]())
	if seen < 30 {
		t.Errorf("%d numbers were found", seen)
	}
	c := defaults()
	bounds.Check(*c, func(option, problem string, beside ...string) { t.Errorf("the default of %s %s", option, problem) })
}

// Values that would harm later are refused at once.
func TestNumbersOutOfBoundsAreRefused(t *testing.T) {
	t.Parallel()
	f := func(text, want string) {
		t.Helper()
		if got := problemsOf(t, text); got != want+"\n" {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
	f("gateway: {timeout: 1h}", "dotgate.yaml:1: gateway.timeout: must be between 10ms and 1m")
	f("gateway: {idle_timeout: 8760h}", "dotgate.yaml:1: gateway.idle_timeout: must be between 10ms and 1h")
	f("gateway: {lameduck: 8760h}", "dotgate.yaml:1: gateway.lameduck: must be between 0s and 5m")
	f("gateway: {max_queries: 1000000000}", "dotgate.yaml:1: gateway.max_queries: must be between 1 and 1000000")
	f("health: {interval: 8760h}", "dotgate.yaml:1: health.interval: must be between 1s and 1h")
	f("health: {probe_timeout: 1h}", "dotgate.yaml:1: health.probe_timeout: must be between 50ms and 1m, or 0s")
	f("cache: {stale_after: 1h}", "dotgate.yaml:1: cache.stale_after: must be between 0s and 1m")
	f("cache: {max_stale: 8760h}", "dotgate.yaml:1: cache.max_stale: must be between 0s and 168h")
	f("cache: {size: 1KiB}", "dotgate.yaml:1: cache.size: must be between 1MiB and 1024GiB, or off")
	f("cache: {min_ttl: 48h}", "dotgate.yaml:1: cache.min_ttl: is above max_ttl")
	f("query_log: {keep: -1}", "dotgate.yaml:1: query_log.keep: must be between 0 and 10000")
}

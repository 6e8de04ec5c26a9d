package bounds

import (
	"strings"
	"testing"
	"time"
)

func TestOptionsOutOfTheirBoundsAreReported(t *testing.T) {
	t.Parallel()
	type inner struct {
		Latency time.Duration `config:"latency" bounds:"1ms 1m"`
	}
	type options struct {
		Free    int           `config:"free"`
		Count   int           `config:"count" bounds:"1 100"`
		Port    uint16        `config:"port" bounds:"1 65535"`
		Learnt  time.Duration `config:"learnt" bounds:"10ms 1m 0s"`
		Inner   inner         `config:"inner"`
		Skipped inner         `config:"-"`
	}
	good := options{Count: 1, Port: 1, Inner: inner{time.Millisecond}}
	f := func(change func(*options), want string) {
		t.Helper()
		o := good
		change(&o)
		var got []string
		Check(o, func(option, problem string, beside ...string) { got = append(got, option+" "+problem) })
		if text := strings.Join(got, "\n"); text != want {
			t.Errorf("got %q, want %q", text, want)
		}
	}
	f(func(o *options) {}, "")
	f(func(o *options) { o.Count, o.Learnt, o.Inner.Latency = 100, time.Minute, time.Minute }, "")
	f(func(o *options) { o.Count = 0 }, "count must be between 1 and 100")
	f(func(o *options) { o.Port = 65535 }, "")
	f(func(o *options) { o.Port = 0 }, "port must be between 1 and 65535")
	f(func(o *options) { o.Count = 101 }, "count must be between 1 and 100")
	f(func(o *options) { o.Learnt = time.Millisecond }, "learnt must be between 10ms and 1m, or 0s")
	f(func(o *options) { o.Learnt = -1 }, "learnt must be between 10ms and 1m, or 0s")
	f(func(o *options) { o.Count, o.Inner.Latency = -1, time.Hour }, "count must be between 1 and 100\ninner.latency must be between 1ms and 1m")
}

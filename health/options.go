package health

import (
	"cmp"
	"log/slog"
	"time"

	"dotgate/gateway/wire"
)

// Options of a Monitor. A zero field means its default.
type Options struct {
	// Interval is how long an upstream that is up may go without an answer
	// before it is probed. Live answers count: a busy upstream is never probed.
	// Default: 30 s, as each probe of an idle upstream is a handshake.
	Interval time.Duration `config:"interval"`
	// ProbeName is the name that probes ask for: one that has to resolve,
	// whatever the upstream filters. Default: the root, ".".
	ProbeName string `config:"probe_name"`
	// ProbeType is the record type that probes ask for. Default: NS.
	ProbeType string `config:"probe_type"`
	// ProbeTimeout is how long a probe may take, dial and handshake included, if
	// the upstream is up. Default: 2 s.
	ProbeTimeout time.Duration `config:"probe_timeout"`
	// Failures is how many exchanges in a row must fail before an upstream is
	// down. Default: 3.
	Failures int `config:"failures"`
	// RecoveryMin and RecoveryMax bound the time between two probes of an
	// upstream that is down. It grows from the one to the other, with jitter,
	// and never ends. Defaults: 250 ms and 10 s.
	RecoveryMin time.Duration `config:"recovery_min"`
	RecoveryMax time.Duration `config:"recovery_max"`

	// Changed gets a word when a Monitor goes up or down and when something begins
	// to seem wrong with its upstream. It should have room for one: nobody waits
	// until it is taken. Default: nil, for nobody.
	Changed chan<- struct{} `config:"-"`
	// Log takes what an operator should see. Default: slog.Default.
	Log *slog.Logger `config:"-"`
}

// Defaults returns the options that zero fields stand for.
func Defaults() Options { return Options{}.withDefaults() }

func (o Options) withDefaults() Options {
	o.Interval = cmp.Or(o.Interval, 30*time.Second)
	o.ProbeName = cmp.Or(o.ProbeName, ".")
	o.ProbeType = cmp.Or(o.ProbeType, "NS")
	o.ProbeTimeout = cmp.Or(o.ProbeTimeout, 2*time.Second)
	o.Failures = cmp.Or(o.Failures, 3)
	o.RecoveryMin = cmp.Or(o.RecoveryMin, 250*time.Millisecond)
	o.RecoveryMax = cmp.Or(o.RecoveryMax, 10*time.Second)
	o.Log = cmp.Or(o.Log, slog.Default())
	return o
}

// Check reports every option that can't be used, by its name.
func (o Options) Check(report func(option, problem string)) {
	for _, d := range []struct {
		option string
		value  time.Duration
	}{
		{"interval", o.Interval}, {"probe_timeout", o.ProbeTimeout},
		{"recovery_min", o.RecoveryMin}, {"recovery_max", o.RecoveryMax},
	} {
		if d.value <= 0 {
			report(d.option, "must be above 0")
		}
	}
	if o.RecoveryMin > o.RecoveryMax {
		report("recovery_min", "is above recovery_max")
	}
	if o.Failures <= 0 {
		report("failures", "must be above 0")
	}
	if _, err := wire.NewQuery(o.ProbeName, "A"); err != nil {
		report("probe_name", `"`+o.ProbeName+`" is no domain name`)
	}
	if _, err := wire.NewQuery(".", o.ProbeType); err != nil {
		report("probe_type", `"`+o.ProbeType+`" is no record type`)
	}
}

package health

import (
	"cmp"
	"log/slog"
	"time"

	"dotgate/configs/bounds"
	"dotgate/gateway/wire"
)

// Options of a Monitor. A zero field means its default.
type Options struct {
	// Interval is how long an upstream may go without an answer before it is probed. Answers
	// to clients count, so a busy upstream is never probed. An idle gateway probes up to ten
	// times less often.
	//
	// While no query is placed anywhere, the time between two probes doubles, up to ten
	// times the interval, as each costs a handshake. The next query ends that.
	Interval time.Duration `config:"interval" bounds:"1s 1h"`
	// ProbeName is the name that probes ask for; it must exist, whatever the upstream
	// filters.
	ProbeName string `config:"probe_name"`
	// ProbeType is the record type that probes ask for.
	ProbeType string `config:"probe_type"`
	// ProbeTimeout is the longest that a probe may take, TCP and TLS handshakes included; 0s
	// is derived from earlier answers of the upstream, up to 4s, or gateway.timeout if that
	// is longer.
	//
	// 0 is three times the upstream's patience; the most if it has never answered; and 2 s
	// if it is down, the most if that was too short.
	ProbeTimeout time.Duration `config:"probe_timeout" bounds:"50ms 1m 0s"`
	// Failures is how many exchanges in a row must fail before an upstream is down.
	Failures int `config:"failures" bounds:"1 1000"`
	// RecoveryMin is the time before the first probe of an upstream that went down; it grows
	// with each probe that fails, with jitter.
	RecoveryMin time.Duration `config:"recovery_min" bounds:"50ms 1h"`
	// RecoveryMax is the longest time between two probes of an upstream that is down, and so
	// until its return is noticed.
	RecoveryMax time.Duration `config:"recovery_max" bounds:"50ms 1h"`

	// Patience is how long clients wait for an answer (gateway.timeout). If ProbeTimeout
	// is 0 and an upstream is slow, probes wait that long, but not less than 4 s.
	// Default: 4 s.
	Patience time.Duration `config:"-"`
	// Changed gets an element when the State of a Monitor changes. It should have a buffer
	// of one: if the buffer is full, the element is dropped. Default: nil.
	Changed chan<- struct{} `config:"-"`
	// Log gets the messages for operators. Default: slog.Default.
	Log *slog.Logger `config:"-"`
}

// Defaults returns the options that zero fields stand for.
func Defaults() Options { return Options{}.withDefaults() }

func (o Options) withDefaults() Options {
	o.Interval = cmp.Or(o.Interval, 30*time.Second)
	o.ProbeName = cmp.Or(o.ProbeName, ".")
	o.ProbeType = cmp.Or(o.ProbeType, "NS")
	o.Failures = cmp.Or(o.Failures, 3)
	o.RecoveryMin = cmp.Or(o.RecoveryMin, 250*time.Millisecond)
	o.RecoveryMax = cmp.Or(o.RecoveryMax, 10*time.Second)
	o.Patience = max(o.Patience, patienceMin)
	o.Log = cmp.Or(o.Log, slog.Default())
	return o
}

// Recent returns how long ago an upstream that is up may have answered last: it is
// probed by then, whether queries are placed or not.
func (o Options) Recent() time.Duration {
	o = o.withDefaults()
	return (idlePause+1)*o.Interval + o.probeMax()
}

// Check reports every option that can't be used, by its name.
func (o Options) Check(report func(option, problem string, beside ...string)) {
	bounds.Check(o, report)
	if o.RecoveryMin > o.RecoveryMax {
		report("recovery_min", "is above recovery_max", "recovery_max")
	}
	if _, err := wire.CleanName(o.ProbeName); err != nil {
		report("probe_name", err.Error())
	}
	if _, err := wire.NewQuery(".", o.ProbeType); err != nil {
		report("probe_type", `"`+o.ProbeType+`" is no record type`)
	}
}

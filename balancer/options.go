package balancer

import (
	"log/slog"
	"strings"
)

// Options of a Balancer. A zero field means its default.
type Options struct {
	// Policy is which upstream of a tier is asked first: latency (the fastest), ordered (as
	// listed), round_robin, weighted, least_outstanding (the least busy), or hash (by name).
	// Under every policy, upstreams that lose queries of a record type are asked first for
	// that type less often.
	Policy string `config:"policy"`

	// Record gets the Trace of each query that failed, or was sent to more than one
	// member, when the query has ended. It must not block. Nil: no trace is made.
	Record func(Trace) `config:"-"`
	// Log gets the messages for operators. Default: slog.Default.
	Log *slog.Logger `config:"-"`
}

// Defaults returns the options that zero fields stand for.
func Defaults() Options { return Options{}.withDefaults() }

func (o Options) withDefaults() Options {
	if o.Policy == "" {
		o.Policy = "latency"
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return o
}

// Check reports every option that can't be used, by its name.
func (o Options) Check(report func(option, problem string, beside ...string)) {
	if _, ok := policies[o.Policy]; !ok {
		report("policy", `"`+o.Policy+`" does not exist; there are `+strings.Join(Policies(), ", "))
	}
}

package balancer

import (
	"log/slog"
	"strings"
)

// Options of a Balancer. A zero field means its default.
type Options struct {
	// Policy orders the members for a query. Default: latency.
	Policy string `config:"policy"`

	// Tell gets the story of each query that failed, or was sent to more than one
	// member, when it is over. It must not block, nor keep anything up. Nil: nobody
	// is told.
	Tell func(Story) `config:"-"`
	// Log takes what an operator should see. Default: slog.Default.
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
func (o Options) Check(report func(option, problem string)) {
	if _, ok := policies[o.Policy]; !ok {
		report("policy", `"`+o.Policy+`" does not exist; there are `+strings.Join(Policies(), ", "))
	}
}

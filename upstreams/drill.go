package upstreams

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// delayMax is the longest delay of a drill. No client waits longer for an answer, so a
// longer delay would be a blackhole.
const delayMax = 10 * time.Second

// ErrDrill means that a drill of the upstream is running already.
var ErrDrill = errors.New("a drill is running already")

// A Drill is a fault that is injected into an upstream, so that operators can see what
// happens. It acts where a real fault would: the code that detects and survives failures
// does not know of it.
type Drill struct {
	Fault Fault
	Delay time.Duration // of each answer; with Late
	Share int           // of the answers, in percent; with ServFail
}

// A Fault is what a drill does to an upstream.
type Fault uint8

const (
	// Blackhole: open connections accept queries, and nothing comes back, not even their
	// end. New connections time out.
	Blackhole Fault = iota
	// Late: every answer is delayed.
	Late
	// ServFail: some answers are replaced by SERVFAIL.
	ServFail
	// Hangup: all connections are closed, and new ones right after the handshake.
	Hangup
)

var faultNames = [...]string{Blackhole: "blackhole", Late: "delay", ServFail: "servfail", Hangup: "close"}

func (f Fault) String() string { return faultNames[f] }

// String returns the form that ParseDrill reads.
func (d Drill) String() string {
	switch d.Fault {
	case Late:
		return d.Fault.String() + "=" + d.Delay.String()
	case ServFail:
		return fmt.Sprintf("%v=%d%%", d.Fault, d.Share)
	}
	return d.Fault.String()
}

// ParseDrill reads "blackhole", "delay=300ms", "servfail=20%" or "close".
func ParseDrill(text string) (Drill, error) {
	name, value, valued := strings.Cut(text, "=")
	fault := Fault(max(slices.Index(faultNames[:], name), 0))
	d := Drill{Fault: fault}
	switch {
	case fault.String() != name:
		return Drill{}, fmt.Errorf("%q is no fault; there are blackhole, delay=300ms, servfail=20%%, close", text)
	case fault == Late:
		var err error
		if d.Delay, err = time.ParseDuration(value); err != nil {
			return Drill{}, fmt.Errorf("%q is no delay; write one such as delay=300ms", text)
		}
		if d.Delay <= 0 || d.Delay > delayMax {
			return Drill{}, fmt.Errorf("%q must be above 0 and at most %v; an answer later than that is none, as with blackhole", text, delayMax)
		}
	case fault == ServFail:
		number, percent := strings.CutSuffix(value, "%")
		var err error
		if d.Share, err = strconv.Atoi(number); err != nil || !percent {
			return Drill{}, fmt.Errorf("%q is no share of the answers; write one such as servfail=20%%", text)
		}
		if d.Share < 1 || d.Share > 100 {
			return Drill{}, fmt.Errorf("%q must be between 1%% and 100%%", text)
		}
	case valued:
		return Drill{}, fmt.Errorf("%q: %v takes no value", text, fault)
	}
	return d, nil
}

// Drill injects the fault into u until ctx is done or u is closed. It blocks until then.
// If a drill is running already, it returns ErrDrill at once.
//
// When a drill ends, answers that it has delayed are delivered at once. What a blackhole
// has swallowed stays lost.
func (u *Upstream) Drill(ctx context.Context, d Drill) error {
	end, started := u.dialer.faults.start(d)
	if !started {
		return named(u.o.Name, ErrDrill)
	}
	defer end()
	select {
	case <-ctx.Done():
	case <-u.ctx.Done():
	}
	return nil
}

package balancer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// namedMax is the number of members that a Detail names, and reasonMax the octets for
	// the reason of each: a Detail is sent in replies over UDP.
	namedMax  = 4
	reasonMax = 120
)

// A failure is a member that had no answer, and the reason.
type failure struct {
	name string
	why  error
}

// failuresOf returns the members that failed a query: those that are down, asked or not,
// and those whose attempts failed or are still open. Members that are up and were not
// asked have not failed it.
func failuresOf(s Trace) (all []failure) {
	for _, c := range s.Candidates {
		why := c.Outage
		for _, a := range s.Attempts {
			switch {
			case a.Name != c.Name || c.Outage != nil:
			case a.Ended && a.Err != nil:
				why = a.Err
			case a.Ended:
				why = fmt.Errorf("answered %v", a.RCode)
			case !a.Ended && why == nil:
				why = fmt.Errorf("no answer within %v", (s.Took - a.After).Round(time.Millisecond))
			}
		}
		if why != nil {
			all = append(all, failure{c.Name, why})
		}
	}
	slices.SortStableFunc(all, func(a, b failure) int { return a.noRoute() - b.noRoute() })
	return all
}

// noRoute returns 1 if this machine has no route to the member, else 0. A machine without
// IPv6 has no route to any IPv6 address, so other reasons come first.
func (c failure) noRoute() int {
	var e interface{ NoRoute() bool }
	if errors.As(c.why, &e) && e.NoRoute() {
		return 1
	}
	return 0
}

// Detail names the members that had no answer, each with a short reason. It is for
// clients that may know which upstreams are asked.
func (e *Error) Detail() string {
	var texts []string
	for i, c := range e.failures {
		if i == namedMax {
			texts = append(texts, fmt.Sprintf("and %d more", len(e.failures)-i))
			break
		}
		texts = append(texts, brief(c))
	}
	return strings.Join(texts, "; ")
}

// Outage names the members that are down, each with a short reason, as Error.Detail does.
// It is empty if there are none.
func (b *Balancer) Outage() string {
	e := Error{failures: failuresOf(Trace{Candidates: b.Candidates()})}
	return e.Detail()
}

// brief returns the member's name, once, and the reason on one short line.
func brief(c failure) string {
	name, why := c.name+": ", strings.Map(printable, c.why.Error())
	why = strings.ReplaceAll(strings.TrimPrefix(why, name), " "+name, " ")
	if len(why) > reasonMax {
		end := reasonMax - len("…")
		for !utf8.RuneStart(why[end]) {
			end--
		}
		why = why[:end] + "…"
	}
	return c.name + ": " + why
}

// printable returns r, or a space if r can't be printed.
func printable(r rune) rune {
	if !unicode.IsPrint(r) {
		return ' '
	}
	return r
}

// attachFailures adds the failures in s to err, if err is an Error.
func attachFailures(err error, s Trace) {
	if e, ok := errors.AsType[*Error](err); ok {
		e.failures = failuresOf(s)
	}
}

package balancer

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// namedMax is how many members a Detail speaks of, and reasonMax how many
	// octets it has for each: it travels in a reply over UDP.
	namedMax  = 4
	reasonMax = 120
)

// A culprit is a member that had no answer, and why.
type culprit struct {
	name string
	why  error
}

// culpritsOf returns who is to blame for a query that got no answer: members that
// are down, asked or not, and those whose attempts failed or are still open. Those
// that were just not asked are not to blame.
func culpritsOf(s Story) (all []culprit) {
	for _, c := range s.Candidates {
		why := c.Outage
		for _, a := range s.Attempts {
			switch {
			case a.Name != c.Name || c.Outage != nil:
			case a.Ended && a.Err != nil:
				why = a.Err
			case !a.Ended && why == nil:
				why = fmt.Errorf("no answer within %v", (s.Took - a.After).Round(time.Millisecond))
			}
		}
		if why != nil {
			all = append(all, culprit{c.Name, why})
		}
	}
	return all
}

// Detail names the members that had no answer, and says why in a few words each.
// It is for those who may know whom we ask.
func (e *Error) Detail() string {
	var texts []string
	for i, c := range e.culprits {
		if i == namedMax {
			texts = append(texts, fmt.Sprintf("and %d more", len(e.culprits)-i))
			break
		}
		texts = append(texts, brief(c))
	}
	return strings.Join(texts, "; ")
}

// brief says it once only who it is about, and on one short line.
func brief(c culprit) string {
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

// printable returns r, or a space for what could look like anything.
func printable(r rune) rune {
	if !unicode.IsPrint(r) {
		return ' '
	}
	return r
}

// blame has err, if it is ours, know who is to blame for it.
func blame(err error, s Story) {
	if e, ok := errors.AsType[*Error](err); ok {
		e.culprits = culpritsOf(s)
	}
}

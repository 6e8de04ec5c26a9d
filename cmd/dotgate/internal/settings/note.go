package settings

import (
	"dotgate/gateway/wire"
)

// maxApexNotes is how many wildcards are noted: one says how it is with all of them.
const maxApexNotes = 10

// noteApexes notes each route whose own name is asked elsewhere: a wildcard is for the
// names below it only.
func (l *loader) noteApexes() {
	var starred []string
	for _, r := range l.config.Routes {
		for name := range r.Names() {
			if apex, below := wire.Apex(name); below && len(starred) < maxApexNotes {
				starred = append(starred, apex)
			}
		}
	}
	if len(starred) == 0 {
		return
	}
	var routed wire.Patterns[string]
	for _, r := range l.config.Routes {
		for name := range r.Names() {
			_, _ = routed.Add(name, "routes."+name) // the name was checked
		}
	}
	for _, apex := range starred {
		packed, err := wire.PackName(apex)
		if err != nil {
			continue // it was checked
		}
		where := "upstreams"
		if key, _, ok := routed.Find(packed); ok {
			where = key
		}
		if where != "routes."+apex {
			l.Note("routes.*.%s is for the names below %s only: %s itself is asked at %s; a route %s is for both", apex, apex, apex, where, apex)
		}
	}
}

// cleanNames puts the names of options into the form that queries are compared with.
// What can't be a name is left for Check to report.
func (l *loader) cleanNames() {
	c := l.config
	if name, err := wire.CleanName(c.Health.ProbeName); err == nil {
		c.Health.ProbeName = name
	}
	for _, u := range c.allUpstreams() {
		if name, err := wire.CleanName(u.ProbeName); err == nil {
			u.ProbeName = name
		}
	}
	for _, names := range [][]string{c.Gateway.ForwardLocal, c.Gateway.AllowPrivate} {
		for i, text := range names {
			if name, err := wire.CleanPattern(text); err == nil {
				names[i] = name
			}
		}
	}
}

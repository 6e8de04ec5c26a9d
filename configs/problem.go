package configs

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A Problem is one thing in the configuration that can't be used.
type Problem struct {
	Source string // a file's name, an environment variable, a flag, or "default"
	Line   int    // in the file; 0 if none
	Key    string // as in "gateway.timeout" or "upstreams[1].weight"; empty if none
	Text   string
}

// Error says it in one line: dotgate.yaml:12: gateway.timeout: "5" has no unit.
func (p Problem) Error() string {
	at := source{name: p.Source, line: p.Line}.String()
	if p.Key == "" {
		return at + ": " + oneLine(p.Text)
	}
	return at + ": " + oneLine(p.Key) + ": " + oneLine(p.Text)
}

// Problems are all that was found wrong: those of the file first, in the order
// of its lines.
type Problems []Problem

// Error has a line for each problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns each problem as an error of its own.
func (p Problems) Unwrap() []error {
	errs := make([]error, len(p))
	for i, problem := range p {
		errs[i] = problem
	}
	return errs
}

func (p Problems) sorted(file string) Problems {
	slices.SortStableFunc(p, func(a, b Problem) int {
		if (a.Source == file) != (b.Source == file) {
			if a.Source == file {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Line, b.Line))
	})
	return p
}

// A source is where a value is from. The zero source is the defaults.
type source struct {
	name   string // a file's name, an environment variable, or a flag
	line   int    // in the file; 0 if none
	preset string // which the value is from in the end, or empty
}

func (s source) isDefault() bool { return s.name == "" }

func (s source) String() string {
	text := oneLine(cmp.Or(s.name, "default"))
	if s.line > 0 {
		text += fmt.Sprintf(":%d", s.line)
	}
	if s.preset != "" {
		text += ", preset " + s.preset
	}
	return text
}

// reject reports that a key's value could not be read, so that nothing more is
// said about it.
func (l *loader) reject(at source, key, format string, args ...any) {
	l.bad[key] = true
	l.report(at, key, format, args...)
}

// report adds a problem.
func (l *loader) report(at source, key, format string, args ...any) {
	l.problems = append(l.problems, Problem{
		Source: cmp.Or(at.name, "default"), Line: at.line, Key: key, Text: fmt.Sprintf(format, args...),
	})
}

// reporter returns what a package's Check reports to, for the section or list
// entry that its options are in. It passes over options that could not even be
// read: what is said about them would be about a value that nobody gave.
func (l *loader) reporter(section string) func(option, problem string) {
	unread := maps.Clone(l.bad)
	return func(option, problem string) {
		key := section + "." + option
		if !unread[key] {
			l.report(l.blame(section, option, problem), key, "%s", problem)
		}
	}
}

// blame finds who to send to for a problem. An option that nobody has set is not
// wrong by itself: then one that the problem speaks of was set wrong beside it
// ("is above recovery_max"), or else the entry that should have set it.
func (l *loader) blame(section, option, problem string) source {
	sources := l.config.sources
	if at := sources[section+"."+option]; !at.isDefault() {
		return at
	}
	for _, word := range strings.FieldsFunc(problem, func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') }) {
		if at := sources[section+"."+word]; !at.isDefault() {
			return at
		}
	}
	return sources[section]
}

// nearest returns the word that name was most likely meant to be, or "" if it
// resembles none.
func nearest(name string, words []string) string {
	best, least := "", 1+max(2, (len(name)+1)/2)
	for _, word := range words {
		if d := distance(name, word); d < least {
			best, least = word, d
		}
	}
	return best
}

// distance is how many letters must be put in, left out or changed to make b of
// a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// oneLine keeps a file's name or a value with line breaks from looking like
// several lines of output.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return '�'
		}
		return r
	}, text)
}

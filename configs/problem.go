package configs

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
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
	at := Source{Name: p.Source, Line: p.Line}.String()
	if p.Key == "" {
		return at + ": " + oneLine(Clip(p.Text))
	}
	return at + ": " + oneLine(Clip(p.Key)) + ": " + oneLine(Clip(p.Text))
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

// A Source is where a value is from. The zero Source is the defaults.
type Source struct {
	Name   string // a file's name, an environment variable, or a flag
	Line   int    // in the file; 0 if none
	Preset string // whose value it is in the end, or empty
}

// IsDefault reports whether the value is from no source.
func (s Source) IsDefault() bool { return s.Name == "" }

func (s Source) String() string {
	text := oneLine(cmp.Or(s.Name, "default"))
	if s.Line > 0 {
		text += fmt.Sprintf(":%d", s.Line)
	}
	if s.Preset != "" {
		text += ", preset " + s.Preset
	}
	return text
}

// Origins are the Sources of values, by key: of settings, and of the entries of lists
// and their settings.
type Origins map[string]Source

// Reject reports that a key's value could not be read, and mutes the key.
func (l *Loader) Reject(at Source, key, format string, args ...any) {
	l.Mute(key)
	l.Report(at, key, format, args...)
}

// Report adds a problem.
func (l *Loader) Report(at Source, key, format string, args ...any) {
	l.problems = append(l.problems, Problem{
		Source: cmp.Or(at.Name, "default"), Line: at.Line, Key: key, Text: fmt.Sprintf(format, args...),
	})
}

// Mute keeps a Reporter from reporting a key whose value was not read: that would be
// about a value that is not in any source.
func (l *Loader) Mute(key string) { l.muted[key] = true }

// IsMuted reports whether a key was muted.
func (l *Loader) IsMuted(key string) bool { return l.muted[key] }

// Note adds a fact that an operator may not expect of the configuration: one sentence.
func (l *Loader) Note(format string, args ...any) {
	l.notes = append(l.notes, oneLine(fmt.Sprintf(format, args...)))
}

// Reporter returns the function that a Checker reports to, for the section or list
// entry that its options are in. It passes over muted keys.
func (l *Loader) Reporter(section string) func(option, problem string, beside ...string) {
	return func(option, problem string, beside ...string) {
		if key := section + "." + option; !l.muted[key] {
			l.Report(l.Blame(section, option, beside...), key, "%s", problem)
		}
	}
}

// Blame returns the source to name in a problem with an option of a section or list
// entry: its own; or, if it has its default, that of the first option beside it that has
// not; or else that of the entry, which should have set it.
func (l *Loader) Blame(section, option string, beside ...string) Source {
	for _, name := range append([]string{option}, beside...) {
		if at := l.origins[section+"."+name]; !at.IsDefault() {
			return at
		}
	}
	return l.origins[section]
}

// Nearest returns the word that name was most likely meant to be, or "" if it
// resembles none.
func Nearest(name string, words []string) string {
	if len(name) > shownMax {
		return "" // it resembles none, and to find that out takes its length squared
	}
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

// shownMax is how many characters of one word or quoted text an error shows.
const shownMax = 100

// Clip shortens each word and each quoted text in an error message to its first 100
// characters, so that a message never repeats a whole file.
func Clip(text string) string {
	var out strings.Builder
	for text != "" {
		part, end := text, ""
		if quoted, err := strconv.QuotedPrefix(text); err == nil && text[0] == '"' {
			part, end = quoted, `"`
		} else if i := strings.IndexFunc(text, unicode.IsSpace); i >= 0 {
			part = text[:max(i, 1)]
		}
		text = text[len(part):]
		if utf8.RuneCountInString(part) > shownMax {
			part = string([]rune(part[:min(len(part), utf8.UTFMax*shownMax)])[:shownMax]) + "…" + end
		}
		out.WriteString(part)
	}
	return out.String()
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

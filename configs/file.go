package configs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"dotgate/configs/files"

	"go.yaml.in/yaml/v3"
)

func (l *Loader) readFile() {
	data, err := l.sources.Read(l.sources.File, files.ConfigMax)
	if err != nil {
		if at, ok := errors.AsType[*fs.PathError](err); ok {
			err = at.Err // the problem names its path
		}
		l.Report(Source{Name: l.sources.File}, "", "read the configuration: %v", err)
		return
	}
	l.readDocument(data)
}

// readDocument reads YAML into l.given: one entry for each key of a setting. It uses
// the tree of nodes rather than a map, which has no lines and no duplicate keys.
func (l *Loader) readDocument(data []byte) {
	documents := yaml.NewDecoder(bytes.NewReader(data))
	var document yaml.Node
	err := documents.Decode(&document)
	if errors.Is(err, io.EOF) {
		l.reportEmpty()
		return
	}
	if err != nil {
		line := l.reportSyntax(data, err)
		if line > 0 && l.skips > 0 {
			l.skips--
			l.readDocument(withoutSection(bytes.SplitAfter(data, []byte("\n")), line))
		}
		return
	}
	var second yaml.Node
	if err := documents.Decode(&second); !errors.Is(err, io.EOF) {
		l.Report(Source{l.sources.File, second.Line, ""}, "", "a second document starts after ---; there must be one only")
	}
	root := resolve(document.Content[0])
	if isNull(root) {
		l.reportEmpty()
		return
	}
	if root.Kind != yaml.MappingNode {
		l.Report(Source{l.sources.File, root.Line, ""}, "", "is %s, not a mapping; it should start with a section such as gateway:", kindOf(root))
		return
	}
	l.readSection("", root, keysOf(l.settings), l.given)
}

// reportEmpty reports that the file is empty, as a file that is still being written is.
func (l *Loader) reportEmpty() {
	l.Report(Source{Name: l.sources.File}, "", "is empty, or has only comments; for the defaults, write %s, or use no file", l.sources.Defaults)
}

// readSection reads the mapping at prefix ("", "gateway." or "upstreams[1].")
// into values. Keys are all keys that exist, in full.
func (l *Loader) readSection(prefix string, mapping *yaml.Node, keys []string, values map[string]any) {
	first := make(map[string]int) // the line of each name
	mapping = l.withMerged(mapping)
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		name, value := resolve(mapping.Content[i]), resolve(mapping.Content[i+1])
		at := Source{l.sources.File, mapping.Content[i].Line, ""}
		key := prefix + name.Value
		if name.Kind != yaml.ScalarNode {
			l.Report(at, strings.TrimSuffix(prefix, "."), "has %s for a key; a key is a word", kindOf(name))
			continue
		}
		if prefix == "" && strings.HasPrefix(name.Value, "x-") {
			continue // a place for anchors, as in a Compose file
		}
		if strings.Contains(name.Value, ".") {
			l.Report(at, key, "does not exist; sections have no dots: a key stands below its section, indented")
			continue
		}
		if line, twice := first[name.Value]; twice {
			l.Report(at, key, "is given twice, first in line %d", line)
			continue
		}
		first[name.Value] = at.Line
		section := key + "."
		switch {
		case slices.Contains(keys, key):
			values[key] = Value{at, value}
		case !hasPrefix(keys, section):
			l.reportUnknown(at, prefix, name.Value, keys)
		case value.Kind == yaml.MappingNode:
			l.readSection(section, value, keys, values)
		case value.Kind == yaml.SequenceNode && l.short(key) != "":
			values[l.short(key)] = Value{at, value}
		case !isNull(value): // all of its keys may be commented out
			l.Report(at, key, "is %s; it is a section, with keys of its own such as %s", kindOf(value), below(section, keys)[0])
		}
	}
}

// withMerged returns the mapping with the keys that merge keys (<<) add; its own keys
// override them. A value that can't be merged stays, and is reported as a key that does
// not exist.
func (l *Loader) withMerged(mapping *yaml.Node) *yaml.Node {
	const isMerge = "!!merge"
	own := make(map[string]bool)
	merges := 0
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if name := mapping.Content[i]; name.Tag == isMerge {
			merges++
		} else {
			own[resolve(name).Value] = true
		}
	}
	if merges == 0 {
		return mapping
	}
	flat := *mapping
	flat.Content = nil
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		name, value := mapping.Content[i], resolve(mapping.Content[i+1])
		sources := []*yaml.Node{value}
		if value.Kind == yaml.SequenceNode {
			sources = value.Content
		}
		if name.Tag != isMerge || slices.ContainsFunc(sources, func(n *yaml.Node) bool { return resolve(n).Kind != yaml.MappingNode }) {
			flat.Content = append(flat.Content, name, mapping.Content[i+1])
			continue
		}
		for _, Source := range sources {
			from := resolve(Source).Content
			for j := 0; j+1 < len(from); j += 2 {
				if key := resolve(from[j]).Value; !own[key] {
					own[key] = true
					flat.Content = append(flat.Content, from[j], from[j+1])
				}
			}
		}
	}
	return &flat
}

func (l *Loader) reportUnknown(at Source, prefix, name string, keys []string) {
	known := below(prefix, keys)
	if meant := Nearest(name, known); meant != "" {
		l.Report(at, prefix+name, "does not exist; did you mean %s?", meant)
		return
	}
	l.Report(at, prefix+name, "does not exist; there are %s", strings.Join(known, ", "))
}

// below lists the names that may stand in the section at prefix.
func below(prefix string, keys []string) []string {
	var names []string
	for _, key := range keys {
		if rest, ok := strings.CutPrefix(key, prefix); ok {
			name, _, _ := strings.Cut(rest, ".")
			names = append(names, name)
		}
	}
	return slices.Compact(names)
}

func hasPrefix(keys []string, prefix string) bool {
	return slices.ContainsFunc(keys, func(key string) bool { return strings.HasPrefix(key, prefix) })
}

var (
	yamlErrorLine   = regexp.MustCompile(`^(yaml: )?(line \d+: )?`)
	unquotedAddress = regexp.MustCompile(`\]:|[\[,]\s*:`)
	// YAML takes * for the name of an anchor.
	unquotedWildcard = regexp.MustCompile(`(^|[\s\[{,])\*\.`)
)

// reportSyntax reports that data is not YAML, with hints for the two mistakes whose error
// messages do not help. It returns the line of the mistake, from 1, or 0 if that is
// unknown.
func (l *Loader) reportSyntax(data []byte, err error) (line int) {
	lines := bytes.SplitAfter(data, []byte("\n"))
	line = brokenLine(lines)
	problem := "is not YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")
	if line > 0 {
		problem = "is not YAML: " + yamlErrorLine.ReplaceAllString(err.Error(), "")
		text := lines[line-1]
		indent := text[:len(text)-len(bytes.TrimLeft(text, " \t"))]
		switch {
		case bytes.Contains(indent, []byte("\t")):
			problem += "; the line starts with a tab, indent with spaces"
		case unquotedAddress.Match(text):
			problem += "; put quotes around addresses such as [::1]:53 and :53"
		case unquotedWildcard.Match(text):
			problem += "; put quotes around names that begin with *"
		}
	}
	l.Report(Source{l.sources.File, line, ""}, "", "%s", problem)
	return line
}

// brokenLine finds the line, from 1, after which nothing makes it YAML any more.
// The parser's own number is that of the block around it, of the line before,
// or missing. 0 means unknown.
func brokenLine(lines [][]byte) int {
	// Each step parses up to the mistake. A file of a few hundred lines takes
	// well under a second; one that was generated could take minutes.
	const most = 8 << 20 // bytes parsed, twice
	if size := len(bytes.Join(lines, nil)); len(lines)*size > most {
		return 0
	}
	for n := len(lines) - 1; n >= 0; n-- {
		if yaml.Unmarshal(bytes.Join(lines[:n], nil), new(yaml.Node)) == nil {
			return n + 1
		}
	}
	return 0
}

// withoutSection returns the lines of a file without the section that the line, from 1,
// is in: fewer lines.
func withoutSection(lines [][]byte, line int) []byte {
	begins := func(text []byte) bool {
		return len(text) > 0 && !bytes.ContainsRune([]byte(" \t\r\n#]}"), rune(text[0]))
	}
	start, end := line-1, line
	for start > 0 && !begins(lines[start]) {
		start--
	}
	for end < len(lines) && !begins(lines[end]) {
		end++
	}
	return bytes.Join(slices.Concat(lines[:start], lines[end:]), nil)
}

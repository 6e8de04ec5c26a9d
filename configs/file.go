package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// readFile reads the file into l.given.
func (l *loader) readFile() {
	data, err := os.ReadFile(l.file)
	if err != nil {
		if at, ok := errors.AsType[*fs.PathError](err); ok {
			err = at.Err // its path is told already
		}
		l.report(source{name: l.file}, "", "read the configuration: %v", err)
		return
	}
	l.readDocument(data)
}

// readDocument reads YAML into l.given: one entry for each key that a setting
// has. It takes the tree of nodes rather than a map, as only that knows lines
// and keys that are given twice.
func (l *loader) readDocument(data []byte) {
	documents := yaml.NewDecoder(bytes.NewReader(data))
	var document yaml.Node
	err := documents.Decode(&document)
	if errors.Is(err, io.EOF) {
		return // empty, or comments only
	}
	if err != nil {
		l.reportSyntax(data, err)
		return
	}
	var second yaml.Node
	if err := documents.Decode(&second); !errors.Is(err, io.EOF) {
		l.report(source{l.file, second.Line, ""}, "", "a second document starts after ---; there must be one only")
	}
	root := resolve(document.Content[0])
	if isNull(root) {
		return
	}
	if root.Kind != yaml.MappingNode {
		l.report(source{l.file, root.Line, ""}, "", "is %s, not a mapping; it should start with a section such as gateway:", kindOf(root))
		return
	}
	l.readSection("", root, keysOf(l.settings), l.given)
}

// readSection reads the mapping at prefix ("", "gateway." or "upstreams[1].")
// into values. Keys are all keys that exist, in full.
func (l *loader) readSection(prefix string, mapping *yaml.Node, keys []string, values map[string]any) {
	first := make(map[string]int) // the line of each name
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		name, value := resolve(mapping.Content[i]), resolve(mapping.Content[i+1])
		at := source{l.file, mapping.Content[i].Line, ""}
		key := prefix + name.Value
		if name.Kind != yaml.ScalarNode {
			l.report(at, strings.TrimSuffix(prefix, "."), "has %s for a key; a key is a word", kindOf(name))
			continue
		}
		if strings.Contains(name.Value, ".") {
			l.report(at, key, "does not exist; sections have no dots: a key stands below its section, indented")
			continue
		}
		if line, twice := first[name.Value]; twice {
			l.report(at, key, "is given twice, first in line %d", line)
			continue
		}
		first[name.Value] = at.line
		section := key + "."
		switch {
		case slices.Contains(keys, key):
			values[key] = given{at, value}
		case !hasPrefix(keys, section):
			l.reportUnknown(at, prefix, name.Value, keys)
		case value.Kind == yaml.MappingNode:
			l.readSection(section, value, keys, values)
		case value.Kind == yaml.SequenceNode && short[key] != "":
			values[short[key]] = given{at, value}
		case !isNull(value): // all of its keys may be commented out
			l.report(at, key, "is %s; it is a section, with keys of its own such as %s", kindOf(value), below(section, keys)[0])
		}
	}
}

func (l *loader) reportUnknown(at source, prefix, name string, keys []string) {
	known := below(prefix, keys)
	if meant := nearest(name, known); meant != "" {
		l.report(at, prefix+name, "does not exist; did you mean %s?", meant)
		return
	}
	l.report(at, prefix+name, "does not exist; there are %s", strings.Join(known, ", "))
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
)

// reportSyntax reports that data is not YAML, with hints for the two mistakes
// whose error messages are of no help.
func (l *loader) reportSyntax(data []byte, err error) {
	lines := bytes.SplitAfter(data, []byte("\n"))
	line := brokenLine(lines)
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
		}
	}
	l.report(source{l.file, line, ""}, "", "%s", problem)
}

// brokenLine finds the line, from 1, after which nothing makes it YAML any more.
// The parser's own number is that of the block around it, of the line before,
// or missing. 0 means unknown.
func brokenLine(lines [][]byte) int {
	// Each step parses up to the mistake. A file of a few hundred lines takes
	// well under a second; one that nobody wrote by hand could take minutes.
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

// resolve follows an alias to what it stands for.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

func kindOf(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case isNull(n):
		return "nothing"
	}
	return fmt.Sprintf("%q", n.Value)
}

// textNode and listNode are how values that are not of a file take the same way
// as those that are.
func textNode(text string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
}

func listNode(texts []string) *yaml.Node {
	list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	for _, text := range texts {
		list.Content = append(list.Content, textNode(text))
	}
	return list
}

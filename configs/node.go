package configs

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A Value is what one source says about one key.
type Value struct {
	At   Source
	node *yaml.Node // of the file, or made of text; no alias
}

// TextOf returns a text as a Value.
func TextOf(at Source, text string) Value {
	node := textNode(text)
	node.Line = at.Line
	return Value{at, node}
}

// ListOf returns a list as a Value.
func ListOf(at Source, elements ...Value) Value {
	list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	for _, v := range elements {
		list.Content = append(list.Content, v.node)
	}
	return Value{at, list}
}

// IsNull reports whether there is a key, but no value.
func (v Value) IsNull() bool { return isNull(v.node) }

// IsScalar reports whether the value is a text, a number or the like, or null.
func (v Value) IsScalar() bool { return v.node.Kind == yaml.ScalarNode }

// IsList reports whether the value is a list.
func (v Value) IsList() bool { return v.node.Kind == yaml.SequenceNode }

// IsMapping reports whether the value is a mapping.
func (v Value) IsMapping() bool { return v.node.Kind == yaml.MappingNode }

// Text returns a scalar as it is written.
func (v Value) Text() string { return v.node.Value }

// Kind says in an error what the value is: "a list", "nothing", or the text in quotes.
func (v Value) Kind() string { return kindOf(v.node) }

// List returns the elements of a list, each with its line.
func (v Value) List() []Value {
	elements := make([]Value, len(v.node.Content))
	for i, n := range v.node.Content {
		elements[i] = v.child(n, n)
	}
	return elements
}

// Pairs returns the names and values of a mapping, each pair with the line of the name.
func (v Value) Pairs() [][2]Value {
	pairs := make([][2]Value, 0, len(v.node.Content)/2)
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		name := v.node.Content[i]
		pairs = append(pairs, [2]Value{v.child(name, name), v.child(name, v.node.Content[i+1])})
	}
	return pairs
}

// child returns a node in the value, with the line of another one.
func (v Value) child(line, n *yaml.Node) Value {
	at := v.At
	if line.Line > 0 {
		at.Line = line.Line
	}
	return Value{at, resolve(n)}
}

// Canonical returns a text that is the same for values that are written with the same
// words.
func (v Value) Canonical() string { return canonical(v.node) }

func canonical(n *yaml.Node) string {
	n = resolve(n)
	if n.Kind == yaml.ScalarNode {
		return fmt.Sprintf("%s%q", n.ShortTag(), n.Value)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%d(", n.Kind)
	for _, child := range n.Content {
		text.WriteString(canonical(child) + ",")
	}
	return text.String() + ")"
}

// Section reads a mapping at a key: the values that it has for these names, and no
// others. What it has besides is reported.
func (l *Loader) Section(key string, mapping Value, names ...string) map[string]Value {
	keys := make([]string, len(names))
	for i, name := range names {
		keys[i] = key + "." + name
	}
	read, values := make(map[string]any), make(map[string]Value)
	l.readSection(key+".", mapping.node, keys, read)
	for i, name := range names {
		if v, ok := read[keys[i]].(Value); ok {
			values[name] = v
		}
	}
	return values
}

// resolve follows an alias to the node that it stands for.
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

// textNode and listNode make nodes of values that are not from a file.
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

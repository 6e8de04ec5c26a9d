package configs

import (
	_ "embed"
	"strings"

	"go.yaml.in/yaml/v3"
)

//go:embed dotgate.yaml
var document string

// Document returns the file dotgate.yaml: every option with its default and its
// meaning, to begin a configuration of one's own with.
func Document() string { return document }

// Comments returns the first paragraph of the comment above each key of a document, as one
// line. The keys are whole: "gateway.timeout", "upstreams[].weight".
func Comments(document string) map[string]string {
	comments := make(map[string]string)
	var root yaml.Node
	if err := yaml.Unmarshal([]byte(document), &root); err != nil {
		panic("BUG: a document can't be read: " + err.Error())
	}
	collectComments("", root.Content[0], comments)
	return comments
}

func collectComments(prefix string, n *yaml.Node, comments map[string]string) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := prefix + n.Content[i].Value
			comments[key] = uncommented(n.Content[i].HeadComment)
			collectComments(key+".", n.Content[i+1], comments)
		}
	case yaml.SequenceNode:
		for _, element := range n.Content {
			if element.Kind == yaml.MappingNode && element.Content[0].HeadComment == "" {
				element.Content[0].HeadComment = element.HeadComment
			}
			collectComments(strings.TrimSuffix(prefix, ".")+"[].", element, comments)
		}
	}
}

// uncommented returns the text of a comment's first paragraph as one line.
func uncommented(comment string) string {
	comment, _, _ = strings.Cut(comment, "\n#\n")
	lines := strings.Split(comment, "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(strings.TrimPrefix(lines[i], "#"))
	}
	return strings.TrimSpace(strings.Join(lines, " "))
}

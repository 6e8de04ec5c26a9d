package configs

import (
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"

	"dotgate/upstreams"
)

// An Option is one key of the configuration, for its reference.
type Option struct {
	Key      string // "gateway.listen"
	Variable string // the environment variable
	Default  string
	Meaning  string // a sentence or two
}

// Options returns all options with what dotgate.yaml says of them. Those of one
// upstream have keys that start with "upstreams[].", and no variable.
func Options() []Option {
	meanings := make(map[string]string)
	var root yaml.Node
	if err := yaml.Unmarshal([]byte(document), &root); err != nil {
		panic("BUG: dotgate.yaml can't be read: " + err.Error())
	}
	collectMeanings("", root.Content[0], meanings)
	c := defaults()
	c.Control.Socket = SocketAuto
	var all []Option
	for _, s := range settingsOf("", reflect.ValueOf(c).Elem()) {
		if s.key == "upstreams" {
			all = append(all, Option{s.key, variable(s.key), "[" + strings.Join(defaultUpstreams, ", ") + "]", "The resolvers to ask: presets, URLs or mappings."})
			all = append(all, upstreamOptions()...)
			continue
		}
		if s.key == "routes" {
			all = append(all, Option{s.key, variable(s.key), "{}", meanings[s.key]})
			continue
		}
		all = append(all, Option{s.key, variable(s.key), textOf(s.field), meanings[s.key]})
	}
	return all
}

func collectMeanings(prefix string, mapping *yaml.Node, meanings map[string]string) {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		name, value := mapping.Content[i], mapping.Content[i+1]
		key := prefix + name.Value
		meanings[key] = meaning(name.HeadComment)
		if value.Kind == yaml.MappingNode {
			collectMeanings(key+".", value, meanings)
		}
	}
}

func meaning(comment string) string {
	lines := strings.Split(comment, "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(strings.TrimPrefix(lines[i], "#"))
	}
	return strings.TrimSpace(strings.Join(lines, " "))
}

// upstreamOptions are those of one upstream, which dotgate.yaml has in a comment.
func upstreamOptions() []Option {
	u := Upstream{Options: upstreams.Defaults(), Weight: 1}
	var all []Option
	for _, s := range settingsOf("upstreams[].", reflect.ValueOf(&u).Elem()) {
		all = append(all, Option{Key: s.key, Default: textOf(s.field), Meaning: upstreamMeaning(strings.TrimPrefix(s.key, "upstreams[]."))})
	}
	return all
}

// upstreamMeaning is the comment above the line of an option.
func upstreamMeaning(name string) string {
	if name == "name" {
		return "Tells it apart in logs, metrics and commands; without one, the name in its certificate."
	}
	before := ""
	for line := range strings.Lines(document) {
		text := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "#"))
		text = strings.TrimPrefix(text, "- ")
		if strings.HasPrefix(text, name+":") && strings.HasPrefix(strings.TrimSpace(line), "#") {
			return meaning(before)
		}
		before = text
	}
	return ""
}

package settings

import (
	"strings"

	"dotgate/configs"
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
	meanings := configs.Comments(configs.Document())
	c := defaults()
	var all []Option
	for _, s := range configs.SettingsOf("", c) {
		o := Option{Key: s.Key, Variable: configs.Variable(s.Key), Meaning: meanings[s.Key]}
		switch s.Key {
		case "upstreams":
			o.Default = "[" + strings.Join(defaultUpstreams, ", ") + "]"
			all = append(all, o)
			ofOne := configs.Comments(upstreamInFull())
			for _, s := range configs.SettingsOf("upstreams[].", &Upstream{Options: upstreams.Defaults(), Weight: 1}) {
				all = append(all, Option{Key: s.Key, Default: s.Text(), Meaning: ofOne[s.Key]})
			}
			continue
		case "routes":
			o.Default = "{}"
		default:
			o.Default = s.Text()
		}
		all = append(all, o)
	}
	return all
}

// inFull begins the comment of dotgate.yaml that shows an upstream with all options.
const inFull = "An upstream in full;"

// upstreamInFull returns the upstream that dotgate.yaml has in a comment, as a document.
func upstreamInFull() string {
	_, rest, _ := strings.Cut(configs.Document(), "  # "+inFull)
	_, rest, _ = strings.Cut(rest, "  #\n")
	text := "upstreams:\n"
	for line := range strings.Lines(rest) {
		line, commented := strings.CutPrefix(line, "  # ")
		if !commented {
			break
		}
		text += "  " + line
	}
	return text
}

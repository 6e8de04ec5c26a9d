package configs

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Kubernetes tells every pod about a Service named dotgate, and Docker's links
// about such a container, in variables of these forms. No key is named like
// them, so none can be a misspelt one.
var serviceVariable = regexp.MustCompile(
	`^DOTGATE_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// environ returns what the environment says, by key. A list is separated by
// commas.
func (l *loader) environ(variables []string) map[string]any {
	keys := map[string]string{variablePrefix + "CONFIG": ""} // a name that is known, but not a key
	for _, s := range l.settings {
		keys[variable(s.key)] = s.key
	}
	for section, key := range short {
		keys[variable(section)] = key
	}
	layer := make(map[string]any)
	for _, v := range variables {
		name, text, _ := strings.Cut(v, "=")
		if !strings.HasPrefix(name, variablePrefix) || serviceVariable.MatchString(name) {
			continue
		}
		key, ok := keys[name]
		at := source{name: name}
		switch {
		case !ok:
			l.report(at, "", "is no variable of dotgate; did you mean %s?", closest(name, slices.Sorted(maps.Keys(keys))))
		case key == "":
		case layer[key] != nil:
			l.report(at, key, "is given twice, by two variables")
		case text == "":
			l.report(at, key, "is set but empty; give it a value, or unset it to leave the choice to the file or the default")
		case !utf8.ValidString(text):
			l.report(at, key, "%q is not UTF-8", text)
		case l.isList(key):
			layer[key] = given{at, listNode(strings.Split(text, ","))}
		default:
			layer[key] = given{at, textNode(text)}
		}
	}
	return layer
}

// flags returns what the command line says, by key.
func (l *loader) flags(flags map[string][]string) map[string]any {
	layer := make(map[string]any)
	for key, values := range flags {
		at := source{name: flagName(key)}
		switch {
		case len(values) == 0:
		case !slices.Contains(keysOf(l.settings), key):
			l.report(at, key, "is no key")
		case slices.Contains(values, ""):
			l.report(at, key, "is given without a value")
		case l.isList(key):
			layer[key] = given{at, listNode(values)}
		case len(values) > 1:
			l.report(at, key, "is given %d times; it takes one value", len(values))
		default:
			layer[key] = given{at, textNode(values[0])}
		}
	}
	return layer
}

func flagName(key string) string {
	return "--" + strings.ReplaceAll(key[strings.LastIndexByte(key, '.')+1:], "_", "-")
}

func (l *loader) isList(key string) bool {
	return slices.ContainsFunc(l.settings, func(s setting) bool { return s.key == key && isList(s.field) })
}

// closest returns the word that takes the least change to get at from name.
func closest(name string, words []string) string {
	return slices.MinFunc(words, func(a, b string) int { return distance(name, a) - distance(name, b) })
}

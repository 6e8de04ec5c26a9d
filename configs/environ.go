package configs

import (
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// serviceVariable matches the names of variables by which Kubernetes tells every pod of a
// namespace about its Services, and Docker's links about containers.
var serviceVariable = regexp.MustCompile(
	`^DOTGATE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// IsServiceVariable reports whether a variable is ignored because Kubernetes or Docker
// sets it: a Service dotgate, dotgate-metrics or dotgate-2 must not keep a pod from
// starting.
func IsServiceVariable(name string) bool { return serviceVariable.MatchString(name) }

// environ returns what the environment says, by key. A list is separated by
// commas.
func (l *Loader) environ(variables []string) map[string]any {
	keys := map[string]string{variablePrefix + "CONFIG": ""} // a name that is known, but not a key
	for _, s := range l.settings {
		keys[Variable(s.Key)] = s.Key
	}
	for _, s := range l.settings {
		if s.short {
			keys[Variable(s.section())] = s.Key
		}
	}
	layer := make(map[string]any)
	var services []string
	for _, v := range variables {
		name, text, _ := strings.Cut(v, "=")
		key, ok := keys[name]
		if !strings.HasPrefix(name, variablePrefix) {
			continue
		}
		if !ok && IsServiceVariable(name) {
			services = append(services, name)
			continue
		}
		at := Source{Name: name}
		switch {
		case !ok:
			l.Report(Source{Name: Clip(name)}, "", "is no variable of dotgate; did you mean %s?", closest(name[:min(len(name), shownMax)], slices.Sorted(maps.Keys(keys))))
		case key == "":
		case layer[key] != nil:
			l.Report(at, key, "is given twice, by two variables")
		default:
			if value := l.variableValue(at, key, text); value != nil {
				layer[key] = value
			}
		}
	}
	if len(services) > 0 {
		l.Note("%d environment variables such as %s are ignored: Kubernetes or Docker sets them for Services and links, and they are no options of dotgate", len(services), Clip(slices.Min(services)))
	}
	return layer
}

// variableValue returns the Value that a variable gives a key, or nil, with a report, if
// its text is not usable.
func (l *Loader) variableValue(at Source, key, text string) any {
	switch {
	case text == "":
		l.Report(at, key, "is set but empty; give it a value, or unset it to leave the choice to the file or the default")
	case !utf8.ValidString(text):
		l.Report(at, key, "the value is not UTF-8")
	case l.isList(key) && isYAMLList(text):
		l.Report(at, key, "begins with %q; in a variable, a list is its elements with commas between them, without brackets and quotes: a,b", text[:1])
	case l.isList(key):
		return Value{at, listNode(splitList(text))}
	default:
		return Value{at, textNode(text)}
	}
	return nil
}

// isYAMLList reports whether text is a list as the file has it, rather than as a variable
// has it. An IPv6 address is in brackets, too.
func isYAMLList(text string) bool {
	inner, bracket := strings.CutPrefix(text, "[")
	address, _, _ := strings.Cut(inner, "]")
	_, err := netip.ParseAddr(address)
	return strings.ContainsAny(text[:1], `"'`) || bracket && err != nil
}

// splitList splits a list at commas and at the ends of lines, as a YAML block has them;
// there, a comma may stand before the end of a line.
func splitList(text string) (all []string) {
	if !strings.Contains(text, "\n") {
		return strings.Split(text, ",")
	}
	for line := range strings.Lines(text) {
		if line = strings.TrimSuffix(strings.TrimSpace(line), ","); line != "" {
			all = append(all, strings.Split(line, ",")...)
		}
	}
	return all
}

// flags returns what the command line says, by key.
func (l *Loader) flags(flags map[string][]string) map[string]any {
	layer := make(map[string]any)
	for key, values := range flags {
		at := Source{Name: FlagName(key)}
		switch {
		case len(values) == 0:
		case !slices.Contains(keysOf(l.settings), key):
			l.Report(at, key, "is no key")
		case slices.Contains(values, ""):
			l.Report(at, key, "is given without a value")
		case l.isList(key):
			layer[key] = Value{at, listNode(values)}
		case len(values) > 1:
			l.Report(at, key, "is given %d times; it takes one value", len(values))
		default:
			layer[key] = Value{at, textNode(values[0])}
		}
	}
	return layer
}

// FlagName returns the name of the flag for a key.
func FlagName(key string) string {
	return "--" + strings.ReplaceAll(key[strings.LastIndexByte(key, '.')+1:], "_", "-")
}

func (l *Loader) isList(key string) bool {
	return slices.ContainsFunc(l.settings, func(s Setting) bool { return s.Key == key && s.IsList() })
}

// closest returns the word that takes the least change to get at from name.
func closest(name string, words []string) string {
	return slices.MinFunc(words, func(a, b string) int { return distance(name, a) - distance(name, b) })
}

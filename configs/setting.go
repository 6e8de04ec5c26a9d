package configs

import (
	"encoding"
	"reflect"
	"strings"
)

// A setting is one key of the configuration and the field that has its value.
type setting struct {
	key   string // "gateway.listen"
	field reflect.Value
}

// settingsOf lists the settings below a struct in the order of its fields, from
// their config tags: "-" hides a field, a struct is a section of its own, an
// embedded one is part of its owner's.
func settingsOf(prefix string, options reflect.Value) []setting {
	var settings []setting
	for i := range options.NumField() {
		field, value := options.Type().Field(i), options.Field(i)
		name := field.Tag.Get("config")
		switch {
		case field.Anonymous:
			settings = append(settings, settingsOf(prefix, value)...)
		case name == "" || name == "-":
		case isSection(field.Type):
			settings = append(settings, settingsOf(prefix+name+".", value)...)
		default:
			settings = append(settings, setting{prefix + name, value})
		}
	}
	return settings
}

// A struct that reads itself from text, such as an address, is a value.
func isSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func keysOf(settings []setting) []string {
	keys := make([]string, len(settings))
	for i, s := range settings {
		keys[i] = s.key
	}
	return keys
}

// short are the sections of which a list stands for one key: who has no more to say
// than that writes peers: [dotgate-b], or DOTGATE_PEERS.
var short = map[string]string{"peers": "peers.nodes"}

// variable returns the name of the environment variable for a key.
func variable(key string) string {
	return variablePrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

const variablePrefix = "DOTGATE_"

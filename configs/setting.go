package configs

import (
	"encoding"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"

	"dotgate/configs/secret"
)

// The tags of fields.
const (
	keyTag  = "config"  // the last word of the field's key, or "-" for none
	listTag = "section" // "list": a list in place of the field's section is the field's
)

// A Setting is one key of the configuration and the field that has its value.
type Setting struct {
	Key   string // "gateway.listen"
	Field reflect.Value

	short bool // a list in place of its section stands for it
}

// IsSecret reports whether the value must not be shown.
func (s Setting) IsSecret() bool { return s.elementType().Implements(reflect.TypeFor[secret.Value]()) }

// IsList reports whether the value is a list.
func (s Setting) IsList() bool { return isList(s.Field) }

// Text writes the value as YAML that Fill reads back.
func (s Setting) Text() string { return textOf(s.Field) }

// Name returns the last word of the key.
func (s Setting) Name() string { return s.Key[strings.LastIndexByte(s.Key, '.')+1:] }

// section returns the key of the section that the setting is in, or "".
func (s Setting) section() string { return s.Key[:max(0, strings.LastIndexByte(s.Key, '.'))] }

func (s Setting) elementType() reflect.Type {
	if t := s.Field.Type(); t.Kind() != reflect.Slice {
		return t
	}
	return s.Field.Type().Elem()
}

// isSpecial reports whether the value is a list of structs, which is the caller's to read.
func (s Setting) isSpecial() bool { return s.IsList() && IsSection(s.elementType()) }

// kindOf is kindOf for a value of the setting, which may be a secret.
func (s Setting) kindOf(n *yaml.Node) string {
	if s.IsSecret() && n.Kind == yaml.ScalarNode && !isNull(n) {
		return secret.Hidden
	}
	return kindOf(n)
}

// SettingsOf lists the settings below a pointer to a struct, with this prefix, in the
// order of its fields, by their config tags: "-" hides a field, a struct is a section of
// its own, an embedded one is part of the section around it.
func SettingsOf(prefix string, options any) []Setting {
	return settingsOf(prefix, reflect.ValueOf(options).Elem())
}

func settingsOf(prefix string, options reflect.Value) []Setting {
	var settings []Setting
	for i := range options.NumField() {
		field, value := options.Type().Field(i), options.Field(i)
		name := field.Tag.Get(keyTag)
		switch {
		case field.Anonymous:
			settings = append(settings, settingsOf(prefix, value)...)
		case name == "" || name == "-":
		case IsSection(field.Type):
			settings = append(settings, settingsOf(prefix+name+".", value)...)
		default:
			settings = append(settings, Setting{prefix + name, value, field.Tag.Get(listTag) == "list"})
		}
	}
	return settings
}

// IsSection reports whether a type is a struct with keys of its own. A struct that reads
// itself from text, as an address does, is a value.
func IsSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func keysOf(settings []Setting) []string {
	keys := make([]string, len(settings))
	for i, s := range settings {
		keys[i] = s.Key
	}
	return keys
}

// short returns the key that a list in place of a section stands for, or "".
func (l *Loader) short(section string) string {
	for _, s := range l.settings {
		if s.short && s.section() == section {
			return s.Key
		}
	}
	return ""
}

// Variable returns the name of the environment variable for a key.
func Variable(key string) string {
	return variablePrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

const variablePrefix = "DOTGATE_"

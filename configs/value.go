package configs

import (
	"encoding"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// A Parser sets the field that a pointer points to from a text, if it knows the type of
// the field: one whose texts mean different things in different options, as addresses do.
type Parser func(field any, text string) (known bool, err error)

// Set sets a field to a value. If it can't, it reports why and leaves the field as it
// was. The parser may be nil.
func (l *Loader) Set(s Setting, v Value, parse Parser) {
	switch {
	case v.IsNull():
		l.Reject(v.At, s.Key, "has no value; remove the key to have the default, %s", s.Text())
	case s.IsList() && v.IsList():
		l.setList(s, v, parse)
	case s.IsList():
		l.Reject(v.At, s.Key, "is %s; it takes a list, as in [a, b]", s.kindOf(v.node))
	case !v.IsScalar():
		l.Reject(v.At, s.Key, "is %s; it takes one value", s.kindOf(v.node))
	case v.Text() == "" && !s.Field.IsZero():
		// The packages take an empty text for their default.
		l.Reject(v.At, s.Key, "is empty; remove the key to have the default, %s", s.Text())
	default:
		if err := setText(s.Field, v.Text(), parse); err != nil {
			l.Reject(v.At, s.Key, "%v", err)
		}
	}
}

func (l *Loader) setList(s Setting, list Value, parse Parser) {
	values := reflect.MakeSlice(s.Field.Type(), 0, len(list.node.Content))
	for _, element := range list.List() {
		value := reflect.New(s.Field.Type().Elem()).Elem()
		if !element.IsScalar() {
			l.Reject(element.At, s.Key, "has %s in its list; put quotes around an IPv6 address in brackets", element.Kind())
			continue
		}
		text := strings.TrimSpace(element.Text())
		if text == "" || element.IsNull() {
			l.Reject(element.At, s.Key, "has an empty element")
			continue
		}
		if err := setText(value, text, parse); err != nil {
			l.Reject(element.At, s.Key, "%v", err)
			continue
		}
		values = reflect.Append(values, value)
	}
	if values.Len() == 0 && s.Field.Len() == 0 { // an empty list in place of a default stays one
		values = reflect.Zero(s.Field.Type()) // as the packages' defaults have it
	}
	if !l.muted[s.Key] {
		s.Field.Set(values)
	}
}

func isList(field reflect.Value) bool { return field.Kind() == reflect.Slice }

func setText(field reflect.Value, text string, parse Parser) error {
	if parse != nil {
		if known, err := parse(field.Addr().Interface(), text); known {
			return err
		}
	}
	switch to := field.Addr().Interface().(type) {
	case *time.Duration:
		return setDuration(to, text)
	case *slog.Level:
		return setLevel(to, text)
	case encoding.TextUnmarshaler:
		return to.UnmarshalText([]byte(text))
	}
	switch field.Kind() {
	case reflect.String:
		field.SetString(text)
	case reflect.Bool:
		if text != "true" && text != "false" {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		field.SetBool(text == "true")
	case reflect.Float32, reflect.Float64:
		f, err := strconv.ParseFloat(text, field.Type().Bits())
		if err != nil || f-f != 0 { // f-f is not 0 for infinities and NaN
			return fmt.Errorf("%q is not a number", text)
		}
		field.SetFloat(f)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return setInt(field, text)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return setUint(field, text)
	default:
		return fmt.Errorf("BUG: no way to read a %s", field.Type())
	}
	return nil
}

func setDuration(to *time.Duration, text string) error {
	d, err := time.ParseDuration(text)
	if err == nil {
		*to = d
		return nil
	}
	if _, err := strconv.ParseFloat(text, 64); err == nil {
		return fmt.Errorf("%q has no unit; write %ss or 500ms", text, text)
	}
	return fmt.Errorf("%q is not a duration; write one such as 5s, 500ms or 2m", text)
}

// setLevel takes the four names only; slog would take INFO+3 too.
func setLevel(to *slog.Level, text string) error {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if levelText(level) == text {
			*to = level
			return nil
		}
	}
	return fmt.Errorf("%q does not exist; there are debug, info, warn, error", text)
}

func levelText(level slog.Level) string { return strings.ToLower(level.String()) }

func setInt(field reflect.Value, text string) error {
	n, err := strconv.ParseInt(text, 10, field.Type().Bits())
	if err != nil {
		return numberError(text, err)
	}
	field.SetInt(n)
	return nil
}

func setUint(field reflect.Value, text string) error {
	n, err := strconv.ParseUint(text, 10, field.Type().Bits())
	if err == nil {
		field.SetUint(n)
		return nil
	}
	if _, err := strconv.ParseInt(text, 10, 64); err == nil && strings.HasPrefix(text, "-") {
		return fmt.Errorf("%s must not be below 0", text)
	}
	return numberError(text, err)
}

func numberError(text string, err error) error {
	if errors.Is(err, strconv.ErrRange) {
		return fmt.Errorf("%s is out of range", text)
	}
	return fmt.Errorf("%q is not a whole number", text)
}

// textOf writes a field's value as YAML that decode reads back.
func textOf(field reflect.Value) string {
	if !isList(field) {
		return Quote(plain(field))
	}
	elements := make([]string, field.Len())
	for i := range elements {
		elements[i] = Quote(plain(field.Index(i)))
	}
	return "[" + strings.Join(elements, ", ") + "]"
}

// nodeOf is textOf as a node.
func nodeOf(field reflect.Value) *yaml.Node {
	if !isList(field) {
		return textNode(plain(field))
	}
	elements := make([]string, field.Len())
	for i := range elements {
		elements[i] = plain(field.Index(i))
	}
	return listNode(elements)
}

func plain(value reflect.Value) string {
	switch v := value.Interface().(type) {
	case time.Duration:
		return durationText(v)
	case slog.Level:
		return levelText(v)
	case encoding.TextMarshaler:
		text, err := v.MarshalText()
		if err != nil {
			return ""
		}
		return string(text)
	default:
		return fmt.Sprint(v)
	}
}

// durationText leaves out what Duration.String adds to round values: 5m rather
// than 5m0s.
func durationText(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// Quote puts quotes around a text that YAML, without them, could take for
// something else. Go's escapes are YAML's.
func Quote(text string) string {
	for i, r := range text {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("._/-", r)) {
			return strconv.Quote(text)
		}
	}
	if text == "" || strings.EqualFold(text, "null") {
		return strconv.Quote(text)
	}
	return text
}

package configs

import (
	"encoding"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// An addressReader is what "192.0.2.1" or ":53" mean where they stand: places
// to listen and servers to ask are written differently.
type addressReader func(text string) (netip.AddrPort, error)

// decode sets a field to what was given for it. If it can't, it reports why and
// leaves the field as it was.
func (l *loader) decode(s setting, g given, address addressReader) {
	value := resolve(g.value)
	switch {
	case isNull(value):
		l.reject(g.from, s.key, "has no value; remove the key to have the default, %s", textOf(s.field))
	case isList(s.field) && value.Kind == yaml.SequenceNode:
		l.decodeList(s, g.from, value, address)
	case isList(s.field):
		l.reject(g.from, s.key, "is %s; it takes a list, as in [a, b]", kindOf(value))
	case value.Kind != yaml.ScalarNode:
		l.reject(g.from, s.key, "is %s; it takes one value", kindOf(value))
	case value.Value == "" && !s.field.IsZero():
		// The packages take an empty text for their default.
		l.reject(g.from, s.key, "is empty; remove the key to have the default, %s", textOf(s.field))
	default:
		if err := setText(s.field, value.Value, address); err != nil {
			l.reject(g.from, s.key, "%v", err)
		}
	}
}

func (l *loader) decodeList(s setting, from source, list *yaml.Node, address addressReader) {
	values := reflect.MakeSlice(s.field.Type(), 0, len(list.Content))
	for _, element := range list.Content {
		at := elementSource(from, element)
		value := reflect.New(s.field.Type().Elem()).Elem()
		node := resolve(element)
		if node.Kind != yaml.ScalarNode {
			l.reject(at, s.key, "has %s in its list; put quotes around an IPv6 address in brackets", kindOf(node))
			continue
		}
		text := strings.TrimSpace(node.Value)
		if text == "" || isNull(node) {
			l.reject(at, s.key, "has an empty element")
			continue
		}
		if err := setText(value, text, address); err != nil {
			l.reject(at, s.key, "%v", err)
			continue
		}
		values = reflect.Append(values, value)
	}
	if values.Len() == 0 {
		values = reflect.Zero(s.field.Type()) // as the packages' defaults have it
	}
	if !l.bad[s.key] {
		s.field.Set(values)
	}
}

// elementSource is the line of an element, for a list may be long.
func elementSource(list source, element *yaml.Node) source {
	if element.Line > 0 {
		list.line = element.Line
	}
	return list
}

func isList(field reflect.Value) bool { return field.Kind() == reflect.Slice }

// setText sets a field to the value that text stands for.
func setText(field reflect.Value, text string, address addressReader) error {
	switch to := field.Addr().Interface().(type) {
	case *time.Duration:
		return setDuration(to, text)
	case *netip.AddrPort:
		a, err := address(text)
		*to = a
		return err
	case *slog.Level:
		return setLevel(to, text)
	case *netip.Addr:
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("%q is not an address; write 192.0.2.1 or 2001:db8::1", text)
		}
		*to = a
		return nil
	case *netip.Prefix:
		return setPrefix(to, text)
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

// setPrefix takes an address for a prefix of that address alone.
func setPrefix(to *netip.Prefix, text string) error {
	if p, err := netip.ParsePrefix(text); err == nil {
		if p != p.Masked() {
			return fmt.Errorf("%q has bits behind its length; %s is meant, or another length", text, p.Masked())
		}
		*to = p
		return nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return fmt.Errorf("%q is neither a prefix nor an address; write 192.0.2.0/24, 2001:db8::/32 or 192.0.2.1", text)
	}
	*to = netip.PrefixFrom(a, a.BitLen())
	return nil
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
		return quote(plain(field))
	}
	elements := make([]string, field.Len())
	for i := range elements {
		elements[i] = quote(plain(field.Index(i)))
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

// quote puts quotes around a text that YAML, without them, could take for
// something else. Go's escapes are YAML's.
func quote(text string) string {
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

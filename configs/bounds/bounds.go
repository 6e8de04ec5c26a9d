// Package bounds has options say, in the tags of their fields, between which values they
// may be:
//
//	Timeout time.Duration `config:"timeout" bounds:"10ms 1m"`
//	Connect time.Duration `config:"connect" bounds:"10ms 1m 0s"`
//
// A third value, the zero, is allowed besides: it has a meaning of its own.
package bounds

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Tag is the key of the tag.
const Tag = "bounds"

// A Report is told of an option that is not valid: its name, what is wrong with it, and the
// names of the options beside it that its value does not go with.
type Report = func(option, problem string, beside ...string)

// Check reports each field of a struct, and of the structs in it, whose value is out of
// its bounds: by the names in the tags "config", as in "objectives.latency". It panics if
// a tag is malformed.
func Check(options any, report Report) {
	check("", reflect.ValueOf(options), report)
}

// Err returns all that check reports as one error, which is nil if it reports nothing.
// Each problem begins with the prefix and the name of its option.
func Err(prefix string, check func(report Report)) error {
	var problems []error
	check(func(option, problem string, beside ...string) {
		problems = append(problems, fmt.Errorf("%s%s %s", prefix, option, problem))
	})
	return errors.Join(problems...)
}

func check(prefix string, options reflect.Value, report Report) {
	for i := range options.NumField() {
		field, value := options.Type().Field(i), options.Field(i)
		name := field.Tag.Get("config")
		tag, bounded := field.Tag.Lookup(Tag)
		switch {
		case bounded:
			if problem := outside(value, strings.Fields(tag)); problem != "" {
				report(prefix+name, problem)
			}
		case name != "" && name != "-" && value.Kind() == reflect.Struct:
			check(prefix+name+".", value, report)
		}
	}
}

// outside returns what is wrong with a value, or nothing.
func outside(value reflect.Value, bounds []string) string {
	if len(bounds) < 2 || len(bounds) > 3 {
		panic(fmt.Sprintf("BUG: bounds are two or three values, not %q", bounds))
	}
	n := integer(value)
	if parse(value.Type(), bounds[0]) <= n && n <= parse(value.Type(), bounds[1]) {
		return ""
	}
	text := fmt.Sprintf("must be between %s and %s", bounds[0], bounds[1])
	if len(bounds) == 3 {
		if n == parse(value.Type(), bounds[2]) {
			return ""
		}
		text += ", or " + bounds[2]
	}
	return text
}

func integer(value reflect.Value) int64 {
	if value.CanUint() {
		return int64(value.Uint())
	}
	return value.Int()
}

// parse returns a bound, which is written as values of the type are.
func parse(t reflect.Type, text string) int64 {
	value := reflect.New(t)
	var n int64
	var err error
	switch to := value.Interface().(type) {
	case *time.Duration:
		*to, err = time.ParseDuration(text)
		n = int64(*to)
	case encoding.TextUnmarshaler:
		err = to.UnmarshalText([]byte(text))
		n = integer(value.Elem())
	default:
		n, err = strconv.ParseInt(text, 10, 64)
	}
	if err != nil {
		panic("BUG: a bound can't be parsed: " + err.Error())
	}
	return n
}

//go:build lab

package lab

import (
	"crypto/tls"
	"encoding"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

// A scenario is what the world does. It is written as text:
//
//	scenario: its name
//	on: which upstreams of a, b and c it strikes; "rolling" is one after the
//	    other, "flapping" is on and off every second
//	fault: words, see fault
//	start: words that hold from before the gateway starts until the fault would
//	rate: queries a second, if not 300
//	names: part of the names that carry an instruction, such as "5% never"
//	expect: "down" or "servfail" if not every query has an answer
//	mute: upstreams that must not receive a single query while the fault lasts
type scenario struct {
	name, group string
	on          []int
	rolling     bool
	flapping    bool
	fault       fault
	start       fault
	rate        int
	oddShare    int    // in percent
	odd         string // the instruction in odd names
	expect      string
	mute        []int
}

// A fault is what goes wrong with a server: one word of
//
//	stop, blackhole    no new connections: refused, or no word at all
//	freeze, reset      what is established goes silent, or away
//	restart            away for 300 ms, with everything established
//	blip               300 ms without any packet
//	certificate=WHICH  expired, future, self, stranger, name or good
//
// or a field of dottest.Fault: never, share=0.5, rcode=SERVFAIL, greeting=silence.
type fault struct {
	words       []string
	behaviour   dottest.Fault
	behaves     bool // behaviour says something
	certificate string
}

func (f fault) has(word string) bool {
	for _, w := range f.words {
		if w == word {
			return true
		}
	}
	return false
}

func readScenarios(t *testing.T) []scenario {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios", err)
	}
	var all []scenario
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		group := strings.TrimSuffix(filepath.Base(file), ".txt")
		for block := range strings.SplitSeq(string(text), "\n\n") {
			s, ok, err := parseScenario(block)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if ok {
				s.group = group
				all = append(all, s)
			}
		}
	}
	return all
}

func parseScenario(block string) (s scenario, ok bool, err error) {
	s.rate = 300
	for line := range strings.Lines(block) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, _ := strings.Cut(line, ":")
		if err := s.set(key, strings.TrimSpace(value)); err != nil {
			return s, false, fmt.Errorf("%q: %w", line, err)
		}
	}
	return s, s.name != "", nil
}

func (s *scenario) set(key, value string) (err error) {
	switch key {
	case "scenario":
		s.name = value
	case "on":
		for word := range strings.FieldsSeq(value) {
			switch word {
			case "rolling":
				s.rolling, s.on = true, []int{0, 1, 2}
			case "flapping":
				s.flapping = true
			default:
				s.on = append(s.on, int(word[0]-'a'))
			}
		}
	case "mute":
		for word := range strings.FieldsSeq(value) {
			s.mute = append(s.mute, int(word[0]-'a'))
		}
	case "fault":
		s.fault, err = parseFault(value)
	case "start":
		s.start, err = parseFault(value)
	case "rate":
		s.rate, err = strconv.Atoi(value)
	case "names":
		_, err = fmt.Sscanf(value, "%d%% %s", &s.oddShare, &s.odd)
	case "expect":
		s.expect = value
	default:
		return fmt.Errorf("no such key")
	}
	return err
}

func parseFault(text string) (f fault, err error) {
	for word := range strings.FieldsSeq(text) {
		key, value, isPair := strings.Cut(word, "=")
		switch key {
		case "stop", "blackhole", "freeze", "reset", "restart", "blip":
			f.words = append(f.words, word)
		case "certificate":
			f.certificate = value
		default:
			if !isPair {
				value = "true"
			}
			if err := setField(&f.behaviour, key, value); err != nil {
				return f, err
			}
			f.behaves = true
		}
	}
	return f, nil
}

func setField(f *dottest.Fault, name, value string) error {
	field := reflect.ValueOf(f).Elem().FieldByNameFunc(func(n string) bool { return strings.EqualFold(n, name) })
	if !field.IsValid() {
		return fmt.Errorf("a server can't do %q wrong", name)
	}
	switch p := field.Addr().Interface().(type) {
	case encoding.TextUnmarshaler:
		return p.UnmarshalText([]byte(value))
	case *bool:
		*p = value == "true"
	case *time.Duration:
		d, err := time.ParseDuration(value)
		*p = d
		return err
	case *float64:
		_, err := fmt.Sscan(value, p)
		return err
	case *int:
		_, err := fmt.Sscan(value, p)
		return err
	case *uint16: // a TLS version
		*p = map[string]uint16{"1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12}[value]
	case *wire.RCode:
		for r := range wire.RCode(16) {
			if r.String() == value {
				*p = r
			}
		}
	default:
		return fmt.Errorf("%q can't be written as text", name)
	}
	return nil
}

//go:build linux && lab

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A scenario is a fault and the limits for its effect on clients. It is written as a
// block of text:
//
//	scenario: its name
//	on: the upstreams with the fault, of a, b and c
//	fault: see fault
//	also: variants of it, see variants; those with a ! are in the short form, too
//	policy: of the balancer, if not latency
//	policies: variants of it with another policy; those with a ! are in the short form
//	types: "mixed": clients ask for A as often as for AAAA
//	start: a fault from before the start of the gateway to the end
//	rate: queries a second, if not 300, or the time between two, as 1.01s
//	lasts: the duration of the fault, if not the usual one: in the short, in the long form
//	names: names that carry an instruction: "5% never", or "1000 never" for 1000
//	    queries of the same name; with "at a", only a follows the instruction
//	returns: the upstreams whose fault ends first, in an outage; for the others it ends
//	    with the scenario
//	transports: of the upstreams, the best first, if not dot: dot, doh
//	whole: the upstreams whose fault is at all ports, whatever port it has at the others
//	back: how long after the fault all queries must go over the best transport again; with
//	    a !, in the short form, too
//	switch: the limit of upstream queries a query in the first second of the fault, if not
//	    the usual one
//	limit: option rate of the upstreams
//	learnt: the limit of upstream queries a query in the second half of the fault
//	first: the limit for the first answer after a fault from the start
//	share: by how many points the first upstream's share of the queries may change
//	single: "yes": the gateway has upstream a only
//	down: the upstreams that the gateway's log must report as down, or "none". Except for
//	    "none", it does not apply to variants
//	expect: see expectation
//	only: "long"
//	world: "network" instead of servers of dottest
//
// A block without a scenario has the defaults for all scenarios after it in its file.
type scenario struct {
	name, group string
	order       int // in the table
	network     bool
	on          []int
	shape       shape
	fault       fault
	start       fault
	interval    time.Duration // between two queries
	special     specialNames
	returns     []int // nil: all with the fault
	single      bool
	down        string
	expect      expectation
	onlyLong    bool
	variant     bool // of another scenario
	also        []string
	policy      string
	policies    []string
	mixed       bool
	lasts       [2]time.Duration
	transports  []string // nil: dot
	whole       []int
	back, first time.Duration // 0: not checked
	backInShort bool
	share       int     // 0: not checked
	switchCost  float64 // 0: the usual limit
	learntCost  float64 // 0: not checked
	rateLimit   int
}

// faultAt returns the fault as upstream i has it.
func (s scenario) faultAt(i int, f fault) fault {
	if slices.Contains(s.whole, i) {
		f.port, f.prefix = 0, 0
	}
	return f
}

// A shape is the course of a fault over time.
type shape string

const (
	steady   shape = ""
	rolling  shape = "rolling"  // one upstream after the other
	flapping shape = "flapping" // on and off every second
)

// An expectation is the effect on clients that is allowed. The default is none.
type expectation string

const (
	outage   expectation = "outage"   // errors, at once; and answers within a second after the end
	servfail expectation = "servfail" // errors of the upstreams
	slower   expectation = "slower"   // all queries are answered within a second; the latency may be high
	distant  expectation = "distant"  // all queries are answered; the network is slow for all
)

// specialNames carry an instruction to the servers.
type specialNames struct {
	label  string
	share  int  // of all queries, in percent
	repeat int  // queries for one special name
	only   rune // the server that follows it; 0 is all
}

func (o specialNames) at(i int) bool { return o.only == 0 || int(o.only-'a') == i }

// phases are the durations of the parts of a scenario.
type phases struct{ before, during, after time.Duration }

func (p phases) total() time.Duration { return p.before + p.during + p.after }

func (s scenario) phases() phases {
	p := phases{2 * time.Second, 4 * time.Second, 2 * time.Second}
	switch {
	case *long && s.variant:
		p = phases{2 * time.Second, 8 * time.Second, 3 * time.Second}
	case *long:
		p = phases{5 * time.Second, 10 * time.Second, 10 * time.Second}
	}
	form := 0
	if *long {
		form = 1
	}
	if s.lasts[form] > 0 {
		p.during = s.lasts[form]
	}
	if s.checksBack() {
		p.after = max(p.after, s.back+time.Second)
	}
	// Each phase must have several queries.
	p.before = max(p.before, 3*s.interval)
	p.after = max(p.after, 2*s.interval)
	if !s.start.empty() {
		p.before = 0
	}
	return p
}

func (s scenario) p99Limit() time.Duration {
	if s.transports != nil {
		return p99Switched
	}
	return p99Limit
}

func (s scenario) checksBack() bool { return s.back > 0 && (*long || s.backInShort) }

// variants are the words of a line "also".
var variants = map[string]struct {
	name  string
	on    []int
	shape shape
}{
	"two":        {", two of three", []int{0, 1}, steady},
	"everywhere": {", everywhere", []int{0, 1, 2}, steady},
	"rolling":    {", rolling", []int{0, 1, 2}, rolling},
	"flapping":   {", flapping", nil, flapping},
}

// variations returns s and the variants of its lines "also" and "policies".
func (s scenario) variations() (all []scenario, err error) {
	all = []scenario{s}
	for _, word := range s.also {
		word, inShort := strings.CutSuffix(word, "!")
		v, ok := variants[word]
		if !ok {
			return nil, fmt.Errorf("%s: there is no variant %q", s.name, word)
		}
		other := s
		other.name, other.shape, other.variant = s.name+v.name, v.shape, true
		other.onlyLong = s.onlyLong || !inShort
		if v.on != nil {
			other.on = v.on
		}
		if s.down != "none" {
			other.down = ""
		}
		all = append(all, other)
	}
	for _, policy := range s.policies {
		policy, inShort := strings.CutSuffix(policy, "!")
		other := s
		other.name, other.policy, other.variant = s.name+", "+policy, policy, true
		other.onlyLong = s.onlyLong || !inShort
		all = append(all, other)
	}
	return all, nil
}

// readScenarios returns the scenarios of testdata for the short or the long form.
func readScenarios(t *testing.T) []scenario {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios", err)
	}
	var all []scenario
	for _, file := range files {
		some, err := readFile(file)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, some...)
	}
	for i := range all {
		all[i].order = i
	}
	return slices.DeleteFunc(all, func(s scenario) bool { return s.onlyLong && !*long })
}

func readFile(file string) (all []scenario, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	usual := scenario{group: strings.TrimSuffix(filepath.Base(file), ".txt"), interval: time.Second / 300}
	for block := range strings.SplitSeq(string(text), "\n\n") {
		s := usual
		for line := range strings.Lines(block) {
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' {
				continue
			}
			key, value, _ := strings.Cut(line, ":")
			if err := s.set(key, strings.TrimSpace(value)); err != nil {
				return nil, fmt.Errorf("%q: %w", line, err)
			}
		}
		if s.name == "" {
			usual = s
			continue
		}
		some, err := s.variations()
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

func (s *scenario) set(key, value string) (err error) {
	switch key {
	case "scenario":
		s.name = value
	case "on":
		s.on, err = parseUpstreams(value)
	case "fault":
		s.fault, err = parseFault(value, s.network)
	case "start":
		s.start, err = parseFault(value, s.network)
	case "also":
		s.also = strings.Fields(value)
	case "policy":
		s.policy = value
	case "policies":
		s.policies = strings.Fields(value)
	case "types":
		s.mixed = value == "mixed"
	case "rate":
		if s.interval, err = time.ParseDuration(value); err != nil {
			var rate int
			rate, err = strconv.Atoi(value)
			s.interval = time.Second / time.Duration(max(rate, 1))
		}
	case "lasts":
		short, long, _ := strings.Cut(value, " ")
		if s.lasts[0], err = time.ParseDuration(short); err == nil {
			s.lasts[1], err = time.ParseDuration(long)
		}
	case "names":
		s.special, err = parseSpecialNames(value)
	case "returns":
		s.returns, err = parseUpstreams(value)
	case "transports":
		s.transports = strings.Fields(value)
	case "whole":
		s.whole, err = parseUpstreams(value)
	case "back":
		value, s.backInShort = strings.CutSuffix(value, "!")
		s.back, err = time.ParseDuration(value)
	case "first":
		s.first, err = time.ParseDuration(value)
	case "switch":
		s.switchCost, err = strconv.ParseFloat(value, 64)
	case "limit":
		s.rateLimit, err = strconv.Atoi(value)
	case "learnt":
		s.learntCost, err = strconv.ParseFloat(value, 64)
	case "share":
		s.share, err = strconv.Atoi(value)
	case "single":
		s.single = value == "yes"
	case "down":
		s.down = value
	case "expect":
		s.expect = expectation(value)
	case "only":
		s.onlyLong = value == "long"
	case "world":
		s.network = value == "network"
	default:
		return fmt.Errorf("unknown key")
	}
	return err
}

func parseUpstreams(text string) (list []int, err error) {
	for word := range strings.FieldsSeq(text) {
		if len(word) != 1 || word[0] < 'a' || word[0] >= 'a'+upstreams {
			return nil, fmt.Errorf("there is no upstream %q", word)
		}
		list = append(list, int(word[0]-'a'))
	}
	return list, nil
}

func parseSpecialNames(text string) (o specialNames, err error) {
	words := strings.Fields(text)
	if len(words) == 4 && words[2] == "at" {
		o.only = rune(words[3][0])
		words = words[:2]
	}
	if len(words) != 2 {
		return o, fmt.Errorf("want a number and an instruction")
	}
	o.label = words[1]
	if share, ok := strings.CutSuffix(words[0], "%"); ok {
		o.share, err = strconv.Atoi(share)
	} else {
		o.repeat, err = strconv.Atoi(words[0])
	}
	return o, err
}

package configs

import (
	"fmt"
	"testing"
	"time"
)

// options is a struct that this package knows by its tags only.
type options struct {
	Server server   `config:"server"`
	Nodes  nodes    `config:"nodes"`
	Lists  []server `config:"lists"`
}

type server struct {
	Name    string        `config:"name"`
	Timeout time.Duration `config:"timeout"`
	hidden  int
	Hook    func() `config:"-"`
}

type nodes struct {
	Names []string `config:"names" section:"list"`
}

func (s server) Check(report func(option, problem string, beside ...string)) {
	if s.Timeout > time.Minute {
		report("timeout", "is too long")
	}
	if s.Name == "short" && s.Timeout >= time.Second {
		report("timeout", "is too long for this name", "hidden", "name")
	}
}

// TestAnyStructIsFilled loads a struct of no package of dotgate: the file over its own
// values, variables over the file, flags over both.
func TestAnyStructIsFilled(t *testing.T) {
	t.Parallel()
	f := func(document, variable, flag, want string) {
		t.Helper()
		s := Sources{File: "x.yaml", Read: func(string, int) ([]byte, error) { return []byte(document), nil }}
		if variable != "" {
			s.Environ = []string{variable}
		}
		if flag != "" {
			s.Flags = map[string][]string{"server.name": {flag}}
		}
		o := options{Server: server{Name: "own", Timeout: time.Second, hidden: 1}}
		l := NewLoader(s)
		l.Fill(&o, nil)
		l.Check(&o)
		got := fmt.Sprint(o.Server.Name, " ", o.Server.Timeout, " ", o.Nodes.Names)
		if err := l.Err(); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q, %q, %q: got %s, want %s", document, variable, flag, got, want)
		}
	}
	f("{}", "", "", "own 1s []")
	f("server: {timeout: 2s}", "", "", "own 2s []")
	f("server: {timeout: 2s}", "DOTGATE_SERVER_TIMEOUT=3s", "", "own 3s []")
	f("server: {name: file}", "DOTGATE_SERVER_NAME=variable", "flag", "flag 1s []")
	f("nodes: [a, b]", "", "", "own 1s [a b]")
	f("nodes: {names: [a]}", "DOTGATE_NODES=c", "", "own 1s [c]")
	f("server: {timeout: 2h}", "", "", "x.yaml:1: server.timeout: is too long")
	// An option that has its default is not blamed, but the one beside it.
	f("server:\n  name: short", "", "", "x.yaml:2: server.timeout: is too long for this name")
	f("server: {}", "", "short", "--name: server.timeout: is too long for this name")
	f("server:\n  name: short\n  timeout: 2s", "", "", "x.yaml:3: server.timeout: is too long for this name")
	f("server: {timout: 2s}", "", "", "x.yaml:1: server.timout: does not exist; did you mean timeout?")
	f("server: {hook: 1}", "", "", "x.yaml:1: server.hook: does not exist; there are name, timeout")
}

// TestListsOfStructsAreTheCallers reads one as Values.
func TestListsOfStructsAreTheCallers(t *testing.T) {
	t.Parallel()
	l := NewLoader(Sources{File: "x.yaml", Read: func(string, int) ([]byte, error) {
		return []byte("lists:\n- {name: a}\n- {nam: b}\n"), nil
	}})
	var o options
	l.Fill(&o, nil)
	v, ok := l.Value("lists")
	if !ok || o.Lists != nil || len(v.List()) != 2 {
		t.Fatalf("got %v, %v", v, ok)
	}
	for i, entry := range v.List() {
		names := l.Section(fmt.Sprintf("lists[%d]", i), entry, "name", "timeout")
		if i == 0 && names["name"].Text() != "a" {
			t.Errorf("got %v", names)
		}
	}
	if err := l.Err(); err == nil || err.Error() != "x.yaml:3: lists[1].nam: does not exist; did you mean name?" {
		t.Errorf("got %v", err)
	}
}

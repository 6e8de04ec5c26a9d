package balancer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"dotgate/gateway/wire"
)

// named is a resolver that tells its name by failing, and for what it is asked.
type named string

type tracedKey struct{}

func (n named) Ask(ctx context.Context, _ wire.Query, done func(wire.Answer, error)) {
	if traced := ctx.Value(tracedKey{}); traced != nil {
		done(wire.Answer{}, fmt.Errorf("%s for %v", n, traced))
		return
	}
	done(wire.Answer{}, errors.New(string(n)))
}

// namesOf returns the names of routes, each a list of patterns.
func namesOf(t *testing.T, routes ...string) *wire.RouteNames {
	t.Helper()
	names := new(wire.RouteNames)
	for i, patterns := range routes {
		for pattern := range strings.FieldsSeq(patterns) {
			if _, added, err := names.Add(pattern, i); !added || err != nil {
				t.Fatal(pattern, added, err)
			}
		}
	}
	names.Pack()
	return names
}

func TestTheLongestRouteWins(t *testing.T) {
	names := namesOf(t, "corp.example 10.in-addr.arpa", "lab.Corp.example. *.home.example", "home.example", "*.wild.example", "both.example", "*.both.example")
	var routes []Route
	for _, name := range []string{"corp", "lab", "home", "wild", "itself", "below"} {
		routes = append(routes, Route{Resolver: named(name), Source: name[:1]})
	}
	r := NewRouter(named("rest"), names, routes)
	f := func(name, want string) {
		t.Helper()
		q, err := wire.NewQuery(name, "A")
		if err != nil {
			t.Fatal(err)
		}
		r.Ask(t.Context(), q, func(_ wire.Answer, err error) {
			if err.Error() != want {
				t.Errorf("%s: got %v, want %s", name, err, want)
			}
		})
		source := want[:1]
		if want == "rest" {
			source = ""
		}
		if got := r.Routes().Source(q.AppendName(nil)); got != source {
			t.Errorf("%s: the source is %q, want %q", name, got, source)
		}
	}
	f("corp.example", "corp")
	f("WWW.CORP.example", "corp")
	f("a.b.corp.example", "corp")
	f("wild.example", "rest")
	f("a.wild.example", "wild")
	f("lab.corp.example", "lab")
	f("x.LAB.corp.example", "lab")
	f("notlab.corp.example", "corp")
	f("1.2.3.10.in-addr.arpa", "corp")
	f("1.2.3.11.in-addr.arpa", "rest")
	f("mycorp.example", "rest")
	f("example", "rest")
	f("home.example", "home")
	f("a.b.home.example", "lab")
	f("wild.example", "rest")
	f("a.wild.example", "wild")
	f("both.example", "itself")
	f("a.both.example", "below")
	f(".", "rest")
	f(`x\.corp.example`, "rest") // a dot inside of a label separates nothing
}

func TestTheContextOfAQueryReachesItsRoute(t *testing.T) {
	r := NewRouter(named("rest"), namesOf(t, "corp.example"), []Route{{Resolver: named("corp"), Source: "c"}})
	ctx := context.WithValue(t.Context(), tracedKey{}, "me")
	for name, want := range map[string]string{"example": "rest for me", "www.corp.example": "corp for me"} {
		q, err := wire.NewQuery(name, "A")
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		r.Ask(ctx, q, func(_ wire.Answer, err error) { got = err.Error() })
		if got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

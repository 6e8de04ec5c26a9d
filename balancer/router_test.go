package balancer

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"dotgate/gateway/wire"
)

// named is a resolver that tells its name by failing.
type named string

func (n named) Ask(_ wire.Query, _ time.Time, done func(wire.Answer, error)) {
	done(wire.Answer{}, errors.New(string(n)))
}

func TestTheLongestRouteWins(t *testing.T) {
	r, err := NewRouter(named("rest"), map[string]Resolver{
		"corp.example": named("corp"), "lab.Corp.example.": named("lab"), "10.in-addr.arpa": named("ten"),
	})
	if err != nil {
		t.Fatal(err)
	}
	f := func(name, want string) {
		t.Helper()
		q, err := wire.NewQuery(name, "A")
		if err != nil {
			t.Fatal(err)
		}
		r.Ask(q, time.Time{}, func(_ wire.Answer, err error) {
			if err.Error() != want {
				t.Errorf("%s: got %v, want %s", name, err, want)
			}
		})
	}
	f("corp.example", "corp")
	f("WWW.CORP.example", "corp")
	f("a.b.corp.example", "corp")
	f("lab.corp.example", "lab")
	f("x.LAB.corp.example", "lab")
	f("notlab.corp.example", "corp")
	f("1.2.3.10.in-addr.arpa", "ten")
	f("1.2.3.11.in-addr.arpa", "rest")
	f("mycorp.example", "rest")
	f("example", "rest")
	f(".", "rest")
	f(`x\.corp.example`, "rest") // a dot inside of a label separates nothing
}

// telling is a named that tells for what it is asked.
type telling struct{ named }

type tellingKey struct{}

func (n telling) AskFor(ctx context.Context, q wire.Query, deadline time.Time, done func(wire.Answer, error)) {
	done(wire.Answer{}, fmt.Errorf("%s for %v", n.named, ctx.Value(tellingKey{})))
}

func TestWhatGoesWithAQueryTakesItsRoute(t *testing.T) {
	r, err := NewRouter(telling{"rest"}, map[string]Resolver{"corp.example": telling{"corp"}, "lab.example": named("lab")})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.WithValue(t.Context(), tellingKey{}, "me")
	for name, want := range map[string]string{
		"example": "rest for me", "www.corp.example": "corp for me", "lab.example": "lab", // which can't tell
	} {
		q, err := wire.NewQuery(name, "A")
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		r.AskFor(ctx, q, time.Time{}, func(_ wire.Answer, err error) { got = err.Error() })
		if got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func TestRoutesHaveDifferentNames(t *testing.T) {
	for _, routes := range []map[string]Resolver{
		{"a.example": named("a"), "A.example.": named("b")},
		{"a..example": named("a")},
	} {
		if _, err := NewRouter(named("rest"), routes); err == nil {
			t.Errorf("%v passed", routes)
		}
	}
}

package wire_test

import (
	"strings"
	"testing"

	"dotgate/gateway/wire"
)

func TestDomainsAreCountedAsPeopleRegisterThem(t *testing.T) {
	t.Parallel()
	f := func(a, b string, same bool) {
		t.Helper()
		var hashes [2]uint64
		for i, name := range []string{a, b} {
			q, err := wire.NewQuery(name, "A")
			if err != nil {
				t.Fatal(err)
			}
			hashes[i] = q.DomainHash()
		}
		if got := hashes[0] == hashes[1]; got != same {
			t.Errorf("%s and %s are one domain: %v", a, b, got)
		}
	}
	f("www.example.com", "a.b.EXAMPLE.com", true)
	f("example.com", "www.example.com", true)
	f("example.com", "example.org", false)
	f("a.co.uk", "b.co.uk", false)
	f("x.a.co.uk", "y.a.co.uk", true)
	f("a.github.io", "b.github.io", false)
	f("host.corp", "other.corp", false)
	f("x.host.corp", "y.host.corp", true)
	f(".", ".", true)
	f(".", "com", false)
}

func TestParentHashIsThatOfTheNameWithoutItsFirstLabel(t *testing.T) {
	f := func(name, parent string) {
		t.Helper()
		q, err := wire.NewQuery(name, "A")
		if err != nil {
			t.Fatal(err)
		}
		want, err := wire.NewQuery(parent, "AAAA")
		if err != nil {
			t.Fatal(err)
		}
		if q.ParentHash() != want.NameHash() {
			t.Errorf("%s: the hash is not that of %s", name, parent)
		}
	}
	f("www.example.com", "example.com")
	f("a.B.example.COM", "b.example.com")
	f(`a\.b.example.com`, "example.com")
	f(strings.Repeat("a.", 126)+"a", strings.Repeat("a.", 125)+"a")
	f("1.2.0.192.in-addr.arpa", "2.0.192.in-addr.arpa")
	// names below a public suffix have different owners
	f("example.com", "example.com")
	f("example.CO.uk", "example.co.uk")
	f("www.example.co.uk", "example.co.uk")
	f("example.github.io", "example.github.io")
	f("com", "com")
	f(".", ".")
}

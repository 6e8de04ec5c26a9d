package wire_test

import (
	"strings"
	"testing"

	"dotgate/gateway/wire"
)

func TestNamesOfOperatorsAreCleaned(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		if got, err := wire.CleanPattern(text); err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", text, got, err, want)
		}
		if strings.HasPrefix(text, "*.") {
			if got, err := wire.CleanName(text); err == nil {
				t.Errorf("%q is taken for the name %q", text, got)
			}
		} else if got, err := wire.CleanName(text); err != nil || got != want {
			t.Errorf("%q as a name: got %q, %v", text, got, err)
		}
	}
	f("corp.example", "corp.example")
	f("Corp.Example.", "corp.example")
	f("*.Corp.Example.", "*.corp.example")
	f(".", ".")
	f("corp", "corp")
	f("Bücher.example", "xn--bcher-kva.example")
	f("*.BÜCHER.example.", "*.xn--bcher-kva.example")
	f("straße.example", "xn--strae-oqa.example")
	f("例え。テスト", "xn--r8jz45g.xn--zckzah")
	f("_ldap._tcp.bücher.example", "_ldap._tcp.xn--bcher-kva.example")
	f("10.in-addr.arpa", "10.in-addr.arpa")
	f("0/25.2.0.192.in-addr.arpa", "0/25.2.0.192.in-addr.arpa") // RFC 2317
	f("d.f.ip6.arpa", "d.f.ip6.arpa")
	f(`my\032printer.example`, `my\032printer.example`)
}

func TestTextsThatNoQueryMatchesAreRefused(t *testing.T) {
	f := func(text string, want ...string) {
		t.Helper()
		for _, clean := range []func(string) (string, error){wire.CleanName, wire.CleanPattern} {
			got, err := clean(text)
			if err == nil {
				t.Errorf("%q is taken for %q", text, got)
				continue
			}
			for _, words := range want {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("%q: got %v, want %q in it", text, err, words)
				}
			}
		}
	}
	f("", "empty")
	f("bad name", "' '")
	f(" corp.example", "' '")
	f("corp.example\t", `'\t'`)
	f("corp.example:53", "port", "write corp.example")
	f("10.0.0.0/8", "10.in-addr.arpa")
	f("172.16.0.0/12", "the 16 from 16.172.in-addr.arpa to 31.172.in-addr.arpa")
	f("192.168.7.0/25", "the 128 from 0.7.168.192.in-addr.arpa to 127.7.168.192.in-addr.arpa")
	f("0.0.0.0/0", "are in-addr.arpa")
	f("fd00::/8", "d.f.ip6.arpa")
	f("fc00::/7", "the 2 from c.f.ip6.arpa to d.f.ip6.arpa")
	f("10.0.0.53", "53.0.0.10.in-addr.arpa")
	f("10.0.0.53:53", "53.0.0.10.in-addr.arpa")
	f("fd00::1", "1.0.0.0.", ".d.f.ip6.arpa")
	f("[fd00::1]:53", ".d.f.ip6.arpa")
	f("10.0.0", "in-addr.arpa")
	f("10", "in-addr.arpa")
	f("udp://corp.example", "URL")
	f("corp.example/x", "has a /")
	f(".corp.example", "write corp.example")
	f("corp..example", "no domain name")
	f("a,b.example", "','")
	f("corp.example\nlab.example", `'\n'`)
	f(`"corp.example"`, `'"'`)
	f("me@corp.example", "'@'")
	f(strings.Repeat("a", 64)+".example", "no domain name")
	f(strings.Repeat("a.", 200), "no domain name")
	f("a\u200d.example", "no domain name") // a joiner without neighbours
	f("*")
	f("*.")
	f("corp.*.example", "*")
	f("*corp.example", "*")
	f("*.*.example", "*")
}

// TestPatternsFollowRFC4592: a pattern without *. matches its apex and the names
// below, one with it only the names below, and the longest match counts.
func TestPatternsFollowRFC4592(t *testing.T) {
	var patterns wire.Patterns[string]
	for _, pattern := range []string{"corp.example", "*.lab.example", "*.corp.example", "*.deep.lab.example", "plain.example"} {
		if added, err := patterns.Add(pattern, pattern); !added || err != nil {
			t.Fatal(pattern, added, err)
		}
	}
	for _, twice := range []string{"corp.example", "*.corp.example"} {
		if added, _ := patterns.Add(twice, twice); added {
			t.Errorf("%s was new twice", twice)
		}
	}
	f := func(name, want string, below int) {
		t.Helper()
		packed, err := wire.PackName(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, n, ok := patterns.Find(packed); got != want || n != below || ok != (want != "") {
			t.Errorf("%s: got %q, %d, %t, want %q, %d", name, got, n, ok, want, below)
		}
	}
	f("corp.example", "corp.example", 0)
	f("www.corp.example", "*.corp.example", 4)
	f("a.b.corp.example", "*.corp.example", 4)
	f("lab.example", "", 0)
	f("www.lab.example", "*.lab.example", 4)
	f("deep.lab.example", "*.lab.example", 5)
	f("www.deep.lab.example", "*.deep.lab.example", 4)
	f("plain.example", "plain.example", 0)
	f("www.plain.example", "plain.example", 4)
	f("example", "", 0)
	f("notcorp.example", "", 0)
	f(".", "", 0)
}

package records

import (
	"testing"

	"dotgate/gateway/wire"
)

// TestNamesThatAreAnsweredHere has the edges; the gateway's tests have the replies.
func TestNamesThatAreAnsweredHere(t *testing.T) {
	s, err := New(Options{Forwarded: []string{"home.arpa", "*.test", "172.in-addr.arpa", "*.d.f.ip6.arpa"}, BlockSingleLabel: true, NoApplicationDNS: true})
	if err != nil {
		t.Fatal(err)
	}
	f := func(name, typ string, want bool) {
		t.Helper()
		q, err := wire.NewQuery(name, typ)
		if err != nil {
			t.Fatal(err)
		}
		if _, got := s.Append(nil, q); got != want {
			t.Errorf("%s %s: answered here %t, want %t", name, typ, got, want)
		}
		if got := s.Has(q.AppendName(nil)); typ == "A" && got != want {
			t.Errorf("%s: Has returned %t, want %t", name, got, want)
		}
		buf := make([]byte, 0, wire.MaxUDPSize)
		if n := testing.AllocsPerRun(10, func() { s.Append(buf, q) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	f("localhost.", "A", true)
	f("a.localhost.", "A", true)
	f("test.", "A", true)
	f("a.test.", "A", false)
	f("home.arpa.", "A", false)
	f("a.home.arpa.", "A", false)
	f("invalid.", "DS", false)
	f("printer.", "A", true)
	f("printer.", "MX", false)
	f("use-application-dns.net.", "A", true)
	f("example.com.", "A", false)
	f("1.1.168.192.in-addr.arpa.", "PTR", true)
	f("1.1.16.172.in-addr.arpa.", "PTR", false)
	f("d.f.ip6.arpa.", "A", true)
	f("1.d.f.ip6.arpa.", "A", false)
	if _, err := New(Options{Forwarded: []string{"a..b"}}); err == nil {
		t.Error("a malformed name passed")
	}
}

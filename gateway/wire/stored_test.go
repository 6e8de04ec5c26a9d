package wire_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"dotgate/gateway/wire"
)

func TestTTLOfAnAnswer(t *testing.T) {
	f := func(response string, kind wire.Kind, ttl uint32) {
		t.Helper()
		a := mustAnswer(t, mustQuery(t, "question example.com. A", wire.UDP), "flags qr; question example.com. A; "+response)
		if a.Kind() != kind || a.TTL() != ttl {
			t.Errorf("%s: got %v for %d s, want %v for %d s", response, a.Kind(), a.TTL(), kind, ttl)
		}
	}
	const (
		a     = "answer example.com. 60 IN A 192.0.2.1; "
		soa   = "authority example.com. %d IN SOA ns.example.com. h.example.com. 1 2 3 4 %d; "
		cname = "answer example.com. 20 IN CNAME other.example.com.; "
	)
	f(a, wire.Positive, 60)
	f(a+"answer example.com. 7 IN A 192.0.2.2", wire.Positive, 7)
	f(cname+"answer other.example.com. 60 IN A 192.0.2.1", wire.Positive, 20)
	f(a+"authority example.com. 5 IN NS ns.example.com.", wire.Positive, 5)
	f(a+"additional example.com. 4 IN AAAA 2001:db8::1", wire.Positive, 4)
	f(a+"additional ns.example.com. 4 IN A 192.0.2.1", wire.Positive, 60) // the record is removed
	f(a+"opt 1232 ede=3:", wire.Positive, 60)
	f("answer example.com. 0 IN A 192.0.2.1", wire.Positive, 0)
	f(a+"answer example.com. 2147483648 IN A 192.0.2.2", wire.Positive, 0) // RFC 2181 section 8
	f("answer example.com. 2147483647 IN A 192.0.2.2", wire.Positive, 1<<31-1)
	// RFC 2308 section 5
	f(fmt.Sprintf(soa, 600, 300), wire.NoData, 300)
	f(fmt.Sprintf(soa, 200, 300), wire.NoData, 200)
	f("rcode 3; "+fmt.Sprintf(soa, 600, 300), wire.NoName, 300)
	f("rcode 3; "+fmt.Sprintf(soa, 600, uint32(1<<31)), wire.NoName, 0)
	f("rcode 3; "+cname+fmt.Sprintf(soa, 600, 300), wire.NoName, 20)
	f(cname+fmt.Sprintf(soa, 600, 300), wire.NoData, 20)
	f("rcode 3", wire.NoName, 10)
	f("", wire.NoData, 10)
	f(cname, wire.NoData, 10)
	f("authority example.com. 3600 IN NS ns.example.com.", wire.NoData, 10)
	f("authority example.com. 3 IN NS ns.example.com.", wire.NoData, 3)
	f("rcode 2; opt ede=22:", wire.Failure, 10)
	f("rcode 5", wire.Failure, 10)
	f("rcode 16; opt", wire.Failure, 10)

	any := mustAnswer(t, mustQuery(t, "question example.com. ANY", wire.UDP), "flags qr; question example.com. ANY; "+cname)
	if any.Kind() != wire.Positive {
		t.Errorf("of any type: got %v", any.Kind())
	}
}

func TestTermsDecideAboutTTLsAndExplanations(t *testing.T) {
	const response = "flags qr; question a. A; answer a. 5 IN A 192.0.2.1; answer a. 1000 IN A 192.0.2.2; answer a. 4294967295 IN A 192.0.2.3; "
	f := func(terms wire.Terms, query, opt, want string) {
		t.Helper()
		q := mustQuery(t, "question a. A"+query, wire.UDP)
		got := show(t, mustAnswer(t, q, response+opt).AppendReply(nil, q, terms))
		for i, ttl := range strings.Fields(want)[:3] {
			if line := fmt.Sprintf("a. %s IN A 192.0.2.%d", ttl, i+1); !strings.Contains(got, line) {
				t.Errorf("%+v: %s is not in %s", terms, line, got)
			}
		}
		_, options, _ := strings.Cut(got, "opt 1232")
		if want := strings.Join(strings.Fields(want)[3:], " "); strings.TrimSpace(options) != want {
			t.Errorf("%+v: got options %s, want %s", terms, options, want)
		}
	}
	f(wire.Terms{}, "", "", "5 1000 0")
	f(wire.Terms{Age: 4999 * time.Millisecond}, "", "", "1 996 0")
	f(wire.Terms{Age: -time.Second}, "", "", "5 1000 0")
	f(wire.Terms{MinTTL: 60}, "", "", "60 1000 60")
	f(wire.Terms{MinTTL: 60, MaxTTL: 300, Age: 10 * time.Second}, "", "", "50 290 50")
	f(wire.Terms{MinTTL: 30, MaxTTL: 30}, "", "", "30 30 30")
	stale := wire.Terms{EDE: wire.EDE{Code: wire.EDEStale}}
	f(stale, "", "", "5 1000 0")
	f(stale, "; opt", "", "5 1000 0 ede=3")
	f(stale, "; opt", "opt ede=9:x ede=10:", "5 1000 0 ede=3 ede=9:x ede=10")
	stale.EDE.Text = strings.Repeat("x", 300)
	f(stale, "; opt 512", "opt ede=9:"+strings.Repeat("y", 100), "5 1000 0 ede=3:"+strings.Repeat("x", 300)+" "+"ede=9:"+strings.Repeat("y", 100))
	f(stale, "; opt 512", "opt ede=9:"+strings.Repeat("y", 200), "5 1000 0 ede=3:"+strings.Repeat("x", 300))
	stale.EDE.Text = strings.Repeat("x", 600)
	f(stale, "; opt 512", "opt ede=9:y", "5 1000 0 ede=9:y")
}

func TestStoredAnswersAreTheSame(t *testing.T) {
	q := mustQuery(t, "flags cd; question wWw.Example.com. A; opt do", wire.UDP)
	a := mustAnswer(t, q, strings.ReplaceAll(typicalResponse, "www", "WWW"))
	b := a.AppendStored([]byte("prefix"), q)[len("prefix"):]
	if len(b) != a.StoredLen() {
		t.Errorf("%d octets, not %d", len(b), a.StoredLen())
	}
	s := wire.Stored(b)
	if s.Kind() != a.Kind() || s.TTL() != a.TTL() || s.RCode() != a.RCode() {
		t.Errorf("got %v %d %v", s.Kind(), s.TTL(), s.RCode())
	}
	terms := wire.Terms{Age: time.Second}
	if got, want := s.AppendReply(nil, q, terms), a.AppendReply(nil, q, terms); !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	key := q.AppendKey(nil)
	if got := wire.AppendStoredKey(nil, b); !bytes.Equal(got, key) || !wire.StoredFor(b, key) {
		t.Errorf("key %x, want %x", got, key)
	}
	for _, other := range []string{
		"flags cd; question www.example.com. AAAA; opt do", "question www.example.com. A; opt do", "flags cd; question www.example.com. A",
		"flags cd; question ww.example.com. A; opt do", "flags cd; question com. A; opt do", "flags cd; question . A; opt do",
		"flags cd; question " + strings.Repeat("a.", 120) + " A; opt do",
	} {
		if wire.StoredFor(b, mustQuery(t, other, wire.UDP).AppendKey(nil)) {
			t.Errorf("it is for %s, too", other)
		}
	}
}

func TestAKeyMakesAQuery(t *testing.T) {
	for _, text := range []string{"question . NS", "flags cd; question wWw.example.com. AAAA", "question a.b. TXT; opt do", "flags cd; question a. TYPE65280; opt do"} {
		key := mustQuery(t, text, wire.UDP).AppendKey(nil)
		q, err := wire.KeyQuery(key)
		if err != nil || !bytes.Equal(q.AppendKey(nil), key) || q.Via() != wire.TCP {
			t.Errorf("%s: got %v, %v", text, q, err)
		}
		for _, bad := range [][]byte{nil, key[:len(key)-1], key[1:], append(bytes.Clone(key), 0), append(bytes.Clone(key[:len(key)-1]), 4)} {
			if q, err := wire.KeyQuery(bad); err == nil {
				t.Errorf("%x: got %v", bad, q)
			}
		}
	}
}

func TestNamesAndSubtrees(t *testing.T) {
	f := func(name, top string, want bool) {
		t.Helper()
		n, err := wire.PackName(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := wire.PackName(top)
		if err != nil {
			t.Fatal(err)
		}
		if got := wire.InSubtree(n, b); got != want {
			t.Errorf("%s below %s: %t", name, top, got)
		}
	}
	f("www.Example.com", "example.COM.", true)
	f("example.com", "example.com", true)
	f("example.com", ".", true)
	f(".", ".", true)
	f(".", "com", false)
	f("com", "example.com", false)
	f("anexample.com", "example.com", false)
	f(`a\007example.com`, "example.com", false)
	for _, bad := range []string{"", "a..b", strings.Repeat("a", 64), strings.Repeat("a.", 200)} {
		if n, err := wire.PackName(bad); err == nil {
			t.Errorf("%q: got %x", bad, n)
		}
	}
	q := mustQuery(t, "question wWw.example.com. A", wire.UDP)
	if want, _ := wire.PackName("www.example.com"); !bytes.Equal(wire.KeyName(q.AppendKey(nil)), want) {
		t.Error("the name of a key differs")
	}
}

package wire_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"dotgate/gateway/wire"
)

func TestPrintShowsTheReply(t *testing.T) {
	q := mustQuery(t, "question WWW.example.com. A; opt", wire.TCP)
	a := mustAnswer(t, q, "flags qr; question www.example.com. A; answer www.example.com. 60 IN A 192.0.2.1;"+
		"authority example.com. 90 IN NS ns.example.com.; additional ns.example.com. 70 IN A 192.0.2.2; opt 1232 ede=6:old")
	p := a.Print(q, wire.Terms{Age: 20 * time.Second, EDE: wire.EDE{Code: wire.EDEStale}})
	f := func(got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	f(p.Answer, "www.example.com.\t40\tIN\tA\t192.0.2.1")
	f(p.Authority, "example.com.\t70\tIN\tNS\tns.example.com.")
	f(p.Additional, "ns.example.com.\t50\tIN\tA\t192.0.2.2")
	f(p.Errors, "3 (Stale Answer)", `6 (DNSSEC Bogus): "old"`)
}

// Upstreams choose the texts, which must not control a terminal.
func TestPrintEscapesControlCharacters(t *testing.T) {
	for _, record := range []string{
		`a. 1 IN TXT "\027[2J"`, `a. 1 IN CNAME \027\007.b.`, `a. 1 IN NAPTR 1 1 "\027" "\155" "\007" b.`, `a. 1 IN CAA 0 issue "\027\010"`,
		`a. 1 IN HINFO "\027" "\027"`, `a. 1 IN TYPE64 \# 12 0001 00 029b 0005 2f1b071b08`, `a. 1 IN URI 1 1 "\027\155"`, `a. 1 IN TYPE65280 \# 1 1b`,
	} {
		q := mustQuery(t, "question a. ANY; opt", wire.TCP)
		p := mustAnswer(t, q, "flags qr; question a. ANY; answer "+record+"; opt 1232 ede=0:\x1b[2J").Print(q, wire.Terms{})
		all := strings.Join(append(p.Answer, p.Errors...), "")
		if len(p.Answer) != 1 || len(p.Errors) != 1 || strings.ContainsFunc(all, func(c rune) bool { return c != '\t' && (c < ' ' || c > '~') }) {
			t.Errorf("%s: %q", record, p)
		}
	}
}

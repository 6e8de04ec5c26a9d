package wire_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

// RFC 7871 sections 6 and 7.1.
func TestSubnetSentToUpstreams(t *testing.T) {
	f := func(option, want string) {
		t.Helper()
		q := mustQuery(t, "question a. A; opt "+option, wire.UDP)
		if got := show(t, q.AppendUpstream(nil, testID)); got != "flags rd ad; question a. A; opt 1232 padding" {
			t.Errorf("by default, upstreams see %s", got)
		}
		own, ok := q.ClientSubnet()
		q = q.WithOptions(&wire.ExtraOptions{Subnet: own, Scoped: own != nil}).Clone()
		got := fmt.Sprintf("%t %t", ok, q.Scoped())
		if m := mustUnpackOptions(t, q.AppendUpstream(nil, testID)); m != "" {
			got += " " + m
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", option, got, want)
		}
		if size := len(q.AppendUpstream(nil, 1)); size%128 != 0 {
			t.Errorf("%s: asked in %d octets", option, size)
		}
	}
	f("", "true false")
	f("8:00011800c00002", "true true 192.0.2.0/24/0")
	f("8:00011900c0000280", "true true 192.0.2.128/25/0")
	f("8:0002300020010db80000", "true true [2001:db8::]/48/0")
	f("8:00010000", "true false") // prefix length 0
	f("8:00020000", "true false")
	f("8:", "false false")
	f("8:0001", "false false")
	f("8:00011800c000", "false false")     // an address too short
	f("8:00011800c0000201", "false false") // too long
	f("8:00011900c0000201", "false false") // bits behind the prefix
	f("8:00011818c00002", "false false")   // a scope
	f("8:00012100c000020100", "false false")
	f("8:00031800c00002", "false false")

	q := mustQuery(t, "question a. A; opt 8:00011800cb0071", wire.UDP).WithOptions(&wire.ExtraOptions{Subnet: wire.AppendSubnet(nil, netip.MustParsePrefix("192.0.2.77/25"))})
	if got := mustUnpackOptions(t, q.AppendUpstream(nil, testID)); got != "192.0.2.0/25/0" || q.Scoped() {
		t.Errorf("got %s", got)
	}
	q = q.WithOptions(&wire.ExtraOptions{Subnet: wire.AppendSubnet(nil, netip.MustParsePrefix("2001:db8::/33"))})
	if got := mustUnpackOptions(t, q.AppendUpstream(nil, testID)); got != "[2001:db8::]/33/0" {
		t.Errorf("got %s", got)
	}
}

// mustUnpackOptions returns the Client Subnet in a message.
func mustUnpackOptions(t *testing.T, message []byte) string {
	t.Helper()
	for _, o := range wholeMessage(t, message).IsEdns0().Option {
		if o.Option() == 8 {
			return o.String()
		}
	}
	return ""
}

func wholeMessage(t *testing.T, message []byte) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(message); err != nil {
		t.Fatal(err)
	}
	return m
}

// The Client Subnet of an answer is passed on to a client that sent its own.
func TestTheScopeOfAnAnswerReachesItsClient(t *testing.T) {
	q := mustQuery(t, "question a. A; opt 8:00011800c00002", wire.UDP)
	option, _ := q.ClientSubnet()
	q = q.WithOptions(&wire.ExtraOptions{Subnet: option, Scoped: true})
	const text = "flags qr; question a. A; answer a. 60 IN A 192.0.2.1; opt 8:00011814c00002 10:0011223344556677 ede=3:"
	if got := show(t, mustAnswer(t, q, text).AppendReply(nil, q, wire.Terms{})); !strings.HasSuffix(got, "opt 1232 option=8 ede=3") {
		t.Errorf("got %s", got)
	}
	other := mustQuery(t, "question a. A; opt", wire.UDP)
	if got := show(t, mustAnswer(t, other, text).AppendReply(nil, other, wire.Terms{})); !strings.HasSuffix(got, "opt 1232 ede=3") {
		t.Errorf("got %s", got)
	}
}

// RFC 7871 sections 7.3 and 11.2: an answer for another network may be forged, and is
// dropped.
func TestTheSubnetOfAnAnswerIsTheOneSent(t *testing.T) {
	f := func(sent, option, want string) {
		t.Helper()
		q := mustQuery(t, "question a. A", wire.UDP)
		if sent != "" {
			q = q.WithOptions(&wire.ExtraOptions{Subnet: wire.AppendSubnet(nil, netip.MustParsePrefix(sent))})
		}
		message := pack(t, "flags qr; question a. A; answer a. 60 IN A 192.0.2.1; opt"+option)
		_, err := wire.ParseAnswer(q, message)
		if got := fmt.Sprint(err); got != want {
			t.Errorf("%s, sent for %s: got %s, want %s", option, sent, got, want)
		}
		if err != nil && !errors.Is(err, wire.ErrWrongQuestion) {
			t.Errorf("%v is of another kind", err)
		}
	}
	const ok, wrong = "<nil>", wrongQuestion + ": the Client Subnet is not the one sent"
	f("192.0.2.0/24", "", ok) // the server does not know the option
	f("192.0.2.0/24", " ede=3", ok)
	f("192.0.2.0/24", " 8:00011800c00002", ok)
	f("192.0.2.0/24", " 8:00011814c00002", ok) // for a larger network
	f("192.0.2.0/24", " 8:00011820c00002", ok) // for a part of it
	f("2001:db8::/48", " 8:0002303020010db80000", ok)
	f("192.0.2.0/24", " 8:00011800c63364", wrong)
	f("192.0.2.0/24", " 8:00011000c000", wrong) // a shorter prefix
	f("192.0.2.0/24", " 8:00011900c0000200", wrong)
	f("192.0.2.0/24", " 8:00011821c00002", wrong)        // a scope longer than an address: BIND refuses it
	f("2001:db8::/48", " 8:0002308120010db80000", wrong) // the same
	f("192.0.2.0/24", " 8:00021800c00002", wrong)        // family
	f("192.0.2.0/24", " 8:00010000", wrong)
	f("192.0.2.0/24", " 8:", wrong)
	f("192.0.2.0/24", " 8:00011800c00002 8:00011800c63364", wrong)
	f("", " 8:00011800c63364", ok) // it is ignored
}

func TestPrivateAddressesAreRemovedOrBlocked(t *testing.T) {
	// f wants "blocked", or the kept records.
	f := func(typ, records, want string) {
		t.Helper()
		q := mustQuery(t, "question a. "+typ+"; opt", wire.TCP)
		a := mustAnswer(t, q, "flags qr; question a. "+typ+"; "+records+"; opt ede=3:x")
		got := "blocked"
		if public, ok := a.WithoutPrivate(func(name []byte) bool { return string(name) == "\x06exempt\x00" }); ok {
			_, got, _ = strings.Cut(show(t, public.AppendReply(nil, q, wire.Terms{Age: time.Second})), typ+"; ")
			got = strings.TrimSuffix(strings.TrimSuffix(got, "opt 1232 ede=3:x"), "; ")
			if whole := strings.Count(want, " IN ") == strings.Count(records, " IN "); public.Same(a) != whole {
				t.Errorf("%s: the same answer is %t", records, !whole)
			}
			if public.Kind() != a.Kind() || public.TTL() != a.TTL() {
				t.Errorf("%s: %v for %d s", records, public.Kind(), public.TTL())
			}
		}
		if got != want {
			t.Errorf("%s %s:\n got %s\nwant %s", typ, records, got, want)
		}
	}
	private4 := []string{"10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "169.254.1.1", "0.0.0.0", "0.1.2.3", "100.64.0.1"}
	private6 := []string{
		"fd00::1", "fe80::1", "fec0::1", "::1", "::", "::ffff:10.0.0.1", "::10.0.0.1", "2002:a00:1::1",
		"64:ff9b::10.0.0.1", "64:ff9b::192.168.1.1", "64:ff9b:1::10.0.0.1", "64:ff9b:1:ffff::127.0.0.1", "64:ff9b:1:a00:0:100::",
	}
	public6 := []string{"2001:db8::1", "::ffff:192.0.2.1", "64:ff9b::192.0.2.1", "64:ff9b:1::192.0.2.1", "64:ff9b:1:c000:2:100::", "2002:c000:201::1"}
	const mx = "answer a. 59 IN MX 1 b.example.; answer a. 59 IN MX 2 exempt."
	aged := func(text string) string { return strings.ReplaceAll(text, " 60 ", " 59 ") }
	along := func(record, more string, stays bool) {
		t.Helper()
		want := mx
		if stays {
			want += "; " + aged(record)
		}
		f("MX", strings.ReplaceAll(mx, " 59 ", " 60 ")+"; "+record+more, want+aged(more))
	}
	for _, a := range private4 {
		f("A", "answer a. 60 IN A 192.0.2.1; answer a. 60 IN A "+a, "blocked")
		f("A", "answer a. 60 IN CNAME exempt.; answer exempt. 60 IN A "+a, "blocked")
		f("HTTPS", "answer a. 60 IN HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1,"+a, "blocked")
		along("additional b.example. 60 IN A "+a, "", false)
		along("additional b.example. 60 IN A "+a, "; additional b.example. 60 IN A 192.0.2.1", false)
		along("additional exempt. 60 IN A "+a, "", true)
		along("additional b.example. 60 IN SVCB 1 b.example. ipv4hint=\""+a+"\"", "", false)
	}
	for _, a := range private6 {
		f("AAAA", "answer a. 60 IN AAAA "+a, "blocked")
		if !strings.Contains(a, ".") { // which miekg/dns does not take here
			f("SVCB", "answer a. 60 IN SVCB 1 b.example. ipv6hint="+a, "blocked")
		}
		along("additional b.example. 60 IN AAAA "+a, "; additional b.example. 60 IN A 192.0.2.1", false)
	}
	for _, a := range public6 {
		f("AAAA", "answer a. 60 IN CNAME b.; answer b. 60 IN AAAA "+a, "answer a. 59 IN CNAME b.; answer b. 59 IN AAAA "+netip.MustParseAddr(a).String())
	}
	f("A", "answer a. 60 IN A 192.0.2.1; answer a. 60 IN A 172.32.0.1", "answer a. 59 IN A 192.0.2.1; answer a. 59 IN A 172.32.0.1")
	f("SRV", "answer a. 60 IN SRV 1 2 3 b.example.; additional b.example. 60 IN A 10.0.0.1", "answer a. 59 IN SRV 1 2 3 b.example.")
	f("TXT", `answer a. 60 IN TXT "10.0.0.1"`, `answer a. 59 IN TXT "10.0.0.1"`)
	f("A", "rcode 3; authority a. 5 IN SOA a. b. 1 2 3 4 5", "authority a. 4 IN SOA a. b. 1 2 3 4 5")
}

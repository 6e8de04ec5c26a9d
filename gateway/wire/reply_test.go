package wire_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

// RFC 7873 section 4: a cookie has 8 octets, and 8 to 32 more if it includes a server
// cookie.
func TestCookiesHaveCertainLengths(t *testing.T) {
	f := func(octets int, ok bool) {
		t.Helper()
		want := "accepted"
		if !ok {
			want = "FORMERR: malformed cookie" // section 5.2.2
		}
		if got := parseQueryResult(pack(t, "question example.com. A; opt 10:"+strings.Repeat("ab", octets))); got != want {
			t.Errorf("%d octets: got %s, want %s", octets, got, want)
		}
	}
	for n := range 50 {
		f(n, n == 8 || n >= 16 && n <= 40)
	}
}

func TestOptionsOfAQuery(t *testing.T) {
	f := func(text string, via wire.Transport, want string) {
		t.Helper()
		q := mustQuery(t, text, via)
		client, server := q.Cookie()
		var got []string
		if client != nil {
			got = append(got, "cookie "+string(client)+","+string(server))
		}
		if q.WantsNSID() {
			got = append(got, "nsid")
		}
		if q.WantsKeepalive() {
			got = append(got, "keepalive")
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("got %q, want %q", text, want)
		}
	}
	f("question a. A", wire.TCP, "")
	f("question a. A; opt", wire.TCP, "")
	f("question a. A; opt 3: 11: 10:4142434445464748", wire.TCP, "cookie ABCDEFGH, nsid keepalive")
	f("question a. A; opt 11: 3:", wire.UDP, "nsid") // RFC 7828 section 3.2.2: over UDP it is ignored
	f("question a. A; opt 10:41424344454647486162636465666768 10:5152535455565758", wire.UDP, "cookie ABCDEFGH,abcdefgh")
	f("question a. A; opt 12:00000000", wire.TCP, "") // RFC 7830: padding needs encryption
}

func TestReplyOptionsGoIntoEachKindOfReply(t *testing.T) {
	var options []byte
	options = wire.AppendCookie(options, []byte("ABCDEFGH"), []byte("abcdefghijklmnop"))
	options = wire.AppendNSID(options, "ns1")
	options = wire.AppendKeepalive(options, 100)
	f := func(text string, via wire.Transport, reply func(wire.Query) []byte, want string) {
		t.Helper()
		original := mustQuery(t, text, via)
		q := original.WithOptions(&wire.ExtraOptions{Reply: options}).Clone()
		got := reply(q)
		if got := show(t, got); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		var m dns.Msg
		if err := m.Unpack(got); err != nil {
			t.Fatal(err)
		}
		if opt := m.IsEdns0(); opt != nil && !strings.Contains(want, " tc") {
			cookie, _ := opt.Option[0].(*dns.EDNS0_COOKIE)
			nsid, _ := opt.Option[1].(*dns.EDNS0_NSID)
			if cookie == nil || cookie.Cookie != "41424344454647486162636465666768696a6b6c6d6e6f70" || nsid == nil || nsid.Nsid != "6e7331" {
				t.Errorf("%s: got %v", text, opt)
			}
		}
	}
	const three = " option=10 option=3 option=11"
	fails := func(q wire.Query) []byte {
		return q.AppendError(nil, wire.ServFail, wire.EDE{Code: wire.EDENoReachable, Text: "why"})
	}
	answers := func(q wire.Query) []byte {
		a := mustAnswer(t, q, "flags qr; question a. A; answer a. 60 IN A 192.0.2.1; opt ede=3:old")
		return a.AppendReply(nil, q, wire.Terms{EDE: wire.EDE{Code: wire.EDEOther, Text: "x"}})
	}
	f("question a. A", wire.UDP, fails, "flags qr ra; rcode 2; question a. A")
	f("question a. A", wire.UDP, answers, "flags qr ra; question a. A; answer a. 60 IN A 192.0.2.1")
	f("question a. A; opt do", wire.UDP, fails, "flags qr ra; rcode 2; question a. A; opt 1232 do"+three+" ede=22:why")
	f("question a. A; opt", wire.TCP, answers, "flags qr ra; question a. A; answer a. 60 IN A 192.0.2.1; opt 1232"+three+" ede=0:x ede=3:old")
	f("question a. A; opt", wire.TCP, func(q wire.Query) []byte {
		return q.AppendRecords(nil, []wire.Record{{Type: wire.TypeA, TTL: 7, Data: []byte{192, 0, 2, 9}}})
	}, "flags qr ra; question a. A; answer a. 7 IN A 192.0.2.9; opt 1232"+three)
	f("question x.a. A; opt", wire.TCP, func(q wire.Query) []byte { return q.AppendNegative(nil, wire.NXDomain, 2) },
		"flags qr ra; rcode 3; question x.a. A; authority a. 10800 IN SOA a. nobody.invalid. 1 3600 1200 604800 10800; opt 1232"+three)
	f("question x.a. A", wire.TCP, func(q wire.Query) []byte { return q.AppendNegative(nil, wire.NoError, 4) },
		"flags qr ra; question x.a. A; authority . 10800 IN SOA . nobody.invalid. 1 3600 1200 604800 10800")
}

// Replies with reply options have at most the maximum length of the client,
// too.
func TestReplyOptionsFit(t *testing.T) {
	options := wire.AppendNSID(nil, strings.Repeat("n", 100))
	for size := range 400 {
		q := mustQuery(t, "question a. TXT; opt 512", wire.UDP).WithOptions(&wire.ExtraOptions{Reply: options})
		text := "flags qr; question a. TXT; answer a. 60 IN TXT"
		for rest := size; rest > 0; rest -= 200 {
			text += " " + strings.Repeat("x", min(rest, 200))
		}
		if size == 0 {
			text += ` ""`
		}
		reply := mustAnswer(t, q, text).AppendReply(nil, q, wire.Terms{EDE: wire.EDE{Code: 1, Text: "because"}})
		if len(reply) > 512 {
			t.Errorf("%d octets of text: got %d", size, len(reply))
		}
		show(t, reply)
		if reply := q.AppendError(nil, wire.ServFail, wire.EDE{Text: strings.Repeat("y", size*2)}); len(reply) > 512 {
			t.Errorf("an error with %d octets of text: got %d", size*2, len(reply))
		}
	}
}

// Replies to addresses that may be forged must not amplify.
func TestTruncatedAndErrorRepliesAreNoLongerThanTheQuery(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		packet := pack(t, text)
		q, _ := wire.ParseQuery(packet, wire.UDP)
		tc, refused := q.AppendTruncated(nil), q.AppendError(nil, wire.Refused, wire.EDE{})
		if len(tc) > len(packet) || len(refused) > len(packet) {
			t.Errorf("%s: got %d and %d octets for %d", text, len(tc), len(refused), len(packet))
		}
		if got := show(t, tc); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
	f("flags rd; question a. A", "flags qr tc rd ra; question a. A")
	f("question A. ANY; opt do 10:0011223344556677", "flags qr tc ra; question A. ANY; opt 1232 do")
	f("question a. CH TXT; opt", "flags qr tc ra; question a. CH TXT; opt 1232")
	f("question a. A; question b. A", "flags qr tc ra")
}

func TestReplyOptionsDoNotAllocate(t *testing.T) {
	q := mustQuery(t, "question a. A; opt 10:0011223344556677 3:", wire.UDP)
	buf, scratch := make([]byte, 0, 2048), make([]byte, 0, 128)
	records := []wire.Record{{Type: wire.TypeA, TTL: 7, Data: []byte{192, 0, 2, 9}}}
	extras := new(wire.ExtraOptions)
	if n := testing.AllocsPerRun(100, func() {
		client, _ := q.Cookie()
		options := wire.AppendNSID(wire.AppendCookie(scratch, client, client), "ns1")
		extras.Reply = options
		with := q.WithOptions(extras)
		with.AppendError(buf, wire.ServFail, wire.EDE{})
		with.AppendRecords(buf, records)
		with.AppendNegative(buf, wire.NXDomain, 0)
		with.AppendTruncated(buf)
	}); n != 0 {
		t.Errorf("got %v allocations", n)
	}
	clone := q.WithOptions(&wire.ExtraOptions{Reply: wire.AppendNSID(scratch, "ns1")}).Clone()
	clear(scratch[:cap(scratch)])
	if !bytes.Contains(clone.AppendError(nil, wire.ServFail, wire.EDE{}), []byte("ns1")) {
		t.Error("a clone borrows its options")
	}
}

// A server that does not know EDNS gets a query without an OPT record, otherwise
// unchanged (RFC 6891 section 6.2.2).
func TestAppendWithoutEDNSOmitsOPTOnly(t *testing.T) {
	q := mustQuery(t, "question Www.Example.com. AAAA; opt", wire.UDP)
	var bare, plain dns.Msg
	if err := bare.Unpack(q.AppendWithoutEDNS(nil, 7)); err != nil {
		t.Fatal(err)
	}
	if err := plain.Unpack(q.AppendUnpadded(nil, 7)); err != nil {
		t.Fatal(err)
	}
	if plain.IsEdns0() == nil || bare.IsEdns0() != nil {
		t.Errorf("got %v and %v", &plain, &bare)
	}
	plain.Extra = nil
	if plain.String() != bare.String() {
		t.Errorf("got\n%v\nwant\n%v", &bare, &plain)
	}
}

func TestRefusesEDNS(t *testing.T) {
	f := func(rcode int, opt, want bool) {
		t.Helper()
		m := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
		m.Response, m.Rcode = true, rcode
		if opt {
			m.SetEdns0(1232, false)
		}
		packet, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if got := wire.RefusesEDNS(packet); got != want {
			t.Errorf("%s, OPT %v: got %v", dns.RcodeToString[rcode], opt, got)
		}
	}
	f(dns.RcodeFormatError, false, true)
	f(dns.RcodeNotImplemented, false, true)
	f(dns.RcodeFormatError, true, true) // the query comes back
	f(dns.RcodeNotImplemented, true, false)
	f(dns.RcodeBadVers, true, false)
	f(dns.RcodeServerFailure, false, false)
	f(dns.RcodeRefused, false, false)
	f(dns.RcodeSuccess, false, false)
}

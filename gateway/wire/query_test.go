package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

// parseQueryResult returns the result of ParseQuery as text.
func parseQueryResult(packet []byte) string {
	_, err := wire.ParseQuery(packet, wire.UDP)
	switch {
	case err == nil:
		return "accepted"
	case errors.Is(err, wire.ErrNotQuery):
		return "ignored"
	}
	return err.Error()
}

func TestPacketsThatAreNoQueriesAreIgnored(t *testing.T) {
	f := func(packet []byte) {
		t.Helper()
		if got := parseQueryResult(packet); got != "ignored" {
			t.Errorf("%x: got %s", packet, got)
		}
	}
	f(nil)
	f([]byte{0})
	f(unhex(t, "abcd 0100 0001 0000 0000 00")) // a header less one octet
	f(pack(t, "flags qr rd; question example.com. A"))
	f(pack(t, "flags qr; opcode 4; question example.com. SOA"))
	f(make([]byte, wire.MaxSize+1))
}

func TestOrdinaryQueriesAreAccepted(t *testing.T) {
	f := func(text string) {
		t.Helper()
		if got := parseQueryResult(pack(t, text)); got != "accepted" {
			t.Errorf("%s: got %s", text, got)
		}
	}
	f("question example.com. A")
	f("flags rd ad cd; question . NS")
	f("flags z aa tc ra; question example.com. A") // meaningless in queries, so no reason to refuse
	f("rcode 5; question example.com. A")
	f("question " + longName + " A")
	f("question example.com. ANY")
	f("question example.com. HTTPS")
	f("question example.com. TYPE0") // RFC 3597: types are opaque
	f("question example.com. TYPE65534")
	f("question example.com. A; opt")
	f("question example.com. A; opt 0 do")                                          // RFC 6891 section 6.2.3: below 512 is 512
	f("question example.com. A; opt 4096 z 65001:00ff")                             // section 6.1.4: unknown flags are ignored
	f("question example.com. A; opt 10:0011223344556677 8:000118007f 12:00 11: 3:") // COOKIE, ECS, padding, keepalive, NSID
	f("question example.com. A; additional example.com. 0 IN A 192.0.2.1; opt")
	f("question example.com. A; opt; additional example.com. 0 IN A 192.0.2.1")
}

// longName has 255 octets in wire format, the maximum.
var longName = strings.Repeat(strings.Repeat("x", 63)+".", 3) + strings.Repeat("y", 61) + "."

func TestBadQueriesAreRefusedWithAReason(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		if got := parseQueryResult(pack(t, text)); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
	const soa = "example.com. 0 IN SOA ns.example.com. host.example.com. 1 2 3 4 5"
	f("opcode 1; question example.com. A", "NOTIMP: opcode other than QUERY")
	f("opcode 2", "NOTIMP: opcode other than QUERY")
	f("opcode 5; question example.com. SOA; authority "+soa, "NOTIMP: opcode other than QUERY")
	f("", "FORMERR: not exactly one question") // RFC 9619 section 4
	f("opt 10:0011223344556677", "FORMERR: not exactly one question")
	f("question example.com. A; question example.com. AAAA", "FORMERR: not exactly one question")
	f("question example.com. OPT", "FORMERR: malformed question")
	f("question example.com. TSIG", "FORMERR: malformed question")
	f("question example.com. A; answer example.com. 0 IN A 192.0.2.1", "FORMERR: records in the answer or authority section")
	f("question example.com. A; authority "+soa, "FORMERR: records in the answer or authority section")
	f("question example.com. A; opt; opt", "FORMERR: malformed or repeated OPT record") // RFC 6891 section 6.1.1
	f("question example.com. A; opt version=1", "BADVERS: EDNS version above 0")        // RFC 6891 section 6.1.3
	f("question example.com. A; opt version=255 do 65001:00", "BADVERS: EDNS version above 0")
	f("question example.com. AXFR", "REFUSED: zone transfer")
	f("question example.com. IXFR; authority "+soa, "REFUSED: zone transfer") // RFC 1995 section 3
	f("question version.bind. CH TXT", "REFUSED: class other than IN")
	f("question example.com. ANY A", "REFUSED: class other than IN")
	f("question example.com. NONE A", "REFUSED: class other than IN")
	f("question example.com. A; opt; tsig", "REFUSED: TSIG-signed query")
}

func TestMalformedQueriesGetFORMERR(t *testing.T) {
	const (
		header = "abcd 0100 0001 0000 0000 0000"
		withAR = "abcd 0100 0001 0000 0000 0001"
		with2  = "abcd 0100 0001 0000 0000 0002"
		q      = "01 61 00 0001 0001" // a. A
		opt    = "00 0029 04d0 00000000"
	)
	f := func(packet, want string) {
		t.Helper()
		if got := parseQueryResult(unhex(t, packet)); got != "FORMERR: "+want {
			t.Errorf("%s: got %s, want %s", packet, got, want)
		}
	}
	// RFC 1035 section 4.1.2
	f(header, "malformed question")
	f(header+"01 61", "malformed question")
	f(header+"01 61 00 0001 00", "malformed question")
	f(header+"40"+strings.Repeat("61", 64)+"00 0001 0001", "malformed question") // section 2.3.4: label of 64 octets
	f(header+strings.Repeat("01 61", 127)+"01 61 00 0001 0001", "malformed question")
	f(header+strings.Repeat("01 61", 126)+"02 6161 00 0001 0001", "malformed question") // name of 256 octets
	f(header+strings.Repeat("01 61", 128)+"00 0001 0001", "malformed question")         // name of 257 octets
	f(header+"c00c 0001 0001", "malformed question")
	f(header+"01 61 c000 0001 0001", "malformed question")
	f(header+q+"00", "garbage after the message")
	f(header+q+opt+"0000", "garbage after the message") // an OPT record that is not counted
	f(withAR+q, "malformed additional section")
	f(withAR+q+opt, "malformed additional section")
	f(withAR+q+opt+"0001", "malformed additional section")
	f(withAR+q+"c00c 0001 0001 00000000 0003 c00002", "malformed additional section") // A of 3 octets
	f(withAR+q+"c013 0001 0001 00000000 0004 c0000201", "malformed additional section")
	// The sum of the counts is 2^16, which must not be taken for 0.
	f("abcd 0100 0001 8000 8000 0000"+q, "records in the answer or authority section")
	f("abcd 0100 0001 0001 ffff 0000"+q, "records in the answer or authority section")
	f("abcd 0100 0001 0001 0000 0000"+q+opt+"0000", "records in the answer or authority section")
	// RFC 6891 section 6.1.2
	f(withAR+q+"01 61"+opt+"0000", "malformed or repeated OPT record")
	f(withAR+q+"c00e"+opt[2:]+"0000", "malformed or repeated OPT record") // the root by a pointer
	f(withAR+q+opt+"0003 000a00", "malformed or repeated OPT record")
	f(withAR+q+opt+"0004 000a0001", "malformed or repeated OPT record")
	f(with2+q+opt+"0000"+opt+"0000", "malformed or repeated OPT record")
}

func TestARefusalStillRepliesToTheQuery(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		q, err := wire.ParseQuery(pack(t, text), wire.UDP)
		var refusal *wire.Refusal
		if !errors.As(err, &refusal) {
			t.Fatalf("%s: got %v", text, err)
		}
		got := show(t, q.AppendError(nil, refusal.RCode, wire.EDE{Code: refusal.EDE}))
		if got != want {
			t.Errorf("%s:\n got %s\nwant %s", text, got, want)
		}
	}
	const soa = "; authority example.com. 0 IN SOA ns.example.com. host.example.com. 1 2 3 4 5"
	f("flags rd; opcode 4; question example.com. A", "flags qr; opcode 4; rcode 4")
	f("flags aa tc rd ra z ad cd; opcode 15; opt", "flags qr; opcode 15; rcode 4") // defined for QUERY only
	f("flags rd; opt 4096 do", "flags qr rd ra; rcode 1; opt 1232 do")
	f("flags rd; question a. A; question b. A; opt", "flags qr rd ra; rcode 1")
	f("flags rd cd z ad; question ExAmple.com. CH A", "flags qr rd ra cd; rcode 5; question ExAmple.com. CH A")
	f("question example.com. CH A; opt 4096 do 10:0011223344556677", "flags qr ra; rcode 5; question example.com. CH A; opt 1232 do ede=21")
	f("question example.com. IXFR; opt"+soa, "flags qr ra; rcode 5; question example.com. IXFR; opt 1232 ede=21")
	f("question example.com. AXFR; opt; opt", "flags qr ra; rcode 5; question example.com. AXFR; opt 1232 ede=21")
	f("question example.com. A; opt"+soa, "flags qr ra; rcode 1; question example.com. A; opt 1232")
	// RFC 6891 section 7: without an OPT record, the reply would mean that EDNS is not supported.
	f("question example.com. A; opt do; opt", "flags qr ra; rcode 1; question example.com. A; opt 1232 do")
	f("question example.com. A; opt do 10:00", "flags qr ra; rcode 1; question example.com. A; opt 1232 do")
	// The options of another version may mean something else.
	f("question example.com. A; opt version=1 10:00", "flags qr ra; rcode 16; question example.com. A; opt 1232")
	f("question example.com. A; opt version=255 z 100:", "flags qr ra; rcode 16; question example.com. A; opt 1232")
	f("question example.com. A; opt version=1 do", "flags qr ra; rcode 16; question example.com. A; opt 1232 do")
}

// RFC 1035 section 3.1: a label may have any octet.
func TestNamesSurviveBitForBit(t *testing.T) {
	const name = "03 00 2e 41 02 ff 5c 00" // labels: NUL dot A, 0xff backslash
	q, err := wire.ParseQuery(unhex(t, "abcd 0000 0001 0000 0000 0000"+name+"0010 0001"), wire.UDP)
	if err != nil {
		t.Fatal(err)
	}
	if got := q.AppendUpstream(nil, 1)[12:20]; !bytes.Equal(got, unhex(t, name)) {
		t.Errorf("upstream sees %x", got)
	}
	if got := q.AppendError(nil, wire.ServFail, wire.EDE{})[12:20]; !bytes.Equal(got, unhex(t, name)) {
		t.Errorf("client sees %x", got)
	}
	if got := q.AppendName(nil); !bytes.Equal(got, unhex(t, "03 00 2e 61 02 ff 5c 00")) {
		t.Errorf("lower case is %x", got)
	}
	if got := q.String(); got != `\000\.A.\255\\. TXT` {
		t.Errorf("people see %s", got)
	}
}

// RFC 1035 section 3.1, RFC 3597 section 3: names and data stay unchanged, also if
// records around them are removed.
func TestAnswersSurviveBitForBit(t *testing.T) {
	const (
		name = "03 00 2e 41 02 ff 5c 00"
		data = "0004 00 2e c0 0c" // looks like a pointer, but is not
		a    = "c00c 0005 0001 0000003c 0006 03 00 2e 7a c00c" + "c024 fe00 0001 0000003c" + data + "c024 fe00 0001 0000003c 0001 00"
		evil = "03 00 2e 7a 02 ff 5d 00 0001 0001 0000003c 0004 c0000242"
	)
	question := name + "fe00 0001"
	q, err := wire.ParseQuery(unhex(t, "abcd 0000 0001 0000 0000 0000"+question), wire.TCP)
	if err != nil {
		t.Fatal(err)
	}
	want := unhex(t, "abcd 8080 0001 0003 0000 0000"+question+a)
	for _, message := range []string{
		"0000 8000 0001 0003 0000 0000" + question + a,
		"0000 8000 0001 0003 0000 0001" + question + a + evil,
		"0000 8000 0001 0004 0000 0000" + question + a + evil,
	} {
		answer, err := wire.ParseAnswer(q, unhex(t, message))
		if err != nil {
			t.Fatalf("%s: %v", message, err)
		}
		if got := answer.AppendReply(nil, q, wire.Terms{}); !bytes.Equal(got, want) {
			t.Errorf("got  %x\nwant %x", got, want)
		}
		if answer.Stripped() != strings.Contains(message, evil) {
			t.Errorf("%s: stripped is %t", message, answer.Stripped())
		}
		if text := answer.String(); !strings.Contains(text, `\000\.A.\255\\.`) || !strings.Contains(text, `\# 4 002ec00c`) {
			t.Errorf("got %s", text)
		}
	}
}

func TestErrorsEchoTheQueryAndExplainThemselves(t *testing.T) {
	f := func(text string, rcode wire.RCode, ede wire.EDE, want string) {
		t.Helper()
		got := show(t, mustQuery(t, text, wire.UDP).AppendError(nil, rcode, ede))
		if got != want {
			t.Errorf("%s:\n got %s\nwant %s", text, got, want)
		}
	}
	late := wire.EDE{Code: wire.EDENoReachable, Text: "late"}
	f("question eXample.com. A", wire.ServFail, late, "flags qr ra; rcode 2; question eXample.com. A")
	f("flags rd; question example.com. A; opt", wire.ServFail, late, "flags qr rd ra; rcode 2; question example.com. A; opt 1232 ede=22:late")
	f("flags ad cd; question example.com. A; opt do", wire.Refused, wire.EDE{}, "flags qr ra cd; rcode 5; question example.com. A; opt 1232 do")
	f("question . A; opt", wire.ServFail, wire.EDE{Text: "why"}, "flags qr ra; rcode 2; question . A; opt 1232 ede=0:why")
	// RFC 6891 section 6.1.3: its upper bits are in the OPT record only.
	f("question . A; opt", wire.BadVers, wire.EDE{}, "flags qr ra; rcode 16; question . A; opt 1232")
	f("question . A", wire.BadVers, wire.EDE{}, "flags qr ra; rcode 2; question . A")
}

func TestAnErrorFitsItsMaximumLength(t *testing.T) {
	f := func(text string, via wire.Transport, textLen, want int) {
		t.Helper()
		prefix := []byte("two bytes of length, say")
		ede := wire.EDE{Code: wire.EDENetworkError, Text: strings.Repeat("é", textLen/2)}
		got := mustQuery(t, text, via).AppendError(prefix, wire.ServFail, ede)[len(prefix):]
		if len(got) != want {
			t.Errorf("%s: got %d octets, want %d", text, len(got), want)
		}
		show(t, got)
		var m dns.Msg
		if err := m.Unpack(got); err != nil {
			t.Fatal(err)
		}
		if ede := m.IsEdns0().Option[0].(*dns.EDNS0_EDE); !utf8.ValidString(ede.ExtraText) {
			t.Errorf("%s: text cut within a character", text)
		}
	}
	f("question "+longName+" A; opt 512", wire.UDP, 1000, 512)
	f("question "+longName+" A; opt 0", wire.UDP, 1000, 512)
	f("question "+longName+" A; opt 0", wire.UDP, 10, 12+259+11+6+10)
	f("question a. A; opt 512", wire.UDP, 1000, 512)
	f("question a. A; opt 513", wire.UDP, 1000, 512) // whole characters
	f("question a. A; opt 65535", wire.UDP, 100_000, wire.MaxUDPSize)
	f("question a. A; opt 512", wire.TCP, 1000, 12+7+11+6+1000)
	f("question a. A; opt 512", wire.TCP, 100_000, wire.MaxSize-1)
}

func TestUpstreamsSeeNothingOfTheClientButItsQuestion(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		prefix := []byte("prefix")
		got := mustQuery(t, text, wire.UDP).AppendUpstream(prefix, testID)
		if !bytes.HasPrefix(got, prefix) {
			t.Fatal("prefix overwritten")
		}
		got = got[len(prefix):]
		d, _ := dissect(got)
		bare := d.questionEnd + 11 + 4
		if len(got)%128 != 0 || len(got)-bare >= 128 { // RFC 8467 section 4.1
			t.Errorf("%s: got %d octets, %d without padding", text, len(got), bare)
		}
		if got := show(t, got); got != want {
			t.Errorf("%s:\n got %s\nwant %s", text, got, want)
		}
	}
	f("question example.com. A", "flags rd ad; question example.com. A; opt 1232 padding")
	f("flags rd; question eXaMple.com. TYPE65280", "flags rd ad; question eXaMple.com. TYPE65280; opt 1232 padding")
	f("flags aa tc ra z ad cd; rcode 9; question . NS", "flags rd ad cd; question . NS; opt 1232 padding")
	f("flags cd; question a. A; opt 4096 do z", "flags rd ad cd; question a. A; opt 1232 do padding")
	f("question a. A; additional a. 0 IN A 192.0.2.1; opt 512 10:0011223344556677 8:000118007f 11: 12:00000000 3: 65001:ff",
		"flags rd ad; question a. A; opt 1232 padding")
	// All lengths, including the one that needs no padding.
	for n := 1; n <= 63; n++ {
		name := strings.Repeat("x", n) + "."
		f("question "+name+" A", "flags rd ad; question "+name+" A; opt 1232 padding")
		name += name[:max(1, n/2)] + "."
		f("question "+name+" A", "flags rd ad; question "+name+" A; opt 1232 padding")
	}
	f("question "+longName+" A", "flags rd ad; question "+longName+" A; opt 1232 padding")
}

func TestKeysAreEqualExactlyIfOneAnswerServesBoth(t *testing.T) {
	f := func(a, b string, want bool) {
		t.Helper()
		keyA := mustQuery(t, a, wire.UDP).AppendKey(nil)
		keyB := mustQuery(t, b, wire.TCP).AppendKey(nil)
		if got := bytes.Equal(keyA, keyB); got != want {
			t.Errorf("%s and %s: got %t", a, b, got)
		}
	}
	const base = "question example.com. A"
	f(base, base, true)
	f(base, "question eXAMPLE.Com. A", true)
	f(base, "flags rd ad z; "+base, true)
	f(base, base+"; opt 4096 10:0011223344556677", true)
	f(base+"; opt do", "flags rd; question EXAMPLE.com. A; opt 512 do", true)
	f(base, "flags cd; "+base, false) // RFC 6840 section 5.9
	f(base, base+"; opt do", false)
	f("flags cd; "+base, base+"; opt do", false)
	f(base, "question example.com. AAAA", false)
	f(base, "question example.org. A", false)
	f(base, "question com. A", false)
	f(base, "question a.example.com. A", false)
	f(`question a\.b. A`, "question a.b. A", false)
	f(`question \@. A`, "question `. A", false) // RFC 4343: 0x40 and 0x60 are no letters
	f(`question \[. A`, "question {. A", false)
	f(`question \195\132. A`, `question \195\164. A`, false) // nor are Ä and ä
}

func TestACloneOutlivesItsPacket(t *testing.T) {
	packet := pack(t, "question example.com. A; opt do")
	q, err := wire.ParseQuery(packet, wire.TCP)
	if err != nil {
		t.Fatal(err)
	}
	clone := q.Clone()
	clear(packet)
	if got := clone.String(); got != "example.com. A" {
		t.Errorf("got %s", got)
	}
	if !bytes.Equal(clone.Packet(), pack(t, "question example.com. A; opt do")) || clone.Via() != wire.TCP {
		t.Error("got another packet")
	}
}

func TestQueriesOfOurOwn(t *testing.T) {
	f := func(name, recordType, want string) {
		t.Helper()
		q, err := wire.NewQuery(name, recordType)
		got := q.String()
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s %s: got %s, want %s", name, recordType, got, want)
		}
	}
	f("example.com", "A", "example.com. A")
	f("example.com.", "HTTPS", "example.com. HTTPS")
	f(".", "NS", ". NS")
	f(`a\.b.example.`, "TXT", `a\.b.example. TXT`)
	f("", "A", `make a query: "" is no domain name`)
	f("a..b", "A", `make a query: "a..b" is no domain name`)
	f(".a", "A", `make a query: ".a" is no domain name`)
	f(strings.Repeat("x", 64), "A", `make a query: "`+strings.Repeat("x", 64)+`" is no domain name`)
	f(longName+"z.", "A", `make a query for "`+longName+`z.": FORMERR: malformed question`)
	f(`a\`, "A", `make a query: "a\\" is no domain name`)
	f("example.com", "", `make a query: "" is no record type`)
	f("example.com", "a", `make a query: "a" is no record type`)
	f("example.com", "AXFR", `make a query for "example.com": REFUSED: zone transfer`)
	f("example.com", "OPT", `make a query for "example.com": FORMERR: malformed question`)
}

func TestAQueryWithoutQuestionIsPrinted(t *testing.T) {
	q, _ := wire.ParseQuery(pack(t, "opcode 4; question example.com. A"), wire.UDP)
	for _, q := range []wire.Query{q, {}} {
		if got := q.String(); got != "no question" {
			t.Errorf("got %s", got)
		}
	}
}

func TestQueriesDoNotAllocate(t *testing.T) {
	packet := pack(t, "flags rd; question Example.com. A; opt 1232 do 10:0011223344556677")
	q := mustQuery(t, "question example.com. A; opt", wire.UDP)
	buf := make([]byte, 0, 2048)
	f := func(what string, do func()) {
		t.Helper()
		if got := testing.AllocsPerRun(100, do); got != 0 {
			t.Errorf("%s: got %v allocations", what, got)
		}
	}
	f("ParseQuery", func() { q, _ = wire.ParseQuery(packet, wire.UDP) })
	f("AppendKey", func() { q.AppendKey(buf) })
	f("AppendUpstream", func() { q.AppendUpstream(buf, 7) })
	f("AppendError", func() { q.AppendError(buf, wire.ServFail, wire.EDE{Code: wire.EDENoReachable, Text: "late"}) })
	binary.BigEndian.PutUint16(packet[4:], 2)
	f("a refusal", func() { _, _ = wire.ParseQuery(packet, wire.UDP) })
}

func BenchmarkParseQuery(b *testing.B) {
	packet := pack(b, "flags rd; question www.example.com. A; opt 1232 10:0011223344556677")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := wire.ParseQuery(packet, wire.UDP); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendUpstream(b *testing.B) {
	q := mustQuery(b, "flags rd; question www.example.com. A; opt 1232 10:0011223344556677", wire.UDP)
	buf := make([]byte, 0, 2048)
	b.ReportAllocs()
	for b.Loop() {
		q.AppendUpstream(buf, 7)
	}
}

func TestTheHashOfANameDisregardsItsCase(t *testing.T) {
	hash := func(name string) uint64 {
		t.Helper()
		q, err := wire.NewQuery(name, "A")
		if err != nil {
			t.Fatal(err)
		}
		return q.NameHash()
	}
	if hash("www.example.com") != hash("WWW.Example.COM") || hash("www.example.com") == hash("www.example.org") {
		t.Error("equal names differ, or others don't")
	}
}

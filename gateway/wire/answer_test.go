package wire_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

// judge returns what ParseAnswer makes of a message, as text.
func judge(tb testing.TB, query string, message []byte) string {
	tb.Helper()
	a, err := wire.ParseAnswer(mustQuery(tb, query, wire.UDP), message)
	if err != nil {
		if !a.IsZero() {
			tb.Errorf("%x: an answer came with error %s", message, err)
		}
		return err.Error()
	}
	return a.RCode().String()
}

const (
	notResponse   = "not a response to a standard query"
	wrongQuestion = "response to another question"
	truncated     = "truncated response"
	malformed     = "malformed response"
	foreign       = "response with records that were not asked for"
)

func TestResponsesToTheQuestionAreAnswers(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		if got := judge(t, "question example.com. A", pack(t, text)); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
	const q = "flags qr; question example.com. A; "
	f(q, "NOERROR")
	f(q+"answer example.com. 60 IN A 192.0.2.1; opt 512", "NOERROR")
	f(q+"answer example.com. 60 IN CNAME b.example.com.; answer b.example.com. 60 IN A 192.0.2.1; compress", "NOERROR")
	f(q+"rcode 3; authority example.com. 60 IN SOA ns.example.com. h.example.com. 1 2 3 4 5; opt 1232; compress", "NXDOMAIN")
	f("flags qr aa ra ad cd z; question eXAMPLE.Com. A; answer Example.COM. 60 IN A 192.0.2.1", "NOERROR")
	f(q+"rcode 2; opt 1232 ede=9:no_DNSKEY", "SERVFAIL")
	f(q+"rcode 16; opt 1232", "BADVERS")
	f(q+"rcode 4095; opt 1232", "RCODE4095")
	f(q+`answer example.com. 60 IN TYPE65280 \# 3 c00c40`, "NOERROR") // RFC 3597: what it means is not our business
	for _, data := range []string{
		"AAAA 2001:db8::1", "NS ns.example.com.", "PTR .", "DNAME a.", "MX 10 mx.example.com.", "SRV 1 2 3 a.b.example.com.",
		"SOA a. b. 1 2 3 4 5", "MINFO a. b.", "RP a. .", "AFSDB 1 a.", "RT 1 a.", "KX 1 a.", "MD a.", "MF a.", "MB a.", "MG a.", "MR a.",
	} {
		f(q+"additional example.com. 60 IN "+data, "NOERROR")
		f(q+"additional example.com. 60 IN "+data+"; compress", "NOERROR")
	}
	// RFC 1035 section 4.1.1 does not say that an error repeats the question.
	f("flags qr; rcode 1", "FORMERR")
	f("flags qr; rcode 2; opt 1232", "SERVFAIL")
	f("flags qr; rcode 4", "NOTIMP")
	f("flags qr; rcode 5; opt 1232 ede=18:", "REFUSED")
}

func TestOtherMessagesAreNoAnswers(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		if got := judge(t, "question example.com. A", pack(t, text)); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
	const q = "question example.com. A; "
	f(q, notResponse) // an echo
	f(q+"opcode 4; flags qr", notResponse)
	f(q+"opcode 15; flags qr", notResponse)
	f(q+"flags qr tc; answer example.com. 60 IN A 192.0.2.1", truncated)
	f("flags qr; question example.org. A", wrongQuestion)
	f("flags qr; question example.com. AAAA", wrongQuestion)
	f("flags qr; question example.com. CH A", wrongQuestion)
	f("flags qr; question com. A", wrongQuestion)
	f("flags qr; question a.example.com. A", wrongQuestion)
	f("flags qr; rcode 2; question example.org. A", wrongQuestion)
	f("flags qr; "+q+q, wrongQuestion)
	f("flags qr", wrongQuestion)
	f("flags qr; rcode 3", wrongQuestion)
	f("flags qr; rcode 9", wrongQuestion)
	f("flags qr; rcode 16; opt 1232", wrongQuestion)
	f("flags qr; answer example.com. 60 IN A 192.0.2.1", wrongQuestion)
	f("flags qr; rcode 2; answer example.com. 60 IN A 192.0.2.1", wrongQuestion)
	f("flags qr; rcode 5; additional example.com. 60 IN A 192.0.2.1; opt 1232", wrongQuestion)
	f("flags qr; "+q+"opt 1232; opt 1232", malformed) // RFC 6891 section 6.1.1
}

// RFC 1034 section 3.6.2, RFC 6672 section 3.1: an answer is about the name that
// was asked for, and those that aliases lead to.
func TestAnAnswerHasNoRecordsOfOtherNames(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		for _, more := range []string{"", "; compress"} {
			if got := judge(t, "question www.Example.com. A", pack(t, "flags qr; question wWw.example.com. A; "+text+more)); got != want {
				t.Errorf("%s: got %s, want %s", text, got, want)
			}
		}
	}
	const (
		a      = "; answer a.example.net. 60 IN A 192.0.2.1"
		evil   = "; answer www.example.org. 60 IN A 192.0.2.66"
		toA    = "answer www.example.com. 60 IN CNAME b.example.com.; answer B.example.com. 60 IN CNAME a.example.net."
		signed = " A 8 2 60 20300101000000 20200101000000 1 example.com. AAAA"
		dname  = "answer example.com. 60 IN DNAME example.net.; answer www.example.com. 60 IN CNAME www.example.net."
	)
	f("answer WWW.example.COM. 60 IN A 192.0.2.1", "NOERROR")
	f(toA+a, "NOERROR")
	f(a+"; answer b.example.com. 60 IN CNAME a.example.net.; answer www.example.com. 60 IN CNAME b.example.com.", "NOERROR") // no order is asked for
	f(toA+"; answer www.example.com. 60 IN RRSIG"+strings.Replace(signed, " A ", " CNAME ", 1), "NOERROR")
	f(toA, "NOERROR")
	f("answer www.example.com. 60 IN CNAME www.example.com.", "NOERROR") // a loop is for the client to see
	f(dname+"; answer www.example.net. 60 IN A 192.0.2.1", "NOERROR")
	f(dname+"; answer example.com. 60 IN RRSIG"+strings.Replace(signed, " A ", " DNAME ", 1), "NOERROR")

	f("answer www.example.org. 60 IN A 192.0.2.66", foreign)
	f("answer www.example.com. 60 IN A 192.0.2.1"+evil, foreign)
	f(toA+a+evil, foreign)
	f("answer example.com. 60 IN A 192.0.2.1", foreign)
	f("answer . 60 IN A 192.0.2.1", foreign)
	f("answer x.www.example.com. 60 IN A 192.0.2.1", foreign)
	f("answer www.example.org. 60 IN CNAME www.example.com.", foreign)
	f("answer ample.com. 60 IN DNAME example.net.", foreign)
	f("answer www.example.com. 60 CH A 192.0.2.1", foreign)
	f("answer www.example.com. 60 IN A 192.0.2.1; answer www.example.org. 60 IN RRSIG"+signed, foreign)
	f("answer www.example.com. 60 IN A 192.0.2.1; answer example.com. 60 IN RRSIG"+signed, foreign)
}

// RFC 2181 section 5.4.1: what an answer has besides is for those who know what to do
// with it, and must be about the question all the same.
func TestWhatNobodyAskedForIsRemoved(t *testing.T) {
	f := func(kept, stray string) {
		t.Helper()
		const query = "flags rd; question www.example.com. A; opt do"
		const response = "flags qr; question www.example.com. A; "
		want := show(t, mustAnswer(t, mustQuery(t, query, wire.TCP), response+kept).AppendReply(nil, mustQuery(t, query, wire.TCP), wire.Terms{}))
		for _, more := range []string{"", "; compress"} {
			a := mustAnswer(t, mustQuery(t, query, wire.TCP), response+kept+stray+"; opt ede=3:old"+more)
			got := show(t, a.AppendReply(nil, mustQuery(t, query, wire.TCP), wire.Terms{}))
			if got = strings.Replace(got, " ede=3:old", "", 1); got != want {
				t.Errorf("%s and %s:\n got %s\nwant %s", kept, stray, got, want)
			}
			if a.Stripped() != (stray != "") {
				t.Errorf("%s and %s: stripped is %t", kept, stray, a.Stripped())
			}
		}
	}
	const (
		a      = "; answer www.example.com. 60 IN A 192.0.2.1"
		toNet  = "; answer www.example.com. 60 IN CNAME www.example.net."
		soa    = " 60 IN SOA ns.example.com. host.example.com. 1 2 3 4 5"
		rrsig  = " 8 2 60 20300101000000 20200101000000 1 "
		ns     = "; authority example.com. 60 IN NS ns.example.org."
		glue   = "; additional ns.example.org. 60 IN A 192.0.2.53"
		denial = "; authority a.example.com. 60 IN NSEC z.example.com. A; authority a.example.com. 60 IN RRSIG NSEC" + rrsig + "example.com. AAAA"
	)
	f(a, "")
	f(a+ns+glue, "")
	f(a+"; authority . 60 IN NS ns.example.org."+glue, "")
	f("; rcode 3; authority example.com."+soa+denial, "")
	f("; rcode 3; authority ."+soa+"; authority aaa. 60 IN NSEC zzz. NS; authority aaa. 60 IN RRSIG NSEC"+rrsig+". AAAA", "")
	f("; rcode 3"+toNet+"; authority example.net."+soa+"; authority q.example.net. 60 IN NSEC3 1 0 0 - 0P9MHAVEQVM6T7VBL5LOP2U3T37RSMNB A; authority q.example.net. 60 IN RRSIG NSEC3"+rrsig+"example.net. AAAA", "")
	f(a+"; additional www.example.com. 60 IN AAAA 2001:db8::1", "")
	for _, lead := range []string{"MX 10 b.example.", "SRV 1 2 3 B.example.", "HTTPS 1 b.example.", "SVCB 0 b.example.", "NS b.example.", "PTR b.example.", "KX 1 b.example."} {
		f("; answer www.example.com. 60 IN "+lead+"; additional b.example. 60 IN A 192.0.2.7; additional b.example. 60 IN RRSIG A"+rrsig+"b.example. AAAA", "; additional c.example. 60 IN A 192.0.2.8")
	}
	f("; answer www.example.com. 60 IN SVCB 0 b.example.; additional b.example. 60 IN SVCB 1 c.example.; additional c.example. 60 IN A 192.0.2.7", "")

	f(a, "; authority example.org. 60 IN NS ns.example.org.")
	f(a, "; authority example.org. 60 IN NS ns.example.org."+glue) // what it leads to goes too
	f(a, "; authority x.www.example.com. 60 IN NS ns.example.org.")
	f(a, "; authority www.example.com. 60 IN A 192.0.2.66")
	f(a, "; authority www.example.com. 60 CH NS ns.example.org.")
	f(a, "; authority www.example.com. 60 IN CNAME evil.example.org.; additional evil.example.org. 60 IN A 192.0.2.66")
	f(a, "; authority bank.example. 60 IN RRSIG SOA"+rrsig+"bank.example. AAAA")
	f(a, "; authority z.example.com. 60 IN NSEC a.example.com. A") // whose would it be?
	f(a, "; authority example.org. 60 IN NSEC z.example.org. A; authority example.org. 60 IN RRSIG NSEC"+rrsig+"example.org. AAAA")
	f(a+ns, "; additional ns.example.com. 60 IN A 192.0.2.66")
	f(a+ns+glue, "; additional www.example.org. 60 IN A 192.0.2.66")
	f(a, "; additional www.example.com. 60 CH A 192.0.2.66")
	f(a, "; additional . 60 IN A 192.0.2.66")
	f(a, "; tsig")
	f("; answer www.example.com. 60 IN MX 0 .", "; additional . 60 IN A 192.0.2.66") // RFC 7505: there is none
	f("; rcode 3", "; authority example.org."+soa)
	// Records move up that names point into; the client's spelling stays.
	f("; rcode 3; authority example.com."+soa, "; authority evil.example.org."+soa+"; additional mail.evil.example.org. 60 IN MX 1 evil.example.org.")
}

// TestManyRecordsAreSiftedSoon has a hostile upstream send as many records as there
// is room for, of names as deep as they can be.
func TestManyRecordsAreSiftedSoon(t *testing.T) {
	deep := strings.Repeat("a.", 120) + "example."
	m := &dns.Msg{Compress: true}
	m.SetQuestion(deep, dns.TypeA).Response = true
	for i := range 31 {
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: dns.RR_Header{Name: deep, Rrtype: dns.TypeCNAME, Class: dns.ClassINET}, Target: fmt.Sprintf("b%d.", i) + deep[2:]})
	}
	for range 4000 {
		m.Ns = append(m.Ns, &dns.NS{Hdr: dns.RR_Header{Name: "c." + deep[2:], Rrtype: dns.TypeNS, Class: dns.ClassINET}, Ns: deep})
	}
	message, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if got := judge(t, "question "+deep+" A", message); got != "NOERROR" {
		t.Error(got)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("%d octets took %v", len(message), took)
	}
}

// TestChainsEnd has a hostile upstream make chains as long as messages allow.
func TestChainsEnd(t *testing.T) {
	f := func(n int, reverse bool, want string) {
		t.Helper()
		m := &dns.Msg{Compress: true}
		m.SetQuestion("0.example.com.", dns.TypeA).Response = true
		for i := range n {
			rr, err := dns.NewRR(fmt.Sprintf("%d.example.com. 60 IN CNAME %d.example.com.", i, i+1))
			if err != nil {
				t.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		if reverse {
			slices.Reverse(m.Answer)
		}
		message, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if got := judge(t, "question 0.example.com. A", message); got != want {
			t.Errorf("%d aliases: got %s, want %s", n, got, want)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("%d aliases: took %v", n, took)
		}
	}
	f(31, false, "NOERROR")
	f(31, true, "NOERROR")
	f(33, false, foreign)
	f(33, true, foreign)
	f(1500, false, foreign)
	f(500, true, foreign)
}

// Type and class differ from 1 in the bit that distinguishes letters' case.
func TestTypeAndClassHaveNoCase(t *testing.T) {
	if got := judge(t, "question example.com. TYPE65", pack(t, "flags qr; question example.com. TYPE97")); got != wrongQuestion {
		t.Errorf("got %s", got)
	}
}

func TestAnAnswerCutAnywhereIsNone(t *testing.T) {
	whole := pack(t, "flags qr; question example.com. A; answer example.com. 60 IN CNAME a.example.com.; "+
		"answer a.example.com. 60 IN A 192.0.2.1; authority example.com. 60 IN NS ns.example.com.; opt 1232 ede=3:stale; compress")
	for n := range whole {
		if got := judge(t, "question example.com. A", whole[:n]); got != malformed {
			t.Errorf("after %d octets: got %s", n, got)
		}
	}
	if got := judge(t, "question example.com. A", append(whole, 0)); got != malformed {
		t.Errorf("with an octet more: got %s", got)
	}
	for at := 6; at < 12; at += 2 {
		for _, by := range []uint16{1, 0xffff} { // more, and less
			lie := bytes.Clone(whole)
			binary.BigEndian.PutUint16(lie[at:], binary.BigEndian.Uint16(lie[at:])+by)
			if got := judge(t, "question example.com. A", lie); got != malformed {
				t.Errorf("with %#x in the count at %d: got %s", lie[at:at+2], at, got)
			}
		}
	}
}

func TestMalformedRecordsAreRefusedWherever(t *testing.T) {
	const (
		q = "01 61 00 0001 0001" // a. A
		// Its first record begins at 19; with an owner of one octet or a
		// pointer, its TTL is at 24 or 25.
		fixed = " 0001 00000000 "
	)
	f := func(records string, want string) {
		t.Helper()
		for section := range 3 {
			counts := [3]string{"0000", "0000", "0000"}
			counts[section] = "0001"
			message := unhex(t, "abcd 8000 0001"+strings.Join(counts[:], "")+q+records)
			got := judge(t, "question a. A", message)
			if got == foreign && section == 0 {
				got = "NOERROR" // only what is well-formed can be of another name
			}
			if got != want {
				t.Errorf("%s in section %d: got %s, want %s", records, section+1, got, want)
			}
		}
	}
	// Names, RFC 1035 section 4.1.4
	f("c00c 0001"+fixed+"0004 c0000201", "NOERROR")
	f("01 62 c00c 0001"+fixed+"0004 c0000201", "NOERROR")
	f("c00e 0001"+fixed+"0004 c0000201", "NOERROR")  // the root at the end of the question
	f("c013 0001"+fixed+"0004 c0000201", malformed)  // to itself
	f("c014 0001"+fixed+"0004 c0000201", malformed)  // into itself
	f("c01f 0001"+fixed+"0004 00000000", malformed)  // forward
	f("ffff 0001"+fixed+"0004 c0000201", malformed)  // behind the end
	f("c002 0001"+fixed+"0004 c0000201", malformed)  // into the header
	f("c004 0001"+fixed+"0004 c0000201", malformed)  // a zero of the header
	f("c00a 0001"+fixed+"0004 c0000201", malformed)  // another
	f("80 0c 0001"+fixed+"0004 c0000201", malformed) // label types that never came to be
	f("40 0c 0001"+fixed+"0004 c0000201", malformed) // RFC 6891 section 5
	f("3f 62 00 0001"+fixed+"0004 c0000201", malformed)
	f(strings.Repeat("01 62", 127)+"00 0001"+fixed+"0004 c0000201", "NOERROR") // 255 octets
	f(strings.Repeat("01 62", 126)+"c00c 0001"+fixed+"0004 c0000201", "NOERROR")
	f(strings.Repeat("01 62", 127)+"c00c 0001"+fixed+"0004 c0000201", malformed)
	f(strings.Repeat("01 62", 126)+"02 6262 00 0001"+fixed+"0004 c0000201", malformed) // 256
	f(strings.Repeat("01 62", 128)+"00 0001"+fixed+"0004 c0000201", malformed)
	// Data whose length is wrong
	f("00 0001"+fixed+"0000", malformed)
	f("00 0001"+fixed+"0003 c00002", malformed)
	f("00 0001"+fixed+"0005 c000020100", malformed)
	f("00 0001"+fixed+"0004 c00002", malformed)
	f("00 001c"+fixed+"0004 c0000201", malformed)
	f("00 001c"+fixed+"0000", malformed)
	f("00 0002"+fixed+"0000", malformed)
	f("00 0002"+fixed+"0001 00", "NOERROR")
	f("00 0002"+fixed+"0002 0000", malformed)
	f("00 0002"+fixed+"0001 c00c", malformed)
	f("00 0002"+fixed+"0002 0161 00", malformed)
	f("00 000f"+fixed+"0002 0001", malformed)
	f("00 000f"+fixed+"0001 00", malformed)
	f("00 000f"+fixed+"0004 0001 c00c", "NOERROR")
	f("00 000f"+fixed+"0005 0001 c00c 00", malformed)
	f("00 0006"+fixed+"0004 c00c c00c", malformed)
	f("00 0006"+fixed+"0015 00"+strings.Repeat("00", 20), malformed)
	f("00 0006"+fixed+"0016 0000"+strings.Repeat("ff", 20), "NOERROR")
	f("00 0006"+fixed+"0017 0000"+strings.Repeat("ff", 21), malformed)
	f("00 0021"+fixed+"0006 000000000000", malformed)
	f("00 0021"+fixed+"0005 0000000000", malformed)
	f("00 0021"+fixed+"0007 00000000000000", "NOERROR")
	f("00 0021"+fixed+"0008 0000000000000000", malformed)
	f("00 000e"+fixed+"0001 00", malformed)
	f("00 000e"+fixed+"0002 0000", "NOERROR")
	for typ := range dataNames {
		f(fmt.Sprintf("00 %04x", typ)+fixed+"0028"+strings.Repeat("ff", 40), malformed)
	}
	f("00 0010"+fixed+"0001 ff", "NOERROR") // a bad TXT is for its reader to see
	// A name must not change with the age of the record around it.
	f("00 0002 0001 016100ff 0002 c016", "NOERROR") // a zero of the class
	f("00 0002 0001 016100ff 0002 c017", malformed)
	f("00 0002 0001 016100ff 0002 c018", malformed)
	f("00 0002 0001 016100ff 0002 c015", malformed) // from the class into the TTL
	f("00 0002 0100 01000000 0002 c017", "NOERROR") // the octet before
	f("00 0002 0001 00000000 0002 c018", malformed)
	f("00 0002 0001 c00c0000 0002 c018", malformed) // a pointer on the way
	f("00 0002 0001 016100ff 0002 c013", "NOERROR") // its owner
}

func TestNamesMayNotLeadThroughAnotherTTL(t *testing.T) {
	const (
		q     = "abcd 8000 0001 0000 0002 0000 01 61 00 0001 0001"
		first = "00 0010 0001 01620000 0003 02 01 00" // TXT at 19, its TTL at 24, its data at 30
	)
	f := func(name, want string) {
		t.Helper()
		for _, record := range []string{name + "0001 0001 00000000 0004 c0000201", "00 0005 0001 00000000 0002" + name} {
			if got := judge(t, "question a. A", unhex(t, q+first+record)); got != want {
				t.Errorf("%s: got %s, want %s", record, got, want)
			}
		}
	}
	f("c00c", "NOERROR")
	f("c013", "NOERROR")
	f("c015", malformed) // 10: a label from the type through the TTL
	f("c018", malformed)
	f("c01a", malformed)
	f("c01b", malformed)
	f("c01c", "NOERROR") // the length of the data, the octet after it: a root
	f("c020", "NOERROR")
	// The class of the second record ends in a root, right before its TTL.
	if got := judge(t, "question a. A", unhex(t, q+first+"00 0002 0100 01000000 0002 c025")); got != "NOERROR" {
		t.Errorf("between the TTLs: got %s", got)
	}
}

// RFC 1035 section 4.1.4: "a prior occurrence of the same name"
func TestAPointerLeadsToANameThatEndsBeforeIt(t *testing.T) {
	const (
		q    = "abcd 8000 0001 0000 0002 0000 01 61 00 0001 0001"
		txt  = "00 0010 0001 00000000 0003" // at 19, its data at 30
		rest = "0001 0001 00000000 0004 c0000201"
	)
	f := func(data, owner, want string) {
		t.Helper()
		if got := judge(t, "question a. A", unhex(t, q+txt+data+owner+rest)); got != want {
			t.Errorf("%s %s: got %s, want %s", data, owner, got, want)
		}
	}
	f("01 62 00", "c01e", "NOERROR")
	f("62 c0 0c", "c01f", "NOERROR")
	f("02 62 62", "c01e", malformed)                               // ends with its pointer
	f("01 01 c0", "0c"+strings.Repeat("62", 12)+"c020", malformed) // a pointer half outside
}

func TestPointersThatOnlyLeadToPointersEnd(t *testing.T) {
	f := func(pointers int, want string) {
		t.Helper()
		// All pointers but the last one, the owner, are data of a TXT at 19.
		message := unhex(t, "abcd 8000 0001 0000 0002 0000 01 61 00 0001 0001 00 0010 0001 00000000 0000")
		binary.BigEndian.PutUint16(message[28:], uint16(2*pointers-2))
		target := 12
		for range pointers {
			message = binary.BigEndian.AppendUint16(message, uint16(0xc000|target))
			target = len(message) - 2
		}
		message = append(message, unhex(t, "0001 0001 00000000 0004 c0000201")...)
		if got := judge(t, "question a. A", message); got != want {
			t.Errorf("%d pointers: got %s, want %s", pointers, got, want)
		}
	}
	f(2, "NOERROR")
	f(126, "NOERROR")
	f(127, malformed)
	f(5000, malformed)
}

func TestAnAnswerIsNoLargerThanAMessageCanBe(t *testing.T) {
	f := func(size int, want string) {
		t.Helper()
		message := append(unhex(t, "abcd 8000 0001 0000 0001 0000 01 61 00 0001 0001 00 ff00 0001 00000000 0000"), make([]byte, size-30)...)
		binary.BigEndian.PutUint16(message[28:], uint16(size-30))
		if got := judge(t, "question a. A", message); got != want {
			t.Errorf("%d octets: got %s, want %s", size, got, want)
		}
	}
	f(wire.MaxSize, "NOERROR")
	f(wire.MaxSize+1, malformed)
}

func TestOPTRecordsBelongAtTheRootOfTheAdditionalSection(t *testing.T) {
	const (
		q   = "01 61 00 0001 0001"
		opt = "0029 04d0 00000000"
	)
	f := func(counts, records, want string) {
		t.Helper()
		if got := judge(t, "question a. A", unhex(t, "abcd 8000 0001"+counts+q+records)); got != want {
			t.Errorf("%s %s: got %s, want %s", counts, records, got, want)
		}
	}
	f("0000 0000 0001", "00"+opt+"0000", "NOERROR")
	f("0001 0000 0000", "00"+opt+"0000", malformed)
	f("0000 0001 0000", "00"+opt+"0000", malformed)
	f("0000 0000 0001", "0161 00"+opt+"0000", malformed)
	f("0000 0000 0001", "c00c"+opt+"0000", malformed)
	f("0000 0000 0001", "c00e"+opt+"0000", malformed)
	f("0000 0000 0001", "00"+opt+"0004 000f0000", "NOERROR")
	f("0000 0000 0001", "00"+opt+"0003 000f00", malformed)
	f("0000 0000 0001", "00"+opt+"0004 000f0001", malformed)
	f("0000 0000 0002", "00"+opt+"0000 00"+opt+"0000", malformed)
}

func TestRepliesAreMadeForTheClient(t *testing.T) {
	f := func(query, response string, age time.Duration, want string) {
		t.Helper()
		q := mustQuery(t, query, wire.UDP)
		prefix := []byte("prefix")
		got := mustAnswer(t, q, response).AppendReply(prefix, q, wire.Terms{Age: age})
		if !bytes.HasPrefix(got, prefix) {
			t.Fatal("prefix overwritten")
		}
		if got := show(t, got[len(prefix):]); got != want {
			t.Errorf("%s, %s:\n got %s\nwant %s", query, response, got, want)
		}
	}
	const q, a = "; question example.com. A", "; answer example.com. 60 IN A 192.0.2.1"

	// ID, flags and the spelling of the name are the client's.
	f("flags rd; question eXaMple.com. A", "flags qr rd ra"+q+a, 0, "flags qr rd ra; question eXaMple.com. A"+a)
	f("flags cd; question eXaMple.com. A", "flags qr aa z"+q, 0, "flags qr ra cd; question eXaMple.com. A")
	f("flags rd cd; question eXaMple.com. A", "flags qr; rcode 3; question EXAMPLE.com. A", 0, "flags qr rd ra cd; rcode 3; question eXaMple.com. A")
	f("flags aa ra z; question example.com. A", "flags qr"+q, 0, "flags qr ra"+q)
	f("flags rd; question eXaMple.com. A", "flags qr; rcode 5", 0, "flags qr rd ra; rcode 5; question eXaMple.com. A")
	f("flags rd; question eXaMple.com. A; opt", "flags qr; rcode 5; opt 512 ede=18:no", 0, "flags qr rd ra; rcode 5; question eXaMple.com. A; opt 1232 ede=18:no")
	// The names in the answer point into the question and follow its spelling.
	f("question eX.com. A", "flags qr; compress; question EX.com. A; answer EX.com. 60 IN A 192.0.2.1", 0, "flags qr ra; question eX.com. A; answer eX.com. 60 IN A 192.0.2.1")

	// AD, RFC 6840 sections 5.7 and 5.8
	f("flags rd"+q, "flags qr ad"+q, 0, "flags qr rd ra"+q)
	f("flags rd ad"+q, "flags qr ad"+q, 0, "flags qr rd ra ad"+q)
	f("flags rd"+q+"; opt do", "flags qr ad"+q, 0, "flags qr rd ra ad"+q+"; opt 1232 do")
	f("flags rd ad"+q+"; opt do", "flags qr"+q, 0, "flags qr rd ra"+q+"; opt 1232 do")

	// The OPT record is hop by hop (RFC 6891 section 6.2.1), but for the EDE
	// (RFC 8914 section 3 lets forwarders pass it on).
	f("flags rd"+q, "flags qr"+q+a+"; opt 4096 ede=3:", 0, "flags qr rd ra"+q+a)
	f("flags rd"+q+"; opt 4096", "flags qr"+q+a, 0, "flags qr rd ra"+q+a+"; opt 1232")
	f("flags rd"+q+"; opt", "flags qr"+q+a+"; opt 4096 do 10:00112233445566778899aabbccddeeff ede=3:old 12:0000 11:0064 3:6964 8:000118007f ede=22: 65001:00",
		0, "flags qr rd ra"+q+a+"; opt 1232 ede=3:old ede=22")
	f("flags rd"+q+"; opt", "flags qr"+q+"; opt 1232 15:00", 0, "flags qr rd ra"+q+"; opt 1232") // an EDE without a code

	// Records behind the OPT record are dropped.
	const extra = "; additional example.com. 60 IN AAAA 2001:db8::2"
	f("flags rd"+q+"; opt", "flags qr"+q+a+extra+"; opt; additional b. 60 IN A 192.0.2.3; additional b. 60 IN AAAA 2001:db8::1", 60*time.Second,
		"flags qr rd ra"+q+"; answer example.com. 0 IN A 192.0.2.1; additional example.com. 0 IN AAAA 2001:db8::2; opt 1232")
	f("flags rd"+q, "flags qr"+q+"; opt"+extra, 0, "flags qr rd ra"+q)

	// Extended response codes need an OPT record.
	f(q+"; opt", "flags qr; rcode 16"+q+"; opt", 0, "flags qr ra; rcode 16"+q+"; opt 1232")
	f(q+"; opt do", "flags qr; rcode 4095"+q+"; opt", 0, "flags qr ra; rcode 4095"+q+"; opt 1232 do")
	f(q, "flags qr; rcode 16"+q+"; opt", 0, "flags qr ra; rcode 2"+q)
	f(q, "flags qr; rcode 19"+q+"; opt", 0, "flags qr ra; rcode 2"+q)
}

func TestTTLsAgeBySecondsDownToZero(t *testing.T) {
	q := mustQuery(t, "question a. A", wire.UDP)
	f := func(ttl uint32, age time.Duration, want uint32) {
		t.Helper()
		record := fmt.Sprintf("a. %d IN A 192.0.2.1", ttl)
		a := mustAnswer(t, q, "flags qr; question a. A; answer "+record+"; authority "+record+"; additional "+record)
		var m dns.Msg
		if err := m.Unpack(a.AppendReply(nil, q, wire.Terms{Age: age})); err != nil {
			t.Fatal(err)
		}
		for section, records := range sections(&m) {
			for _, rr := range records {
				if got := rr.Header().Ttl; got != want {
					t.Errorf("%d after %s in section %s: got %d, want %d", ttl, age, section, got, want)
				}
			}
		}
	}
	f(60, 0, 60)
	f(60, time.Second-1, 60)
	f(60, time.Second, 59)
	f(60, 59*time.Second, 1)
	f(60, time.Minute, 0)
	f(60, time.Hour, 0)
	f(60, -time.Hour, 60)
	f(60, 1<<63-1, 0)
	f(0, time.Second, 0)
	f(1<<31-1, time.Second, 1<<31-2)
	f(1<<31-1, 1<<63-1, 0)
	f(1<<31, 0, 0) // RFC 2181 section 8
	f(1<<32-1, time.Second, 0)
}

func TestAnAnswerStaysTheSame(t *testing.T) {
	q := mustQuery(t, "question example.com. A; opt", wire.UDP)
	message := pack(t, "flags qr; question example.com. A; answer example.com. 60 IN A 192.0.2.1; opt ede=3:old")
	a, err := wire.ParseAnswer(q, message)
	if err != nil {
		t.Fatal(err)
	}
	clear(message)
	a.AppendReply(nil, mustQuery(t, "question EXAMPLE.com. A", wire.UDP), wire.Terms{Age: time.Minute})
	const want = "flags qr ra; question example.com. A; answer example.com. 60 IN A 192.0.2.1; opt 1232 ede=3:old"
	if got := show(t, a.AppendReply(nil, q, wire.Terms{})); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := a.String(); !strings.Contains(got, "example.com.\t60\tIN\tA\t192.0.2.1") {
		t.Errorf("people see %s", got)
	}
	if a.IsZero() || a.Len() < len(message)/2 {
		t.Errorf("got %d octets", a.Len())
	}
}

func TestNoAnswerIsPrintedAsSuch(t *testing.T) {
	var a wire.Answer
	if !a.IsZero() || a.Len() != 0 || a.String() == "" {
		t.Errorf("got %s", a)
	}
}

// RFC 2181 section 9: TC, and no records that make half an answer.
func TestAReplyFitsTheRoomOfItsClient(t *testing.T) {
	f := func(opt string, via wire.Transport, size int, ede string, want string) {
		t.Helper()
		// Header, question, one record with size octets in all without OPT.
		const around = 12 + 7 + 3 + 10
		response := fmt.Sprintf("flags qr; question a. A; answer a. 0 IN TYPE65280 \\# %d %s", size-around, strings.Repeat("00", size-around))
		q := mustQuery(t, "question a. A"+opt, via)
		a := mustAnswer(t, q, response+"; opt 1232 ede=3:"+ede)
		got := a.AppendReply(nil, q, wire.Terms{})
		show(t, got)
		var m dns.Msg
		if err := m.Unpack(got); err != nil {
			t.Fatal(err)
		}
		what := "whole"
		switch {
		case m.Truncated && len(m.Answer)+len(m.Ns) == 0:
			what = "TC"
		case m.Truncated:
			what = "half"
		case m.IsEdns0() != nil && len(m.IsEdns0().Option) > 0:
			what = "whole with EDE"
		}
		if what != want || (m.IsEdns0() != nil) != (opt != "") {
			t.Errorf("%d octets for %q over %s: got %s, want %s", size, opt, via, what, want)
		}
	}
	f("", wire.UDP, 512, "", "whole")
	f("", wire.UDP, 513, "", "TC")
	f("; opt 0", wire.UDP, 512-11, "", "whole")
	f("; opt 511", wire.UDP, 512-11+1, "", "TC")
	f("; opt 512", wire.UDP, 512-11-6, "", "whole with EDE")
	f("; opt 512", wire.UDP, 512-11-7, "t", "whole with EDE")
	f("; opt 512", wire.UDP, 512-11-6, "t", "whole")
	f("; opt 800", wire.UDP, 800-11, "text", "whole")
	f("; opt 800", wire.UDP, 800-11+1, "text", "TC")
	f("; opt 4096", wire.UDP, 1232-11-6, "", "whole with EDE")
	f("; opt 4096", wire.UDP, 1232-11, "", "whole")
	f("; opt 65535", wire.UDP, 1232-11+1, "", "TC")
	f("", wire.TCP, 60_000, "", "whole")
	f("; opt 512", wire.TCP, 60_000, "text", "whole with EDE")
	f("; opt 512", wire.TCP, wire.MaxSize-11-6, "", "whole with EDE")
}

// Whether to ask again over TCP must not depend on who asked first.
func TestATruncatedReplyHasNothingButTheQuestion(t *testing.T) {
	q := mustQuery(t, "flags rd ad; question eX.com. TXT; opt 600 do", wire.UDP)
	txt := strings.Repeat(` "`+strings.Repeat("x", 200)+`"`, 3)
	a := mustAnswer(t, q, "flags qr ad; question ex.com. TXT; answer ex.com. 60 IN TXT"+txt+"; additional a. 60 IN A 192.0.2.1; opt ede=3:old")
	const want = "flags qr tc rd ra ad; question eX.com. TXT; opt 1232 do"
	if got := show(t, a.AppendReply(nil, q, wire.Terms{})); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

const typicalResponse = "flags qr rd ra ad; compress; question www.example.com. A; " +
	"answer www.example.com. 60 IN CNAME edge.example.com.; answer edge.example.com. 30 IN A 192.0.2.1; answer edge.example.com. 30 IN A 192.0.2.2; opt 1232 ede=0:ok 12:00000000"

func TestAnswersAllocateOnlyWhatTheyKeep(t *testing.T) {
	q := mustQuery(t, "question www.example.com. A; opt", wire.UDP)
	message := pack(t, typicalResponse)
	a := mustAnswer(t, q, typicalResponse)
	buf := make([]byte, 0, 2048)
	f := func(what string, want float64, do func()) {
		t.Helper()
		if got := testing.AllocsPerRun(100, do); got != want {
			t.Errorf("%s: got %v allocations, want %v", what, got, want)
		}
	}
	f("ParseAnswer", 1, func() { _, _ = wire.ParseAnswer(q, message) })
	f("AppendReply", 0, func() { a.AppendReply(buf, q, wire.Terms{Age: time.Second}) })
	message[3] |= 5 // REFUSED
	f("ParseAnswer of an error", 1, func() { _, _ = wire.ParseAnswer(q, message) })
	message[4] = 1 // many questions
	f("ParseAnswer of nonsense", 0, func() { _, _ = wire.ParseAnswer(q, message) })
}

func BenchmarkParseAnswer(b *testing.B) {
	q := mustQuery(b, "question www.example.com. A; opt", wire.UDP)
	message := pack(b, typicalResponse)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := wire.ParseAnswer(q, message); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendReply(b *testing.B) {
	q := mustQuery(b, "question www.example.com. A; opt", wire.UDP)
	a := mustAnswer(b, q, typicalResponse)
	buf := make([]byte, 0, 2048)
	b.ReportAllocs()
	for b.Loop() {
		a.AppendReply(buf, q, wire.Terms{Age: 7 * time.Second})
	}
}

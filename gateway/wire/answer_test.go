package wire_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

// parseResult returns the result of ParseAnswer as text.
func parseResult(tb testing.TB, query string, message []byte) string {
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
	unrelated     = "response with records that were not asked for"
)

func TestResponsesToTheQuestionAreAnswers(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		if got := parseResult(t, "question example.com. A", pack(t, text)); got != want {
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
	f(q+`answer example.com. 60 IN TYPE65280 \# 3 c00c40`, "NOERROR") // RFC 3597: opaque types are passed on
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
		if got := parseResult(t, "question example.com. A", pack(t, text)); got != want {
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

// RFC 1034 section 3.6.2, RFC 6672 section 3.1: an answer has the CNAME chain of the
// question in order, and the data at its end. The C library finds no address if they
// come in another order.
func TestAnswersAreInOrderWithoutUnrelatedRecords(t *testing.T) {
	f := func(asked, text, want string) {
		t.Helper()
		for _, more := range []string{"", "; compress"} {
			q := mustQuery(t, "flags rd; question www.example.com. "+asked, wire.TCP)
			a, err := wire.ParseAnswer(q, pack(t, "flags qr; question wWw.example.com. "+strings.Fields(asked)[0]+"; "+text+more))
			got := ""
			if err != nil {
				got = err.Error()
			} else {
				_, got, _ = strings.Cut(show(t, a.AppendReply(nil, q, wire.Terms{})), "question www.example.com. "+strings.Fields(asked)[0][:1])
				_, got, _ = strings.Cut(got, "; ")
			}
			got, _, _ = strings.Cut(got, "; opt 1232")
			if got = strings.ToLower(strings.TrimPrefix(got, "opt 1232 do")); got != strings.ToLower(want) {
				t.Errorf("%s, %s:\n got %s\nwant %s", asked, text, got, want)
			}
		}
	}
	const (
		sep     = "; "
		toB     = "answer www.example.com. 60 IN CNAME b.example.com."
		toA     = "answer b.example.com. 60 IN CNAME a.example.net."
		a       = "answer a.example.net. 60 IN A 192.0.2.1"
		aaaa    = "answer a.example.net. 60 IN AAAA 2001:db8::1"
		direct  = "answer www.example.com. 60 IN A 192.0.2.1"
		https   = "answer www.example.com. 60 IN HTTPS 1 . alpn=\"h2\""
		stray   = "answer www.example.org. 60 IN A 192.0.2.66"
		sig     = " 8 2 60 20300101000000 20200101000000 1 example.com. AAAA"
		sigToB  = "answer www.example.com. 60 IN RRSIG CNAME" + sig
		sigA    = "answer a.example.net. 60 IN RRSIG A" + sig
		dname   = "answer example.com. 60 IN DNAME example.net."
		sigD    = "answer example.com. 60 IN RRSIG DNAME" + sig
		made    = "answer www.example.com. 0 IN CNAME www.example.net."
		wwwNet  = "answer www.example.net. 60 IN A 192.0.2.1"
		chain   = toB + sep + toA + sep + a
		inOrder = toB + sep + sigToB + sep + toA + sep + a + sep + sigA
	)
	f("A", direct, direct)
	f("A", chain, chain)
	f("A", a+sep+toA+sep+toB, chain)
	f("A", toA+sep+a+sep+toB, chain)
	f("A", toB+sep+a+sep+toA, chain)
	f("A", toB+sep+toB+sep+toA+sep+toA+sep+a, chain) // each alias once
	f("A", toB+sep+toA, toB+sep+toA)
	f("A", toA+sep+toB, toB+sep+toA)
	f("A", toB+sep+"answer www.example.com. 60 IN CNAME c.example.com."+sep+toA+sep+a, chain) // the first of two
	f("A; opt do", inOrder, inOrder)
	f("A; opt do", sigA+sep+a+sep+sigToB+sep+toA+sep+toB, toB+sep+sigToB+sep+toA+sep+sigA+sep+a)
	f("A", inOrder, chain) // RFC 4035 section 3.2.1: signatures only with DO
	f("A; opt do", dname+sep+sigD+sep+made+sep+wwwNet, dname+sep+sigD+sep+made+sep+wwwNet)
	f("A; opt do", wwwNet+sep+made+sep+sigD+sep+dname, dname+sep+sigD+sep+made+sep+wwwNet)
	f("A", "rcode 6; "+dname, dname)

	// Unrelated records, and other types at the same name.
	for _, strays := range []string{
		stray, "answer x.www.example.com. 60 IN A 192.0.2.66", "answer . 60 IN A 192.0.2.66", "answer ample.com. 60 IN DNAME example.net.",
		"answer www.example.com. 60 CH A 192.0.2.66", "answer www.example.org. 60 IN CNAME www.example.com.", "answer www.example.com. 60 IN AAAA 2001:db8::66",
		"answer www.example.com. 60 IN TXT x", "answer www.example.org. 60 IN RRSIG A" + sig, "answer example.com. 60 IN RRSIG A" + sig,
	} {
		f("A", direct+sep+strays, direct)
		f("A; opt do", strays+sep+direct, direct)
		f("A", "rcode 3; "+strays, "")
		f("A", "rcode 2; "+strays, "")
		if !strings.Contains(strays, " www.example.com. 60 IN ") { // it is about the name
			f("A", strays, unrelated)
		}
	}
	f("A", a+sep+stray+sep+toA+sep+aaaa+sep+toB, chain)
	f("AAAA", toB+sep+a+sep+toA, toB+sep+toA) // no data of this type
	f("HTTPS", https+sep+direct, https)
	f("HTTPS", direct, "") // some servers answer so
	// What a CNAME record means depends on the question.
	f("CNAME", toB+sep+toA+sep+a, toB)
	f("CNAME", toA+sep+toB, toB)
	f("CNAME; opt do", toB+sep+sigToB, toB+sep+sigToB)
	f("ANY", https+sep+direct+sep+"answer www.example.com. 60 IN RRSIG A"+sig+sep+stray, https+sep+direct+sep+"answer www.example.com. 60 IN RRSIG A"+sig)
	f("ANY", toB+sep+toA+sep+a, toB)
	f("RRSIG", "answer www.example.com. 60 IN RRSIG A"+sig+sep+sigToB+sep+direct, "answer www.example.com. 60 IN RRSIG A"+sig+sep+sigToB)
	f("DNAME", "answer www.example.com. 60 IN DNAME example.net."+sep+stray, "answer www.example.com. 60 IN DNAME example.net.")
	f("A", "answer www.example.com. 60 IN DNAME example.net."+sep+direct, direct)
	ds := "answer www.example.net. 60 IN DS 1 8 2 " + strings.Repeat("00", 32)
	f("DS; opt do", dname+sep+made+sep+ds, dname+sep+made+sep+ds)
}

// RFC 2181 section 5.4.1: records of the authority and additional section must be
// related to the question.
func TestUnrelatedRecordsAreRemoved(t *testing.T) {
	f := func(kept, stray string) {
		t.Helper()
		typ := "A"
		if first := strings.Fields(kept); first[1] == "answer" && first[5] != "CNAME" {
			typ = first[5]
		}
		query := "flags rd; question www.example.com. " + typ + "; opt do"
		response := "flags qr; question www.example.com. " + typ + "; "
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
	f(a, "; authority example.org. 60 IN NS ns.example.org."+glue) // its targets are unrelated, too
	f(a, "; authority x.www.example.com. 60 IN NS ns.example.org.")
	f(a, "; authority www.example.com. 60 IN A 192.0.2.66")
	f(a, "; authority www.example.com. 60 CH NS ns.example.org.")
	f(a, "; authority www.example.com. 60 IN CNAME evil.example.org.; additional evil.example.org. 60 IN A 192.0.2.66")
	f(a, "; authority bank.example. 60 IN RRSIG SOA"+rrsig+"bank.example. AAAA")
	f(a, "; authority z.example.com. 60 IN NSEC a.example.com. A") // no signature: the zone is unknown
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

// TestManyRecordsAreFilteredFast has an upstream send the most records that fit into a
// message, with the longest names.
func TestManyRecordsAreFilteredFast(t *testing.T) {
	deep := strings.Repeat("a.", 120) + "example."
	m := &dns.Msg{Compress: true}
	m.SetQuestion(deep, dns.TypeA).Response = true
	for i := range 16 {
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
	if got := parseResult(t, "question "+deep+" A", message); got != "NOERROR" {
		t.Error(got)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("%d octets took %v", len(message), took)
	}
}

// TestCNAMEChainsAreBounded has an upstream send the longest chains that fit.
func TestCNAMEChainsAreBounded(t *testing.T) {
	f := func(n int, to, want string) {
		t.Helper()
		for _, reverse := range []bool{false, true} {
			m := &dns.Msg{Compress: true}
			m.SetQuestion("0.example.com.", dns.TypeA).Response = true
			for i := range n {
				target := fmt.Sprintf("%d.example.com.", i+1)
				if i == n-1 && to != "" {
					target = to
				}
				rr, err := dns.NewRR(fmt.Sprintf("%d.example.com. 60 IN CNAME %s", i, target))
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
			if got := parseResult(t, "question 0.example.com. A", message); got != want {
				t.Errorf("%d aliases to %s: got %s, want %s", n, to, got, want)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("%d aliases: took %v", n, took)
			}
		}
	}
	f(16, "", "NOERROR")
	f(17, "", "SERVFAIL")
	f(200, "", "SERVFAIL")
	f(1500, "", unrelated)
	f(1, "0.EXAMPLE.com.", "SERVFAIL")
	f(2, "0.example.com.", "SERVFAIL")
	f(5, "3.example.com.", "SERVFAIL")
}

// Type and class differ from 1 in the bit that distinguishes letters' case.
func TestTypeAndClassAreComparedExactly(t *testing.T) {
	if got := parseResult(t, "question example.com. TYPE65", pack(t, "flags qr; question example.com. TYPE97")); got != wrongQuestion {
		t.Errorf("got %s", got)
	}
}

func TestACutMessageIsNoAnswer(t *testing.T) {
	whole := pack(t, "flags qr; question example.com. A; answer example.com. 60 IN CNAME a.example.com.; "+
		"answer a.example.com. 60 IN A 192.0.2.1; authority example.com. 60 IN NS ns.example.com.; opt 1232 ede=3:stale; compress")
	for n := range whole {
		if got := parseResult(t, "question example.com. A", whole[:n]); got != malformed {
			t.Errorf("after %d octets: got %s", n, got)
		}
	}
	if got := parseResult(t, "question example.com. A", append(whole, 0)); got != malformed {
		t.Errorf("with an octet more: got %s", got)
	}
	for at := 6; at < 12; at += 2 {
		for _, by := range []uint16{1, 0xffff} { // more, and less
			lie := bytes.Clone(whole)
			binary.BigEndian.PutUint16(lie[at:], binary.BigEndian.Uint16(lie[at:])+by)
			if got := parseResult(t, "question example.com. A", lie); got != malformed {
				t.Errorf("with %#x in the count at %d: got %s", lie[at:at+2], at, got)
			}
		}
	}
}

// Programs that know what a record says refuse a whole message with one whose fields
// have lengths or values that they can't have.
func TestRecordsWithImpossibleValuesAreRejected(t *testing.T) {
	f := func(want, typ string, data ...string) {
		t.Helper()
		for _, d := range data {
			number, _ := strconv.Atoi(typ)
			rdata := strings.ReplaceAll(d, " ", "")
			message := fmt.Sprintf("abcd 8000 0001 0000 0000 0001 01 61 00 0001 0001 00 %04x 0001 00000000 %04x", number, len(rdata)/2) + rdata
			got := parseResult(t, "question a. A", unhex(t, message))
			if got != want {
				t.Errorf("TYPE%s %s: got %s, want %s", typ, d, got, want)
			}
		}
	}
	const https, alpn = "65", "0001 0003 02 6832"
	param := func(values ...string) (all []string) {
		for _, v := range values {
			all = append(all, "0001 00"+v)
		}
		return all
	}
	f("NOERROR", https, param(alpn, alpn+"0002 0000", "0000 0002 0001"+alpn, "0001 0006 02 6832 02 6833", "0003 0002 01bb", "0004 0004 c0000201", "0005 0001 00",
		"0006 0010"+strings.Repeat("20", 16), "0007 0007 2f 7b 3f 646e73 7d", "0007 000a 2f 71 7b 26 78 2c 646e73 7d", "029b 0000")...)
	f(malformed, https, param(
		"0000 0000", "0000 0001 00", "0000 0002 0001", "0000 0002 0000", "0000 0004 0003 0001"+alpn+"0003 0002 01bb", "0000 0004 0001 0001"+alpn, // mandatory
		"0001 0000", "0001 0001 00", "0001 0003 03 6832", "0001 0004 02 6832 00", // alpn
		"0002 0000", alpn+"0002 0001 00", // no-default-alpn
		"0003 0000", "0003 0001 01", "0003 0003 0001bb", // port
		"0004 0000", "0004 0003 c00002", "0004 0005 c000020100", "0006 0000", "0006 000f"+strings.Repeat("20", 15), // hints
		"0005 0000",                                                                                                       // ech
		"0007 0000", "0007 0001 2f", "0007 0006 7b 3f 646e73 7d", "0007 0008 2f ff 7b 3f 646e73 7d", "0007 0003 2f 7b 78", // dohpath
	)...)
	const here = "8b3cf018 810cbce0 009895b8"
	f("NOERROR", "29", "00 00 16 13"+here)                                                                                                           // LOC
	f(malformed, "29", "", "01 00 16 13"+here, "00 a0 16 13"+here, "00 00 1a 13"+here, "00 00 02 13"+here, "00 00 16 13 00000000 810cbce0 009895b8", // LOC
		"00 00 16 13 8b3cf018 ffffffff 009895b8", "00 00 16 13"+here+"00")
	f("NOERROR", "42", "", "0001 15 03 c0a820", "0001 15 83 c0a820 0002 08 01 ff", "0000 ff 01 00")                     // APL
	f(malformed, "42", "0001", "0001 21 04 c0a82001", "0001 15 04 c0a82000", "0001 15 05 c0a8200101", "0002 81 01 ff")  // APL
	f("NOERROR", "45", "0a 00 02", "0a 01 02 c0000226 01", "0a 02 02"+strings.Repeat("20", 16), "0a 03 02 01 61 00 01") // IPSECKEY
	f(malformed, "45", "", "0a 01 02 c00002", "0a 02 02 20", "0a 03 02 01 61", "0a 04 02 00")                           // IPSECKEY
	f("NOERROR", "63", "00000001 01 01"+strings.Repeat("aa", 48), "00000001 01 02"+strings.Repeat("aa", 64), "00000001 01 f0"+strings.Repeat("aa", 12))
	f(malformed, "63", "", "00000001 01 01"+strings.Repeat("aa", 47), "00000001 01 02"+strings.Repeat("aa", 48), "00000001 01 f0"+strings.Repeat("aa", 11))
	for typ, octets := range map[string]int{"37": 6, "61": 1, "62": 6, "104": 10, "105": 6, "106": 10, "108": 6, "109": 8, "256": 5} {
		f("NOERROR", typ, strings.Repeat("00", octets))
		f(malformed, typ, strings.Repeat("00", octets-1))
	}
	for typ, octets := range map[string]int{"104": 10, "105": 6, "106": 10, "108": 6, "109": 8} {
		f(malformed, typ, strings.Repeat("00", octets+1))
	}
	for _, typ := range []string{"56", "258", "261", "262"} { // texts
		f("NOERROR", typ, "00", "01 61 01 62")
		f(malformed, typ, "", "01", "01 61 02 62")
	}
	f("NOERROR", "107", "000a 01 61 00") // LP
	f(malformed, "107", "000a 01 61")
	f("NOERROR", "26", "000a 00 00") // PX
	f(malformed, "26", "000a 00")
}

func TestMalformedRecordsAreRejectedInEverySection(t *testing.T) {
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
			got := parseResult(t, "question a. A", message)
			if got == unrelated && section == 0 {
				got = "NOERROR" // a well-formed record of another name
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
	f("80 0c 0001"+fixed+"0004 c0000201", malformed) // abandoned label types
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
	// Programs that know these types refuse the whole message if one is malformed.
	for data, want := range map[string]string{
		"0010 02 ff": malformed, "0010": malformed, "0010 00": "NOERROR", "0010 01 ff 00": "NOERROR", "0010 01": malformed, // TXT
		"000d 00": malformed, "000d 00 00": "NOERROR", "000d 00 00 00": malformed, // HINFO
		"002e" + strings.Repeat("00", 18) + "00 ff": "NOERROR", "002e" + strings.Repeat("00", 18) + "00": malformed, // RRSIG
		"002e" + strings.Repeat("00", 18) + "c00c ff": malformed,
		"002b 00000000 ff":                            "NOERROR", "002b 00000000": malformed, // DS
		"002b 00000002 ff": malformed, "002b 00000002" + strings.Repeat("ff", 32): "NOERROR", "002b 00000001" + strings.Repeat("ff", 32): malformed,
		"003b 00000000 00": "NOERROR", "003b 00000000 0000": malformed, // CDS that is to remove all
		"0030 00000000 00": "NOERROR", "0030 00000000": malformed, "0030 000000": malformed, // DNSKEY
		"002f 00 00 01 40": "NOERROR", "002f 00 00 01 00": malformed, "002f 00 00 02 40": malformed, "002f 00 01 01 40 00 01 40": malformed, "002f 00": malformed, // NSEC
		"0032 01000000 00 01 ff": "NOERROR", "0032 01000000 00 00": malformed, "0032 01000000 00 01 ff 00 01 40": "NOERROR", // NSEC3
		"0033 01000000 00": "NOERROR", "0033 01000000 01": malformed, // NSEC3PARAM
		"0101 00 01 61": "NOERROR", "0101 00 00": malformed, "0101 00 02 61": malformed, // CAA
		"0023 00000000 00 00 00 00": "NOERROR", "0023 00000000 00 00 00": malformed, "0023 00000000 00 00 00 c00c": malformed, // NAPTR
		"0034 000000 ff": "NOERROR", "0034 000000": malformed, "002c 0000 ff": "NOERROR", "002c 0000": malformed, // TLSA, SSHFP
		"002c 0001 ff": malformed, "002c 0001" + strings.Repeat("ff", 20): "NOERROR",
		"0101 00 02 6131": "NOERROR", "0101 00 02 612d": malformed, // CAA
		"0041 0001 00": "NOERROR", "0041 0001 00 029b 0000 029c 0000": "NOERROR", "0041 0001 c00c": malformed, // HTTPS
		"0041 0001 00 0002 0000 0001 0000": malformed, "0041 0001 00 0001 0001": malformed, "0041 0001 00 000100": malformed,
		"ff00": "NOERROR", "ff00 ff": "NOERROR", // private use
	} {
		typ, rdata := data[:4], strings.ReplaceAll(data[4:], " ", "")
		f("00"+typ+fixed+fmt.Sprintf("%04x", len(rdata)/2)+rdata, want)
	}
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
			if got := parseResult(t, "question a. A", unhex(t, q+first+record)); got != want {
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
	if got := parseResult(t, "question a. A", unhex(t, q+first+"00 0002 0100 01000000 0002 c025")); got != "NOERROR" {
		t.Errorf("between the TTLs: got %s", got)
	}
}

// RFC 1035 section 4.1.4: "a prior occurrence of the same name"
func TestAPointerLeadsToANameThatEndsBeforeIt(t *testing.T) {
	const (
		q    = "abcd 8000 0001 0000 0002 0000 01 61 00 0001 0001"
		txt  = "00 ff00 0001 00000000 0003" // private use, at 19, its data at 30
		rest = "0001 0001 00000000 0004 c0000201"
	)
	f := func(data, owner, want string) {
		t.Helper()
		if got := parseResult(t, "question a. A", unhex(t, q+txt+data+owner+rest)); got != want {
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
		// All pointers but the last one, the owner, are data for private use, at 19.
		message := unhex(t, "abcd 8000 0001 0000 0002 0000 01 61 00 0001 0001 00 ff00 0001 00000000 0000")
		binary.BigEndian.PutUint16(message[28:], uint16(2*pointers-2))
		target := 12
		for range pointers {
			message = binary.BigEndian.AppendUint16(message, uint16(0xc000|target))
			target = len(message) - 2
		}
		message = append(message, unhex(t, "0001 0001 00000000 0004 c0000201")...)
		if got := parseResult(t, "question a. A", message); got != want {
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
		if got := parseResult(t, "question a. A", message); got != want {
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
		if got := parseResult(t, "question a. A", unhex(t, "abcd 8000 0001"+counts+q+records)); got != want {
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
	// A code that is no result is about the query to the upstream, not about the
	// client's: FORMERR, BADCOOKIE or REFUSED would mislead the client.
	f("flags rd; question eXaMple.com. A", "flags qr; rcode 5", 0, "flags qr rd ra; rcode 2; question eXaMple.com. A")
	f("flags rd; question eXaMple.com. A; opt", "flags qr; rcode 5; opt 512 ede=18:no", 0,
		"flags qr rd ra; rcode 2; question eXaMple.com. A; opt 1232 ede=0:upstream answered REFUSED ede=18:no")
	f("flags rd ad"+q+"; opt", "flags qr ad; rcode 2"+q+a+"; opt 1232 ede=22:", 0, "flags qr rd ra; rcode 2"+q+"; opt 1232 ede=22")
	f("flags rd"+q+"; opt", "flags qr; rcode 9"+q+a, 0, "flags qr rd ra; rcode 2"+q+"; opt 1232 ede=0:upstream answered an error")
	f("flags rd"+q+"; opt", "flags qr; rcode 6"+q, 0, "flags qr rd ra; rcode 6"+q+"; opt 1232")
	// The names in the answer point into the question and follow its spelling.
	f("question eX.com. A", "flags qr; compress; question EX.com. A; answer EX.com. 60 IN A 192.0.2.1", 0, "flags qr ra; question eX.com. A; answer eX.com. 60 IN A 192.0.2.1")

	// AD, RFC 6840 sections 5.7 and 5.8
	f("flags rd"+q, "flags qr ad"+q, 0, "flags qr rd ra"+q)
	f("flags rd ad"+q, "flags qr ad"+q, 0, "flags qr rd ra ad"+q)
	f("flags rd"+q+"; opt do", "flags qr ad"+q, 0, "flags qr rd ra ad"+q+"; opt 1232 do")
	f("flags rd ad"+q+"; opt do", "flags qr"+q, 0, "flags qr rd ra"+q+"; opt 1232 do")

	// The OPT record is hop by hop (RFC 6891 section 6.2.1), except the EDE
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

	for _, rcode := range []string{"16", "17", "23", "4095"} {
		f(q+"; opt do", "flags qr; rcode "+rcode+q+"; opt", 0, "flags qr ra; rcode 2"+q+"; opt 1232 do ede=0:upstream answered an error")
		f(q, "flags qr; rcode "+rcode+q+"; opt", 0, "flags qr ra; rcode 2"+q)
	}
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

func TestTheZeroAnswerIsPrinted(t *testing.T) {
	var a wire.Answer
	if !a.IsZero() || a.Len() != 0 || a.String() == "" {
		t.Errorf("got %s", a)
	}
}

// RFC 2181 section 9: TC, and the whole records that fit.
func TestAReplyFitsItsMaximumLength(t *testing.T) {
	f := func(opt string, via wire.Transport, size int, ede string, want string) {
		t.Helper()
		// Header, question, one record with size octets in all without OPT.
		const around = 12 + 7 + 2 + 10
		response := fmt.Sprintf("flags qr; question a. TYPE65280; answer a. 0 IN TYPE65280 \\# %d %s", size-around, strings.Repeat("00", size-around))
		q := mustQuery(t, "question a. TYPE65280"+opt, via)
		a := mustAnswer(t, q, response+"; compress; opt 1232 ede=3:"+ede)
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

// Resolvers without TCP, as older musl, use the records of a truncated reply.
func TestATruncatedReplyHasTheRecordsThatFit(t *testing.T) {
	f := func(query, response string, want string) {
		t.Helper()
		q := mustQuery(t, query, wire.UDP)
		a := mustAnswer(t, q, response)
		got := a.AppendReply([]byte("prefix"), q, wire.Terms{Age: time.Second})[len("prefix"):]
		if text := show(t, got); text != want {
			t.Errorf("%s\n got %s\nwant %s", query, text, want)
		}
	}
	x := strings.Repeat("x", 200)
	const (
		cname = "; answer eX.com. 60 IN CNAME b.eX.com."
		cut   = "; answer eX.com. 59 IN CNAME b.eX.com."
		txt2  = `; answer b.eX.com. 60 IN TXT "2"`
		soa   = "; authority eX.com. 60 IN SOA ns.eX.com. h.eX.com. 1 2 3 4 5"
		q     = "; question eX.com. TXT"
		opt   = "; opt 1232"
	)
	txt1 := `; answer b.eX.com. 60 IN TXT "1` + x + `" "` + x + `" "` + x + `"`
	aged := strings.NewReplacer(" 60 IN ", " 59 IN ").Replace
	f("flags rd ad"+q+"; opt 4096 do", "flags qr ad"+q+cname+txt2+txt1+"; opt ede=3:old", "flags qr rd ra ad"+q+cut+aged(txt2+txt1)+opt+" do ede=3:old")
	f("flags rd ad"+q+"; opt 512 do", "flags qr ad"+q+cname+txt2+txt1+"; opt ede=3:old", "flags qr tc rd ra ad"+q+cut+aged(txt2)+opt+" do")
	f("flags rd"+q, "flags qr ad"+q+cname+txt1+txt2, "flags qr tc rd ra"+q+cut) // not the records behind
	f("flags rd"+q, "flags qr; rcode 3"+q+cname+soa, "flags qr rd ra; rcode 3"+q+cut+aged(soa))
	// Additional records may be missing without TC, and so may the EDE.
	for _, more := range []string{"; additional eX.com. 60 IN A 192.0.2.1", "; authority eX.com. 60 IN NS ns.eX.com."} {
		many := strings.Repeat(more, 30)
		for n := range 30 {
			many = strings.Replace(many, "192.0.2.1;", fmt.Sprintf("192.0.2.%d;", 2+n), 1)
			many = strings.Replace(many, "NS ns.", fmt.Sprintf("NS n%d.", n), 1)
		}
		f("flags rd"+q, "flags qr"+q+cname+txt2+many, "flags qr rd ra"+q+cut+aged(txt2))
	}
	nsec := "; authority a.eX.com. 60 IN NSEC z.ex.com. TXT; authority a.eX.com. 60 IN RRSIG NSEC 8 2 60 20300101000000 20200101000000 1 ex.com. " + strings.Repeat("AAAA", 150)
	f("flags rd"+q+"; opt 512 do", "flags qr"+q+cname+txt2+nsec, "flags qr tc rd ra"+q+cut+aged(txt2)+"; authority a.eX.com. 59 IN NSEC z.ex.com. TXT"+opt+" do")
}

// TestAnswersAreAsShortAsTheyCanBe has upstreams that do not compress, or send records
// that are dropped.
func TestAnswersAreAsShortAsTheyCanBe(t *testing.T) {
	m := new(dns.Msg)
	m.SetQuestion("wWw.eXample.com.", dns.TypeMX).Response = true
	add := func(section *[]dns.RR, text string) {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		*section = append(*section, rr)
	}
	for i := range 20 {
		add(&m.Answer, fmt.Sprintf("www.example.com. 60 IN MX 10 mail%d.Servers.example.org.", i))
		add(&m.Extra, fmt.Sprintf("mail%d.Servers.example.org. 60 IN A 192.0.2.%d", i, i))
	}
	q := mustQuery(t, "flags rd; question WWW.EXAMPLE.COM. MX", wire.TCP)
	for _, stray := range []bool{false, true} {
		for _, compress := range []bool{false, true} {
			m.Question[0].Name, m.Compress = "www.example.com.", true
			clean, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			sent := m.Copy()
			sent.Question[0].Name, sent.Compress = "wWw.eXample.com.", compress
			if stray {
				add(&sent.Extra, "www.example.net. 60 IN A 192.0.2.66")
				add(&sent.Answer, "www.example.net. 60 IN A 192.0.2.66")
			}
			message, err := sent.Pack()
			if err != nil {
				t.Fatal(err)
			}
			a, err := wire.ParseAnswer(q, message)
			if err != nil {
				t.Fatal(err)
			}
			reply := a.AppendReply(nil, q, wire.Terms{})
			if len(reply) > len(clean) {
				t.Errorf("stray %t, compressed %t: %d octets, can be %d", stray, compress, len(reply), len(clean))
			}
			var got dns.Msg
			if err := got.Unpack(reply); err != nil {
				t.Fatal(err)
			}
			for i, rr := range slices.Concat(got.Answer, got.Extra) {
				// Names keep their spelling, or have the client's.
				if want := strings.Replace(slices.Concat(m.Answer, m.Extra)[i].String(), "www.example.com.", "WWW.EXAMPLE.COM.", 1); rr.String() != want {
					t.Errorf("got %s, want %s", rr, want)
				}
			}
		}
	}
}

// RFC 3597 section 4: names in the data of types after RFC 1035 are not
// compressed. BIND's programs refuse a message if they are.
func TestNamesInDataOfNewerTypesAreNotCompressed(t *testing.T) {
	const around = "abcd 8000 0001 0001 0000 0000 01 61 01 62 00 0021 0001 c00c 0021 0001 0000003c"
	q := mustQuery(t, "question a.b. SRV", wire.TCP)
	a, err := wire.ParseAnswer(q, unhex(t, around+"000a 0001 0002 0003 01 73 c00e"))
	if err != nil {
		t.Fatal(err)
	}
	want := unhex(t, "abcd 8080 0001 0001 0000 0000 01 61 01 62 00 0021 0001 c00c 0021 0001 0000003c 000b 0001 0002 0003 01 73 01 62 00")
	if got := a.AppendReply(nil, q, wire.Terms{}); !bytes.Equal(got, want) {
		t.Errorf("\n got %x\nwant %x", got, want)
	}
	if a.Stripped() {
		t.Error("nothing was stripped")
	}
}

// RFC 8914 section 2: the text is UTF-8. BIND and dnspython refuse a whole message for
// one that is not, or that begins with a byte order mark.
func TestEDETextsArePrintableUTF8(t *testing.T) {
	q := mustQuery(t, "question a. A; opt", wire.TCP)
	f := func(text, want string) {
		t.Helper()
		m := new(dns.Msg)
		m.SetQuestion("a.", dns.TypeA).Response = true
		m.SetEdns0(1232, false).IsEdns0().Option = []dns.EDNS0{
			&dns.EDNS0_LOCAL{Code: 15, Data: append([]byte{0, 3}, text...)}, &dns.EDNS0_LOCAL{Code: 15, Data: []byte{0, 9, 'x'}},
		}
		message, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		a, err := wire.ParseAnswer(q, message)
		if err != nil {
			t.Fatal(err)
		}
		got := show(t, a.AppendReply(nil, q, wire.Terms{}))
		if want := strings.TrimSuffix("flags qr ra; question a. A; opt 1232 ede=3:"+want, ":") + " ede=9:x"; got != want {
			t.Errorf("%q:\n got %q\nwant %q", text, got, want)
		}
	}
	f("", "")
	f("plain text, 100 %", "plain text, 100 %")
	f("größer ✓ \ufffd", "größer ✓ \ufffd")
	f("ends with NUL\x00\x00", "ends with NUL")
	f("a\x00b", "a?b")
	f("two\nlines\t\x1b[31m\x7f", "two?lines??[31m?")
	f("\xff\xfe", "??")
	f("\xc3", "?")                 // cut
	f("\xc0\x80", "??")            // overlong
	f("\xed\xa0\x80", "???")       // a surrogate
	f("\xef\xbb\xbfBOM", "?BOM")   // byte order mark
	f("\u202egnp.exe", "?gnp.exe") // right to left
	f("\u0085", "?")
	if got := mustAnswer(t, q, "flags qr; question a. A; opt ede=0:"+strings.Repeat("x", 2000)+" ede=3:y").AppendReply(nil, q, wire.Terms{}); len(got) > 100 {
		t.Errorf("%d octets for long texts", len(got))
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

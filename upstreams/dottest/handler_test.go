package dottest

import (
	"testing"
	"time"

	"github.com/miekg/dns"
)

// answer asks Answer and fails unless an independent codec understands it.
func answerTo(t *testing.T, name string, qtype uint16) (m *dns.Msg, size int, after time.Duration) {
	t.Helper()
	message, after := Answer([]byte("before"), newQuery(7, name, qtype))
	message = message[len("before"):]
	if len(message) == 0 {
		return nil, 0, after
	}
	m = new(dns.Msg)
	if err := m.Unpack(message); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if m.Id != 7 || !m.Response || !m.RecursionDesired || !m.RecursionAvailable || m.IsEdns0() == nil ||
		m.Question[0] != (dns.Question{Name: dns.Fqdn(name), Qtype: qtype, Qclass: dns.ClassINET}) {
		t.Errorf("%s: not the answer to the question: %v", name, m)
	}
	return m, len(message), after
}

func TestAnswerShowsWhoseItIs(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"www.example.com", "WWW.Example.Com", "a", "."} {
		m, _, _ := answerTo(t, name, dns.TypeA)
		if got, want := m.Answer[0].(*dns.A).A.String(), Address(name).String(); got != want {
			t.Errorf("%s A: got %s, want %s", name, got, want)
		}
		m, _, _ = answerTo(t, name, dns.TypeAAAA)
		if got, want := m.Answer[0].(*dns.AAAA).AAAA.String(), Address6(name).String(); got != want {
			t.Errorf("%s AAAA: got %s, want %s", name, got, want)
		}
		m, _, _ = answerTo(t, name, dns.TypeTXT)
		if got, want := m.Answer[0].(*dns.TXT).Txt[0], dns.CanonicalName(name); got != want {
			t.Errorf("%s TXT: got %s, want %s", name, got, want)
		}
		if got := m.Answer[0].Header().Ttl; got != 300 {
			t.Errorf("%s: TTL %d, want 300", name, got)
		}
	}
	if Address("WWW.example.com.") != Address("www.example.com") || Address6("a.example.com") == Address6("b.example.com") {
		t.Error("the address is not a matter of the name")
	}
}

func TestAnswerFollowsInstructions(t *testing.T) {
	t.Parallel()
	check := func(name string, rcode, answers, authority int, after time.Duration) {
		t.Helper()
		m, _, got := answerTo(t, name, dns.TypeA)
		if m.Rcode != rcode || len(m.Answer) != answers || len(m.Ns) != authority || got != after {
			t.Errorf("%s, after %v: %v", name, got, m)
		}
		if authority > 0 {
			if soa := m.Ns[0].(*dns.SOA); soa.Hdr.Name != "example.com." {
				t.Errorf("%s: %v", name, soa)
			}
		}
	}
	check("www.example.com", dns.RcodeSuccess, 1, 0, 0)
	check("d500.example.com", dns.RcodeSuccess, 1, 0, 500*time.Millisecond)
	check("x.D500.y.example.com", dns.RcodeSuccess, 1, 0, 500*time.Millisecond)
	check("servfail.example.com", dns.RcodeServerFailure, 0, 0, 0)
	check("refused.d5.example.com", dns.RcodeRefused, 0, 0, 5*time.Millisecond)
	check("notimp.example.com", dns.RcodeNotImplemented, 0, 0, 0)
	check("formerr.example.com", dns.RcodeFormatError, 0, 0, 0)
	check("nxdomain.example.com", dns.RcodeNameError, 0, 1, 0)
	check("blocked.example.com", dns.RcodeNameError, 0, 0, 0)
	check("nodata.example.com", dns.RcodeSuccess, 0, 1, 0)
	check("d.dx.d-1.d5x.example.com", dns.RcodeSuccess, 1, 0, 0)

	if m, _, _ := answerTo(t, "never.example.com", dns.TypeA); m != nil {
		t.Errorf("never: got %v", m)
	}
	if m, _, _ := answerTo(t, "tc.example.com", dns.TypeA); !m.Truncated {
		t.Errorf("tc: got %v", m)
	}
	if m, _, _ := answerTo(t, "ttl7.example.com", dns.TypeA); m.Answer[0].Header().Ttl != 7 {
		t.Errorf("ttl7: got %v", m)
	}
	m, _, _ := answerTo(t, "bogus.example.com", dns.TypeA)
	ede, ok := m.IsEdns0().Option[0].(*dns.EDNS0_EDE)
	if m.Rcode != dns.RcodeServerFailure || !ok || ede.InfoCode != dns.ExtendedErrorCodeDNSBogus {
		t.Errorf("bogus: got %v", m)
	}
	if m, _, _ := answerTo(t, "www.example.com", dns.TypeMX); len(m.Answer) != 0 || len(m.Ns) != 1 {
		t.Errorf("MX: got %v", m)
	}
}

func TestBigAnswers(t *testing.T) {
	t.Parallel()
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT} {
		m, size, _ := answerTo(t, "big4000.example.com", qtype)
		if size > 4000 || size < 4000-28 || len(m.Answer) < 2 {
			t.Errorf("%s: got %d octets and %d records", dns.TypeToString[qtype], size, len(m.Answer))
		}
	}
	for size := 300; size < 900; size++ {
		name := "big" + string([]byte{byte('0' + size/100), byte('0' + size/10%10), byte('0' + size%10)}) + ".example.com"
		if _, got, _ := answerTo(t, name, dns.TypeTXT); got != size {
			t.Errorf("%s: got %d octets", name, got)
		}
	}
	if _, size, _ := answerTo(t, "big9.example.com", dns.TypeTXT); size < 40 {
		t.Errorf("big9: got %d octets", size)
	}
}

func TestAnswerToNonsense(t *testing.T) {
	t.Parallel()
	check := func(query []byte, rcode int) {
		t.Helper()
		message, _ := Answer(nil, query)
		m := new(dns.Msg)
		if err := m.Unpack(message); err != nil || m.Rcode != rcode || !m.Response {
			t.Errorf("%x: got %v and %v", query, m, err)
		}
	}
	query := newQuery(1, "www.example.com", dns.TypeA)
	for n := headerLen; n < headerLen+len("\x03www\x07example\x03com\x00")+4; n++ {
		check(query[:n:n], dns.RcodeFormatError)
	}
	update := append([]byte(nil), query...)
	update[2] |= 5 << 3
	check(update, dns.RcodeNotImplemented)
}

func TestAnswerDoesNotAllocate(t *testing.T) {
	query := newQuery(1, "d500.www.example.com", dns.TypeA)
	dst := make([]byte, 0, 512)
	if n := testing.AllocsPerRun(100, func() { Answer(dst, query) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

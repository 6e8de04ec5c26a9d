package cache

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"dotgate/gateway/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open returns a Cache with these changes to the defaults, until the test ends.
func open(t testing.TB, change func(*Options)) *Cache {
	t.Helper()
	o := Defaults()
	if change != nil {
		change(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// ask returns the query for "name type", with flags: "do", "cd", "tcp", "plain"
// (no EDNS).
func ask(t testing.TB, text string) wire.Query {
	t.Helper()
	words := strings.Fields(text)
	m := new(dns.Msg).SetQuestion(dns.Fqdn(words[0]), dns.StringToType[words[1]])
	via, edns, do := wire.UDP, true, false
	for _, w := range words[2:] {
		switch w {
		case "do":
			do = true
		case "cd":
			m.CheckingDisabled = true
		case "tcp":
			via = wire.TCP
		case "plain":
			edns = false
		default:
			t.Fatal(w)
		}
	}
	if edns {
		m.SetEdns0(1232, do)
	}
	packet, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	q, err := wire.ParseQuery(packet, via)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// says returns the answer to q with records, "NXDOMAIN" and the like, and SOA
// records, which go into the authority section.
func says(t testing.TB, q wire.Query, texts ...string) wire.Answer {
	t.Helper()
	var asked, m dns.Msg
	if err := asked.Unpack(q.AppendUpstream(nil, 1)); err != nil {
		t.Fatal(err)
	}
	m.SetReply(&asked)
	for _, text := range texts {
		if rcode, ok := dns.StringToRcode[text]; ok {
			m.Rcode = rcode
			continue
		}
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		if rr.Header().Rrtype == dns.TypeSOA {
			m.Ns = append(m.Ns, rr)
		} else {
			m.Answer = append(m.Answer, rr)
		}
	}
	packet, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	a, err := wire.ParseAnswer(q, packet)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func soa(ttl, minimum int) string {
	return fmt.Sprintf("example.com. %d IN SOA ns.example.com. host.example.com. 1 2 3 4 %d", ttl, minimum)
}

// A template makes many similar answers quickly: numbered names under
// example.com, each with one address.
type template struct{ query, response []byte }

// newTemplate makes names of this length, in wire format.
func newTemplate(t testing.TB, nameLen int) *template {
	t.Helper()
	name := strings.Repeat("x", nameLen-14) + ".example.com."
	m := new(dns.Msg).SetQuestion(name, dns.TypeA).SetEdns0(1232, false)
	query, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	r := new(dns.Msg).SetReply(m)
	rr, err := dns.NewRR(name + " 300 IN A 192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	r.Answer, r.Compress = []dns.RR{rr}, true
	response, err := r.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return &template{query, response}
}

// number changes query and response to the n-th name. The query is valid until the
// next call.
func (m *template) number(n uint64) wire.Query {
	const digits = "0123456789abcdef"
	for i := range 12 {
		c := digits[n>>(4*i)&0xf]
		m.query[13+i], m.response[13+i] = c, c
	}
	q, err := wire.ParseQuery(m.query, wire.UDP)
	if err != nil {
		panic(err)
	}
	return q
}

func (m *template) answer(q wire.Query) wire.Answer {
	a, err := wire.ParseAnswer(q, m.response)
	if err != nil {
		panic(err)
	}
	return a
}

func (m *template) setTTL(ttl time.Duration) {
	binary.BigEndian.PutUint32(m.response[len(m.response)-10:], uint32(ttl/time.Second))
}

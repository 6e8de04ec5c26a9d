package wire

import (
	"bytes"
	"testing"
	"unsafe"

	"github.com/miekg/dns"
)

func TestAHealthCheckIsReadAsItWasWritten(t *testing.T) {
	token := []byte("0123456789abcdef")
	ask, err := NewQuery("example.com", "NS")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []HealthCheck{{}, {Token: token}, {Token: token, Live: true}} {
		packet := ask.AppendHealthCheck(nil, 0x1234, want)
		m := new(dns.Msg)
		if err := m.Unpack(packet); err != nil || m.Id != 0x1234 || !m.RecursionDesired || m.IsEdns0() == nil {
			t.Fatalf("%v: %v", err, m)
		}
		q, err := ParseQuery(packet, UDP)
		if err != nil {
			t.Fatal(err)
		}
		if got := q.HealthCheck(); !bytes.Equal(got.Token, want.Token) || got.Live != want.Live {
			t.Errorf("got %v, want %v", got, want)
		}
		if got := q.AppendUpstream(nil, 1); bytes.Contains(got, token) {
			t.Errorf("an upstream gets the token: %x", got)
		}
	}
	if size := unsafe.Sizeof(Query{}); size > 56 {
		t.Errorf("a Query has %d octets; it is copied a lot", size)
	}
}

func TestOptionsOfOtherLengthsAreNoHealthChecks(t *testing.T) {
	for n := range 40 {
		m := new(dns.Msg).SetQuestion("example.com.", dns.TypeA).SetEdns0(1232, false)
		m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: ednsOptionHealthCheck, Data: make([]byte, n)})
		packet, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		q, err := ParseQuery(packet, UDP)
		if err != nil {
			t.Fatal(err)
		}
		if got := q.HealthCheck().Token != nil; got != (n == healthCheckLen) {
			t.Errorf("%d octets: a token %t", n, got)
		}
	}
}

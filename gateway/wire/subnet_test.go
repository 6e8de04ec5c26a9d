package wire_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

// RFC 7871 sections 6 and 7.1.
func TestWhichSubnetUpstreamsSee(t *testing.T) {
	f := func(option, want string) {
		t.Helper()
		q := mustQuery(t, "question a. A; opt "+option, wire.UDP)
		if got := show(t, q.AppendUpstream(nil, testID)); got != "flags rd ad; question a. A; opt 1232 padding" {
			t.Errorf("by default, upstreams see %s", got)
		}
		own, ok := q.ClientSubnet()
		q = q.With(&wire.Extras{Subnet: own, Scoped: own != nil}).Clone()
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
	f("8:00010000", "true false") // it is nobody's business
	f("8:00020000", "true false")
	f("8:", "false false")
	f("8:0001", "false false")
	f("8:00011800c000", "false false")     // an address too short
	f("8:00011800c0000201", "false false") // too long
	f("8:00011900c0000201", "false false") // bits behind the prefix
	f("8:00011818c00002", "false false")   // a scope
	f("8:00012100c000020100", "false false")
	f("8:00031800c00002", "false false")

	q := mustQuery(t, "question a. A; opt 8:00011800cb0071", wire.UDP).With(&wire.Extras{Subnet: wire.AppendSubnet(nil, netip.MustParsePrefix("192.0.2.77/25"))})
	if got := mustUnpackOptions(t, q.AppendUpstream(nil, testID)); got != "192.0.2.0/25/0" || q.Scoped() {
		t.Errorf("got %s", got)
	}
	q = q.With(&wire.Extras{Subnet: wire.AppendSubnet(nil, netip.MustParsePrefix("2001:db8::/33"))})
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

// What the answer says about the client's subnet is for that client.
func TestTheScopeOfAnAnswerReachesItsClient(t *testing.T) {
	q := mustQuery(t, "question a. A; opt 8:00011800c00002", wire.UDP)
	option, _ := q.ClientSubnet()
	q = q.With(&wire.Extras{Subnet: option, Scoped: true})
	const text = "flags qr; question a. A; answer a. 60 IN A 192.0.2.1; opt 8:00011814c00002 10:0011223344556677 ede=3:"
	if got := show(t, mustAnswer(t, q, text).AppendReply(nil, q, wire.Terms{})); !strings.HasSuffix(got, "opt 1232 option=8 ede=3") {
		t.Errorf("got %s", got)
	}
	other := mustQuery(t, "question a. A; opt", wire.UDP)
	if got := show(t, mustAnswer(t, other, text).AppendReply(nil, other, wire.Terms{})); !strings.HasSuffix(got, "opt 1232 ede=3") {
		t.Errorf("got %s", got)
	}
}

// RFC 7871 sections 7.3 and 11.2: what is for another network may be forged, and is
// dropped.
func TestTheSubnetOfAnAnswerIsTheOneSent(t *testing.T) {
	f := func(sent, option, want string) {
		t.Helper()
		q := mustQuery(t, "question a. A", wire.UDP)
		if sent != "" {
			q = q.With(&wire.Extras{Subnet: wire.AppendSubnet(nil, netip.MustParsePrefix(sent))})
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
	f("192.0.2.0/24", "", ok) // whoever knows nothing of it
	f("192.0.2.0/24", " ede=3", ok)
	f("192.0.2.0/24", " 8:00011800c00002", ok)
	f("192.0.2.0/24", " 8:00011814c00002", ok) // for a larger network
	f("192.0.2.0/24", " 8:00011820c00002", ok) // for a part of it
	f("2001:db8::/48", " 8:0002303020010db80000", ok)
	f("192.0.2.0/24", " 8:00011800c63364", wrong)
	f("192.0.2.0/24", " 8:00011000c000", wrong) // a shorter prefix
	f("192.0.2.0/24", " 8:00011900c0000200", wrong)
	f("192.0.2.0/24", " 8:00021800c00002", wrong) // family
	f("192.0.2.0/24", " 8:00010000", wrong)
	f("192.0.2.0/24", " 8:", wrong)
	f("192.0.2.0/24", " 8:00011800c00002 8:00011800c63364", wrong)
	f("", " 8:00011800c63364", ok) // it is not looked at
}

func TestPrivateAddressesAreSeen(t *testing.T) {
	q := mustQuery(t, "question a. A", wire.UDP)
	f := func(records string, want bool) {
		t.Helper()
		if got := mustAnswer(t, q, "flags qr; question a. A; "+records).HasPrivate(); got != want {
			t.Errorf("%s: got %t", records, got)
		}
	}
	for _, a := range []string{"10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "169.254.1.1", "0.0.0.0", "0.1.2.3", "100.64.0.1"} {
		f("answer a. 60 IN A 192.0.2.1; answer a. 60 IN A "+a, true)
		f("answer a. 60 IN HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1,"+a, true)
	}
	for _, a := range []string{"fd00::1", "fe80::1", "::1", "::"} {
		f("answer a. 60 IN AAAA "+a, true)
		f("answer a. 60 IN SVCB 1 b.example. ipv6hint="+a, true)
		f("answer a. 60 IN MX 1 b.example.; additional b.example. 60 IN AAAA "+a, true)
	}
	f("answer a. 60 IN AAAA ::ffff:10.0.0.1", true)
	f("", false)
	f("answer a. 60 IN A 192.0.2.1; answer a. 60 IN AAAA 2001:db8::1; answer a. 60 IN A 172.32.0.1", false)
	f("answer a. 60 IN HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1 ipv6hint=2001:db8::1", false)
	f(`answer a. 60 IN TXT "10.0.0.1"`, false)
	f("rcode 3; authority a. 60 IN SOA a. b. 1 2 3 4 5", false)
	// Malformed services have no address that anybody could use.
	for _, data := range []string{"0000", "0001 00", "0002 0001", "000b 0001 00 0004 0008 0a000001", "0004 0001 ffff"} {
		message := unhex(t, "abcd 8000 0001 0001 0000 0000 01 61 00 0001 0001 c00c 0041 0001 00000000"+data)
		if a, err := wire.ParseAnswer(q, message); err == nil && a.HasPrivate() {
			t.Errorf("%s: got true", data)
		}
	}
}

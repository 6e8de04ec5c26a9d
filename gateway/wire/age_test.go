package wire_test

import (
	"testing"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

func TestAnAgeIsSubtractedFromTTLs(t *testing.T) {
	t.Parallel()
	f := func(age uint32, ttls, want [2]uint32) {
		t.Helper()
		m := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA).SetEdns0(1232, true)
		for i, text := range []string{"www.example.com. 0 A 192.0.2.1", "example.com. 0 NS ns.example.com."} {
			record, err := dns.NewRR(text)
			if err != nil {
				t.Fatal(err)
			}
			record.Header().Ttl = ttls[i]
			if i == 0 {
				m.Answer = append(m.Answer, record)
			} else {
				m.Ns = append(m.Ns, record)
			}
		}
		m.Compress = true
		message, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		whole := len(message)
		wire.SubtractAge(message, age)
		var got dns.Msg
		if err := got.Unpack(message); err != nil {
			t.Fatal(err)
		}
		if ttls := [2]uint32{got.Answer[0].Header().Ttl, got.Ns[0].Header().Ttl}; ttls != want || got.IsEdns0() == nil || !got.IsEdns0().Do() {
			t.Errorf("age %d: %v, want %v", age, ttls, want)
		}
		for size := range whole { // cut anywhere, it is no harm
			wire.SubtractAge(message[:size:size], age)
		}
	}
	f(0, [2]uint32{300, 20}, [2]uint32{300, 20})
	f(21, [2]uint32{300, 20}, [2]uint32{279, 0})
	f(1<<32-1, [2]uint32{300, 20}, [2]uint32{0, 0})
}

package upstreams

import (
	"net/netip"
	"testing"
)

func TestAddressesThatMayBeDesignated(t *testing.T) {
	f := func(host, addr string, want bool) {
		t.Helper()
		if got := mayDesignate([]netip.Addr{netip.MustParseAddr(host)}, netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s by %s: %t", addr, host, got)
		}
	}
	f("9.9.9.9", "149.112.112.112", true)
	f("9.9.9.9", "2620:fe::fe", true)
	f("9.9.9.9", "192.168.0.1", false)
	f("9.9.9.9", "127.0.0.1", false)
	f("9.9.9.9", "fd00::1", false)
	f("9.9.9.9", "169.254.169.254", false)
	f("192.168.0.1", "192.168.0.2", true)
	f("192.168.0.1", "9.9.9.9", true)
	f("192.168.0.1", "169.254.169.254", false)
	f("192.168.0.1", "0.0.0.0", false)
	f("fe80::1%eth0", "fe80::1%eth0", true)
}

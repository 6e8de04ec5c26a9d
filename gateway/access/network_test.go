package access

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

// interfacesOf reads "eth0 192.0.2.7/24 2001:db8::7/64; ppp0* 100.70.0.1/32": an
// interface with a star has a default route.
func interfacesOf(text string) (all []Interface) {
	for one := range strings.SplitSeq(text, ";") {
		words := strings.Fields(one)
		if len(words) == 0 {
			continue
		}
		name, route := strings.CutSuffix(words[0], "*")
		i := Interface{Name: name, Loopback: name == "lo", DefaultRoute: route}
		for _, w := range words[1:] {
			i.Addresses = append(i.Addresses, netip.MustParsePrefix(w))
		}
		all = append(all, i)
	}
	return all
}

func TestWhichNetworksAreOnLink(t *testing.T) {
	f := func(interfaces, want, excluded string) {
		t.Helper()
		links := OnLink(interfacesOf(interfaces))
		var reasons []string
		for _, l := range links {
			if l.Excluded != "" {
				reasons = append(reasons, fmt.Sprintf("%v of %s: %s", l.Prefix, l.Interface, l.Excluded))
			}
		}
		if got := LinksText(links); got != want {
			t.Errorf("%s: got %s, want %s", interfaces, got, want)
		}
		if got := strings.Join(reasons, ", "); got != excluded {
			t.Errorf("%s: excluded are %q, want %q", interfaces, got, excluded)
		}
	}
	f("", "none", "")
	f("lo 127.0.0.1/8 ::1/128 192.0.2.53/32", "none", "")
	f("eth0* 192.168.1.7/24 fe80::1/64 2001:db8:1::7/64", "192.168.1.0/24, 2001:db8:1::/64, fe80::/64", "")
	f("eth0 10.1.2.3/8; eth1 10.1.2.4/8", "10.0.0.0/8", "")
	f("eth0 198.51.100.9/24", "198.51.100.0/24", "")
	f("eth0 198.51.100.9/22", "none", "198.51.100.0/22 of eth0: public and shorter than /24")
	f("eth0 192.100.0.9/10", "none", "192.64.0.0/10 of eth0: public and shorter than /24") // has private addresses, too
	f("eth0 2001:db8::1/63", "none", "2001:db8::/63 of eth0: public and shorter than /64")
	f("eth0 fd00::1/48 2001:db8::2/128", "fd00::/48", "")
	f("tailscale0 100.101.102.103/32 fd7a:115c:a1e0::1/128", "100.64.0.0/10", "")
	f("wg0 100.64.3.1/24", "100.64.3.0/24", "")
	nat := "its interface has a default route: this is a provider's NAT (RFC 6598)"
	f("wwan0* 100.70.1.2/30", "none", "100.70.1.0/30 of wwan0: "+nat)
	f("wwan0* 100.70.1.2/32", "none", "100.64.0.0/10 of wwan0: "+nat)
	f("wwan0* 100.70.1.2/10; tailscale0 100.101.102.103/32", "100.64.0.0/10", "100.64.0.0/10 of wwan0: "+nat)
	f("eth0 100.0.0.1/8", "none", "100.0.0.0/8 of eth0: public and shorter than /24")
	f("eth0 0.0.0.0/0 ::/0", "none", "0.0.0.0/0 of eth0: public and shorter than /24, ::/0 of eth0: public and shorter than /64")
}

// Many read loops refuse at once, while a report is made.
func TestRefusedClientsAreCountedByManyAtOnce(t *testing.T) {
	r := NewRefused()
	var loops sync.WaitGroup
	for i := range 4 {
		loops.Go(func() {
			for n := range 1000 {
				r.Note(netip.AddrFrom4([4]byte{8, byte(i), byte(n), 1}), Public)
			}
		})
	}
	loops.Go(func() {
		for range 100 {
			r.Report(slog.New(slog.DiscardHandler), NoInterfaces)
		}
	})
	loops.Wait()
	if n := r.total[Public].Load(); n != 4000 || len(r.recent) > refusedPrefixes {
		t.Errorf("counted %d, %d prefixes", n, len(r.recent))
	}
}

package upstreams

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/upstreams/dottest"
)

// The transports that stand by are tried by turn, as long as queries are asked over the best
// one, and what fails is dialled after the others.
func TestTransportsThatStandByAreTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := func(port uint16) []netip.AddrPort {
			return []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)}
		}
		u := open(t, Options{
			Name: "test", ServerName: dottest.ServerName, Transports: []string{DoT, DoH}, Addresses: at(853), DoHAddresses: at(443),
			IdleTimeout: time.Hour,
		})
		var mu sync.Mutex
		var tried []time.Duration
		begin := time.Now()
		counted(u, func(addr netip.AddrPort) error {
			mu.Lock()
			defer mu.Unlock()
			if addr.Port() == 443 {
				tried = append(tried, time.Since(begin))
			}
			return syscall.ECONNREFUSED
		})
		near, far := net.Pipe()
		defer far.Close()
		u.mu.Lock()
		u.addStreamLocked(newLink(near, near, true), u.dialer.endpoints[0])
		u.mu.Unlock()
		for range 100 {
			u.counts.sent.Add(1)
			time.Sleep(time.Second) // fake time
		}
		mu.Lock()
		defer mu.Unlock()
		if want := []time.Duration{30 * time.Second, 60 * time.Second, 90 * time.Second}; !slices.Equal(tried, want) {
			t.Errorf("tried after %v, want %v", tried, want)
		}
		if e := u.dialer.ordered()[1]; e.via.String() != DoH || e.dialled.Load().outcome != DialRefused {
			t.Errorf("last is %v", e.addr)
		}
		mu.Unlock()
		time.Sleep(time.Hour) // fake time
		mu.Lock()
		if n := len(tried); n > 4 {
			t.Errorf("%d tries of an upstream that is not asked", n-4)
		}
	})
}

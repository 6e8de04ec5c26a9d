package access

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestALimiterGivesABurstAndThenItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(10, 5)
		f := func(addr string, want int) {
			t.Helper()
			got := 0
			for range 100 {
				if l.take(netip.MustParseAddr(addr)) {
					got++
				}
			}
			if got != want {
				t.Errorf("%s: got %d, want %d", addr, got, want)
			}
		}
		f("192.0.2.1", 5)
		f("192.0.2.2", 5) // another one
		f("2001:db8:0:100::1", 5)
		f("2001:db8:0:1ff::2", 0) // the same /56
		f("2001:db8:0:200::1", 5)
		time.Sleep(100 * time.Millisecond)
		f("192.0.2.1", 1)
		time.Sleep(300 * time.Millisecond)
		f("192.0.2.1", 3)
		time.Sleep(time.Hour)
		f("192.0.2.1", 5)
	})
}

// A client over its rate stays known while many others come and go.
func TestALimiterForgetsTheFullestBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1, 1000)
		flooding := netip.MustParseAddr("192.0.2.1")
		for l.take(flooding) {
		}
		for i := range 10 * limitSets {
			l.take(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
		}
		if l.take(flooding) {
			t.Error("it was forgotten")
		}
	})
}

func TestALimiterDoesNotAllocate(t *testing.T) {
	l := newLimiter(10, 5)
	for _, text := range []string{"192.0.2.1", "2001:db8::1"} {
		addr := netip.MustParseAddr(text)
		if n := testing.AllocsPerRun(100, func() { l.take(addr) }); n != 0 {
			t.Errorf("%s: %v allocations", text, n)
		}
	}
	if l.take(netip.Addr{}); ClientPrefix(netip.Addr{}) != (netip.Prefix{}) {
		t.Error("no address has a prefix")
	}
}

func BenchmarkLimiter(b *testing.B) {
	l := newLimiter(1000, 1000)
	addrs := make([]netip.Addr, 1024)
	for i := range addrs {
		addrs[i] = netip.MustParseAddr(fmt.Sprintf("192.0.%d.%d", i/256, i%256))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		l.take(addrs[i%len(addrs)])
	}
}

func TestEachClientHasAHashOfItsOwn(t *testing.T) {
	t.Parallel()
	f := func(a, b string, same bool) {
		t.Helper()
		if got := ClientHash(netip.MustParseAddr(a)) == ClientHash(netip.MustParseAddr(b)); got != same {
			t.Errorf("%s and %s are one client: %v, want %v", a, b, got, same)
		}
	}
	f("192.0.2.1", "192.0.2.1", true)
	f("2001:db8::1", "2001:db8:0:ff::2", true)
	different := 0
	for i := range 100 {
		if ClientHash(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})) != ClientHash(netip.MustParseAddr("2001:db8::1")) {
			different++
		}
	}
	if different < 98 {
		t.Errorf("%d of 100 addresses differ from another", different)
	}
	if ClientHash(netip.Addr{}) != 0 {
		t.Error("no address has a class")
	}
}

package upstreams

import (
	"context"
	"encoding/binary"
	"syscall"
	"testing"
)

// kernelMessage returns a message of the kernel.
func kernelMessage(kind uint16, data ...byte) []byte {
	m := binary.NativeEndian.AppendUint32(nil, uint32(syscall.NLMSG_HDRLEN+len(data)))
	m = binary.NativeEndian.AppendUint16(m, kind)
	return append(append(m, make([]byte, syscall.NLMSG_HDRLEN-len(m))...), data...)
}

func linkMessage(index, flags uint32) []byte {
	data := binary.NativeEndian.AppendUint32(make([]byte, 4), index)
	data = binary.NativeEndian.AppendUint32(data, flags)
	return kernelMessage(syscall.RTM_NEWLINK, append(data, make([]byte, 4)...)...)
}

func route(kind uint16, table, routeType byte) []byte {
	return kernelMessage(kind, syscall.AF_INET, 0, 0, 0, table, 0, 0, routeType, 0, 0, 0, 0)
}

func address(scope byte) []byte {
	return kernelMessage(syscall.RTM_NEWADDR, syscall.AF_INET6, 64, 0, scope, 1, 0, 0, 0)
}

func TestOnlyLinksAddressesAndRoutesThatComeUpCallUp(t *testing.T) {
	carriers := make(map[int32]bool)
	f := func(what string, message []byte, want bool) {
		t.Helper()
		if got := changesIn(message, carriers); got.up != want {
			t.Errorf("%s: comes up %v, want %v", what, got.up, want)
		}
	}
	f("a link without a carrier", linkMessage(2, syscall.IFF_UP), false)
	f("its carrier", linkMessage(2, syscall.IFF_UP|syscall.IFF_RUNNING), true)
	f("the same again", linkMessage(2, syscall.IFF_UP|syscall.IFF_RUNNING), false)
	f("another's", linkMessage(3, syscall.IFF_UP|syscall.IFF_RUNNING), true)
	f("it goes", linkMessage(2, syscall.IFF_UP), false)
	f("and comes back", append(linkMessage(3, syscall.IFF_UP|syscall.IFF_RUNNING), linkMessage(2, syscall.IFF_UP|syscall.IFF_RUNNING)...), true)
	f("a global address", address(syscall.RT_SCOPE_UNIVERSE), true)
	f("a link-local address", address(syscall.RT_SCOPE_LINK), false)
	f("a route", route(syscall.RTM_NEWROUTE, syscall.RT_TABLE_MAIN, syscall.RTN_UNICAST), true)
	f("a route of the machine itself", route(syscall.RTM_NEWROUTE, syscall.RT_TABLE_LOCAL, syscall.RTN_LOCAL), false)
	f("a route goes", route(syscall.RTM_DELROUTE, syscall.RT_TABLE_MAIN, syscall.RTN_UNICAST), false)
	f("a route to nowhere goes", route(syscall.RTM_DELROUTE, syscall.RT_TABLE_MAIN, syscall.RTN_UNREACHABLE), true)
	f("garbage", []byte{1, 2, 3}, false)
	f("a message that is cut short", kernelMessage(syscall.RTM_NEWLINK, 1, 2), false)
}

func TestTheNetworkIsWatchedUntilTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- WatchNetwork(ctx, func() {}, func() {}) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAddressesLinksAndDefaultRoutesThatChangeCallChanged(t *testing.T) {
	carriers := make(map[int32]bool)
	f := func(what string, message []byte, want bool) {
		t.Helper()
		if got := changesIn(message, carriers); got.any != want {
			t.Errorf("%s: changed %v, want %v", what, got.any, want)
		}
	}
	gone := address(syscall.RT_SCOPE_UNIVERSE)
	binary.NativeEndian.PutUint16(gone[4:], syscall.RTM_DELADDR)
	f("an address", address(syscall.RT_SCOPE_LINK), true)
	f("an address goes", gone, true)
	f("a carrier", linkMessage(2, syscall.IFF_UP|syscall.IFF_RUNNING), true)
	f("the same again", linkMessage(2, syscall.IFF_UP|syscall.IFF_RUNNING), false)
	f("it goes", linkMessage(2, syscall.IFF_UP), true)
	f("the link goes", kernelMessage(syscall.RTM_DELLINK, make([]byte, syscall.SizeofIfInfomsg)...), true)
	f("a default route", route(syscall.RTM_NEWROUTE, syscall.RT_TABLE_MAIN, syscall.RTN_UNICAST), true)
	f("a default route of another table goes", route(syscall.RTM_DELROUTE, 52, syscall.RTN_UNICAST), true)
	one := route(syscall.RTM_NEWROUTE, syscall.RT_TABLE_MAIN, syscall.RTN_UNICAST)
	one[syscall.NLMSG_HDRLEN+1] = 24
	f("a route to one network", one, false)
}

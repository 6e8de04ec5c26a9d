package upstreams

import (
	"context"
	"encoding/binary"
	"syscall"
	"testing"
)

// told returns a message of the kernel.
func told(kind uint16, data ...byte) []byte {
	m := binary.NativeEndian.AppendUint32(nil, uint32(syscall.NLMSG_HDRLEN+len(data)))
	m = binary.NativeEndian.AppendUint16(m, kind)
	return append(append(m, make([]byte, syscall.NLMSG_HDRLEN-len(m))...), data...)
}

func link(index, flags uint32) []byte {
	data := binary.NativeEndian.AppendUint32(make([]byte, 4), index)
	data = binary.NativeEndian.AppendUint32(data, flags)
	return told(syscall.RTM_NEWLINK, append(data, make([]byte, 4)...)...)
}

func route(kind uint16, table, routeType byte) []byte {
	return told(kind, syscall.AF_INET, 0, 0, 0, table, 0, 0, routeType, 0, 0, 0, 0)
}

func address(scope byte) []byte {
	return told(syscall.RTM_NEWADDR, syscall.AF_INET6, 64, 0, scope, 1, 0, 0, 0)
}

func TestOnlyWhatComesUpIsNews(t *testing.T) {
	carriers := make(map[int32]bool)
	f := func(what string, message []byte, want bool) {
		t.Helper()
		if got := comesUp(message, carriers); got != want {
			t.Errorf("%s: news %v, want %v", what, got, want)
		}
	}
	f("a link without a carrier", link(2, syscall.IFF_UP), false)
	f("its carrier", link(2, syscall.IFF_UP|syscall.IFF_RUNNING), true)
	f("the same again", link(2, syscall.IFF_UP|syscall.IFF_RUNNING), false)
	f("another's", link(3, syscall.IFF_UP|syscall.IFF_RUNNING), true)
	f("it goes", link(2, syscall.IFF_UP), false)
	f("and comes back", append(link(3, syscall.IFF_UP|syscall.IFF_RUNNING), link(2, syscall.IFF_UP|syscall.IFF_RUNNING)...), true)
	f("a global address", address(syscall.RT_SCOPE_UNIVERSE), true)
	f("a link-local address", address(syscall.RT_SCOPE_LINK), false)
	f("a route", route(syscall.RTM_NEWROUTE, syscall.RT_TABLE_MAIN, syscall.RTN_UNICAST), true)
	f("a route of the machine itself", route(syscall.RTM_NEWROUTE, syscall.RT_TABLE_LOCAL, syscall.RTN_LOCAL), false)
	f("a route goes", route(syscall.RTM_DELROUTE, syscall.RT_TABLE_MAIN, syscall.RTN_UNICAST), false)
	f("a route to nowhere goes", route(syscall.RTM_DELROUTE, syscall.RT_TABLE_MAIN, syscall.RTN_UNREACHABLE), true)
	f("garbage", []byte{1, 2, 3}, false)
	f("a message that is cut short", told(syscall.RTM_NEWLINK, 1, 2), false)
}

func TestTheNetworkIsWatchedUntilTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- WatchNetwork(ctx, func() {}) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

package dottest

import (
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
)

// loopbacks counts the calls of Loopback.
var loopbacks atomic.Uint32

// Loopback returns an address of this machine that no other test process has, and no
// other call within the latest 253. A port that is free there stays free until the caller
// takes it: the sockets of others get their ports elsewhere.
//
// If this machine has no address but 127.0.0.1, as on systems other than Linux, it
// returns that.
func Loopback() netip.Addr {
	if runtime.GOOS != "linux" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	pid := os.Getpid()
	// Not .1: other programs listen at 127.0.0.1.
	return netip.AddrFrom4([4]byte{127, byte(pid >> 8), byte(pid), byte(2 + (loopbacks.Add(1)-1)%253)})
}

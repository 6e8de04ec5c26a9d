package dottest

import (
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
)

// loopbacks counts the calls of Loopback.
var loopbacks atomic.Uint32

// Loopback returns an address of this machine that no other test process has,
// and no other call within the latest 253. A port that is free there stays so
// until who asked takes it: the sockets of others get their ports elsewhere.
//
// Where only 127.0.0.1 is of this machine, as on anything but Linux, that is
// what it returns.
func Loopback() netip.Addr {
	if runtime.GOOS != "linux" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	pid := os.Getpid()
	// Not .1: the machine's own programs listen at 127.0.0.1.
	return netip.AddrFrom4([4]byte{127, byte(pid >> 8), byte(pid), byte(2 + (loopbacks.Add(1)-1)%253)})
}

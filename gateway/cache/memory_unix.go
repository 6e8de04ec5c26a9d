//go:build unix && !race

package cache

import "golang.org/x/sys/unix"

// allocate returns size octets of zeros. They are not of the Go heap: there,
// they would count as live, and the collector would let as much garbage gather
// again before it ran. The system gives pages as they are first written to.
func allocate(size int) ([]byte, error) {
	return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
}

func free(mem []byte) { _ = unix.Munmap(mem) }

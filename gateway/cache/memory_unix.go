//go:build unix && !race

package cache

import "golang.org/x/sys/unix"

// allocate returns size zero octets outside the Go heap. On the heap they would count as
// live, and the collector would let the same amount of garbage accumulate. The system
// allocates pages when they are first written to.
func allocate(size int) ([]byte, error) {
	return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
}

func free(mem []byte) { _ = unix.Munmap(mem) }

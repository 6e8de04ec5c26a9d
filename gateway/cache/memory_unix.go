//go:build unix && !race

package cache

import "syscall"

// allocate returns size octets of zeros. They are not of the Go heap: there,
// they would count as live, and the collector would let as much garbage gather
// again before it ran. The system gives pages as they are first written to.
func allocate(size int) ([]byte, error) {
	return syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
}

func free(mem []byte) { _ = syscall.Munmap(mem) }

//go:build !race

package cache

import "golang.org/x/sys/unix"

// hugePages asks for pages of 2 MiB: an answer may be anywhere in the memory, and
// to find the page is then a good part of finding the answer. Without them, a
// system has only been asked.
func hugePages(mem []byte) { _ = unix.Madvise(mem, unix.MADV_HUGEPAGE) }

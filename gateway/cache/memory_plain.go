//go:build unix && !linux && !race

package cache

func hugePages([]byte) {}

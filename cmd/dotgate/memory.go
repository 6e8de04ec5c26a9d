package main

import (
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"

	"dotgate/gateway/cache"
)

// openCache makes the cache, with what a file has of it, and shares out the memory
// between it and everything else.
func openCache(o cache.Options, log *slog.Logger) (*cache.Cache, error) {
	o.Size = affordable(o.Size, log)
	c, err := cache.New(o)
	if err != nil {
		return nil, err
	}
	// A file that can't be used costs its answers, and no more.
	if n, err := c.Load(); err != nil {
		log.Warn("starting with an empty cache", "err", err)
	} else if n > 0 {
		log.Info("read the cache", "answers", n, "file", o.File)
	}
	return c, nil
}

// affordable is shareMemory for a cache of this size here.
func affordable(size cache.Size, log *slog.Logger) cache.Size {
	return cache.Size(shareMemory(os.DirFS("/"), int64(size), log))
}

// roomForBoth reports whether this process may have the memory for a cache and, for
// a moment, what another has by now. If not, it would be killed for moving answers
// from one to the other. Root is the root of the file system.
func roomForBoth(root fs.FS, now cache.Usage, next cache.Size, log *slog.Logger) bool {
	limit, ok := memoryLimit(root)
	if !ok || next == cache.Size(now.Size) || int64(now.Bytes)+int64(next) <= limit/10*9-leastHeap {
		return true
	}
	log.Warn("the cache starts empty with its new size, for this process may not have the memory for both (cache.size)", "may_have", limit)
	return false
}

// shareMemory tells the Go runtime how much memory is left for it, and how often to
// collect, unless the environment does (GOMEMLIMIT, GOGC). It returns how much the
// cache may have: less than it should if the process may not have that much, and
// would be killed when the cache is full. Root is the root of the file system.
func shareMemory(root fs.FS, cache int64, log *slog.Logger) int64 {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	limit, ok := memoryLimit(root)
	if !ok {
		return cache
	}
	if most := max(limit/10*9-leastHeap, leastCache); cache > most {
		log.Warn("the cache is smaller than it should be (cache.size), for this process may not have the memory", "may_have", limit, "should_be", cache, "is", most)
		cache = most
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		heap := heapLimit(limit, cache)
		debug.SetMemoryLimit(heap)
		log.Debug("limited the Go heap", "container", limit, "cache", cache, "heap", heap)
	}
	return cache
}

// leastHeap is what the Go runtime needs, whatever is left: with a lower limit, the
// collector would run all the time. leastCache is the smallest cache that there is.
const (
	leastHeap  = 24 << 20
	leastCache = 1 << 20
)

// gcPercent is GOGC where it is not set. The cache is not on the heap, which is
// small then, and is collected often: at the usual 100, this is 9 % of the
// processor's time when all queries go to upstreams. 200 makes it 4 % for some
// 5 MiB, and 400 would make it 1 % for some 13 MiB.
const gcPercent = 200

// heapLimit returns what the Go runtime may use of what the process may: nine
// tenths, for the kernel has its share, and without the cache, which is not on
// its heap.
func heapLimit(limit, cache int64) int64 { return max(limit/10*9-cache, leastHeap) }

// memoryLimit returns how much memory the control group of this process may
// have, or one that it is part of; beyond that, the kernel kills. It reports
// false if there is no limit. Root is the root of the file system.
func memoryLimit(root fs.FS) (limit int64, ok bool) {
	limit = math.MaxInt64
	groups, _ := fs.ReadFile(root, "proc/self/cgroup")
	for line := range strings.Lines(string(groups)) {
		// "0::/path" for version 2, "4:cpu,memory:/path" for version 1.
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		switch {
		case fields[0] == "0" && fields[1] == "":
			limit = min(limit, leastLimit(root, "sys/fs/cgroup", fields[2], "memory.max"))
		case strings.Contains(","+fields[1]+",", ",memory,"):
			limit = min(limit, leastLimit(root, "sys/fs/cgroup/memory", fields[2], "memory.limit_in_bytes"))
		}
	}
	// Version 1 says that there is none with a number that no machine has.
	return limit, limit < 1<<50
}

// leastLimit returns the least limit of a group and those around it. Within a
// container, its own group may be the root of what can be seen, whatever the
// path says.
func leastLimit(root fs.FS, mount, group, file string) int64 {
	limit := int64(math.MaxInt64)
	for dir := path.Join(mount, group); strings.HasPrefix(dir, mount); dir = path.Dir(dir) {
		text, err := fs.ReadFile(root, path.Join(dir, file))
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 {
			limit = min(limit, n)
		}
	}
	return limit
}

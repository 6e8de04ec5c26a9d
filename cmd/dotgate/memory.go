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

// openCache makes the cache, with what a file has of it, and tells the Go
// runtime how much memory is left for everything else, unless the environment
// does (GOMEMLIMIT, GOGC).
func openCache(o cache.Options, log *slog.Logger) (*cache.Cache, error) {
	if limit, ok := memoryLimit(os.DirFS("/")); ok && os.Getenv("GOMEMLIMIT") == "" {
		heap := heapLimit(limit, int64(o.Size))
		debug.SetMemoryLimit(heap)
		log.Debug("limited the Go heap", "container", limit, "cache", int64(o.Size), "heap", heap)
		if heap == leastHeap {
			log.Warn("the cache leaves too little of the memory that this process may have (cache.size)", "may_have", limit, "cache", int64(o.Size))
		}
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
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

// leastHeap is what the Go runtime needs even if the cache leaves it less: with
// a lower limit, the collector would run all the time.
const leastHeap = 24 << 20

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

package server

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"dotgate/gateway/cache"
)

// openCache makes the cache, with what a file has of it if that comes from a
// configuration with the same digest, and shares out the memory between it and
// everything else.
func openCache(o cache.Options, digest *[sha256.Size]byte, log *slog.Logger) (*cache.Cache, error) {
	o.Size = affordable(o.Size, log)
	c, err := cache.New(o)
	if err != nil {
		return nil, err
	}
	c.Bind(digest)
	// A file that can't be used costs its answers, and no more.
	if n, err := c.Load(); errors.Is(err, cache.ErrOtherConfiguration) {
		log.Info("started with an empty cache", "reason", err)
	} else if err != nil {
		log.Warn("starting with an empty cache", "error", err)
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
	fits, limit := fittingCache(root, cache)
	if limit == 0 {
		return cache
	}
	if fits < cache {
		log.Warn("the cache is smaller than cache.size, because this process may not have the memory", "memory_limit", limit, "configured", cache, "size", fits)
		cache = fits
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		heap := heapLimit(limit, cache)
		debug.SetMemoryLimit(heap)
		log.Debug("limited the Go heap", "memory_limit", limit, "cache", cache, "heap", heap)
	}
	return cache
}

// fittingCache returns how large the cache may be of a process whose configuration asks
// for size, and how much memory that process may have; 0 if that is unknown. Root is the
// root of the file system.
func fittingCache(root fs.FS, size int64) (fits, limit int64) {
	limit, ok := memoryLimit(root)
	if !ok {
		return size, 0
	}
	return min(size, max(limit/10*9-leastHeap, leastCache)), limit
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

// memoryLimit returns how much memory this process may have: what its control group may
// have, or one that it is part of, beyond which the kernel kills; at most all that the
// machine has. It reports false if that is unknown. Root is the root of the file system.
func memoryLimit(root fs.FS) (limit int64, ok bool) {
	limit = machineMemory(root)
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

// machineMemory returns how much memory the machine has.
func machineMemory(root fs.FS) int64 {
	text, _ := fs.ReadFile(root, "proc/meminfo")
	for line := range strings.Lines(string(text)) {
		// "MemTotal:       24683520 kB"
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "MemTotal:" {
			if n, err := strconv.ParseInt(fields[1], 10, 64); err == nil && n > 0 && n < math.MaxInt64>>10 {
				return n << 10
			}
		}
	}
	return math.MaxInt64
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

// releaseAfter is the pause between the last cause to give memory back and doing so: a
// collection costs CPU time, and reloads may follow each other.
const releaseAfter = time.Second

// A memoryRelease gives memory back to the system after the start, after a reload and
// after the end of the upstreams that it has replaced: reading 70,000 names of routes
// takes several times what they need. The heap is then as small as before, but the runtime
// keeps what many reloads took. The zero memoryRelease is ready.
type memoryRelease struct {
	mu    sync.Mutex
	timer *time.Timer // or nil
}

// later gives memory back in releaseAfter. It does not block.
func (r *memoryRelease) later() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer == nil {
		r.timer = time.AfterFunc(releaseAfter, debug.FreeOSMemory)
		return
	}
	r.timer.Reset(releaseAfter)
}

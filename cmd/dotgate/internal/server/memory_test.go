package server

import (
	"bytes"
	"io/fs"
	"log/slog"
	"math"
	"runtime/debug"
	"strings"
	"testing"
	"testing/fstest"

	"dotgate/gateway/cache"
)

func TestMemoryLimitOfControlGroups(t *testing.T) {
	t.Parallel()
	f := func(want int64, files ...string) {
		t.Helper()
		root := make(fstest.MapFS)
		for i := 0; i < len(files); i += 2 {
			root[files[i]] = &fstest.MapFile{Data: []byte(files[i+1])}
		}
		got, ok := memoryLimit(root)
		if ok != (want > 0) || ok && got != want {
			t.Errorf("%v: got %d, %t", files, got, ok)
		}
	}
	const self = "proc/self/cgroup"
	f(0)
	f(0, self, "")
	f(0, self, "nonsense\n0::/\n")
	f(0, self, "0::/\n", "sys/fs/cgroup/memory.max", "max\n")
	f(64<<20, self, "0::/\n", "sys/fs/cgroup/memory.max", "67108864\n")
	const machine = "proc/meminfo"
	f(128<<20, machine, "MemTotal:         131072 kB\nMemFree:  1 kB\n")
	f(0, machine, "MemTotal:  nonsense kB\nMemTotal: 9223372036854775807 kB\nMemTotal:\n")
	f(64<<20, machine, "MemTotal:         131072 kB\n", self, "0::/\n", "sys/fs/cgroup/memory.max", "67108864\n")
	f(128<<20, machine, "MemTotal:         131072 kB\n", self, "0::/\n", "sys/fs/cgroup/memory.max", "671088640\n")
	f(64<<20, self, "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max", "67108864\n")
	f(32<<20, self, "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max", "67108864\n", "sys/fs/cgroup/a/memory.max", "33554432\n")
	f(32<<20, self, "0::/docker/elsewhere\n", "sys/fs/cgroup/memory.max", "33554432\n")
	f(64<<20, self, "4:cpu,memory:/docker/x\n1:name=systemd:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes", "67108864\n")
	f(0, self, "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
}

func TestHeapLimitLeavesRoomForTheCache(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ limit, cache, want int64 }{
		{1000 << 20, 100 << 20, 800 << 20},
		{1000 << 20, 0, 900 << 20},
		{64 << 20, 64 << 20, leastHeap},
		{1, 0, leastHeap},
	} {
		if got := heapLimit(test.limit, test.cache); got != test.want {
			t.Errorf("%+v: got %d", test, got)
		}
	}
}

// It is the process's own limit and percentage that are set, so it runs alone.
func TestMemoryIsSharedOutByTheContainersLimitUnlessTheEnvironmentSays(t *testing.T) {
	percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(-1)
	t.Cleanup(func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	})
	f := func(container, goMemLimit, goGC string, wantLimit int64, wantPercent int, wantCache int64) {
		t.Helper()
		debug.SetMemoryLimit(math.MaxInt64)
		debug.SetGCPercent(100)
		t.Setenv("GOMEMLIMIT", goMemLimit)
		t.Setenv("GOGC", goGC)
		root := fstest.MapFS{
			"proc/self/cgroup":         {Data: []byte("0::/\n")},
			"sys/fs/cgroup/memory.max": {Data: []byte(container + "\n")},
		}
		var said bytes.Buffer
		size := shareMemory(root, 64<<20, slog.New(slog.NewTextHandler(&said, nil)))
		if size != wantCache || strings.Contains(said.String(), "cache.size") != (size < 64<<20) {
			t.Errorf("%s: the cache has %d, want %d; it says %q", container, size, wantCache, said.String())
		}
		if got := debug.SetMemoryLimit(-1); got != wantLimit {
			t.Errorf("%s: the heap may have %d, want %d", container, got, wantLimit)
		}
		if got := debug.SetGCPercent(100); got != wantPercent {
			t.Errorf("%s: GOGC is %d, want %d", container, got, wantPercent)
		}
	}
	const quarter = 256 << 20
	f("max", "", "", math.MaxInt64, 200, 64<<20)
	f("268435456", "", "", quarter/10*9-64<<20, 200, 64<<20)
	f("268435456", "1GiB", "", math.MaxInt64, 200, 64<<20) // the runtime has read it
	f("268435456", "", "50", quarter/10*9-64<<20, 100, 64<<20)
	f("67108864", "", "", 24<<20, 200, 64<<20/10*9-24<<20)
	f("67108864", "1GiB", "", math.MaxInt64, 200, 64<<20/10*9-24<<20)
	f("16777216", "", "", 24<<20, 200, 1<<20)
}

func TestTwoCachesNeedRoomForBoth(t *testing.T) {
	t.Parallel()
	root := fstest.MapFS{
		"proc/self/cgroup":         {Data: []byte("0::/\n")},
		"sys/fs/cgroup/memory.max": {Data: []byte("134217728\n")}, // 128 MiB, of which caches may have 91
	}
	for _, test := range []struct {
		root            fs.FS
		bytes, size     int
		next            cache.Size
		want, wantsWord bool
	}{
		{root, 10 << 20, 64 << 20, 80 << 20, true, false},
		{root, 60 << 20, 64 << 20, 80 << 20, false, true},
		{root, 60 << 20, 64 << 20, 64 << 20, true, false}, // it stays
		{fstest.MapFS{}, 60 << 20, 64 << 20, 80 << 20, true, false},
	} {
		var log bytes.Buffer
		got := roomForBoth(test.root, cache.Usage{Bytes: test.bytes, Size: test.size}, test.next, slog.New(slog.NewTextHandler(&log, nil)))
		if got != test.want || strings.Contains(log.String(), "cache.size") != test.wantsWord {
			t.Errorf("%d of %d to %v: got %v, %s", test.bytes, test.size, test.next, got, log.String())
		}
	}
}

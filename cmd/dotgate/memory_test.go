package main

import (
	"testing"
	"testing/fstest"
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

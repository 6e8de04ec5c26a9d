package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// heapLeft is what the Go heap may have of the machine's memory some seconds after
// reloads: 8 to 16 MB, and twice as much if what they took is not given back.
const heapLeft = 20e6

// TestReloadsGiveTheirMemoryBack replaces all upstreams, again and again.
func TestReloadsGiveTheirMemoryBack(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "dotgate.yaml")
	write := func(n int) {
		t.Helper()
		text := "upstreams:\n"
		for _, name := range []string{"a", "b", "c"} {
			text += fmt.Sprintf("  - {name: %s, addresses: [\"127.0.0.1:1\"], server_name: %s%d.example}\n", name, name, n)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(0)
	p := newProgram(t, nil, "serve", "-c", file)
	socket := filepath.Join(t.TempDir(), "sock")
	admin := p.addr[:len(p.addr)-len("5300")] + "8053"
	p.Env = []string{
		"DOTGATE_GATEWAY_LISTEN=" + p.addr, "DOTGATE_ADMIN_LISTEN=" + admin, "DOTGATE_CONTROL_SOCKET=" + socket,
		"DOTGATE_RELOAD_WATCH=false", "DOTGATE_CACHE_SIZE=1MiB", // with -race, the cache is on the Go heap
		"GORACE=atexit_sleep_ms=0",
	}
	p.run()
	p.answers()
	client := clientAt(t, socket)
	for n := range 100 {
		write(n + 1)
		reloads(t, client)
	}
	before := residentHeap(t, admin)
	until(t, "the memory is given back", func() bool { return residentHeap(t, admin) <= heapLeft })
	t.Logf("%d octets, then %d", before, residentHeap(t, admin))
}

var memstats = regexp.MustCompile(`(?m)^go_memstats_heap_(sys|released)_bytes (\S+)$`)

// residentHeap returns how much of the machine's memory the heap of a gateway has.
func residentHeap(t *testing.T, admin string) int {
	t.Helper()
	response, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, found := range memstats.FindAllStringSubmatch(string(text), -1) {
		values[found[1]], _ = strconv.ParseFloat(found[2], 64)
	}
	if values["sys"] == 0 {
		t.Fatalf("no figures in %s", text)
	}
	return int(values["sys"] - values["released"])
}

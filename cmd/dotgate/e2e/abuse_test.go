//go:build linux && e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// long is whether abuse goes on for as long as it takes to be sure: E2E_LONG=1, as
// make e2e-long has it.
var long = os.Getenv("E2E_LONG") != ""

// either returns what there is to do in the short form, or in the long one.
func either[T any](short, full T) T {
	if long {
		return full
	}
	return short
}

// steadily asks for 200 new names a second while f runs, and checks that none of
// them is lost and how long they take.
func steadily(t *testing.T, g *gateway, run string, f func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var client sync.WaitGroup
	client.Go(func() {
		for round := 0; ctx.Err() == nil; round++ {
			o := dottestLoad(g.addr, fmt.Sprintf("%s%d", run, round), 200, 200).run(t)
			o.mustBeWhole(t)
		}
	})
	f()
	stop()
	client.Wait()
}

// TestAStormOfMutatedPackets checks that nothing but well-formed queries gets an
// answer, nobody else notices, and every packet is accounted for.
func TestAStormOfMutatedPackets(t *testing.T) {
	packets := either(100_000, 1_000_000)
	_, urls := startUpstreams(t, 5*time.Millisecond, 8*time.Millisecond)
	socket := filepath.Join(t.TempDir(), "control.sock")
	g := startGateway(t, urls, "DOTGATE_CONTROL_SOCKET="+socket)
	warmUp(t, g.addr)
	storm(t, g.addr, packets/5) // so that buffers are as large as they get
	before := g.memory(t)
	steadily(t, g, "storm", func() { storm(t, g.addr, packets) })
	if grown := g.memory(t) - before; grown > 30<<20 {
		t.Errorf("memory grew by %d MiB", grown>>20)
	} else {
		t.Logf("memory grew by %d KiB over %d packets", grown>>10, packets)
	}
	code, said := command(t, []string{"DOTGATE_CONTROL_SOCKET=" + socket}, "status", "--json")
	var status struct {
		Clients struct {
			UDP, TCP uint64
			Outcomes map[string]uint64
		}
	}
	if err := json.Unmarshal([]byte(said), &status); code != 0 || err != nil {
		t.Fatalf("status: %d, %v: %s", code, err, said)
	}
	var sum uint64
	for _, n := range status.Clients.Outcomes {
		sum += n
	}
	if received := status.Clients.UDP + status.Clients.TCP; sum != received || status.Clients.Outcomes["crashed"] > 0 {
		t.Errorf("received %d, accounted for %d: %v", received, sum, status.Clients.Outcomes)
	}
}

// storm sends mutated packets as fast as it can.
func storm(t *testing.T, to netip.AddrPort, packets int) {
	t.Helper()
	c, err := net.Dial("udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	random := rand.New(rand.NewPCG(1, uint64(packets)))
	seed := newQuery(4711, "www.storm.example.org")
	for i := range packets {
		packet := append([]byte(nil), seed...)
		for range 1 + random.IntN(4) {
			at := random.IntN(len(packet))
			switch random.IntN(5) {
			case 0, 1:
				packet[at] = byte(random.Uint32())
			case 2:
				packet[at] ^= 1 << random.IntN(8)
			case 3:
				packet = append(packet[:at+1], packet[at:]...)
			case 4:
				packet = packet[:at+1]
			}
		}
		_, _ = c.Write(packet)
		if i%1000 == 999 {
			time.Sleep(2 * time.Millisecond) // for the sockets' buffers
		}
	}
}

// TestRandomNamesBelowSilentServers asks for new names below a domain whose servers
// are silent, and for others beside.
func TestRandomNamesBelowSilentServers(t *testing.T) {
	const rate = 2000
	lasts := either(10*time.Second, 60*time.Second)
	servers, urls := startUpstreams(t, 5*time.Millisecond, 8*time.Millisecond, 10*time.Millisecond)
	g := startGateway(t, urls)
	warmUp(t, g.addr)
	before, asked := g.memory(t), queries(servers)
	attack := load{
		to: g.addr, network: "udp", sockets: 64, queries: int(lasts.Seconds() * rate), rate: rate, patience: 100 * time.Millisecond,
		name:    func(i int) string { return fmt.Sprintf("n%d.never.victim.example", i) },
		address: dottest.Address,
	}
	var o outcome
	steadily(t, g, "others", func() { o = attack.run(t) })
	asked = queries(servers) - asked
	steady := 200 * int(lasts/time.Second+2)
	t.Logf("%d queries below a silent domain: %v; upstreams were asked %d times; memory grew by %d MiB",
		attack.queries, o.problems, asked, (g.memory(t)-before)>>20)
	if most := steady + 3*(rate+150*int(lasts/time.Second)); asked > most {
		t.Errorf("upstreams were asked %d times, more than %d", asked, most)
	}
	if grown := g.memory(t) - before; grown > 100<<20 {
		t.Errorf("memory grew by %d MiB", grown>>20)
	}
	if g.output.contains("is down") {
		t.Error("an upstream was taken out")
	}
	time.Sleep(time.Second)
	dottestLoad(g.addr, "after", 200, 200).run(t).mustBeWhole(t)
}

// TestAnUpstreamThatTakesFiveSeconds asks for more than can wait for it.
func TestAnUpstreamThatTakesFiveSeconds(t *testing.T) {
	const rate = 5000
	lasts := either(12*time.Second, 60*time.Second)
	_, urls := startUpstreams(t, time.Millisecond)
	g := startGateway(t, urls)
	warmUp(t, g.addr)
	hits := dottestLoad(g.addr, "hits", 200, 0)
	hits.run(t).mustBeWhole(t)
	before := g.memory(t)
	attack := load{
		to: g.addr, network: "udp", sockets: 64, queries: int(lasts.Seconds() * rate), rate: rate, patience: time.Second,
		name:    func(i int) string { return fmt.Sprintf("n%d.d5000.slow%d.example", i, i%1000) },
		address: dottest.Address,
	}
	done := make(chan outcome)
	go func() { done <- attack.run(t) }()
	worst, most := time.Duration(0), 0
	for under := true; under; {
		hits.rate = 1000
		o := hits.run(t)
		if o.failed() > 0 {
			t.Errorf("hits: %v", o)
		}
		worst, most = max(worst, o.quantile(0.99)), max(most, g.memory(t))
		select {
		case o := <-done:
			t.Logf("%d queries for slow names: %v", attack.queries, o)
			under = false
		default:
		}
	}
	t.Logf("hits had a p99 of %v at worst; memory grew by %d MiB", worst, (most-before)>>20)
	// Clients, gateway and upstream share two processors, and CI's are busy: in the
	// short form, figures that are not as promised are told.
	complain := either(t.Logf, t.Errorf)
	if worst > 20*time.Millisecond {
		complain("NOT AS PROMISED: hits had a p99 of %v", worst)
	}
	if grown := most - before; grown > 100<<20 {
		complain("NOT AS PROMISED: memory grew by %d MiB", grown>>20)
	}
}

// TestSoak asks 2000 times a second, 60 % of it for names that are known, for as
// long as SOAK says: nothing is lost, and nothing grows.
func TestSoak(t *testing.T) {
	lasts, err := time.ParseDuration(os.Getenv("SOAK"))
	if err != nil {
		t.Skip("make soak runs it, with SOAK=30m")
	}
	_, urls := startUpstreams(t, 5*time.Millisecond, 8*time.Millisecond, 10*time.Millisecond)
	// A cache that is full after two minutes, so that memory has its size by then.
	g := startGateway(t, urls, "DOTGATE_CACHE_SIZE=8MiB")
	warmUp(t, g.addr)
	const perRound = 20_000
	var memory, files int
	for round, began := 0, time.Now(); time.Since(began) < lasts; round++ {
		l := dottestLoad(g.addr, "", perRound, 2000)
		l.name = func(i int) string {
			if i%10 < 6 {
				return fmt.Sprintf("n%d.hot.example.com", i%1000)
			}
			return fmt.Sprintf("n%d.r%d.example%d.com", i, round, i%500)
		}
		l.run(t).mustBeWhole(t)
		now, open := g.memory(t), g.files(t)
		t.Logf("after %v: %d MiB, %d files", time.Since(began).Round(time.Second), now>>20, open)
		switch {
		case time.Since(began) < 2*time.Minute:
		case memory == 0:
			memory, files = now, open
		case now > memory+memory/20 || open > files+8:
			t.Errorf("memory went from %d to %d KiB, files from %d to %d", memory>>10, now>>10, files, open)
		}
	}
}

// files returns how many files and sockets p has open.
func (p *process) files(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

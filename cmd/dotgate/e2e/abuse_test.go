//go:build linux && e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// long selects the long form of the abuse tests: E2E_LONG=1, set by make e2e-long.
var long = os.Getenv("E2E_LONG") != ""

// either returns its first argument in the short form, its second one in the long form.
func either[T any](short, full T) T {
	if long {
		return full
	}
	return short
}

// noise is the difference of latencies without any abuse: clients, gateway and upstreams
// share two processors.
const noise = 5 * time.Millisecond

// complain reports a figure over its limit. In the short form, which runs on busy
// machines, it is logged; in the long form it fails the test.
func complain(t *testing.T, format string, args ...any) {
	t.Helper()
	either(t.Logf, t.Errorf)("OVER THE LIMIT: "+format, args...)
}

// otherClientsUnharmed has another client send 200 queries a second before the abuse,
// during it, and from one second after its end. No query may be lost, and p99 may at most
// double.
func otherClientsUnharmed(t *testing.T, g *gateway, second func(run string) load, abuse func()) {
	t.Helper()
	ask := func(run string) outcome { return second(run).run(t) }
	var before, during, after outcome
	for i := range 3 {
		before.add(ask(fmt.Sprintf("before%d", i)))
	}
	over := make(chan struct{})
	began, starved := time.Now(), g.starved(t)
	go func() {
		defer close(over)
		abuse()
	}()
	for round, going := 0, true; going; round++ {
		during.add(ask(fmt.Sprintf("during%d", round)))
		select {
		case <-over:
			going = false
		default:
		}
	}
	<-over
	t.Logf("in %v, threads of dotgate were ready for %v without getting a processor", time.Since(began).Round(time.Second), g.starved(t)-starved)
	time.Sleep(time.Second)
	for i := range 2 {
		after.add(ask(fmt.Sprintf("after%d", i)))
	}
	most := max(2*before.quantile(0.99), before.quantile(0.99)+noise)
	for _, phase := range []struct {
		when string
		o    outcome
	}{{"before", before}, {"meanwhile", during}, {"a second later", after}} {
		t.Logf("%s: %v", phase.when, phase.o)
		if phase.o.failed() > 0 || len(phase.o.problems) > 0 {
			t.Errorf("%s, not every query of others has its answer: %v", phase.when, phase.o)
		}
		if p99 := phase.o.quantile(0.99); p99 > most {
			complain(t, "%s, others have a p99 of %v, more than %v", phase.when, p99, most)
		}
	}
}

// newNames returns a function that makes the load of one second, of new names.
func newNames(to netip.AddrPort, network string) func(run string) load {
	return func(run string) load {
		l := dottestLoad(to, run, 200, 200)
		l.network = network
		return l
	}
}

// memoryGrowth checks the maximum growth of the gateway's memory while f runs.
func memoryGrowth(t *testing.T, g *gateway, most int, f func()) {
	t.Helper()
	before, worst := g.memory(t), 0
	over := make(chan struct{})
	go func() {
		defer close(over)
		f()
	}()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for going := true; going; {
		select {
		case <-over:
			going = false
		case <-look.C:
		}
		worst = max(worst, g.memory(t))
	}
	t.Logf("memory grew by %d MiB, from %d", (worst-before)>>20, before>>20)
	if worst-before > most {
		complain(t, "memory grew by %d MiB, more than %d", (worst-before)>>20, most>>20)
	}
}

// checkOutcomes checks that each received packet has one outcome, and that none is a
// panic. It returns the outcomes.
func checkOutcomes(t *testing.T, socket string) map[string]uint64 {
	t.Helper()
	var status struct {
		Clients struct {
			UDP, TCP uint64
			Outcomes map[string]uint64
		}
	}
	code, said := command(t, []string{"DOTGATE_CONTROL_SOCKET=" + socket}, "status", "--json")
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
	return status.Clients.Outcomes
}

// startAbused starts a gateway with fast upstreams, and returns its control socket, too.
func startAbused(t *testing.T, more ...string) (g *gateway, servers []*dottest.Server, socket string) {
	t.Helper()
	servers, urls := startUpstreams(t, 5*time.Millisecond, 8*time.Millisecond, 10*time.Millisecond)
	socket = filepath.Join(t.TempDir(), "control.sock")
	g = startGateway(t, urls, append([]string{"DOTGATE_CONTROL_SOCKET=" + socket}, more...)...)
	warmUp(t, g.addr)
	return g, servers, socket
}

// TestMutatedPacketsAtAHighRate checks that only well-formed queries get an answer, that
// other clients are unharmed, and that each packet has an outcome.
func TestMutatedPacketsAtAHighRate(t *testing.T) {
	g, _, socket := startAbused(t)
	sendPackets(t, g.addr, 20_000, mutations(1)) // so that buffers have their full size
	memoryGrowth(t, g, 30<<20, func() {
		otherClientsUnharmed(t, g, newNames(g.addr, "udp"), func() { sendPackets(t, g.addr, either(100_000, 1_000_000), mutations(2)) })
	})
	checkOutcomes(t, socket)
}

// sendPackets sends packets almost as fast as it can.
func sendPackets(t *testing.T, to netip.AddrPort, packets int, packet func() []byte) {
	t.Helper()
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(dottest.Loopback(), 0))}
	c, err := d.Dial("udp", to.String())
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	for i := range packets {
		_, _ = c.Write(packet())
		if i%1000 == 999 {
			time.Sleep(2 * time.Millisecond) // so that socket buffers do not overflow
		}
	}
}

// mutations returns a function that makes queries with some octets changed.
func mutations(seed uint64) func() []byte {
	random := rand.New(rand.NewPCG(1, seed))
	query := newQuery(4711, "www.storm.example.org")
	return func() []byte {
		packet := append([]byte(nil), query...)
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
		return packet
	}
}

// TestAFloodFromClientsThatAreNotAllowed checks that they get a few refusals, and that other
// clients are unharmed.
func TestAFloodFromClientsThatAreNotAllowed(t *testing.T) {
	g, _, socket := startAbused(t, "DOTGATE_GATEWAY_ALLOW=127.0.0.1/32")
	packets := either(100_000, 1_000_000)
	query := newQuery(4711, "www.example.com")
	otherClientsUnharmed(t, g, newNames(g.addr, "udp"), func() {
		sendPackets(t, g.addr, packets, func() []byte { return query })
	})
	outcomes := checkOutcomes(t, socket)
	if refused, ignored := outcomes["refused_client"], outcomes["ignored_client"]; refused == 0 || refused > 200 || ignored < uint64(packets)*9/10 {
		t.Errorf("of %d packets, %d were refused and %d ignored", packets, refused, ignored)
	}
}

// TestRandomNamesBelowSilentServers asks for new names below a domain whose servers
// are silent, and for other names.
func TestRandomNamesBelowSilentServers(t *testing.T) {
	rate, lasts := either(2000, 10_000), either(10*time.Second, 60*time.Second)
	g, servers, socket := startAbused(t)
	asked := queries(servers)
	attack := load{
		to: g.addr, network: "udp", sockets: 64, queries: int(lasts.Seconds()) * rate, rate: rate, patience: 100 * time.Millisecond,
		name:    func(i int) string { return fmt.Sprintf("n%d.never.victim.example", i) },
		address: dottest.Address,
	}
	memoryGrowth(t, g, 100<<20, func() {
		otherClientsUnharmed(t, g, newNames(g.addr, "udp"), func() { t.Log("the attack:", attack.run(t)) })
	})
	asked = queries(servers) - asked
	t.Logf("upstreams were asked %d times", asked)
	// The names of one second before it is detected, and then as many as may be pending.
	steady := 200 * int(lasts/time.Second+8)
	if most := steady + 3*(rate+150*int(lasts/time.Second)); asked > most {
		t.Errorf("upstreams were asked %d times, more than %d", asked, most)
	}
	if g.output.contains("is down") {
		t.Error("an upstream was taken out")
	}
	checkOutcomes(t, socket)
}

// TestAnUpstreamThatTakesFiveSeconds sends more queries than can be pending: those in the
// cache are answered as before, the others get SERVFAIL at once or after the timeout.
func TestAnUpstreamThatTakesFiveSeconds(t *testing.T) {
	const rate = 5000
	lasts := either(12*time.Second, 60*time.Second)
	_, urls := startUpstreams(t, time.Millisecond)
	socket := filepath.Join(t.TempDir(), "control.sock")
	g := startGateway(t, urls, "DOTGATE_CONTROL_SOCKET="+socket)
	warmUp(t, g.addr)
	hits := func(string) load { return dottestLoad(g.addr, "hits", 200, 200) }
	attack := load{
		to: g.addr, network: "udp", sockets: 64, queries: int(lasts.Seconds()) * rate, rate: rate, patience: time.Second,
		name:    func(i int) string { return fmt.Sprintf("n%d.d5000.slow%d.example", i, i%1000) },
		address: dottest.Address,
	}
	var o outcome
	memoryGrowth(t, g, 100<<20, func() {
		otherClientsUnharmed(t, g, hits, func() { o = attack.run(t) })
	})
	t.Logf("the attack: %v", o)
	// SERVFAIL because of overload comes at once, SERVFAIL after the timeout after seconds.
	waited, _ := slices.BinarySearch(o.refused, time.Second)
	atOnce := o.refused[:waited]
	t.Logf("%d were refused at once, with a p99 of %v", len(atOnce), quantile(atOnce, 0.99))
	if len(atOnce) == 0 {
		t.Error("no query was refused")
	}
	if p99 := quantile(atOnce, 0.99); p99 > 5*time.Millisecond {
		complain(t, "SERVFAIL because of overload took %v", p99)
	}
	checkOutcomes(t, socket)
}

// TestTenThousandIdleConnections opens 10,000 connections from one address and sends
// nothing. Other TCP clients get their answers within 100 ms.
func TestTenThousandIdleConnections(t *testing.T) {
	g, _, socket := startAbused(t)
	otherClientsUnharmed(t, g, newNames(g.addr, "tcp"), func() {
		var crowd []net.Conn
		defer func() {
			for _, c := range crowd {
				c.Close()
			}
		}()
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(dottest.Loopback(), 0)), Timeout: startLimit}
		worst := time.Duration(0)
		for i := range 10_000 {
			c, err := d.Dial("tcp", g.addr.String())
			if err != nil {
				t.Error(err)
				return
			}
			crowd = append(crowd, c)
			if i%200 == 0 {
				began := time.Now()
				l := dottestLoad(g.addr, fmt.Sprintf("comes%d", i), 1, 0)
				l.network, l.sockets = "tcp", 1
				if o := l.run(t); o.failed() > 0 {
					t.Errorf("another client got no answer: %v", o)
				}
				worst = max(worst, time.Since(began))
			}
		}
		t.Logf("other clients got their answers after at most %v", worst)
		if worst > 100*time.Millisecond {
			complain(t, "another client waited for %v", worst)
		}
	})
	checkOutcomes(t, socket)
}

// TestClientsThatDoNotRead asks for long answers on many connections and reads none.
func TestClientsThatDoNotRead(t *testing.T) {
	g, _, socket := startAbused(t)
	lasts := either(8*time.Second, 30*time.Second)
	query := newQuery(1, "big60000.example.com")
	query = append([]byte{byte(len(query) >> 8), byte(len(query))}, query...)
	memoryGrowth(t, g, 100<<20, func() {
		otherClientsUnharmed(t, g, newNames(g.addr, "tcp"), func() {
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(dottest.Loopback(), 0)), Timeout: startLimit}
			var clients sync.WaitGroup
			for range 200 {
				clients.Go(func() { requestWithoutReading(t, d, g.addr, query, time.Now().Add(lasts)) })
			}
			clients.Wait()
		})
	})
	checkOutcomes(t, socket)
}

// requestWithoutReading sends queries on one connection after the other, until a time.
func requestWithoutReading(t *testing.T, d net.Dialer, to netip.AddrPort, query []byte, end time.Time) {
	for time.Now().Before(end) {
		c, err := d.Dial("tcp", to.String())
		if err != nil {
			t.Error(err)
			return
		}
		_ = c.SetDeadline(end)
		_ = c.(*net.TCPConn).SetReadBuffer(4096) // so that it is soon full
		for err == nil {
			_, err = c.Write(query)
			time.Sleep(100 * time.Millisecond)
		}
		c.Close()
	}
}

// TestNewNamesDoNotEvictNamesInUse asks for several times the new names that fit into
// the cache, and for 200 names each second: upstreams are asked for each of those once.
func TestNewNamesDoNotEvictNamesInUse(t *testing.T) {
	const hot, span = 200, 5 // names, and seconds of a round
	rounds, rate, size := either(1, 120), either(8000, 2000), either("1MiB", "16MiB")
	s := startUpstream(t, dottest.Options{RTT: time.Millisecond, CountNames: true})
	g := startGateway(t, []string{url(s.Addr())}, "DOTGATE_CACHE_SIZE="+size)
	warmUp(t, g.addr)
	// First they become popular: they are asked for each second, for some time.
	popular := dottestLoad(g.addr, "", hot*span, hot)
	popular.name = func(i int) string { return fmt.Sprintf("n%d.ttl86400.hot.example.com", i%hot) }
	popular.run(t).mustBeWhole(t)
	for round := range rounds {
		var flood sync.WaitGroup
		flood.Go(func() { dottestLoad(g.addr, fmt.Sprintf("new%d", round), rate*span, rate).run(t).mustBeWhole(t) })
		popular.run(t).mustBeWhole(t)
		flood.Wait()
	}
	asked, names := 0, s.Stats().Names
	for name, n := range names {
		if strings.HasSuffix(name, ".hot.example.com.") {
			asked += n
		}
	}
	t.Logf("the upstream was asked %d times for %d hot names, among %d", asked, hot, len(names))
	// A name whose answer was slow once may be asked for again.
	if asked < hot || asked > hot+hot/50 || len(names) < rounds*span*rate {
		t.Errorf("the upstream was asked %d times for %d hot names, and for %d in all", asked, hot, len(names))
	}
}

// TestSoak sends 2000 queries a second, 60 % of them for names in the cache, for the
// duration SOAK: no query is lost, and memory, files and goroutines do not grow.
func TestSoak(t *testing.T) {
	lasts, err := time.ParseDuration(os.Getenv("SOAK"))
	if err != nil {
		t.Skip("make soak runs it, with SOAK=30m")
	}
	_, urls := startUpstreams(t, 5*time.Millisecond, 8*time.Millisecond, 10*time.Millisecond)
	// The cache is full after two minutes, and memory has its final size.
	operators := netip.AddrPortFrom(dottest.Loopback(), 8053)
	g := startGateway(t, urls, "DOTGATE_CACHE_SIZE=8MiB", "DOTGATE_ADMIN_LISTEN="+operators.String())
	warmUp(t, g.addr)
	const perRound = 20_000
	var memory, files, routines []int // from minute 2 on
	for round, began := 0, time.Now(); time.Since(began) < lasts; round++ {
		l := dottestLoad(g.addr, "", perRound, 2000)
		l.name = func(i int) string {
			if i%10 < 6 {
				return fmt.Sprintf("n%d.hot.example.com", i%1000)
			}
			return fmt.Sprintf("n%d.r%d.example%d.com", i, round, i%500)
		}
		l.run(t).mustBeWhole(t)
		now, open, running := g.memory(t), g.files(t), goroutines(t, operators)
		t.Logf("after %v: %d MiB, %d files, %d goroutines", time.Since(began).Round(time.Second), now>>20, open, running)
		if time.Since(began) > 2*time.Minute {
			memory, files, routines = append(memory, now), append(files, open), append(routines, running)
		}
	}
	// Bursts of a busy machine and the garbage collector make some MiB of difference, so
	// the medians of the first and of the last minutes are compared.
	flat(t, "octets of memory", memory, 4<<20)
	flat(t, "files", files, 2)
	flat(t, "goroutines", routines, 4)
}

// flat checks that a series does not grow by more than 5 %, or by noise.
func flat(t *testing.T, what string, series []int, noise int) {
	t.Helper()
	if len(series) < 4 {
		t.Fatalf("%d samples are too few: SOAK must be longer than that", len(series))
	}
	middle := func(part []int) int { return slices.Sorted(slices.Values(part))[len(part)/2] }
	quarter := len(series) / 4
	first, last := middle(series[:quarter]), middle(series[len(series)-quarter:])
	t.Logf("%s: from %d to %d", what, first, last)
	if last > first+max(first/20, noise) {
		t.Errorf("%s went from %d to %d", what, first, last)
	}
}

// goroutines returns the number of goroutines of a gateway, by its metrics.
func goroutines(t *testing.T, operators netip.AddrPort) (n int) {
	t.Helper()
	reply, err := http.Get("http://" + operators.String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err == nil {
		n, err = strconv.Atoi(found(string(text), `(?m)^go_goroutines (\d+)$`))
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// starved returns the time that threads of p were runnable but did not run, to judge
// latencies on a busy machine.
func (p *process) starved(t *testing.T) (total time.Duration) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		var ran, waited int64
		if text, err := os.ReadFile(thread); err == nil { // otherwise it has ended
			_, _ = fmt.Sscan(string(text), &ran, &waited)
		}
		total += time.Duration(waited)
	}
	return total.Round(time.Millisecond)
}

// files returns the number of open files and sockets of p.
func (p *process) files(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

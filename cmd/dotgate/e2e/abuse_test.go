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

// noise is by how much a latency may grow although nobody harms it: clients, gateway
// and upstreams share two processors.
const noise = 5 * time.Millisecond

// complain is for figures that are not as promised. In the short form, which others
// may run on a busy machine, they are told; in the long one, they fail.
func complain(t *testing.T, format string, args ...any) {
	t.Helper()
	either(t.Logf, t.Errorf)("NOT AS PROMISED: "+format, args...)
}

// endures has somebody else ask, 200 times a second, before the abuse, while it goes on,
// and from one second after its end: nothing is lost, and the p99 at most doubles.
func endures(t *testing.T, g *gateway, second func(run string) load, abuse func()) {
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

// newNames returns what makes a second's queries for names that nobody has asked for.
func newNames(to netip.AddrPort, network string) func(run string) load {
	return func(run string) load {
		l := dottestLoad(to, run, 200, 200)
		l.network = network
		return l
	}
}

// grows checks how much memory the gateway takes on top while f runs, at its worst.
func grows(t *testing.T, g *gateway, most int, f func()) {
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

// accounted checks that each packet that came in has had one outcome, and none a panic,
// and returns the outcomes.
func accounted(t *testing.T, socket string) map[string]uint64 {
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

// abused starts a gateway with fast upstreams, and one's socket for operators.
func abused(t *testing.T, more ...string) (g *gateway, servers []*dottest.Server, socket string) {
	t.Helper()
	servers, urls := startUpstreams(t, 5*time.Millisecond, 8*time.Millisecond, 10*time.Millisecond)
	socket = filepath.Join(t.TempDir(), "control.sock")
	g = startGateway(t, urls, append([]string{"DOTGATE_CONTROL_SOCKET=" + socket}, more...)...)
	warmUp(t, g.addr)
	return g, servers, socket
}

// TestAStormOfMutatedPackets checks that nothing but well-formed queries gets an
// answer, nobody else notices, and every packet is accounted for.
func TestAStormOfMutatedPackets(t *testing.T) {
	g, _, socket := abused(t)
	storm(t, g.addr, 20_000, mutations(1)) // so that buffers are as large as they get
	grows(t, g, 30<<20, func() {
		endures(t, g, newNames(g.addr, "udp"), func() { storm(t, g.addr, either(100_000, 1_000_000), mutations(2)) })
	})
	accounted(t, socket)
}

// storm sends packets almost as fast as it can.
func storm(t *testing.T, to netip.AddrPort, packets int, packet func() []byte) {
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
			time.Sleep(2 * time.Millisecond) // for the sockets' buffers
		}
	}
}

// mutations returns what makes a query with some octets changed.
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

// TestAFloodFromThoseWhoMayNotAsk checks that they get a few refusals, and nobody else
// notices.
func TestAFloodFromThoseWhoMayNotAsk(t *testing.T) {
	g, _, socket := abused(t, "DOTGATE_GATEWAY_ALLOW=127.0.0.1/32")
	packets := either(100_000, 1_000_000)
	query := newQuery(4711, "www.example.com")
	endures(t, g, newNames(g.addr, "udp"), func() {
		storm(t, g.addr, packets, func() []byte { return query })
	})
	outcomes := accounted(t, socket)
	if refused, ignored := outcomes["refused_client"], outcomes["ignored_client"]; refused == 0 || refused > 200 || ignored < uint64(packets)*9/10 {
		t.Errorf("of %d packets, %d were refused and %d ignored", packets, refused, ignored)
	}
}

// TestRandomNamesBelowSilentServers asks for new names below a domain whose servers
// are silent, and for others beside.
func TestRandomNamesBelowSilentServers(t *testing.T) {
	rate, lasts := either(2000, 10_000), either(10*time.Second, 60*time.Second)
	g, servers, socket := abused(t)
	asked := queries(servers)
	attack := load{
		to: g.addr, network: "udp", sockets: 64, queries: int(lasts.Seconds()) * rate, rate: rate, patience: 100 * time.Millisecond,
		name:    func(i int) string { return fmt.Sprintf("n%d.never.victim.example", i) },
		address: dottest.Address,
	}
	grows(t, g, 100<<20, func() {
		endures(t, g, newNames(g.addr, "udp"), func() { t.Log("the attack:", attack.run(t)) })
	})
	asked = queries(servers) - asked
	t.Logf("upstreams were asked %d times", asked)
	// A second's worth before it is noticed, and then as many as may wait.
	steady := 200 * int(lasts/time.Second+8)
	if most := steady + 3*(rate+150*int(lasts/time.Second)); asked > most {
		t.Errorf("upstreams were asked %d times, more than %d", asked, most)
	}
	if g.output.contains("is down") {
		t.Error("an upstream was taken out")
	}
	accounted(t, socket)
}

// TestAnUpstreamThatTakesFiveSeconds asks for more than can wait for it: what is known
// is answered as before, and the rest gets SERVFAIL at once or when its time is up.
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
	grows(t, g, 100<<20, func() {
		endures(t, g, hits, func() { o = attack.run(t) })
	})
	t.Logf("the attack: %v", o)
	// Those who get SERVFAIL for want of room have not waited; others have, for seconds.
	waited, _ := slices.BinarySearch(o.refused, time.Second)
	atOnce := o.refused[:waited]
	t.Logf("%d were refused at once, with a p99 of %v", len(atOnce), quantile(atOnce, 0.99))
	if len(atOnce) == 0 {
		t.Error("nobody was refused")
	}
	if p99 := quantile(atOnce, 0.99); p99 > 5*time.Millisecond {
		complain(t, "who was one too many was told so after %v", p99)
	}
	accounted(t, socket)
}

// TestACrowdOfIdleConnections opens 10 000 connections from one address and says nothing.
// Others who come by TCP meanwhile have their answer within 100 ms.
func TestACrowdOfIdleConnections(t *testing.T) {
	g, _, socket := abused(t)
	endures(t, g, newNames(g.addr, "tcp"), func() {
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
					t.Errorf("who came meanwhile has no answer: %v", o)
				}
				worst = max(worst, time.Since(began))
			}
		}
		t.Logf("who came meanwhile had an answer after %v at worst", worst)
		if worst > 100*time.Millisecond {
			complain(t, "who came meanwhile waited for %v", worst)
		}
	})
	accounted(t, socket)
}

// TestClientsThatDoNotRead asks for long answers on many connections and reads none.
func TestClientsThatDoNotRead(t *testing.T) {
	g, _, socket := abused(t)
	lasts := either(8*time.Second, 30*time.Second)
	query := newQuery(1, "big60000.example.com")
	query = append([]byte{byte(len(query) >> 8), byte(len(query))}, query...)
	grows(t, g, 100<<20, func() {
		endures(t, g, newNames(g.addr, "tcp"), func() {
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(dottest.Loopback(), 0)), Timeout: startLimit}
			var clients sync.WaitGroup
			for range 200 {
				clients.Go(func() { deaf(t, d, g.addr, query, time.Now().Add(lasts)) })
			}
			clients.Wait()
		})
	})
	accounted(t, socket)
}

// deaf asks, on one connection after the other, until the time is up.
func deaf(t *testing.T, d net.Dialer, to netip.AddrPort, query []byte, end time.Time) {
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

// TestNewNamesLeaveTheHotOnesInTheCache asks for several times as many new names as the
// cache has room for, with 200 others each second: upstreams are asked for each of
// those once, and no more.
func TestNewNamesLeaveTheHotOnesInTheCache(t *testing.T) {
	const hot, span = 200, 5 // names, and seconds of a round
	rounds, rate, size := either(1, 120), either(8000, 2000), either("1MiB", "16MiB")
	s := startUpstream(t, dottest.Options{RTT: time.Millisecond, CountNames: true})
	g := startGateway(t, []string{url(s.Addr())}, "DOTGATE_CACHE_SIZE="+size)
	warmUp(t, g.addr)
	// As popular as they are when it begins: asked for every second, for a while.
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
	// One that is slow to answer for once may be asked again.
	if asked < hot || asked > hot+hot/50 || len(names) < rounds*span*rate {
		t.Errorf("the upstream was asked %d times for %d hot names, and for %d in all", asked, hot, len(names))
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
	// A burst of a busy machine, and how far the collector is, are worth some MiB: what
	// counts is where the middle of the first minutes is, and that of the last.
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

// goroutines returns how many a gateway has, as it tells operators.
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

// starved returns for how long threads of p were ready to run, and did not: a latency
// on a machine that others use says little without it.
func (p *process) starved(t *testing.T) (total time.Duration) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		var ran, waited int64
		if text, err := os.ReadFile(thread); err == nil { // else it has ended
			_, _ = fmt.Sscan(string(text), &ran, &waited)
		}
		total += time.Duration(waited)
	}
	return total.Round(time.Millisecond)
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

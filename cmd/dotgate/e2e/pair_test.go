//go:build linux && e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/upstreams/dottest"
)

const peersKey = "DOTGATE_PEERS_KEY=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

// A node is a gateway with a peer.
type node struct {
	*gateway
	urls    []string
	environ []string
}

// newPair starts two gateways that are peers, with these upstreams and options.
func newPair(t *testing.T, urls []string, more ...string) (nodes []*node) {
	t.Helper()
	var listen []netip.AddrPort
	var list []string
	for range 2 {
		a := netip.AddrPortFrom(dottest.Loopback(), 8054)
		listen, list = append(listen, a), append(list, a.String())
	}
	for _, a := range listen {
		nodes = append(nodes, &node{urls: urls, environ: append([]string{
			peersKey, "DOTGATE_PEERS=" + strings.Join(list, ","), "DOTGATE_PEERS_LISTEN=" + a.String(),
			"DOTGATE_CONTROL_SOCKET=" + filepath.Join(t.TempDir(), "socket"),
		}, more...)})
	}
	for _, n := range nodes {
		n.gateway = startGateway(t, urls, n.environ...)
	}
	for _, n := range nodes {
		n.await(t, "a peer joined")
	}
	return nodes
}

// restart starts the node again in another process, at the same address.
func (n *node) restart(t *testing.T) {
	t.Helper()
	n.kill()
	n.process = start(t, environment(n.addr, n.urls, n.environ...), dotgate, "serve")
	t.Cleanup(func() { n.stop(t) })
	n.await(t, "dotgate is serving")
}

// A nodeStatus is a part of the output of `dotgate status`.
type nodeStatus struct {
	Peers []struct {
		Up      bool
		Failing []string
	}
	Upstreams []struct{ Counts map[string]int }
	Redis     *struct {
		Up            bool
		Reads, Writes map[string]uint64
	}
}

func (n *node) status(t *testing.T) (s nodeStatus) {
	t.Helper()
	command := exec.Command(dotgate, "status", "--json")
	command.Env = environment(n.addr, n.urls, n.environ...)
	out, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &s); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return s
}

// silence makes an upstream silent.
func silence(t *testing.T, s *dottest.Server) {
	t.Helper()
	s.FreezeConnections()
	if err := s.Blackhole(); err != nil {
		t.Fatal(err)
	}
}

// The node with many clients detects at once that an upstream has gone silent. The other
// one has few clients, and none of them waits.
func TestPeersReportFailingUpstreams(t *testing.T) {
	t.Parallel()
	servers, urls := startUpstreams(t, 5*time.Millisecond, 6*time.Millisecond)
	nodes := newPair(t, urls, "DOTGATE_BALANCER_POLICY=ordered")
	a, b := nodes[0], nodes[1]
	warmUp(t, a.addr)
	warmUp(t, b.addr)

	const finds = "a peer reported an upstream as failing"
	reports := func() int { return strings.Count(b.output.String(), finds+": probing it\" peer") }
	fallen := make(chan int)
	busy := dottestLoad(a.addr, "busy", 1500, 500)
	var fell time.Time
	busy.halfway = func() {
		before := reports() // a stall of the machine may have caused some
		fell = time.Now()
		silence(t, servers[0])
		fallen <- before
	}
	over := make(chan outcome)
	go func() { over <- busy.run(t) }()
	before := <-fallen
	for reports() == before && time.Since(fell) < 5*time.Second {
		time.Sleep(time.Millisecond)
	}
	took := time.Since(fell)
	if took > 200*time.Millisecond {
		t.Errorf("the report came after %v", took)
	}
	sent := b.status(t).Upstreams[0].Counts["sent"]
	o := dottestLoad(b.addr, "quiet", 100, 200).run(t)
	o.mustBeWhole(t)
	paid := b.status(t).Upstreams[0].Counts["sent"] - sent
	t.Logf("the report came after %v; then %d of %d queries were sent to the silent upstream", took, paid, o.queries)
	if paid > 2 { // the probe, and one repetition
		t.Errorf("%d queries waited for an upstream that was known to fail: %v", paid, o)
	}
	(<-over).mustBeWhole(t)
	within(t, 5*time.Second, "the status tells what the other one finds", func() bool {
		peers := b.status(t).Peers
		return len(peers) == 1 && peers[0].Up && len(peers[0].Failing) == 1
	})
	if n := strings.Count(b.output.String(), "upstream is down"); n != 1 {
		t.Errorf("its own probe took the upstream down %d times", n)
	}
}

// A gateway that starts gets the cache of its peer.
func TestARestartedGatewayGetsTheAnswersOfItsPeer(t *testing.T) {
	t.Parallel()
	servers, urls := startUpstreams(t, 2*time.Millisecond, 3*time.Millisecond)
	nodes := newPair(t, urls)
	b := nodes[1]
	const names = 5000
	for _, n := range nodes { // clients of both ask for the same names
		o := dottestLoad(n.addr, "same", names, 2500).run(t)
		o.mustBeWhole(t)
	}
	begin := time.Now()
	b.restart(t)
	b.await(t, "downloaded the answers of a peer")
	took := time.Since(begin)
	before := queries(servers)
	dottestLoad(b.addr, "same", names, 2500).run(t).mustBeWhole(t)
	missed := queries(servers) - before
	t.Logf("answers after %v; of %d queries, %d went to upstreams; all done %v after the start", took, names, missed, time.Since(begin))
	if missed > names/10 {
		t.Errorf("%d of %d queries went to upstreams", missed, names)
	}
	if took > 5*time.Second {
		t.Errorf("the answers took %v to come", took)
	}

}

// A gateway whose peer is frozen, killed, or has another configuration serves as before.
func TestFailuresOfAPeerCostNoQuery(t *testing.T) {
	t.Parallel()
	_, urls := startUpstreams(t, 2*time.Millisecond, 3*time.Millisecond)
	for what, fate := range map[string]syscall.Signal{"frozen": syscall.SIGSTOP, "killed": syscall.SIGKILL} {
		t.Run(what, func(t *testing.T) {
			nodes := newPair(t, urls)
			a, b := nodes[0], nodes[1]
			warmUp(t, a.addr)
			calm := dottestLoad(a.addr, "calm-"+what, 1000, 1000).run(t)
			calm.mustBeWhole(t)
			l := dottestLoad(a.addr, "fate-"+what, 4000, 1000)
			l.halfway = func() { b.signal(fate) }
			o := l.run(t)
			o.mustBeWhole(t)
			if o.quantile(0.5) > calm.quantile(0.5)+10*time.Millisecond { // more can be due to other load of the machine
				t.Errorf("half of the queries took %v, and take %v now", calm.quantile(0.5), o.quantile(0.5))
			}
			within(t, 10*time.Second, "the other one is missed", func() bool {
				peers := a.status(t).Peers
				return len(peers) == 1 && !peers[0].Up
			})
			b.restart(t)
			within(t, 10*time.Second, "it is found again", func() bool {
				peers := a.status(t).Peers
				return len(peers) == 1 && peers[0].Up
			})
		})
	}
}

// waitForPeer waits until n has one peer that is up.
func (n *node) waitForPeer(t *testing.T) {
	t.Helper()
	within(t, 10*time.Second, "the peer is up", func() bool {
		peers := n.status(t).Peers
		return len(peers) == 1 && peers[0].Up
	})
}

func TestATakeoverKeepsThePeers(t *testing.T) {
	t.Parallel()
	_, urls := startUpstreams(t, 2*time.Millisecond)
	nodes := newPair(t, urls)
	a, b := nodes[0], nodes[1]
	former := b.process
	b.process = start(t, environment(b.addr, urls, b.environ...), dotgate, "serve", "--takeover")
	t.Cleanup(func() { b.stop(t) })
	if code := former.exitCode(t, stopLimit); code != 0 {
		t.Errorf("the former gateway exits with %d", code)
	}
	b.await(t, "took over")
	a.waitForPeer(t)
	b.waitForPeer(t)
}

// A key is replaced in three steps, in the files of both, while they run.
func TestAPeerKeyIsReplaced(t *testing.T) {
	t.Parallel()
	_, urls := startUpstreams(t, 2*time.Millisecond)
	file := filepath.Join(t.TempDir(), "peers.key")
	write := func(keys ...string) {
		t.Helper()
		text := strings.Join(keys, "\n") + "\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first, second := strings.Repeat("01", 32), strings.Repeat("02", 32)
	write(first)
	listen := []string{netip.AddrPortFrom(dottest.Loopback(), 8054).String(), netip.AddrPortFrom(dottest.Loopback(), 8054).String()}
	var nodes []*node
	for _, a := range listen {
		n := &node{urls: urls, environ: []string{
			"DOTGATE_PEERS_KEY_FILE=" + file, "DOTGATE_PEERS=" + strings.Join(listen, ","), "DOTGATE_PEERS_LISTEN=" + a,
			"DOTGATE_CONTROL_SOCKET=" + filepath.Join(t.TempDir(), "socket"),
		}}
		n.gateway = startGateway(t, urls, n.environ...)
		nodes = append(nodes, n)
	}
	for i, keys := range [][]string{{first, second}, {second, first}, {second}} {
		for _, n := range nodes {
			n.waitForPeer(t)
		}
		write(keys...)
		for _, n := range nodes {
			within(t, 5*time.Second, "the keys are read again", func() bool {
				return strings.Count(n.output.String(), "the configuration was reloaded") == i+1
			})
		}
	}
	for _, n := range nodes {
		n.waitForPeer(t)
	}
}

// Both answer alike, and identify themselves by NSID.
func TestAPairDiffersInNSIDOnly(t *testing.T) {
	t.Parallel()
	servers, urls := startUpstreams(t, 2*time.Millisecond, 2*time.Millisecond, 2*time.Millisecond)
	secret := "DOTGATE_GATEWAY_COOKIE_SECRET=e5e973e5a6b2a43f48e7dc849e37bfcf"
	nodes := []*gateway{
		startGateway(t, urls, "DOTGATE_BALANCER_POLICY=hash", secret, "DOTGATE_GATEWAY_NSID=a"),
		startGateway(t, urls, "DOTGATE_BALANCER_POLICY=hash", secret, "DOTGATE_GATEWAY_NSID=b"),
	}
	cookie := "0011223344556677"
	for i, g := range nodes {
		q := new(dns.Msg).SetQuestion(fmt.Sprintf("cookie%d.example.com.", i), dns.TypeA)
		q.SetEdns0(1232, false)
		q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: cookie}, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
		r, _, err := (&dns.Client{Timeout: 5 * time.Second}).Exchange(q, g.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		var name string
		for _, o := range r.IsEdns0().Option {
			switch o := o.(type) {
			case *dns.EDNS0_COOKIE:
				if i == 1 && o.Cookie != cookie {
					t.Errorf("the other's cookie %s is no good: it gets %s", cookie, o.Cookie)
				}
				cookie = o.Cookie
			case *dns.EDNS0_NSID:
				name = o.Nsid
			}
		}
		if want := fmt.Sprintf("%x", "ab"[i]); name != want {
			t.Errorf("NSID %s, want %s", name, want)
		}
	}
	chosen := func(g *gateway, name string) int {
		var before [3]int
		for i, s := range servers {
			before[i] = s.Stats().Queries
		}
		ask(t, g.addr, name)
		for i, s := range servers {
			if s.Stats().Queries > before[i] {
				return i
			}
		}
		t.Fatalf("%s: no upstream was asked", name)
		return -1
	}
	same, of := 0, make(map[int]int)
	const names = 60
	for i := range names {
		name := fmt.Sprintf("hash%d.example.com", i)
		one, two := chosen(nodes[0], name), chosen(nodes[1], name)
		of[one]++
		if one == two {
			same++
		}
	}
	t.Logf("%d of %d names went to the same upstream from both; by upstream: %v", same, names, of)
	if same < names-3 || len(of) != 3 { // a hedge on a busy machine may come first
		t.Errorf("%d of %d names went to the same upstream from both; by upstream: %v", same, names, of)
	}
}

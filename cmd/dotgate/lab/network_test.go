//go:build linux && lab

package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// A network is a world of three Unbound servers in network namespaces of their
// own, each at the other end of a link from the gateway and the client:
//
//	gateway, client ── to-a ── eth0 ── Unbound a
//	                ── to-b ── eth0 ── Unbound b
//	                ── to-c ── eth0 ── Unbound c
type network struct {
	t        *testing.T
	here     namespace // of the gateway and the client
	unbounds [upstreams]*unbound
	g        *gateway
	forget   time.Duration

	mu      sync.Mutex
	dials   [upstreams]int
	dialsAt time.Time
}

// networks counts networks, for unique names.
var networks atomic.Int32

func newNetwork(t *testing.T, s scenario) *network {
	t.Helper()
	missing, forbidden := networksPossible()
	if missing != nil {
		t.Fatal(missing)
	}
	if forbidden != nil {
		why := fmt.Sprintf("NOT RUN: the scenarios of networks, because this machine allows no network namespaces: %v", forbidden)
		results.setNotRun(why)
		t.Skip(why)
	}
	id := networks.Add(1)
	w := &network{t: t, forget: max(s.fault.forget, s.start.forget)}
	w.here = newNamespace(t, fmt.Sprintf("%d-gateway", id))
	if err := w.here.nft(dialCounter); err != nil {
		t.Fatal(err)
	}
	ca := dottest.NewCA()
	var urls []string
	var dot, doh [upstreams][]netip.AddrPort
	for i := range w.unbounds {
		n := newNamespace(t, fmt.Sprintf("%d-%c", id, 'a'+i))
		w.link(i, n)
		dot[i] = []netip.AddrPort{w.addr(i)}
		if s.transports != nil {
			doh[i] = []netip.AddrPort{netip.AddrPortFrom(w.addr(i).Addr(), 443), netip.AddrPortFrom(otherAddr(i), 443)}
		}
		w.unbounds[i] = newUnbound(t, n, w.addr(i).Addr(), doh[i], ca)
		urls = append(urls, fmt.Sprintf("tls://%s#%s", w.addr(i), dottest.ServerName))
	}
	if s.transports != nil {
		urls = []string{upstreamsFile(t, s, dot, doh, 0)}
	}
	for _, u := range w.unbounds {
		u.waitUntilServing()
	}
	for _, i := range s.on {
		w.startFault(i, s.start)
	}
	file, err := ca.WriteFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if s.single {
		urls = urls[:1]
	}
	w.g = newGateway(t, netip.MustParseAddrPort("127.0.0.1:5300"), file, urls)
	w.g.dial = func(kind, address string) (conn net.Conn, err error) {
		err = w.here.do(func() error {
			conn, err = net.Dial(kind, address)
			return err
		})
		return conn, err
	}
	if err := w.here.do(w.g.cmd.Start); err != nil {
		t.Fatal(err)
	}
	return w
}

// link connects namespace n as upstream i.
func (w *network) link(i int, n namespace) {
	w.t.Helper()
	near, far := netip.PrefixFrom(w.addr(i).Addr().Prev(), 30), netip.PrefixFrom(w.addr(i).Addr(), 30)
	ip(w.t, fmt.Sprintf(`link add %[1]s type veth peer name eth0 netns %[2]s
addr add %[3]s dev %[1]s
link set %[1]s up
`, linkName(i), n, near), "-n", string(w.here), "-batch", "-")
	ip(w.t, fmt.Sprintf("addr add %s dev eth0\nlink set eth0 up\n", far), "-n", string(n), "-batch", "-")
	// A packet is one segment, so that its length is that on a cable.
	ip(w.t, "", "-n", string(w.here), "link", "set", linkName(i), "gso_max_segs", "1")
	ip(w.t, "", "-n", string(n), "link", "set", "eth0", "gso_max_segs", "1")
	near, far = netip.PrefixFrom(otherAddr(i).Prev(), 30), netip.PrefixFrom(otherAddr(i), 30)
	ip(w.t, fmt.Sprintf("addr add %s dev %s\n", near, linkName(i)), "-n", string(w.here), "-batch", "-")
	ip(w.t, fmt.Sprintf("addr add %s dev eth0\n", far), "-n", string(n), "-batch", "-")
	if err := n.nft(middlebox(w.forget)); err != nil {
		w.t.Fatal(err)
	}
}

// linkName has a prefix, as ip takes "a" for "address".
func linkName(i int) string { return "to-" + string(rune('a'+i)) }

func (w *network) gateway() *gateway { return w.g }

func (w *network) addr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(4*i + 2)}), 853)
}

// firstPrefix is the network of all addresses of DNS over TLS. Over HTTPS, an upstream has
// another address, too.
const firstPrefix = "198.51.100.0/24"

func otherAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(4*i + 2)}) }

func (w *network) truth() truth {
	return truth{recordType: "A", address: func(string) string { return unboundAnswer }}
}

func (w *network) asked(string) int { return 0 }

func (w *network) startFault(i int, f fault) {
	if f.empty() {
		return
	}
	w.must(w.unbounds[i].namespace.nft(breakage(f)))
	for _, word := range f.words {
		switch word {
		case "no-route":
			w.ip("route add unreachable %s/32", w.addr(i).Addr())
		case "link-down":
			w.ip("link set %s down", linkName(i))
		case "carrier-lost":
			ip(w.t, "", "-n", string(w.unbounds[i].namespace), "link", "set", "eth0", "down")
		case "kill":
			w.unbounds[i].kill()
		case "restart":
			w.unbounds[i].kill()
			w.unbounds[i].start()
		case "pause":
			w.unbounds[i].pause()
		}
	}
}

func (w *network) endFault(i int, f fault) {
	w.must(w.unbounds[i].namespace.nft(repair))
	for _, word := range f.words {
		switch word {
		case "no-route":
			w.ip("route del unreachable %s/32", w.addr(i).Addr())
		case "link-down":
			w.ip("link set %s up", linkName(i))
		case "carrier-lost":
			ip(w.t, "", "-n", string(w.unbounds[i].namespace), "link", "set", "eth0", "up")
		case "kill":
			w.unbounds[i].start()
			w.unbounds[i].waitUntilServing()
		case "pause":
			w.unbounds[i].goOn()
		}
	}
}

func (w *network) ip(format string, args ...any) {
	w.must(run(fmt.Sprintf(format, args...)+"\n", "ip", "-n", string(w.here), "-batch", "-"))
}

func (w *network) must(err error) {
	if err != nil {
		w.t.Error(err)
	}
}

func (w *network) pause() time.Duration { return 250 * time.Millisecond }

func (w *network) sample() sample {
	s := sample{at: time.Now()}
	for i, u := range w.unbounds {
		s.queries[i], s.best[i] = u.queries()
	}
	s.dials, s.unroutable = w.countDials(s.at), w.unroutable()
	return s
}

// countDials counts the dials that left the gateway, once a second, as it starts a
// process.
func (w *network) countDials(now time.Time) [upstreams]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.dialsAt) < time.Second {
		return w.dials
	}
	var out []byte
	err := w.here.do(func() (err error) {
		out, err = exec.Command("nft", "list", "set", "ip", "lab", "dials").Output()
		return err
	})
	w.must(err)
	for i := range w.dials {
		w.dials[i] = strings.Count(string(out), w.addr(i).Addr().String()+" . ") + strings.Count(string(out), otherAddr(i).String()+" . ")
	}
	w.dialsAt = now
	return w.dials
}

// unroutable counts the packets that the gateway's kernel had no route for: first those
// of connections that are dead but not known to be, then dials.
func (w *network) unroutable() (n int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/snmp", w.g.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	var names, values []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "Ip:") {
			names, values = values, strings.Fields(line)
		}
	}
	for i, name := range names {
		if name == "OutNoRoutes" && i < len(values) {
			fmt.Sscan(values[i], &n)
		}
	}
	return n
}

//go:build linux && e2e

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/upstreams/dottest"
)

// askedFor returns the number of queries for a name that the upstreams got.
func askedFor(servers []*dottest.Server, name string) (n int) {
	for _, s := range servers {
		n += s.Stats().Names[name]
	}
	return n
}

// farUpstreams returns two upstreams with long round trips, so that simultaneous queries
// arrive before the answer, and a gateway that is connected to them.
func farUpstreams(t *testing.T, more ...string) ([]*dottest.Server, *gateway) {
	t.Helper()
	var servers []*dottest.Server
	var urls []string
	for range 2 {
		s := startUpstream(t, dottest.Options{RTT: 300 * time.Millisecond, CountNames: true})
		servers, urls = append(servers, s), append(urls, url(s.Addr()))
	}
	g := startGateway(t, urls, more...)
	for i := range 8 {
		ask(t, g.addr, fmt.Sprintf("warm%d.example.com", i))
	}
	return servers, g
}

// spelling returns www.example.com with the letters of i as capitals.
func spelling(i int) string {
	name := []byte("www.example.com.")
	for at, c := range name {
		if c != '.' && i>>(at%10)&1 == 1 {
			name[at] = c - 'a' + 'A'
		}
	}
	return string(name)
}

// A thousand clients ask for one cold name at once, half of them over TCP: the
// upstreams get one query, and at most one hedge. Each client gets a reply of its own.
func TestAThousandQueriesForOneNameCostOneUpstreamQuery(t *testing.T) {
	servers, g := farUpstreams(t)
	const n = 1000
	var conns []*dns.Conn
	var queries []*dns.Msg
	for i := range n {
		var from net.Dialer
		network := "udp"
		if i%2 == 1 { // from several addresses, as connections are limited by address
			network = "tcp"
			from.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%8))}
		}
		c, err := from.Dial(network, g.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, &dns.Conn{Conn: c, UDPSize: 1232})
		q := new(dns.Msg).SetQuestion(spelling(i), dns.TypeA)
		q.Id = uint16(i * 61)
		if i%3 > 0 {
			q.SetEdns0(uint16(512+i), false)
		}
		queries = append(queries, q)
	}
	begin := time.Now()
	for i, c := range conns {
		if err := c.WriteMsg(queries[i]); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(begin); took > 250*time.Millisecond {
		t.Fatalf("sending took %v: that is not at once", took)
	}
	var clients sync.WaitGroup
	for i, c := range conns {
		clients.Go(func() {
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			r, err := c.ReadMsg()
			if err != nil {
				t.Errorf("client %d: %v", i, err)
				return
			}
			q := queries[i]
			if r.Id != q.Id || r.Question[0] != q.Question[0] || len(r.Answer) != 1 || r.Answer[0].Header().Name != q.Question[0].Name ||
				(r.IsEdns0() == nil) != (q.IsEdns0() == nil) {
				t.Errorf("client %d asked\n%v\nand got\n%v", i, q, r)
			}
		})
	}
	clients.Wait()
	if n := askedFor(servers, "www.example.com."); n < 1 || n > 2 {
		t.Errorf("the upstreams were asked %d times", n)
	}
}

// The client whose query started the upstream query closes its connection: others that
// wait for the same answer get it, and so do later ones.
func TestAClosedClientConnectionFailsNoOtherClient(t *testing.T) {
	servers, g := farUpstreams(t)
	leader, err := net.Dial("tcp", g.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	q := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
	if err := (&dns.Conn{Conn: leader}).WriteMsg(q); err != nil {
		t.Fatal(err)
	}
	within(t, time.Second, "the query reaches an upstream", func() bool { return askedFor(servers, "www.example.com.") > 0 })
	leader.(*net.TCPConn).SetLinger(0) // the connection is reset
	leader.Close()
	var clients sync.WaitGroup
	for range 10 {
		clients.Go(func() {
			if r, took := ask(t, g.addr, "www.example.com"); len(r.Answer) != 1 || took > time.Second {
				t.Errorf("after %v:\n%v", took, r)
			}
		})
	}
	clients.Wait()
	if r, took := ask(t, g.addr, "www.example.com"); len(r.Answer) != 1 || took > 100*time.Millisecond {
		t.Errorf("it is not cached: after %v\n%v", took, r)
	}
	if n := askedFor(servers, "www.example.com."); n > 2 {
		t.Errorf("the upstreams were asked %d times", n)
	}
}

// RFC 8767: while upstreams answer, no answer is stale. When they go silent, the first
// client waits for 400 ms, later ones do not. When they are back, no answer is stale.
func TestStaleAnswersAreSentInAnOutageOnly(t *testing.T) {
	t.Parallel()
	servers, urls := startUpstreams(t, 5*time.Millisecond, 10*time.Millisecond)
	g := startGateway(t, urls, "DOTGATE_CACHE_MAX_TTL=1s")
	name := func(i int) string { return fmt.Sprintf("stale%d.example.com", i) }
	const names = 50
	mustBeFresh := func(i int) {
		t.Helper()
		if r, _ := ask(t, g.addr, name(i)); len(r.Answer) != 1 || r.Answer[0].Header().Ttl > 1 || ede(r) != 0xffff {
			t.Errorf("%s: not fresh\n%v", name(i), r)
		}
	}
	mustBeStale := func(i int) time.Duration {
		t.Helper()
		r, took := ask(t, g.addr, name(i))
		if len(r.Answer) != 1 || r.Answer[0].Header().Ttl != 30 || ede(r) != dns.ExtendedErrorCodeStaleAnswer {
			t.Errorf("%s: not stale\n%v", name(i), r)
		}
		return took
	}
	for range 2 { // the second time there is a stale answer, which is not sent
		for i := range names {
			mustBeFresh(i)
		}
		time.Sleep(1100 * time.Millisecond)
	}
	for _, s := range servers {
		s.Set(dottest.Fault{Never: true})
	}
	if took := mustBeStale(0); took < 50*time.Millisecond || took > 600*time.Millisecond {
		t.Errorf("the first stale answer took %v", took)
	}
	within(t, 5*time.Second, "a stale answer at once", func() bool { return mustBeStale(1) < 20*time.Millisecond })
	time.Sleep(time.Second) // until all breakers are open
	var took []string
	slowest := time.Duration(0)
	for i := range names {
		d := mustBeStale(i)
		took, slowest = append(took, d.Round(100*time.Microsecond).String()), max(slowest, d)
	}
	if slowest > 50*time.Millisecond {
		t.Errorf("during the outage, stale answers took %s", strings.Join(took, " "))
	}
	if r, _ := ask(t, g.addr, "never-asked.example.com"); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("an answer without an upstream:\n%v", r)
	}
	for _, s := range servers {
		s.Set()
	}
	within(t, 12*time.Second, "a fresh answer again", func() bool {
		r, _ := ask(t, g.addr, name(2))
		return ede(r) == 0xffff
	})
	time.Sleep(time.Second)
	for i := range names {
		mustBeFresh(i)
	}
}

func TestWhichAnswersAreCached(t *testing.T) {
	s := startUpstream(t, dottest.Options{CountNames: true})
	servers := []*dottest.Server{s}
	g := startGateway(t, []string{url(s.Addr())}, "DOTGATE_CACHE_MIN_TTL=1h")
	f := func(name string, cached bool) {
		t.Helper()
		ask(t, g.addr, name)
		before := askedFor(servers, name+".")
		for range 2 {
			ask(t, g.addr, name)
		}
		if n := askedFor(servers, name+".") - before; (n == 0) != cached || !cached && n < 2 {
			t.Errorf("%s: two more queries cost %d more", name, n)
		}
	}
	f("www.example.com", true)
	f("nxdomain.example.com", true)
	f("blocked.example.com", true) // no SOA record
	f("nodata.example.com", true)
	f("servfail.example.com", true)
	f("refused.example.com", true)
	f("ttl0.example.com", false)
	f("tc.example.com", false)
	time.Sleep(1100 * time.Millisecond)
	before := askedFor(servers, "servfail.example.com.")
	ask(t, g.addr, "servfail.example.com")
	if askedFor(servers, "servfail.example.com.") == before {
		t.Error("an error is kept for more than a second, or as long as min_ttl")
	}
	s.Set(dottest.Fault{Never: true})
	ask(t, g.addr, "ours.example.com")
	s.Set()
	within(t, 5*time.Second, "an answer in place of our own failure", func() bool {
		r, _ := ask(t, g.addr, "ours.example.com")
		return r.Rcode == dns.RcodeSuccess
	})
}

// An answer is popular after three hits. A hit in the last tenth of its lifetime renews
// it, and no client waits.
func TestPopularAnswersAreRenewedBeforeTheyExpire(t *testing.T) {
	t.Parallel()
	const name = "ttl5.example.com"
	servers, g := farUpstreams(t)
	begin := time.Now()
	ask(t, g.addr, name)
	came := time.Now()
	for range 3 {
		ask(t, g.addr, name)
	}
	f := func(at time.Duration, asked ...int) {
		t.Helper()
		time.Sleep(time.Until(came.Add(at)))
		r, took := ask(t, g.addr, name)
		if len(r.Answer) != 1 || ede(r) != 0xffff || took > 100*time.Millisecond {
			t.Errorf("%v after the first: after %v\n%v", time.Since(begin), took, r)
		}
		if n := askedFor(servers, name+"."); !slices.Contains(asked, n) {
			t.Errorf("%v after the answer, upstreams have been asked %d times, want %v", at, n, asked)
		}
	}
	first := askedFor(servers, name+".") // a hedge may have been one
	f(4*time.Second, first)
	f(4600*time.Millisecond, first, first+1) // the renewal may have been early
	within(t, 250*time.Millisecond, "the renewal", func() bool { return askedFor(servers, name+".") == first+1 })
	f(4900*time.Millisecond, first+1)
	f(5200*time.Millisecond, first+1)
}

func TestTheCacheIsKeptOverARestart(t *testing.T) {
	t.Parallel()
	s := startUpstream(t, dottest.Options{CountNames: true})
	servers, urls := []*dottest.Server{s}, []string{url(s.Addr())}
	file := filepath.Join(t.TempDir(), "cache")
	const name = "www.example.com"
	ttl := func(asked int) uint32 {
		t.Helper()
		g := startGateway(t, urls, "DOTGATE_CACHE_FILE="+file)
		defer g.stop(t)
		r, _ := ask(t, g.addr, name)
		if n := askedFor(servers, name+"."); len(r.Answer) != 1 || n != asked {
			t.Errorf("the upstream was asked %d times, want %d:\n%v", n, asked, r)
		}
		return r.Answer[0].Header().Ttl
	}
	if got := ttl(1); got != 300 {
		t.Errorf("TTL %d", got)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Fatalf("the file: %v, %v", info, err)
	}
	time.Sleep(2 * time.Second)
	if got := ttl(1); got > 298 || got < 290 {
		t.Errorf("two seconds later, TTL %d", got)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 1
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ttl(2); got != 300 {
		t.Errorf("from a damaged file, TTL %d", got)
	}
	if got := ttl(2); got < 290 { // the damaged one has been replaced
		t.Errorf("TTL %d", got)
	}
}

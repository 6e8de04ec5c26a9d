//go:build linux && e2e

package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// A redisServer is a Redis process at an address of its own.
type redisServer struct {
	*process
	addr netip.AddrPort
	args []string
}

func startRedis(t *testing.T, more ...string) *redisServer {
	t.Helper()
	r := &redisServer{addr: netip.AddrPortFrom(dottest.Loopback(), 6379)}
	r.args = append([]string{
		"--bind", r.addr.Addr().String(), "--port", "6379", "--save", "", "--appendonly", "no", "--dir", t.TempDir(),
		"--protected-mode", "no", "--bind-source-addr", r.addr.Addr().String(),
	}, more...)
	r.start(t)
	return r
}

func (r *redisServer) start(t *testing.T) {
	t.Helper()
	r.process = start(t, nil, program(t, "redis-server", "redis-server"), r.args...)
	r.await(t, "eady to accept connections")
}

func (r *redisServer) url() string { return "redis://" + r.addr.String() }

// do sends one command, and returns the first line of its reply.
func (r *redisServer) do(t *testing.T, words ...string) string {
	t.Helper()
	conn, err := net.Dial("tcp", r.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(conn, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(conn, "$%d\r\n%s\r\n", len(w), w)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// withRedis returns a gateway with this server as its second cache, and waits until it is
// connected.
func withRedis(t *testing.T, urls []string, redis string, more ...string) *node {
	t.Helper()
	n := &node{urls: urls, environ: append([]string{
		"DOTGATE_CACHE_REDIS_URL=" + redis, "DOTGATE_CONTROL_SOCKET=" + filepath.Join(t.TempDir(), "socket"),
	}, more...)}
	n.gateway = startGateway(t, urls, n.environ...)
	n.await(t, "the shared cache answered")
	return n
}

func TestGatewaysShareTheirAnswersThroughRedis(t *testing.T) {
	t.Parallel()
	servers, urls := startUpstreams(t, 2*time.Millisecond, 3*time.Millisecond)
	r := startRedis(t)
	const names = 1000
	a := withRedis(t, urls, r.url())
	dottestLoad(a.addr, "shared", names, 500).run(t).mustBeWhole(t)
	// On a busy machine some requests take more than 5 ms, and Redis is bypassed for a while.
	var stored int
	within(t, 5*time.Second, "most answers are written", func() bool {
		_, err := fmt.Sscanf(r.do(t, "DBSIZE"), ":%d", &stored)
		return err == nil && stored >= names/2
	})
	missed, most := names, names-stored+names/10
	for round := 0; missed > most && round < 5; round++ {
		b := withRedis(t, urls, r.url())
		before := queries(servers)
		dottestLoad(b.addr, "shared", names, 500).run(t).mustBeWhole(t)
		missed = queries(servers) - before
		t.Logf("%d of %d queries went to upstreams, with %d answers there", missed, names, stored)
	}
	if missed > most {
		t.Errorf("%d of %d queries went to upstreams", missed, names)
	}
	// A gateway whose answers may differ does not use them.
	c := withRedis(t, urls[:1], r.url())
	before := queries(servers)
	dottestLoad(c.addr, "shared", 100, 500).run(t).mustBeWhole(t)
	if n := queries(servers) - before; n < 100 {
		t.Errorf("of 100 queries to a gateway with other upstreams, %d went there", n)
	}
}

// If the server is killed or frozen under load, the first queries take five milliseconds
// longer, and later ones do not. When it is back it is used again.
func TestADeadRedisDelaysNoQuery(t *testing.T) {
	_, urls := startUpstreams(t, 2*time.Millisecond, 3*time.Millisecond)
	for what, fate := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "frozen": syscall.SIGSTOP} {
		t.Run(what, func(t *testing.T) {
			r := startRedis(t)
			n := withRedis(t, urls, r.url())
			warmUp(t, n.addr)
			calm := dottestLoad(n.addr, "calm-"+what, 1000, 1000).run(t)
			calm.mustBeWhole(t)
			l := dottestLoad(n.addr, "fate-"+what, 4000, 1000)
			l.halfway = func() { r.signal(fate) }
			o := l.run(t)
			o.mustBeWhole(t)
			n.await(t, "the shared cache failed and is bypassed")
			failed := n.status(t).Redis.Reads["failed"]
			after := dottestLoad(n.addr, "after-"+what, 1000, 1000).run(t)
			after.mustBeWhole(t)
			t.Logf("before: %v\nwhile it is %s: %v\nafter: %v", calm, what, o, after)
			if s := n.status(t).Redis; s.Up || s.Reads["failed"] != failed {
				t.Errorf("once it is bypassed, queries still wait for it: %+v, before %d failed", s, failed)
			}
			if fate == syscall.SIGSTOP {
				r.signal(syscall.SIGCONT)
			} else {
				r.start(t)
			}
			within(t, 15*time.Second, "it is used again", func() bool { return n.status(t).Redis.Up })
			hits := n.status(t).Redis.Writes["written"]
			dottestLoad(n.addr, "again-"+what, 100, 500).run(t).mustBeWhole(t)
			within(t, 5*time.Second, "answers are written again", func() bool { return n.status(t).Redis.Writes["written"] > hits })
		})
	}
}

// Values that were not written by a gateway are not used as answers.
func TestInvalidDataInRedisIsNoAnswer(t *testing.T) {
	t.Parallel()
	servers, urls := startUpstreams(t, 2*time.Millisecond)
	r := startRedis(t)
	a := withRedis(t, urls, r.url(), "DOTGATE_CACHE_SIZE=off")
	dottestLoad(a.addr, "rubbish", 1, 1).run(t).mustBeWhole(t)
	within(t, 5*time.Second, "the answer is written", func() bool { return r.do(t, "DBSIZE") == ":1" })
	const spoil = "local k = redis.call('KEYS','*')[1]; local v = redis.call('GET',k); " +
		"redis.call('SET', k, string.sub(v,1,12)..string.rep('x',#v-12)); return 'done'"
	within(t, 10*time.Second, "invalid data is found and counted", func() bool { // a busy machine may be too late to read it
		if got := r.do(t, "EVAL", spoil, "0"); got != "$4" {
			t.Fatal(got)
		}
		before := queries(servers)
		dottestLoad(a.addr, "rubbish", 1, 1).run(t).mustBeWhole(t)
		if queries(servers) == before {
			t.Error("the upstream was not asked")
		}
		return a.status(t).Redis.Reads["invalid"] > 0
	})
}

// The Sentinels name the server to use.
func TestRedisIsFoundThroughSentinels(t *testing.T) {
	t.Parallel()
	_, urls := startUpstreams(t, 2*time.Millisecond)
	main := startRedis(t)
	at := netip.AddrPortFrom(dottest.Loopback(), 26379)
	config := filepath.Join(t.TempDir(), "sentinel.conf")
	text := fmt.Sprintf("bind %s\nport 26379\nprotected-mode no\ndir %s\nsentinel monitor main %s 6379 1\n",
		at.Addr(), t.TempDir(), main.addr.Addr())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sentinel := start(t, nil, program(t, "redis-sentinel", "redis-sentinel"), config)
	sentinel.await(t, "+monitor")
	n := withRedis(t, urls, "redis://"+at.String(), "DOTGATE_CACHE_REDIS_MASTER=main")
	dottestLoad(n.addr, "sentinel", 10, 100).run(t).mustBeWhole(t)
	within(t, 5*time.Second, "answers are written", func() bool { return main.do(t, "DBSIZE") == ":10" })
}

// The answers are distributed over the nodes of a Cluster. The loss of a node fails no
// query.
func TestRedisCluster(t *testing.T) {
	t.Parallel()
	_, urls := startUpstreams(t, 2*time.Millisecond)
	var nodes []*redisServer
	var all []string
	for range 3 {
		n := startRedis(t, "--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
		nodes, all = append(nodes, n), append(all, n.url())
	}
	for i, slots := range []string{"0 5460", "5461 10922", "10923 16383"} {
		if got := nodes[i].do(t, append([]string{"CLUSTER", "ADDSLOTSRANGE"}, strings.Fields(slots)...)...); got != "+OK" {
			t.Fatal(got)
		}
		if i == 0 {
			continue
		}
		if got := nodes[i].do(t, "CLUSTER", "MEET", nodes[0].addr.Addr().String(), "6379"); got != "+OK" {
			t.Fatal(got)
		}
	}
	// Each redirects to the node of a key, once they know each other.
	within(t, 20*time.Second, "the nodes have met", func() bool {
		for _, n := range nodes {
			for _, key := range []string{"a", "b", "c", "d", "e"} {
				if got := n.do(t, "GET", key); got != "$-1" && !strings.HasPrefix(got, "-MOVED") {
					return false
				}
			}
		}
		return true
	})
	const names = 300
	g := withRedis(t, urls, strings.Join(all, ","))
	dottestLoad(g.addr, "cluster", names, 100).run(t).mustBeWhole(t)
	within(t, 5*time.Second, "all nodes have answers", func() bool {
		for _, n := range nodes {
			var stored int
			if _, err := fmt.Sscanf(n.do(t, "DBSIZE"), ":%d", &stored); err != nil || stored < names/6 {
				return false
			}
		}
		return true
	})
	nodes[1].kill()
	dottestLoad(g.addr, "lost", names, 100).run(t).mustBeWhole(t)
}

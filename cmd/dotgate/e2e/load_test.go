//go:build linux && (e2e || figures)

package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// A load is a number of queries of type A, each for another name, sent at a fixed rate
// whether or not earlier ones are answered (open loop). None is sent twice.
type load struct {
	to       netip.AddrPort
	network  string // udp or tcp
	sockets  int
	queries  int
	rate     int           // queries per second; 0 is all at once
	patience time.Duration // time for an answer; after it a query has failed

	name    func(i int) string           // of query i
	address func(name string) netip.Addr // the address in the right answer
	halfway func()                       // called when half of the queries have been sent, or nil
}

// An outcome is the result of a load.
type outcome struct {
	queries    int
	latencies  []time.Duration // of the right answers, sorted
	refused    []time.Duration // of SERVFAIL replies, sorted
	problems   map[string]int
	mismatched int // replies with another question or another address, and unsolicited ones
	atOnce     int // queries without a reply when the last one was sent
	sending    time.Duration
	elapsed    time.Duration
}

// A loadRun is a running load. Query i is sent through socket i%sockets with the ID
// i/sockets, so that a reply identifies its query, and readers share no state.
type loadRun struct {
	load
	conns    []net.Conn
	packets  [][]byte
	begin    time.Time
	sent     []atomic.Int64  // instants, from begin; 0 is not yet
	took     []time.Duration // 0 is no reply
	problem  []string
	stray    atomic.Int64  // unsolicited replies
	waiting  atomic.Int64  // number of missing replies
	complete chan struct{} // closed when none is missing
}

// run sends the load and returns when each query has its reply, or after patience.
func (l load) run(t *testing.T) outcome {
	t.Helper()
	r := &loadRun{
		load: l, sent: make([]atomic.Int64, l.queries), took: make([]time.Duration, l.queries),
		problem: make([]string, l.queries), complete: make(chan struct{}),
	}
	r.waiting.Store(int64(l.queries))
	if l.queries > l.sockets<<16 {
		t.Fatalf("%d sockets have no IDs for %d queries", l.sockets, l.queries)
	}
	for i := range l.queries {
		r.packets = append(r.packets, newQuery(uint16(i/l.sockets), l.name(i)))
	}
	r.connect(t)
	defer r.disconnect()
	var readers sync.WaitGroup
	for s := range r.conns {
		readers.Go(func() { r.read(s) })
	}
	r.begin = time.Now()
	if l.rate > 0 {
		r.paced()
	} else {
		r.atOnce()
	}
	o := outcome{queries: l.queries, problems: make(map[string]int), sending: time.Since(r.begin), atOnce: int(r.waiting.Load())}
	select {
	case <-r.complete:
	case <-time.After(l.patience):
	}
	o.elapsed = time.Since(r.begin)
	for _, c := range r.conns {
		_ = c.SetReadDeadline(time.Now())
	}
	readers.Wait()
	r.judge(&o)
	return o
}

func (r *loadRun) connect(t *testing.T) {
	t.Helper()
	for range r.sockets {
		c, err := net.Dial(r.network, r.to.String())
		if err != nil {
			t.Fatal(err)
		}
		if u, ok := c.(*net.UDPConn); ok {
			_ = u.SetReadBuffer(4 << 20) // as much as the system allows
		}
		r.conns = append(r.conns, c)
	}
}

func (r *loadRun) disconnect() {
	for _, c := range r.conns {
		c.Close()
	}
}

func (r *loadRun) paced() {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for next := 0; next < r.queries; <-tick.C {
		due := min(r.queries, 1+int(time.Since(r.begin).Seconds()*float64(r.rate)))
		for ; next < due; next++ {
			if next == r.queries/2 && r.halfway != nil {
				r.halfway()
			}
			r.send(r.conns[next%r.sockets], r.frame(next), next)
		}
	}
}

// atOnce sends all queries of a socket, over TCP in one write.
func (r *loadRun) atOnce() {
	var senders sync.WaitGroup
	for s, c := range r.conns {
		senders.Go(func() {
			var all []byte
			var which []int
			for i := s; i < r.queries; i += r.sockets {
				if r.network == "udp" {
					r.send(c, r.packets[i], i)
					continue
				}
				all, which = append(all, r.frame(i)...), append(which, i)
			}
			if len(which) > 0 {
				r.send(c, all, which...)
			}
		})
	}
	senders.Wait()
}

func (r *loadRun) frame(i int) []byte {
	if r.network == "udp" {
		return r.packets[i]
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(r.packets[i]))), r.packets[i]...)
}

// send writes data, which has the given queries. If the write fails, they will have no
// replies.
func (r *loadRun) send(c net.Conn, data []byte, which ...int) {
	now := int64(max(time.Since(r.begin), 1))
	for _, i := range which {
		r.sent[i].Store(now)
	}
	_, _ = c.Write(data)
}

// read reads replies until the end of the connection or its deadline.
func (r *loadRun) read(s int) {
	next := datagrams(r.conns[s])
	if r.network == "tcp" {
		next = frames(r.conns[s])
	}
	for {
		reply, err := next()
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) || r.network == "tcp" && err != nil {
			return
		}
		if err == nil { // over UDP, an error is an ICMP message about one query
			r.receive(s, reply)
		}
	}
}

func datagrams(c net.Conn) func() ([]byte, error) {
	buffer := make([]byte, 1<<16)
	return func() ([]byte, error) {
		n, err := c.Read(buffer)
		return buffer[:n], err
	}
}

func frames(c net.Conn) func() ([]byte, error) {
	from, buffer := bufio.NewReader(c), make([]byte, 1<<16)
	return func() ([]byte, error) {
		if _, err := io.ReadFull(from, buffer[:2]); err != nil {
			return nil, err
		}
		frame := buffer[:binary.BigEndian.Uint16(buffer)]
		_, err := io.ReadFull(from, frame)
		return frame, err
	}
}

func (r *loadRun) receive(s int, reply []byte) {
	now := time.Since(r.begin)
	if len(reply) < 12 {
		r.stray.Add(1)
		return
	}
	i := int(binary.BigEndian.Uint16(reply))*r.sockets + s
	if i >= r.queries || r.sent[i].Load() == 0 || r.took[i] != 0 {
		r.stray.Add(1)
		return
	}
	r.took[i] = max(now-time.Duration(r.sent[i].Load()), 1)
	r.problem[i] = r.verify(i, reply)
	if r.waiting.Add(-1) == 0 {
		close(r.complete)
	}
}

// verify returns what is wrong with a reply, or "".
func (r *loadRun) verify(i int, reply []byte) string {
	question := r.packets[i][12 : len(r.packets[i])-optLen]
	rest, same := bytes.CutPrefix(reply[12:], question)
	switch rcode := reply[3] & 15; {
	case reply[2]&0x80 == 0:
		return "a query came back"
	case !same:
		return mismatch + "another question"
	case rcode != 0:
		return fmt.Sprintf("RCODE %d", rcode)
	case reply[2]&0x02 != 0:
		return "truncated"
	case r.took[i] > r.patience:
		return "answered too late"
	}
	name := r.name(i)
	want := r.address(name)
	// The owner is a pointer to the question, or the name again.
	rest, pointer := bytes.CutPrefix(rest, []byte{0xc0, 12})
	if !pointer {
		rest, _ = bytes.CutPrefix(rest, question[:len(question)-4])
	}
	if len(rest) < 14 || !bytes.Equal(rest[:4], []byte{0, 1, 0, 1}) || !bytes.Equal(rest[8:10], []byte{0, 4}) {
		return mismatch + "no address first"
	}
	if got := netip.AddrFrom4([4]byte(rest[10:14])); got != want {
		return mismatch + "another name's address"
	}
	return ""
}

func (r *loadRun) judge(o *outcome) {
	for i := range r.queries {
		switch {
		case r.took[i] == 0:
			o.problems["no reply"]++
		case r.problem[i] != "":
			o.problems[r.problem[i]]++
			if r.problem[i] == servFail {
				o.refused = append(o.refused, r.took[i])
			}
			if strings.HasPrefix(r.problem[i], mismatch) {
				o.mismatched++
			}
		default:
			o.latencies = append(o.latencies, r.took[i])
		}
	}
	if n := int(r.stray.Load()); n > 0 {
		o.problems["reply to nothing that was asked"] = n
		o.mismatched += n
	}
	slices.Sort(o.latencies)
	slices.Sort(o.refused)
}

const servFail = "RCODE 2"

// quantile returns a quantile of the latencies.
func (o outcome) quantile(share float64) time.Duration { return quantile(o.latencies, share) }

func quantile(sorted []time.Duration, share float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	i := min(int(share*float64(len(sorted))), len(sorted)-1)
	return sorted[i].Round(10 * time.Microsecond)
}

// add adds the outcome of another load.
func (o *outcome) add(other outcome) {
	o.queries += other.queries
	o.mismatched += other.mismatched
	o.elapsed += other.elapsed
	o.latencies = slices.Sorted(slices.Values(append(o.latencies, other.latencies...)))
	for problem, n := range other.problems {
		if o.problems == nil {
			o.problems = make(map[string]int)
		}
		o.problems[problem] += n
	}
}

func (o outcome) failed() int { return o.queries - len(o.latencies) }

func (o outcome) String() string {
	text := fmt.Sprintf("%d queries in %v (%.0f/s): %d failed, p50 %v, p99 %v, max %v", o.queries,
		o.elapsed.Round(time.Millisecond), float64(o.queries)/o.elapsed.Seconds(), o.failed(),
		o.quantile(0.5), o.quantile(0.99), o.quantile(1))
	for _, problem := range slices.Sorted(maps.Keys(o.problems)) {
		text += fmt.Sprintf("; %s: %d", problem, o.problems[problem])
	}
	return text
}

// mustBeWhole fails unless each query has its answer, and no other reply came.
func (o outcome) mustBeWhole(t *testing.T) {
	t.Helper()
	t.Log(o)
	if o.failed() > 0 || len(o.problems) > 0 {
		t.Errorf("not every query has its answer: %v", o)
	}
}

// distinct makes names that are different in each run, and that dottest.Address has
// answers for.
func distinct(run string) func(i int) string {
	return func(i int) string { return fmt.Sprintf("n%d.%s.example.com", i, run) }
}

// dottestLoad is a load for upstreams of dottest.
func dottestLoad(to netip.AddrPort, run string, queries, rate int) load {
	return load{
		to: to, network: "udp", sockets: 8, queries: queries, rate: rate, patience: 2 * time.Second,
		name: distinct(run), address: dottest.Address,
	}
}

// warmUp lets dotgate connect to upstreams of dottest and learn their latencies.
func warmUp(t *testing.T, to netip.AddrPort) {
	t.Helper()
	const rounds = 20
	for i := range rounds {
		if o := dottestLoad(to, fmt.Sprintf("warm%d", i), 50, 50).run(t); o.failed() == 0 {
			return
		}
	}
	t.Fatalf("not even the last of %d rounds has all its answers", rounds)
}

package gateway

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

// TestACrowdThatSaysNothingKeepsNobodyWaiting opens 10 000 connections from one
// address, and asks from another meanwhile and afterwards.
func TestACrowdThatSaysNothingKeepsNobodyWaiting(t *testing.T) {
	const crowd, limit = 10_000, 100 * time.Millisecond
	g, _ := start(t, addressed, Options{})
	once := func() time.Duration {
		t.Helper()
		began := time.Now()
		c := dialFrom(t, "tcp", "127.0.0.1", g.Addrs()[0])
		defer c.Close()
		if reply := exchange(t, c, query("example.com.")); len(reply.Answer) != 1 {
			t.Errorf("got %v", reply)
		}
		return time.Since(began)
	}
	ask := func() {
		t.Helper()
		// What the crowd does to one, it does to all; a busy machine does not.
		if took := min(once(), once(), once()); took > limit {
			t.Errorf("a query took %v", took)
		}
	}
	for i := range crowd {
		dialFrom(t, "tcp", "127.0.0.2", g.Addrs()[0])
		if i%500 == 0 {
			ask()
		}
	}
	ask()
	c := g.Counts().Connections
	if c.Open > 256+3 || c.Evicted == 0 { // our own may still be ending
		t.Errorf("got %+v", c)
	}
}

func TestOneClientHasOnlySoManyConnections(t *testing.T) {
	t.Parallel()
	g, _ := start(t, silent, Options{MaxPerClient: 2, Timeout: time.Second})
	busy := func() net.Conn {
		c := dialFrom(t, "tcp", "127.0.0.2", g.Addrs()[0])
		sendQuery(t, c, query("example.com."))
		return c
	}
	first, second := busy(), busy()
	for g.Counts().UnderWay < 2 {
		time.Sleep(time.Millisecond)
	}
	third := busy() // has no room, as none of its own is idle
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Error("a third connection was served")
	}
	other := dialFrom(t, "tcp", "127.0.0.1", g.Addrs()[0])
	for _, c := range []net.Conn{first, second, other} {
		if c == other {
			sendQuery(t, c, query("example.com."))
		}
		receive(t, c)
	}
	idle := dialFrom(t, "tcp", "127.0.0.2", g.Addrs()[0]) // now there is room
	sendQuery(t, idle, query("example.com."))
	receive(t, idle)
	if c := g.Counts().Connections; c.Evicted != 1 || c.Rejected != 1 {
		t.Errorf("got %+v", c)
	}
}

// TestEveryPacketIsAccountedFor throws mutated packets and streams at all sockets,
// with good ones between them. That the counts fit is checked when the gateway stops.
func TestEveryPacketIsAccountedFor(t *testing.T) {
	const rounds = 20_000
	g, _ := start(t, addressed, Options{Cache: newCache(t, nil)})
	udp := dial(t, "udp", g.Addrs()[0])
	random := rand.New(rand.NewPCG(1, 2))
	seeds := [][]byte{
		packed(query("example.com."), nil), packed(withEDNS(query("www.example.com."), 1232), nil),
		packed(withCookie(query("example.com."), "0011223344556677"), nil), unwanted["chaos"].packet, unwanted["response"].packet,
	}
	for i := range rounds {
		udp.Write(mutated(random, seeds[i%len(seeds)]))
		if i%500 != 0 {
			continue
		}
		if reply := exchange(t, dial(t, "udp", g.Addrs()[0]), query("example.com.")); len(reply.Answer) != 1 {
			t.Fatalf("after %d packets, got %v", i, reply)
		}
		c := dial(t, "tcp", g.Addrs()[0])
		for range 20 {
			c.Write(mutated(random, framed(seeds[random.IntN(len(seeds))])))
		}
		c.Close()
	}
	if n := g.Counts().Outcomes[Crashed][wire.UDP] + g.Counts().Outcomes[Crashed][wire.TCP]; n > 0 {
		t.Errorf("%d packets caused a panic", n)
	}
}

// mutated returns packet with a few octets changed, left out or put in.
func mutated(random *rand.Rand, packet []byte) []byte {
	out := append([]byte(nil), packet...)
	for range random.IntN(4) {
		at := random.IntN(len(out))
		switch random.IntN(4) {
		case 0:
			out[at] = byte(random.Uint32())
		case 1:
			out[at] ^= 1 << random.IntN(8)
		case 2:
			out = append(out[:at+1], out[at:]...)
		case 3:
			if out = out[:at]; len(out) == 0 {
				return out
			}
		}
	}
	return out
}

// FuzzStream reads whatever comes over a TCP connection, in pieces of any size. All
// that is well-formed is answered, and all that comes back is.
func FuzzStream(f *testing.F) {
	f.Add(numbered(3), uint8(1))
	f.Add(framed(packed(query("example.com."), nil))[:5], uint8(3))
	f.Add([]byte{0, 0, 0, 1, 0}, uint8(2))
	f.Add([]byte{0xff, 0xff, 1}, uint8(2))
	f.Add(append(numbered(1), framed(unwanted["response"].packet)...), uint8(20))
	g, err := New(addressed, Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, stream []byte, size uint8) {
		if len(stream) > 4096 {
			t.Skip("no more to be learnt")
		}
		checkStream(t, g, stream, max(1, int(size)))
	})
}

// checkStream serves a connection on which stream comes in pieces of this size.
func checkStream(t *testing.T, g *Gateway, stream []byte, size int) {
	ours, theirs := net.Pipe()
	var count tally
	c := newConnection(g, &pipe{Conn: ours, opened: time.Now()}, &count)
	var serving sync.WaitGroup
	serving.Go(func() { c.serve(t.Context()) })
	serving.Go(func() {
		defer theirs.Close()
		replies := &dns.Conn{Conn: theirs}
		for {
			if _, err := replies.ReadMsg(); err != nil {
				return // the end: a reply that can't be read would leave the rest unread, and so block
			}
		}
	})
	for rest := stream; len(rest) > 0; {
		piece := rest[:min(size, len(rest))]
		if _, err := theirs.Write(piece); err != nil {
			break // closed, for good reasons
		}
		rest = rest[len(piece):]
	}
	theirs.Close()
	serving.Wait()
	var counts Counts
	count.addTo(&counts, wire.TCP)
	checkCounts(t, counts)
	if n := counts.Outcomes[Crashed][wire.TCP]; n > 0 {
		t.Errorf("%d messages caused a panic", n)
	}
}

// TestLongAnswersDoNotPileUp has clients ask for much and read nothing. They are cut off
// before their time is up, when all of them together are too much; who reads is not.
func TestLongAnswersDoNotPileUp(t *testing.T) {
	t.Parallel()
	const size = 60_000
	long := resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
		header := dns.RR_Header{Name: nameOf(q), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}
		return answer(q, &dns.TXT{Hdr: header, Txt: slices.Repeat([]string{strings.Repeat("x", 249)}, size/250)})
	})
	g, _ := start(t, long, Options{})
	const deaf = 2 * unsentMax / (100 * size)
	began := time.Now()
	for range deaf {
		c := dialFrom(t, "tcp", "127.0.0.2", g.Addrs()[0])
		c.(*net.TCPConn).SetReadBuffer(4096)
		c.Write(numbered(100))
	}
	for g.Counts().Connections.Slow == 0 && time.Since(began) < patience {
		time.Sleep(time.Millisecond)
	}
	if took := time.Since(began); took >= writeTimeout {
		t.Errorf("nobody was cut off before %v", took)
	}
	if waits := g.clients.unsent.Load(); waits > 2*unsentMax { // of who is cut off, some may still go
		t.Errorf("%d octets wait to be written", waits)
	}
	c := dialFrom(t, "tcp", "127.0.0.1", g.Addrs()[0])
	c.Write(numbered(100))
	for range 100 {
		receive(t, c)
	}
}

// TestTheSystemKeepsLittleForAConnection looks at the buffers behind a connection: a
// client that does not read could have megabytes there.
func TestTheSystemKeepsLittleForAConnection(t *testing.T) {
	g, _ := start(t, addressed, Options{})
	exchange(t, dial(t, "tcp", g.Addrs()[0]), query("example.com."))
	g.clients.mu.Lock()
	defer g.clients.mu.Unlock()
	for c := range g.clients.open {
		raw, err := c.nc.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			for _, option := range []int{syscall.SO_SNDBUF, syscall.SO_RCVBUF} {
				// Linux keeps as much again for its own ends.
				if size, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, option); err != nil || size > 2*connectionBuffer {
					t.Errorf("buffer %d has %d octets, %v", option, size, err)
				}
			}
		})
	}
	if len(g.clients.open) != 1 {
		t.Errorf("%d connections are open", len(g.clients.open))
	}
}

package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

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
		if i%100 != 0 { // a hundred fit into any buffer of a socket
			continue
		}
		if reply := exchange(t, dial(t, "udp", g.Addrs()[0]), query("example.com.")); len(reply.Answer) != 1 {
			t.Fatalf("after %d packets, got %v", i, reply)
		}
		if i%500 != 0 {
			continue
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

// FuzzStream reads any octets from a TCP connection, in pieces of any size. Every
// well-formed query is answered, and every reply is well-formed.
func FuzzStream(f *testing.F) {
	f.Add(numbered(3), uint8(1))
	f.Add(framed(packed(query("example.com."), nil))[:5], uint8(3))
	f.Add([]byte{0, 0, 0, 1, 0}, uint8(2))
	f.Add([]byte{0xff, 0xff, 1}, uint8(2))
	f.Add(append(numbered(1), framed(unwanted["response"].packet)...), uint8(20))
	g, _ := start(f, addressed, Options{})
	f.Fuzz(func(t *testing.T, stream []byte, size uint8) {
		if len(stream) > 4096 {
			t.Skip("no more to be learnt")
		}
		checkStream(t, g, stream, max(1, int(size)))
	})
}

// checkStream sends stream over a connection, in pieces of this size.
func checkStream(t *testing.T, g *Gateway, stream []byte, size int) {
	c := dial(t, "tcp", g.Addrs()[0])
	defer c.Close()
	var reading sync.WaitGroup
	reading.Go(func() {
		replies := &dns.Conn{Conn: c}
		for {
			if _, err := replies.ReadMsg(); err != nil {
				var network net.Error
				if err != io.EOF && (!errors.As(err, &network) || network.Timeout()) {
					t.Error(err)
				}
				return
			}
		}
	})
	for rest := stream; len(rest) > 0; {
		piece := rest[:min(size, len(rest))]
		if _, err := c.Write(piece); err != nil {
			break // closed, for good reasons
		}
		rest = rest[len(piece):]
	}
	_ = c.(*net.TCPConn).CloseWrite() // it may be closed already
	reading.Wait()
	c.Close()
	eventually(t, func() bool { return g.Counts().Connections.Open == 0 })
	counts := g.Counts()
	checkCounts(t, counts)
	if n := counts.Outcomes[Crashed][wire.TCP]; n > 0 {
		t.Errorf("%d messages caused a panic", n)
	}
}

// TestUnsentRepliesAreBounded has clients ask for much and read nothing. They are cut off
// before their time is up, when unsent replies exceed the bound; clients that read are not.
func TestUnsentRepliesAreBounded(t *testing.T) {
	t.Parallel()
	const size, unsentMax, writeTimeout = 60_000, 8 << 20, 5 * time.Second // the last two are the transport's
	long := resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
		header := dns.RR_Header{Name: nameOf(q), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}
		return answer(q, &dns.TXT{Hdr: header, Txt: slices.Repeat([]string{strings.Repeat("x", 249)}, size/250)})
	})
	g, _ := start(t, long, Options{})
	forTXT := bytes.ReplaceAll(numbered(100), []byte{0, byte(dns.TypeA), 0, dns.ClassINET}, []byte{0, byte(dns.TypeTXT), 0, dns.ClassINET})
	const deaf = 2 * unsentMax / (100 * size)
	began := time.Now()
	for range deaf {
		c := dialFrom(t, "tcp", "127.0.0.2", g.Addrs()[0])
		c.(*net.TCPConn).SetReadBuffer(4096)
		c.Write(forTXT)
	}
	for g.Counts().Connections.Slow == 0 && time.Since(began) < patience {
		time.Sleep(time.Millisecond)
	}
	if took := time.Since(began); took >= writeTimeout {
		t.Errorf("no client was disconnected before %v", took)
	}
	if waits := g.Counts().Connections.Unsent; waits > 2*unsentMax { // those of disconnected clients may still be counted
		t.Errorf("%d octets wait to be written", waits)
	}
	c := dialFrom(t, "tcp", "127.0.0.1", g.Addrs()[0])
	c.Write(forTXT)
	for range 100 {
		receive(t, c)
	}
}

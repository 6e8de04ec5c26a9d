package gateway

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"

	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
)

// framed returns a message as it travels over TCP.
func framed(message []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)
}

// numbered returns n queries in one piece, each with its number for an ID.
func numbered(n int) (all []byte) {
	for i := range n {
		m := query(fmt.Sprintf("q%d.example.com.", i))
		m.Id = uint16(i)
		all = append(all, framed(packed(m, nil))...)
	}
	return all
}

func expectEOF(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("expected the end, got %d octets and %v", n, err)
	}
}

func TestPipelinedQueriesAreAnsweredAsAnswersCome(t *testing.T) {
	t.Parallel()
	const n = 1000
	release := make(chan struct{})
	g, _ := start(t, resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
		if nameOf(q) == "q0.example.com." {
			<-release
		}
		return addressed(ctx, q)
	}), Options{MaxPipelined: n})
	c := dial(t, "tcp", g.Addrs()[0])
	if _, err := c.Write(numbered(n)); err != nil {
		t.Fatal(err)
	}
	seen := make([]bool, n)
	for i := range n {
		if i == n-1 {
			close(release) // only now may the first be answered
		}
		reply := receive(t, c)
		if seen[reply.Id] || len(reply.Answer) != 1 || reply.Question[0].Name != fmt.Sprintf("q%d.example.com.", reply.Id) {
			t.Fatalf("odd reply: %v", reply)
		}
		seen[reply.Id] = true
	}
	if slices.Contains(seen, false) {
		t.Error("not all were answered")
	}
}

func TestQueriesBeyondMaxPipelinedStayUnread(t *testing.T) {
	t.Parallel()
	const limit, n = 3, 30
	var now, most atomic.Int64
	full := make(chan struct{})
	g, _ := start(t, resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
		defer now.Add(-1)
		if now.Add(1) == limit && most.Swap(limit) < limit {
			close(full)
		}
		if now.Load() > limit {
			most.Store(now.Load())
		}
		<-full
		return addressed(ctx, q)
	}), Options{MaxPipelined: limit})
	c := dial(t, "tcp", g.Addrs()[0])
	if _, err := c.Write(numbered(n)); err != nil {
		t.Fatal(err)
	}
	for range n {
		receive(t, c)
	}
	if most.Load() != limit {
		t.Errorf("%d at once", most.Load())
	}
}

func TestMessageInPieces(t *testing.T) {
	t.Parallel()
	g, _ := start(t, addressed, Options{})
	c := dial(t, "tcp", g.Addrs()[0])
	stream := numbered(3)
	for _, cut := range [][]byte{stream[:1], stream[1:2], stream[2:20], stream[20:34], stream[34:]} {
		if _, err := c.Write(cut); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		receive(t, c)
	}
}

func TestLongMessage(t *testing.T) {
	t.Parallel()
	g, stop := start(t, addressed, Options{})
	c := dial(t, "tcp", g.Addrs()[0])
	// Longer than our buffer, and between two that are not.
	long := packed(query("example.com."), func(p []byte) []byte { return append(p, make([]byte, 3*2048)...) })
	all := slices.Concat(numbered(1), framed(long), numbered(2))
	if _, err := c.Write(all); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		receive(t, c)
	}
	c.Close()
	stop()
	if n := g.Counts().Outcomes[RefusedMalformed][wire.TCP]; n != 1 {
		t.Errorf("refused %d", n)
	}
}

func TestHalfClosedConnectionGetsItsAnswers(t *testing.T) {
	t.Parallel()
	const n = 10
	release := make(chan struct{})
	g, _ := start(t, resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
		<-release
		return addressed(ctx, q)
	}), Options{})
	c := dial(t, "tcp", g.Addrs()[0])
	if _, err := c.Write(numbered(n)); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	close(release)
	for range n {
		receive(t, c)
	}
	expectEOF(t, c)
}

func TestClientThatClosesWithinAMessage(t *testing.T) {
	t.Parallel()
	g, stop := start(t, addressed, Options{})
	c := dial(t, "tcp", g.Addrs()[0])
	half := append(numbered(1), numbered(1)[:9]...)
	if _, err := c.Write(half); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	receive(t, c)
	expectEOF(t, c)
	c.Close()
	stop()
	if n := g.Counts().Connections.Stalled; n != 1 {
		t.Errorf("stalled: %d", n)
	}
}

func TestConnectionIsRejectedIfAllAreBusy(t *testing.T) {
	t.Parallel()
	asked, release := make(chan struct{}), make(chan struct{})
	g, stop := start(t, resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
		asked <- struct{}{}
		<-release
		return addressed(ctx, q)
	}), Options{MaxConnections: 1})
	first := dial(t, "tcp", g.Addrs()[0])
	sendQuery(t, first, query("example.com."))
	<-asked
	expectEOF(t, dial(t, "tcp", g.Addrs()[0]))
	close(release)
	receive(t, first)
	first.Close()
	stop()
	if c := g.Counts().Connections; c.Evicted != 0 || c.Rejected != 1 {
		t.Errorf("counts: %+v", c)
	}
}

// knowing returns a cache that has the answers to numbered(n).
func knowing(t *testing.T, n int) *cache.Cache {
	t.Helper()
	c := newCache(t, nil)
	for i := range n {
		q, err := wire.ParseQuery(packed(query(fmt.Sprintf("q%d.example.com.", i)), nil), wire.TCP)
		if err != nil {
			t.Fatal(err)
		}
		a, err := addressed(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		c.Put(q, a)
	}
	return c
}

// From the socket to the socket: nothing is allocated for a hit.
func TestAHitOverTCPAllocatesNothing(t *testing.T) {
	g, _ := start(t, failing, Options{Cache: knowing(t, 10)})
	c := dial(t, "tcp", g.Addrs()[0])
	queries, replies := numbered(10), make([]byte, 2048)
	exchange := func() {
		if _, err := c.Write(queries); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < 10*(len(queries)/10+16); {
			n, err := c.Read(replies)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
	}
	if allocations := testing.AllocsPerRun(1000, exchange); allocations != 0 {
		t.Errorf("%v allocations for ten", allocations)
	}
}

//go:build linux && lab

package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"dotgate/gateway/wire"
)

// patience is the time that a client waits for a reply.
const patience = 6 * time.Second

// An outcome is the result of one query.
type outcome struct {
	at      time.Time // when it was sent
	took    time.Duration
	special bool // its name carries an instruction
	rcode   wire.RCode
	why     bool  // there was an Extended DNS Error
	err     error // no reply in time, or not the right one
}

func (o outcome) failed() bool { return o.err != nil || o.rcode != wire.NoError }

func (o outcome) end() time.Time { return o.at.Add(o.took) }

var errWrongAnswer = errors.New("a wrong answer reached a client")

// A client sends queries at a steady rate, each for another name, and waits for each as
// long as a stub resolver does.
type client struct {
	conn  net.Conn
	truth truth
	mu    sync.Mutex
	open  map[uint16]chan []byte
	wg    sync.WaitGroup
	outs  []outcome
}

// truth is the right answer of the upstreams of a world.
type truth struct {
	recordType string
	address    func(name string) string
	mayCut     bool // answers are too large for UDP
}

func newClient(t *testing.T, g *gateway, truth truth) *client {
	t.Helper()
	conn, err := g.dial("udp", g.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	// The kernel must not drop a burst of late replies while the machine is busy.
	if raw, err := conn.(syscall.Conn).SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) })
		if err != nil {
			t.Fatal(err)
		}
	}
	c := &client{conn: conn, truth: truth, open: make(map[uint16]chan []byte)}
	go c.read()
	return c
}

func (c *client) read() {
	buf := make([]byte, wire.MaxSize)
	for {
		n, err := c.conn.Read(buf)
		if errors.Is(err, syscall.ECONNREFUSED) {
			continue // the gateway does not listen yet
		}
		if err != nil {
			return
		}
		if n < 12 {
			continue
		}
		c.mu.Lock()
		reply := c.open[wire.ID(buf)]
		delete(c.open, wire.ID(buf))
		c.mu.Unlock()
		if reply != nil {
			reply <- append([]byte(nil), buf[:n]...)
		}
	}
}

// run sends the queries of s until done is closed, and returns when all have an outcome.
func (c *client) run(s scenario, done <-chan struct{}) {
	other := c.truth
	other.recordType, other.address = "A", addressA
	c.repeat(s.interval, done, func(i int) {
		truth := c.truth
		if s.mixed && rand.IntN(2) == 0 {
			truth = other
		}
		special := s.special.share > 0 && rand.IntN(100) < s.special.share
		name := fmt.Sprintf("n%d.lab.example.com", i)
		if special {
			name = s.special.label + "." + name
		}
		c.note(truth, name, special)
	})
	c.wg.Wait()
	c.conn.Close()
}

// runSpecial sends n queries for one special name, spread over d.
func (c *client) runSpecial(name string, n int, d time.Duration) {
	done := make(chan struct{})
	timer := time.AfterFunc(d, func() { close(done) })
	defer timer.Stop()
	c.repeat(d*9/10/time.Duration(n), done, func(i int) {
		if i < n {
			c.note(c.truth, name, true)
		}
	})
}

// repeat calls f at intervals, each call in a goroutine, until done is closed.
func (c *client) repeat(interval time.Duration, done <-chan struct{}, f func(i int)) {
	begin := time.Now()
	for i := 0; ; i++ {
		at := begin.Add(time.Duration(i) * interval)
		if interval >= 20*time.Millisecond {
			// Vary the interval, so that queries fall before and after regular
			// events, such as the end of an idle connection.
			at = at.Add(time.Duration(i%31-15) * time.Millisecond)
		}
		select {
		case <-done:
			return
		case <-time.After(time.Until(at)):
		}
		c.wg.Go(func() { f(i) })
	}
}

func (c *client) note(truth truth, name string, special bool) {
	o := c.ask(truth, name, patience)
	o.special = special
	c.mu.Lock()
	c.outs = append(c.outs, o)
	c.mu.Unlock()
}

func (c *client) ask(truth truth, name string, limit time.Duration) (o outcome) {
	o.at = time.Now()
	defer func() { o.took = time.Since(o.at) }()
	q, err := wire.NewQuery(name, truth.recordType)
	if err != nil {
		o.err = err
		return o
	}
	packet := q.Packet()
	reply := make(chan []byte, 1)
	c.mu.Lock()
	for c.open[wire.ID(packet)] != nil {
		packet[1]++
		packet[0] += byte(rand.IntN(2))
	}
	c.open[wire.ID(packet)] = reply
	c.mu.Unlock()
	if _, err := c.conn.Write(packet); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		o.err = err
		return o
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case message := <-reply:
		o.rcode, o.err = truth.verify(q, name, message)
		o.why = o.failed() && explains(message)
	case <-timer.C:
		o.err = fmt.Errorf("no reply within %v", limit)
		c.mu.Lock()
		delete(c.open, wire.ID(packet))
		c.mu.Unlock()
	}
	return o
}

// explains reports whether message has an Extended DNS Error (RFC 8914).
func explains(message []byte) bool {
	var m dns.Msg
	if m.Unpack(message) != nil || m.IsEdns0() == nil {
		return false
	}
	return slices.ContainsFunc(m.IsEdns0().Option, func(o dns.EDNS0) bool { return o.Option() == dns.EDNS0EDE })
}

// verify checks that message is the answer to q, and name's own.
func (t truth) verify(q wire.Query, name string, message []byte) (wire.RCode, error) {
	if t.mayCut && message[2]&2 != 0 {
		return wire.NoError, nil // TC: the whole answer is available over TCP
	}
	a, err := wire.ParseAnswer(q, message)
	if err != nil {
		return 0, fmt.Errorf("%w, for %s: %w", errWrongAnswer, name, err)
	}
	if a.RCode() == wire.NoError && !strings.Contains(a.String(), t.address(name)) {
		return 0, fmt.Errorf("%w: not %s's, but %v", errWrongAnswer, name, a)
	}
	return a.RCode(), nil
}

//go:build lab

package lab

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

// freePort returns an address on loopback that nobody listens on.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	addr := tcp.Addr().(*net.TCPAddr).AddrPort()
	udp, err := net.ListenPacket("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	udp.Close()
	return addr
}

// An outcome is what one query came to.
type outcome struct {
	at    time.Time // when it was sent
	took  time.Duration
	odd   bool // its name carried an instruction
	rcode wire.RCode
	err   error // no reply in time, or not the right one
}

// A client sends queries at a steady pace, each for a name of its own, and waits
// for each as long as a patient stub resolver does.
type client struct {
	conn net.Conn
	mu   sync.Mutex
	open map[uint16]chan []byte
	wg   sync.WaitGroup
	outs []outcome
}

func dial(t *testing.T, addr netip.AddrPort) *client {
	t.Helper()
	conn, err := net.Dial("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	c := &client{conn: conn, open: make(map[uint16]chan []byte)}
	go c.read()
	return c
}

func (c *client) read() {
	buf := make([]byte, wire.MaxSize)
	for {
		n, err := c.conn.Read(buf)
		if err != nil {
			if strings.Contains(err.Error(), "refused") {
				continue // the gateway is not there yet
			}
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

// run sends queries until done is closed.
func (c *client) run(s scenario, done <-chan struct{}) {
	tick := time.NewTicker(time.Second / time.Duration(s.rate))
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-done:
			c.wg.Wait()
			c.conn.Close()
			return
		case <-tick.C:
		}
		odd := s.oddShare > 0 && rand.IntN(100) < s.oddShare
		name := fmt.Sprintf("n%d.lab.example.com", i)
		if odd {
			name = s.odd + "." + name
		}
		c.wg.Go(func() {
			o := c.ask(name, 6*time.Second)
			o.odd = odd
			c.mu.Lock()
			c.outs = append(c.outs, o)
			c.mu.Unlock()
		})
	}
}

func (c *client) ask(name string, limit time.Duration) (o outcome) {
	o.at = time.Now()
	defer func() { o.took = time.Since(o.at) }()
	q, err := wire.NewQuery(name, "A")
	if err != nil {
		o.err = err
		return o
	}
	packet := q.Packet()
	reply := make(chan []byte, 1)
	c.mu.Lock()
	for c.open[wire.ID(packet)] != nil {
		packet[1]++
	}
	c.open[wire.ID(packet)] = reply
	c.mu.Unlock()
	if _, err := c.conn.Write(packet); err != nil {
		o.err = err
		return o
	}
	select {
	case message := <-reply:
		o.rcode, o.err = verify(q, name, message)
	case <-time.After(limit):
		o.err = fmt.Errorf("no reply within %v", limit)
		c.mu.Lock()
		delete(c.open, wire.ID(packet))
		c.mu.Unlock()
	}
	return o
}

// verify checks that message is the answer to q, and name's own.
func verify(q wire.Query, name string, message []byte) (wire.RCode, error) {
	a, err := wire.ParseAnswer(q, message)
	if err != nil {
		if message[2]&2 != 0 {
			return wire.NoError, nil // TC: the whole answer is there over TCP
		}
		return 0, err
	}
	if a.RCode() == wire.NoError && !strings.Contains(a.String(), dottest.Address(name).String()) {
		return 0, fmt.Errorf("the answer is not %s's", name)
	}
	return a.RCode(), nil
}

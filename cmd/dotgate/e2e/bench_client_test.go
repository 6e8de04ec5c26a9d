//go:build linux && load

package e2e

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"
)

// A benchClient sends queries through several links, in one thread.
type benchClient struct {
	links    []*link
	next     func() (number uint32, ok bool) // the next name; false: no more
	begin    time.Time
	waits    []uint32 // nanoseconds, of each right answer
	asked    int
	lost     int // queries without a reply
	problems map[string]int
}

// lossLimit is the time after which a query without a reply is lost.
const lossLimit = 2 * time.Second

func newClient(t *testing.T, to netip.AddrPort, network string, links int) *benchClient {
	t.Helper()
	c := &benchClient{begin: time.Now(), problems: make(map[string]int)}
	for range links {
		c.links = append(c.links, newLink(t, to, network))
	}
	return c
}

func (c *benchClient) close() {
	for _, l := range c.links {
		l.close()
	}
}

func (c *benchClient) now() int64 { return int64(time.Since(c.begin)) + 1 } // never 0

// closed keeps a number of queries pending (closed loop), until the end of the names or
// of the time.
func (c *benchClient) closed(outstanding int, limit time.Duration) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	each := outstanding / len(c.links)
	more, end := true, c.now()+int64(limit)
	waiting := true
	for more || waiting {
		waiting = false
		for _, l := range c.links {
			if l.open > 0 {
				c.receive(l, true)
			}
			now := c.now()
			more = more && now < end
			for more && l.open < each {
				more = c.ask(l, now)
			}
			l.flush()
			waiting = waiting || l.open > 0
		}
	}
}

// paced sends at a constant rate (open loop).
func (c *benchClient) paced(t *testing.T, rate int, limit time.Duration) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	e, err := newEpoll()
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	for i, l := range c.links {
		if err := e.add(l.fd, i); err != nil {
			t.Fatal(err)
		}
	}
	begin, total := c.now(), int(float64(rate)*limit.Seconds())
	due := func(i int) int64 { return begin + int64(i)*int64(time.Second)/int64(rate) }
	for i := 0; i < total || c.open() > 0; {
		now := c.now()
		for ; i < total && due(i) <= now; i++ {
			l := c.links[i%len(c.links)]
			c.ask(l, now)
			l.flush()
		}
		patience := receiveLimit
		if i < total {
			patience = min(patience, time.Duration(due(i)-c.now()))
		}
		events := e.wait(patience)
		for _, event := range events {
			c.receive(c.links[event.Fd], false)
		}
		if len(events) == 0 && patience == receiveLimit {
			c.expire()
		}
	}
}

func (c *benchClient) open() (open int) {
	for _, l := range c.links {
		open += l.open
	}
	return open
}

func (c *benchClient) ask(l *link, now int64) bool {
	number, ok := c.next()
	if ok && l.ask(number, now) {
		c.asked++
	}
	return ok
}

func (c *benchClient) receive(l *link, wait bool) {
	var now int64
	l.receive(wait, func(reply []byte) {
		if now == 0 {
			now = c.now()
		}
		c.take(l, reply, now)
	})
	if now == 0 && wait {
		c.expire()
	}
}

func (c *benchClient) take(l *link, reply []byte, now int64) {
	if len(reply) < 2 {
		c.problems["stray"]++
		return
	}
	q := &l.asked[binary.BigEndian.Uint16(reply)]
	if q.sent == 0 {
		c.problems["reply to nothing that was asked"]++
		return
	}
	if problem := problemOf(reply, q.number); problem != "" {
		c.problems[problem]++
	} else {
		c.waits = append(c.waits, uint32(min(now-q.sent, 1<<32-1)))
	}
	q.sent = 0
	l.open--
}

// expire counts queries without a reply as lost after lossLimit.
func (c *benchClient) expire() {
	oldest := c.now() - int64(lossLimit)
	for _, l := range c.links {
		for i := range l.asked {
			if q := &l.asked[i]; l.open > 0 && q.sent != 0 && q.sent < oldest {
				q.sent = 0
				l.open--
				c.lost++
			}
		}
	}
}

// wait returns a quantile of the latencies.
func (c *benchClient) wait(share float64) time.Duration {
	if len(c.waits) == 0 {
		return 0
	}
	if !slices.IsSorted(c.waits) {
		slices.Sort(c.waits)
	}
	return time.Duration(c.waits[min(int(share*float64(len(c.waits))), len(c.waits)-1)])
}

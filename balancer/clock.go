package balancer

import (
	"sync"
	"time"
)

const (
	// tick is how exact alarms are: they come up to that much late.
	tick = 4 * time.Millisecond
	// ticks is how many there are on the dial. An alarm further away rings early.
	ticks = 1 << 10
)

// A clock has alarms for races, one for each at most. Nearly all of them are taken
// back before they ring. A timer of its own for each would cost more than that, and
// when thousands of queries wait for one name server, thousands of goroutines would
// begin at once.
//
// It is a timing wheel: alarms that are due in the same tick are in one list, and
// there is one timer, for the first list with something in it. The zero clock is
// ready for use.
type clock struct {
	mu    sync.Mutex // guards the rest; not held while races look at what rang
	epoch time.Time
	dial  [ticks]*race // the first of each list
	first int64        // the tick that timer is for, or 0
	timer *time.Timer
	due   []*race // of ring
}

// An alarm is a race's place on the dial.
type alarm struct {
	at         int64 // tick, or 0
	prev, next *race
}

// set has r ring in d from now on, and at no other time.
func (c *clock) set(r *race, now time.Time, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer == nil {
		c.epoch = now
		c.timer = time.AfterFunc(time.Hour, c.ring)
	}
	c.unlink(r)
	since := now.Sub(c.epoch)
	current := int64(since / tick)
	r.alarm.at = min(max(int64((since+d+tick-1)/tick), current+1), current+ticks-1)
	head := &c.dial[r.alarm.at%ticks]
	if r.alarm.next = *head; r.alarm.next != nil {
		r.alarm.next.alarm.prev = r
	}
	*head = r
	if c.first == 0 || r.alarm.at < c.first {
		c.await(r.alarm.at, since)
	}
}

// stop takes back r's alarm, if it has one.
func (c *clock) stop(r *race) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unlink(r)
}

func (c *clock) unlink(r *race) {
	a := &r.alarm
	if a.at == 0 {
		return
	}
	if a.prev != nil {
		a.prev.alarm.next = a.next
	} else {
		c.dial[a.at%ticks] = a.next
	}
	if a.next != nil {
		a.next.alarm.prev = a.prev
	}
	*a = alarm{}
}

// await sets the timer.
func (c *clock) await(first int64, since time.Duration) {
	c.first = first
	c.timer.Reset(time.Duration(first)*tick - since)
}

// ring has all races look whose alarms are due.
func (c *clock) ring() {
	c.mu.Lock()
	since := time.Since(c.epoch)
	now := int64(since / tick)
	due, next := c.due[:0], int64(0)
	c.due = nil
	// A list may have alarms of the next turn of the dial, too, if this comes late.
	for at := c.first; at < c.first+ticks && (next == 0 || next > at); at++ {
		for r := c.dial[at%ticks]; r != nil; {
			this := r
			r = r.alarm.next
			if this.alarm.at <= now {
				c.unlink(this)
				due = append(due, this)
			} else if next == 0 || this.alarm.at < next {
				next = this.alarm.at
			}
		}
	}
	if c.first = 0; next != 0 {
		c.await(next, since)
	}
	c.mu.Unlock()
	for _, r := range due {
		r.news(func() { r.rang = true })
	}
	clear(due)
	c.mu.Lock()
	c.due = due
	c.mu.Unlock()
}

package balancer

import (
	"sync"
	"time"
)

const (
	// tick is the precision of alarms: they fire up to one tick late.
	tick = 4 * time.Millisecond
	// ticks is the number of slots. An alarm further away fires early.
	ticks = 1 << 10
)

// A timerWheel has the alarms of exchanges, at most one of each. Alarms of the same tick
// are in one list, and one timer waits for the first list that is not empty. Nearly all
// alarms are stopped before they fire, and a time.Timer for each would cost more. It would
// also start thousands of goroutines at once when thousands of queries wait for one name
// server. The zero timerWheel is ready for use.
type timerWheel struct {
	mu    sync.Mutex // guards the rest; not held while alarms are handled
	epoch time.Time
	slots [ticks]*exchange // the first exchange of each list
	first int64            // the tick that timer is for, or 0
	timer *time.Timer
	due   []*exchange // the buffer of fire
}

// An alarm is the place of an exchange in the wheel.
type alarm struct {
	at         int64 // tick; 0: it is not set
	prev, next *exchange
}

// set has the alarm of x fire d after now, and at no other time.
func (w *timerWheel) set(x *exchange, now time.Time, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer == nil {
		w.epoch = now
		w.timer = time.AfterFunc(time.Hour, w.fire)
	}
	w.unlink(x)
	since := max(now.Sub(w.epoch), 0) // the exchange of the first alarm may have begun after x
	current := int64(since / tick)
	x.alarm.at = min(max(int64((since+d+tick-1)/tick), current+1), current+ticks-1)
	head := &w.slots[x.alarm.at%ticks]
	if x.alarm.next = *head; x.alarm.next != nil {
		x.alarm.next.alarm.prev = x
	}
	*head = x
	if w.first == 0 || x.alarm.at < w.first {
		w.arm(x.alarm.at, since)
	}
}

// stop removes the alarm of x, if it is set.
func (w *timerWheel) stop(x *exchange) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unlink(x)
}

func (w *timerWheel) unlink(x *exchange) {
	a := &x.alarm
	if a.at == 0 {
		return
	}
	if a.prev != nil {
		a.prev.alarm.next = a.next
	} else {
		w.slots[a.at%ticks] = a.next
	}
	if a.next != nil {
		a.next.alarm.prev = a.prev
	}
	*a = alarm{}
}

// arm sets the timer.
func (w *timerWheel) arm(first int64, since time.Duration) {
	w.first = first
	w.timer.Reset(time.Duration(first)*tick - since)
}

// fire has the exchanges handle the alarms that are due.
func (w *timerWheel) fire() {
	w.mu.Lock()
	since := time.Since(w.epoch)
	now := int64(since / tick)
	due, next := w.due[:0], int64(0)
	w.due = nil
	// If this runs late, a list may also have alarms of the next turn of the wheel.
	for at := w.first; at < w.first+ticks && (next == 0 || next > at); at++ {
		for x := w.slots[at%ticks]; x != nil; {
			this := x
			x = x.alarm.next
			if this.alarm.at <= now {
				w.unlink(this)
				due = append(due, this)
			} else if next == 0 || this.alarm.at < next {
				next = this.alarm.at
			}
		}
	}
	if w.first = 0; next != 0 {
		w.arm(next, since)
	}
	w.mu.Unlock()
	for _, x := range due {
		x.update(func() { x.fired = true })
	}
	clear(due)
	w.mu.Lock()
	w.due = due
	w.mu.Unlock()
}

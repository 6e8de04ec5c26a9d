package admin

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// rounds make one text for all clients that wait for it at the same time, so that many
// pages cost as much CPU time as one. One round is made at a time, and none while no
// client waits.
type rounds struct {
	interval time.Duration // between the begins of two
	make     func() ([]byte, error)

	mu   sync.Mutex // guards the rest; not held while a text is made
	next *round     // will begin; nil if no client waits
	last *round     // has ended; or nil
	busy bool       // one is being made
}

// A round is one text.
type round struct {
	done         chan struct{} // closed when the rest is set
	began, ended time.Time
	text         []byte
	err          error
}

// wait returns the text of a round that begins from now on, which callers must not
// change. The error is that of ctx, or of making it.
func (rs *rounds) wait(ctx context.Context) ([]byte, error) {
	rs.mu.Lock()
	if rs.next == nil {
		rs.next = &round{done: make(chan struct{})}
		if !rs.busy {
			rs.begin()
		}
	}
	r := rs.next
	rs.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-r.done:
		return r.text, r.err
	}
}

// recent returns the text of the last round if it is younger than the interval, or else
// waits for another.
func (rs *rounds) recent(ctx context.Context) ([]byte, error) {
	rs.mu.Lock()
	last := rs.last
	rs.mu.Unlock()
	if last != nil && last.err == nil && time.Since(last.began) < rs.interval {
		return last.text, nil
	}
	return rs.wait(ctx)
}

// begin schedules the next round: after the interval, and after a pause of at least the
// duration of the last one, so that half of a CPU stays free. The caller holds mu.
func (rs *rounds) begin() {
	rs.busy = true
	due := time.Duration(0)
	if l := rs.last; l != nil {
		due = max(time.Until(l.began.Add(rs.interval)), time.Until(l.ended.Add(l.ended.Sub(l.began))), 0)
	}
	time.AfterFunc(due, rs.run)
}

func (rs *rounds) run() {
	rs.mu.Lock()
	r := rs.next
	rs.next = nil
	rs.mu.Unlock()
	r.began = time.Now()
	r.text, r.err = rs.attempt()
	r.ended = time.Now()
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.last, rs.busy = r, false
	if rs.interval == 0 { // no later client gets it
		rs.last = &round{began: r.began, ended: r.ended}
	}
	close(r.done)
	if rs.next != nil {
		rs.begin()
	}
}

// attempt makes a text. A bug in that must not end the service.
func (rs *rounds) attempt() (text []byte, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("BUG: panic: %v", v)
		}
	}()
	return rs.make()
}

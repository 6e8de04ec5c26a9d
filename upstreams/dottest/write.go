package dottest

import (
	"container/heap"
	"time"
)

// A writer is the write loop of a connection. It also waits for all that happens after a
// time on the connection.
type writer struct {
	*conn
	timer    *time.Timer
	out      []byte
	answered int // queries, on this connection
}

func (c *conn) writeLoop() {
	w := writer{conn: c, timer: time.NewTimer(time.Hour)}
	defer w.timer.Stop()
	defer c.end()
	var sent []answer
	for {
		todo := w.next(sent)
		switch {
		case todo.closing != nil:
			w.shut(*todo.closing)
			return
		case len(todo.answers) > 0:
			if !w.send(todo.answers) {
				return
			}
		case !w.pause(todo.wait):
			return
		}
		sent = todo.answers
	}
}

// todo is the next work of the write loop.
type todo struct {
	closing *Closing // close the connection thus; or nil
	answers []answer // send these; or none
	wait    time.Duration
}

// next takes back the answers that have been sent, for their memory.
func (w *writer) next(sent []answer) todo {
	fault := &w.server.plan.Load().conn
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.server.clock()
	if len(sent) > 0 {
		w.lastUse = now
		w.spare = sent[0]
		clear(sent)
	}
	if w.closing != nil {
		return todo{closing: w.closing}
	}
	answers := w.ready
	for len(w.later) > 0 && w.later[0].due <= now {
		answers = append(answers, heap.Pop(&w.later).(answer))
	}
	w.ready, w.unsent = sent[:0], 0
	w.room.Broadcast()
	for _, a := range answers {
		w.noteAnswers(a.ids)
	}
	if len(answers) > 0 {
		return todo{answers: answers}
	}
	wait := time.Hour // until something happens
	if len(w.later) > 0 {
		wait = w.later[0].due - now
	} else if fault.CloseIdle > 0 {
		wait = w.lastUse + fault.CloseIdle - now
		if wait <= 0 {
			return todo{closing: &fault.Closing}
		}
	}
	if fault.ForgetIdle > 0 {
		if left := w.lastUse + fault.ForgetIdle - now; left > 0 {
			wait = min(wait, left)
		} else {
			w.raw.freeze()
		}
	}
	return todo{wait: wait}
}

// pause waits until d has passed or the write loop is woken. It reports whether the
// connection is still open.
func (w *writer) pause(d time.Duration) bool {
	w.timer.Reset(d)
	select {
	case <-w.wake:
	case <-w.timer.C:
	case <-w.done:
		return false
	}
	return true
}

// send reports whether there can be more.
func (w *writer) send(answers []answer) bool {
	for _, a := range answers {
		if !a.alone {
			w.out = append(w.out, a.frames...)
			w.answered += len(a.ids)
			continue
		}
		if !w.flush() || !w.sendAlone(a) {
			return false
		}
	}
	return w.flush()
}

func (w *writer) flush() bool {
	if len(w.out) == 0 {
		return true
	}
	_, err := w.tls.Write(w.out)
	w.out = w.out[:0]
	return err == nil
}

func (w *writer) sendAlone(a answer) bool {
	if a.cut {
		w.raw.state.raise(cutting)
	}
	rest := a.frames
	if a.drip > 0 {
		rest = w.dripped(a)
	}
	_, err := w.tls.Write(rest)
	w.answered++
	fault := &w.server.plan.Load().conn
	switch {
	case a.cut:
		w.shut(max(fault.Closing, FIN)) // after half a record, there can't be a close_notify
		return false
	case err == nil && fault.CloseAfter > 0 && w.answered >= fault.CloseAfter:
		w.shut(fault.Closing)
		return false
	}
	return err == nil
}

// dripped sends a octet by octet, and returns the rest: the last octet, or more after Set
// or at the end of the connection.
func (w *writer) dripped(a answer) []byte {
	p, rest := w.server.plan.Load(), a.frames
	for len(rest) > 1 {
		for end := w.server.clock() + a.drip; w.server.clock() < end; {
			if !w.pause(end - w.server.clock()) {
				return rest
			}
			if w.server.plan.Load() != p || w.isClosing() {
				return rest
			}
		}
		if _, err := w.tls.Write(rest[:1]); err != nil {
			return rest
		}
		rest = rest[1:]
	}
	w.pause(a.drip)
	return rest
}

func (c *conn) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing != nil
}

// shut closes this side of the connection, unless it is frozen: then the client must not
// notice. The read loop ends when the client has closed it as well.
func (c *conn) shut(how Closing) {
	if c.raw.state.load() == frozen {
		return
	}
	c.server.retire(c)
	if how == RST {
		c.raw.reset()
		return
	}
	if how == CloseNotify {
		c.tls.CloseWrite()
	}
	c.raw.finish()
}

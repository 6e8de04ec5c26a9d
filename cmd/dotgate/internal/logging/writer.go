// Package logging writes lines to an output whose reader may stand still or go away.
package logging

import (
	"bytes"
	"io"
	"sync"
	"time"
)

const (
	// queueMax is how many octets may wait to be written: some 5,000 lines.
	queueMax = 1 << 20
	// chunkMax bounds one write, and so what is lost of a reader that goes away.
	chunkMax = 32 << 10
)

// A Writer is an io.Writer that never waits for its output: it queues lines, and one
// goroutine writes them. What does not fit into the queue, or can't be written, is
// dropped and counted.
//
// slog calls its writer under a mutex, and state changes are logged from the path of
// an answer: a terminal that is stopped, or a pipe that is full, must hold up neither.
type Writer struct {
	out     io.Writer
	dropped func(lines uint64, err error) // or nil

	mu     sync.Mutex
	queue  []byte        // whole lines
	lines  uint64        // dropped since New
	told   uint64        // of those
	err    error         // of the last write that failed
	closed bool          // Close was called
	more   chan struct{} // one place: there are lines, or it is closed
	done   chan struct{} // closed when all is written
}

// New returns a Writer to out. Dropped is called from a goroutine of its own with the
// number of lines that were dropped since its last call, when out takes lines again;
// err is nil if they only did not fit. It may write to the Writer. Dropped may be nil.
// Close has to be called.
func New(out io.Writer, dropped func(lines uint64, err error)) *Writer {
	w := &Writer{out: out, dropped: dropped, more: make(chan struct{}, 1), done: make(chan struct{})}
	go w.run()
	return w
}

// Write queues lines, the last of which ends with a line feed, or drops them. It does
// not block, and its error is always nil.
func (w *Writer) Write(lines []byte) (int, error) {
	w.mu.Lock()
	if w.closed || len(w.queue)+len(lines) > queueMax {
		w.lines += count(lines)
	} else {
		w.queue = append(w.queue, lines...)
	}
	w.mu.Unlock()
	w.wake()
	return len(lines), nil
}

func (w *Writer) wake() {
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// Dropped returns how many lines were dropped since New.
func (w *Writer) Dropped() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lines
}

// Close writes what is queued, for as long as limit at most, and reports whether all
// of it was written. What is written later is dropped.
func (w *Writer) Close(limit time.Duration) bool {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.wake()
	select {
	case <-w.done:
		return true
	case <-time.After(limit): // the goroutine stands in a write, and ends with the process
		return false
	}
}

func (w *Writer) run() {
	defer close(w.done)
	var batch []byte
	torn := false // the last line that was written has no end
	for range w.more {
		w.mu.Lock()
		batch, w.queue = w.queue, batch[:0]
		closed := w.closed
		w.mu.Unlock()
		lost, err := w.write(batch, &torn)
		w.account(lost, err, len(batch) > 0 && err == nil)
		if closed {
			return
		}
	}
}

// write writes whole lines, and returns how many were not.
func (w *Writer) write(batch []byte, torn *bool) (lost uint64, err error) {
	for len(batch) > 0 {
		chunk := batch[:end(batch)]
		text := chunk
		if *torn {
			text = append([]byte("\n"), chunk...)
		}
		n, err := w.out.Write(text)
		if n > 0 {
			*torn = text[n-1] != '\n'
		}
		if err != nil {
			return count(text[n:]) + count(batch[len(chunk):]), err
		}
		batch = batch[len(chunk):]
	}
	return 0, nil
}

// account counts lines that were lost, and tells when lines get through again.
func (w *Writer) account(lost uint64, err error, through bool) {
	w.mu.Lock()
	w.lines += lost
	if err != nil {
		w.err = err
	}
	missing, why := w.lines-w.told, w.err
	// What it tells is a line itself, which needs room.
	tell := through && missing > 0 && len(w.queue) < queueMax/2 && !w.closed && w.dropped != nil
	if tell {
		w.told, w.err = w.lines, nil
	}
	w.mu.Unlock()
	if tell {
		w.dropped(missing, why)
	}
}

// end returns where the first chunk of whole lines ends.
func end(batch []byte) int {
	if len(batch) <= chunkMax {
		return len(batch)
	}
	if i := bytes.LastIndexByte(batch[:chunkMax], '\n'); i >= 0 {
		return i + 1
	}
	if i := bytes.IndexByte(batch, '\n'); i >= 0 { // a line that is longer than a chunk
		return i + 1
	}
	return len(batch)
}

func count(lines []byte) uint64 { return uint64(bytes.Count(lines, []byte("\n"))) }

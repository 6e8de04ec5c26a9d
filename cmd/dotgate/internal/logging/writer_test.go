package logging

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A reader takes what is written when it is let.
type reader struct {
	mu    sync.Mutex
	text  bytes.Buffer
	fails error // of writes, after half of the text
}

func (r *reader) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fails != nil {
		n, _ := r.text.Write(p[:len(p)/2])
		return n, r.fails
	}
	return r.text.Write(p)
}

func (r *reader) set(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fails = err
}

func TestAReaderThatStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := io.Pipe() // which takes nothing without a reader
		var told []string
		w := New(out, func(lines uint64, err error) { told = append(told, fmt.Sprint(lines, err)) })
		line := []byte(strings.Repeat("x", 1023) + "\n")
		began := time.Now()
		var writers sync.WaitGroup
		for range 2 { // two goroutines at once
			writers.Go(func() {
				for range 1500 {
					if n, err := w.Write(line); n != len(line) || err != nil {
						t.Error(n, err)
					}
				}
			})
		}
		writers.Wait()
		if time.Since(began) != 0 {
			t.Error("a writer waited")
		}
		synctest.Wait()
		// One queue full is being written, another waits.
		dropped := w.Dropped()
		if dropped < 3000-2*queueMax/1024 || dropped > 3000-queueMax/1024 {
			t.Errorf("%d of 3000 lines dropped", dropped)
		}
		if w.Close(time.Second) {
			t.Error("closed, but nothing was read")
		}
		if time.Since(began) != time.Second {
			t.Error("closed after", time.Since(began))
		}
		in.Close()
		synctest.Wait()
		if w.Dropped() != 3000 || len(told) > 0 {
			t.Errorf("%d lines dropped; told %v", w.Dropped(), told)
		}
	})
}

func TestAReaderThatComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := io.Pipe()
		var told []string
		var w *Writer
		w = New(out, func(lines uint64, err error) {
			told = append(told, fmt.Sprint(lines, err))
			fmt.Fprintln(w, "dropped")
		})
		for i := range 3 * queueMax / 1024 {
			fmt.Fprintf(w, "%1023d\n", i)
		}
		synctest.Wait()
		dropped := w.Dropped()
		var got bytes.Buffer
		go func() { _, _ = io.Copy(&got, in) }()
		synctest.Wait()
		if want := fmt.Sprint(dropped, error(nil)); len(told) != 1 || told[0] != want {
			t.Errorf("told %v, want %s", told, want)
		}
		if !w.Close(time.Second) {
			t.Error("not all was written")
		}
		out.Close()
		synctest.Wait()
		if n := bytes.Count(got.Bytes(), []byte("\n")); uint64(n)+dropped != 3*queueMax/1024+1 || !strings.HasSuffix(got.String(), "\ndropped\n") {
			t.Errorf("%d lines, and %d were dropped", n, dropped)
		}
	})
}

// TestAFullDisk has the next line begin a line of its own, and tells why some are
// missing.
func TestAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r reader
		var told []string
		w := New(&r, func(lines uint64, err error) { told = append(told, fmt.Sprint(lines, " ", err)) })
		step := func(line string) { fmt.Fprintln(w, line); synctest.Wait() }
		step("one")
		r.set(syscall.ENOSPC)
		step("second")
		step("third")
		r.set(nil)
		step("four")
		if !w.Close(time.Second) {
			t.Error("not closed")
		}
		if got, want := r.text.String(), "one\nsec\nth\nfour\n"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if want := "2 " + syscall.ENOSPC.Error(); len(told) != 1 || told[0] != want {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}

func TestCloseWritesWhatIsQueued(t *testing.T) {
	var r reader
	w := New(&r, nil)
	var want strings.Builder
	for i := range 10_000 {
		line := fmt.Sprintln("line", i)
		want.WriteString(line)
		_, _ = w.Write([]byte(line))
	}
	if !w.Close(10*time.Second) || r.text.String() != want.String() || w.Dropped() > 0 {
		t.Errorf("%d octets of %d, %d lines dropped", r.text.Len(), want.Len(), w.Dropped())
	}
	if _, err := w.Write([]byte("late\n")); err != nil || w.Dropped() != 1 {
		t.Error(err, w.Dropped())
	}
}

func TestAReaderThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := io.Pipe()
		in.Close()
		w := New(out, nil)
		fmt.Fprintln(w, "one")
		fmt.Fprintln(w, "two")
		if !w.Close(time.Second) || w.Dropped() != 2 {
			t.Error("dropped", w.Dropped())
		}
	})
}

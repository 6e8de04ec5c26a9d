package querylog

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dotgate/gateway/wire"
)

// lines is a log that can be read while it is written.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// running runs a log to output. It returns the log, its messages, and a function that
// ends it.
func running(t *testing.T, output, format string) (l *Log, log *lines, end func()) {
	t.Helper()
	log = new(lines)
	o := Defaults()
	o.Output, o.Format, o.Log = output, format, slog.New(slog.NewTextHandler(log, nil))
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	return l, log, sync.OnceFunc(func() {
		cancel()
		began := time.Now()
		if err := <-done; err != nil {
			t.Error(err)
		}
		// The limit is a second, but tests run beside others.
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it ended after %v", took)
		}
	})
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

func fifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAFIFOWithoutAReader(t *testing.T) {
	t.Parallel()
	l, log, end := running(t, fifo(t), "json")
	note(t, l, client, "one.example.com", wire.NoError, 0)
	until(t, "it is told", func() bool { return strings.Contains(log.String(), "no program reads from it") })
	if c := l.Counts(); c.Failed != 1 {
		t.Errorf("%+v", c)
	}
	end()
}

// TestAStalledReader fills a FIFO, and then reads it: all lines are whole.
func TestAStalledReader(t *testing.T) {
	t.Parallel()
	path := fifo(t)
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, log, end := running(t, path, "json")
	asked := uint64(0)
	until(t, "entries are dropped", func() bool {
		note(t, l, client, fmt.Sprintf("n%d.example.com", asked), wire.NoError, 0)
		asked++
		return strings.Contains(log.String(), "its reader takes nothing")
	})
	read := make(chan []byte)
	go func() {
		text, _ := io.ReadAll(r)
		read <- text
	}()
	until(t, "it is written again", func() bool {
		note(t, l, client, fmt.Sprintf("n%d.example.com", asked), wire.NoError, 0)
		asked++
		return strings.Contains(log.String(), "written again")
	})
	end()
	text := <-read
	c := l.Counts()
	if n := uint64(bytes.Count(text, []byte("\n"))); n != c.Written || c.Written+c.Dropped+c.Failed != asked || c.Dropped == 0 {
		t.Errorf("%d lines of %d: %+v", n, asked, c)
	}
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(line, []byte(jsonHead)) || !bytes.HasSuffix(line, []byte("}\n")) {
			t.Fatalf("torn: %q", line)
		}
	}
}

func TestAReaderThatIsStalledAtTheEnd(t *testing.T) {
	t.Parallel()
	path := fifo(t)
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, _, end := running(t, path, "dnstap")
	until(t, "entries are dropped", func() bool {
		note(t, l, client, "one.example.com", wire.NoError, 0)
		return l.Counts().Dropped > 0
	})
	end()
}

// TestAReaderIsReplaced has a reader that ends, and another one some time later.
func TestAReaderIsReplaced(t *testing.T) {
	t.Parallel()
	path := fifo(t)
	first, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	l, log, end := running(t, path, "json")
	note(t, l, client, "one.example.com", wire.NoError, 0)
	until(t, "an entry is written", func() bool { return l.Counts().Written == 1 })
	first.Close()
	until(t, "it is told", func() bool {
		note(t, l, client, "two.example.com", wire.NoError, 0)
		return strings.Contains(log.String(), "broken pipe")
	})
	second, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	until(t, "it is written again", func() bool {
		note(t, l, client, "three.example.com", wire.NoError, 0)
		return strings.Contains(log.String(), "written again")
	})
	end()
}

func TestAFileThatIsNoQueryLogIsLeftUnchanged(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"json", "dnstap"} {
		for path, want := range map[string]string{
			script:      "is not a query log of dotgate, and is left as it is",
			t.TempDir(): "is a directory",
			"/dev/full": "no space left on device",
		} {
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			l, log, end := running(t, path, format)
			note(t, l, client, "one.example.com", wire.NoError, 0)
			until(t, want, func() bool { return strings.Contains(log.String(), want) })
			end()
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) || after.Size() != before.Size() || after.Mode() != before.Mode() {
				t.Errorf("%s: it is %v, was %v", path, after, before)
			}
			if c := l.Counts(); c.Written != 0 || c.Failed != 1 {
				t.Errorf("%s: %+v", path, c)
			}
		}
	}
}

// long writes entries to output until they exceed MaxSize.
func long(t *testing.T, o Options) *counts {
	t.Helper()
	c := new(counts)
	out, err := (&config{Options: o}).open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer out.close()
	q, _ := wire.NewQuery("www.example.com", "A")
	for range 2 * o.MaxSize / 150 {
		if err := out.put(&entry{at: time.Now(), client: client, packet: q.Packet(), reply: q.AppendError(nil, wire.NoError, wire.EDE{})}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// TestOnlyRegularFilesAreRenamed writes to /dev/null, which root could rename.
func TestOnlyRegularFilesAreRenamed(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"json", "dnstap"} {
		o := Defaults()
		o.Output, o.Format, o.MaxSize = "/dev/null", format, 3000
		if c := long(t, o); c.written.Load() != 40 {
			t.Errorf("%d", c.written.Load())
		}
		if info, err := os.Lstat("/dev/null"); err != nil || info.Mode().Type() != os.ModeDevice|os.ModeCharDevice {
			t.Fatal("/dev/null is", info, err)
		}
		if names, _ := filepath.Glob("/dev/null.*"); len(names) > 0 {
			t.Error(names)
		}
	}
}

func TestASymlinkIsKept(t *testing.T) {
	t.Parallel()
	symlinkStays(t, true)
	symlinkStays(t, false) // to a file that does not exist yet
}

func symlinkStays(t *testing.T, exists bool) {
	t.Helper()
	o := Defaults()
	dir := t.TempDir()
	o.Output, o.MaxSize = filepath.Join(dir, "link"), 3000
	if err := os.Mkdir(filepath.Join(dir, "far"), 0o700); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(dir, "far", "queries.log")
	if exists {
		if err := os.WriteFile(target, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(target, o.Output); err != nil {
		t.Fatal(err)
	}
	long(t, o)
	if info, err := os.Lstat(o.Output); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Error(info, err)
	}
	if names, _ := filepath.Glob(target + "*"); len(names) < 3 {
		t.Error(names)
	}
}

func TestAnotherFileIsNeverReplaced(t *testing.T) {
	t.Parallel()
	o := Defaults()
	o.Output, o.MaxSize = filepath.Join(t.TempDir(), "queries.log"), 3000
	second := o.Output + ".2"
	if err := os.WriteFile(second, []byte("my notes"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := openFile(o, new(counts))
	if err != nil {
		t.Fatal(err)
	}
	defer out.close()
	if err := out.rotate(); err == nil || !strings.Contains(err.Error(), second+" is not a query log") {
		t.Error(err)
	}
	if text, _ := os.ReadFile(second); string(text) != "my notes" {
		t.Errorf("%q", text)
	}
}

func TestAnIncompleteLineIsEnded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "queries.log")
	torn := `{"time":"2026-01-01T00:00:00Z","cli`
	if err := os.WriteFile(path, []byte(torn), 0o600); err != nil {
		t.Fatal(err)
	}
	l, _, end := running(t, path, "json")
	note(t, l, client, "one.example.com", wire.NoError, 0)
	end()
	text, _ := os.ReadFile(path)
	if all := strings.Split(string(text), "\n"); len(all) != 3 || all[0] != torn || !strings.HasPrefix(all[1], jsonHead) {
		t.Errorf("%q", text)
	}
}

// TestAFullDiskLeavesNoIncompleteLine has a disk that is full after half of a buffer.
func TestAFullDiskLeavesNoIncompleteLine(t *testing.T) {
	disk := &disk{room: 10}
	c := new(counts)
	s := stream{w: disk, counts: c}
	for _, text := range []string{"line 1\n", "line 2\n", "line 3\n"} {
		if err := s.add([]byte(text), 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.flush(); !isTemporary(err) || c.written.Load() != 1 {
		t.Error(err, c.written.Load())
	}
	disk.room = 100
	if err := s.flush(); err != nil || c.written.Load() != 3 || disk.String() != "line 1\nline 2\nline 3\n" {
		t.Errorf("%v, %d, %q", err, c.written.Load(), disk.String())
	}
	disk.room = 3
	_ = s.add([]byte("line 4\n"), 1)
	_ = s.flush()
	s.discard()
	if c.failed.Load() != 1 || c.written.Load() != 3 {
		t.Error(c.failed.Load(), c.written.Load())
	}
}

type disk struct {
	bytes.Buffer
	room int
}

func (d *disk) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

func (d *disk) Write(p []byte) (int, error) {
	n := min(d.room, len(p))
	d.Buffer.Write(p[:n])
	d.room -= n
	if n < len(p) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dotgate/upstreams/dottest"
)

// A program is this very program as a process of its own, for tests that need to
// hold its descriptors or its process ID.
type program struct {
	*exec.Cmd
	t      *testing.T
	addr   string // where it serves
	stderr syncBuffer
	ended  chan struct{}
}

// newProgram returns a process that is not started yet. Its upstream does not exist.
func newProgram(t *testing.T, environ []string, args ...string) *program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, addr: dottest.Loopback().String() + ":5300", ended: make(chan struct{})}
	p.Cmd = &exec.Cmd{Path: self, Args: append([]string{"dotgate"}, args...)} // TestMain looks at the name
	p.Env = append([]string{
		"DOTGATE_GATEWAY_LISTEN=" + p.addr, "DOTGATE_UPSTREAMS=udp://" + dottest.Loopback().String() + ":5301",
		"DOTGATE_CONTROL_SOCKET=off", "DOTGATE_ADMIN_LISTEN=off", "GORACE=atexit_sleep_ms=0",
	}, environ...)
	p.Stderr = &p.stderr
	return p
}

// run starts p, and ends it with the test at the latest.
func (p *program) run() *program {
	p.t.Helper()
	if err := p.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		_ = p.Wait() // the state tells
		close(p.ended)
	}()
	p.t.Cleanup(func() {
		_ = p.Process.Kill()
		<-p.ended
	})
	return p
}

func (p *program) signal(all ...syscall.Signal) {
	p.t.Helper()
	for _, s := range all {
		if err := p.Process.Signal(s); err != nil {
			p.t.Fatal(s, err)
		}
	}
}

// exits waits for the end of p and returns its code, -1 if a signal ended it.
func (p *program) exits(within time.Duration) int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(within):
		p.t.Fatalf("it still runs after %v:\n%s", within, p.stderr.String())
	}
	return p.ProcessState.ExitCode()
}

// says waits until p has written text to standard error.
func (p *program) says(text string) {
	p.t.Helper()
	until(p.t, text, func() bool { return strings.Contains(p.stderr.String(), text) })
}

// until waits for a condition that another process brings about.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(storyPatience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

func newFIFO(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

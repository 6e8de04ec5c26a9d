package main

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSignalsAreRememberedWhileTheProgramStarts holds the program in its first
// reading of the configuration, of which the file of SSL_CERT_FILE is a part: to open
// a FIFO for writing returns when the program opens it for reading.
func TestSignalsAreRememberedWhileTheProgramStarts(t *testing.T) {
	t.Parallel()
	fifo := newFIFO(t)
	p := newProgram(t, []string{"SSL_CERT_FILE=" + fifo, "DOTGATE_RELOAD_WATCH=false"}, "serve").run()
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGHUP, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGHUP)
	_, _ = w.WriteString("x")
	w.Close()
	p.says("dotgate is serving")
	if err := os.WriteFile(fifo, []byte("x"), 0); err != nil { // returns when it is read again
		t.Fatal(err)
	}
	p.says("the configuration was reloaded")
	p.says("msg=status")
	p.signal(syscall.SIGTERM)
	if code := p.exits(10 * time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if n := strings.Count(p.stderr.String(), "the configuration was reloaded"); n != 1 {
		t.Errorf("%d reloads:\n%s", n, p.stderr.String())
	}
}

func TestReadingIsInterrupted(t *testing.T) {
	t.Parallel()
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		for _, command := range []string{"serve", "check"} {
			t.Run(command+" "+s.String(), func(t *testing.T) {
				t.Parallel()
				fifo := newFIFO(t)
				p := newProgram(t, nil, command, "-c", fifo).run()
				w, err := os.OpenFile(fifo, os.O_WRONLY, 0) // which waits for the reader
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				p.signal(s, s) // the second one ends it at once
				if code := p.exits(10 * time.Second); code != exitFailure || !strings.Contains(p.stderr.String(), "dotgate: interrupted") {
					t.Errorf("exit code %d:\n%s", code, p.stderr.String())
				}
			})
		}
	}
}

// TestAHangUpEndsOtherCommands is what a terminal that is closed does to `dotgate top`.
func TestAHangUpEndsOtherCommands(t *testing.T) {
	t.Parallel()
	fifo := newFIFO(t)
	p := newProgram(t, nil, "check", "-c", fifo).run()
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	p.signal(syscall.SIGHUP)
	if code := p.exits(10 * time.Second); code != -1 {
		t.Errorf("exit code %d:\n%s", code, p.stderr.String())
	}
}

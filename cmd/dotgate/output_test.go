package main

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/upstreams/dottest"
)

// stopsWithin is how long a gateway without queries under way may take to stop: it
// takes 0.3 s, or 0.6 s if nothing reads its log, and two seconds are promised; tests
// run beside others.
const stopsWithin = 8 * time.Second

// serving returns a gateway whose standard error is stderr, with a control socket.
func serving(t *testing.T, stderr *os.File, environ ...string) (*program, *api.Client) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "sock")
	p := newProgram(t, append(environ, "DOTGATE_CONTROL_SOCKET="+socket), "serve")
	if stderr != nil {
		p.Stderr = stderr
	}
	p.run()
	p.answers()
	return p, clientAt(t, socket)
}

func clientAt(t *testing.T, socket string) *api.Client {
	t.Helper()
	client, err := api.Find(socket, "")
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// answers asks for a name that needs no upstream.
func (p *program) answers() {
	p.t.Helper()
	if _, err := exchangeSoon(p.addr, "localhost", "A", func(r *dns.Msg) bool { return r.Rcode == dns.RcodeSuccess }); err != nil {
		p.t.Fatal(err)
	}
}

// reloads has the configuration read again, which logs a line.
func reloads(t *testing.T, client *api.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := client.Reload(ctx); err != nil {
		t.Fatal(err)
	}
}

// pipe returns a pipe, which is full if wanted.
func pipe(t *testing.T, full bool) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	if full {
		_ = w.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		for {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				break
			}
		}
		_ = w.SetWriteDeadline(time.Time{})
	}
	return r, w
}

func TestStandardErrorThatIsNotRead(t *testing.T) { // a pipe whose reader stands still
	t.Parallel()
	r, w := pipe(t, true)
	p, client := serving(t, w)
	w.Close()
	reloads(t, client)
	p.answers()
	began := time.Now()
	p.signal(syscall.SIGTERM)
	if code := p.exits(stopsWithin); code != 0 {
		t.Errorf("exit code %d", code)
	}
	t.Log("stopped after", time.Since(began))
	_ = r.Close()
}

func TestStandardErrorThatIsReadAgain(t *testing.T) {
	t.Parallel()
	r, w := pipe(t, true)
	p, client := serving(t, w)
	w.Close()
	reloads(t, client)
	text := make(chan string)
	go func() {
		all, _ := io.ReadAll(r)
		text <- string(all)
	}()
	p.signal(syscall.SIGTERM)
	p.exits(stopsWithin)
	if got := <-text; !strings.Contains(got, "dotgate is serving") || !strings.Contains(got, "the configuration was reloaded") || !strings.Contains(got, "dotgate has stopped") {
		t.Error(strings.Trim(got, "\x00"))
	}
}

func TestStandardErrorWhoseReaderIsGone(t *testing.T) {
	t.Parallel()
	r, w := pipe(t, false)
	p, client := serving(t, w)
	w.Close()
	r.Close()
	reloads(t, client)
	p.answers()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	until(t, "dropped lines are counted", func() bool {
		status, err := client.Status(ctx)
		return err == nil && status.LogDropped > 0
	})
	p.signal(syscall.SIGTERM)
	if code := p.exits(stopsWithin); code != 0 {
		t.Errorf("exit code %d, %v", code, p.ProcessState)
	}
}

// TestOutputThatIsLost: a command whose output does not get onto a full disk has failed.
func TestOutputThatIsLost(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err) // Linux has it
	}
	defer full.Close()
	for _, args := range [][]string{{"version"}, {"--help"}, {"help", "check"}, {"reference"}, {"completion", "bash"}, {"check"}} {
		p := newProgram(t, nil, args...)
		p.Stdout = full
		if code := p.run().exits(stopsWithin); code != exitFailure {
			t.Errorf("%s: exit code %d", args, code)
		}
		p.says("no space left on device")
	}
}

// TestAnErrorThatIsNotRead is a gateway that can't start, and says so into a pipe
// that is full.
func TestAnErrorThatIsNotRead(t *testing.T) {
	t.Parallel()
	_, w := pipe(t, true)
	taken, err := net.Listen("tcp", netip.AddrPortFrom(dottest.Loopback(), 5300).String())
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, environ := range []string{"DOTGATE_LOG_LEVEL=loud", "DOTGATE_GATEWAY_LISTEN=" + taken.Addr().String()} {
		p := newProgram(t, []string{environ}, "serve")
		p.Stderr = w
		if code := p.run().exits(stopsWithin); code != exitConfig && code != exitFailure {
			t.Errorf("%s: exit code %d", environ, code)
		}
	}
}

// TestAQueryLogThatIsNotRead is a FIFO whose reader stands still, and one that has none.
func TestAQueryLogThatIsNotRead(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"no reader", "a reader that stands still"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fifo := newFIFO(t)
			if name != "no reader" {
				r, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
			}
			p, client := serving(t, nil, "DOTGATE_QUERY_LOG_OUTPUT="+fifo)
			for range 800 { // a FIFO takes 64 kB, and so does a buffer
				p.answers()
			}
			p.says("the query log could not be written")
			reloads(t, client)
			p.answers()
			p.signal(syscall.SIGTERM)
			if code := p.exits(stopsWithin); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

func TestAQueryLogOnStandardOutput(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"pipe", "socket", "file"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r, w := pipe(t, false)
			switch kind {
			case "socket": // as journald's, which can't be opened by its name
				pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
				if err != nil {
					t.Fatal(err)
				}
				r, w = os.NewFile(uintptr(pair[0]), "reader"), os.NewFile(uintptr(pair[1]), "writer")
			case "file": // which is not the query log's own
				name := filepath.Join(t.TempDir(), "out")
				if err := os.WriteFile(name, []byte("of another program\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				var err error
				if w, err = os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0); err != nil {
					t.Fatal(err)
				}
				if r, err = os.Open(name); err != nil {
					t.Fatal(err)
				}
			}
			defer r.Close()
			p := newProgram(t, []string{"DOTGATE_QUERY_LOG_OUTPUT=/dev/stdout"}, "serve")
			p.Stdout = w
			p.run()
			w.Close()
			p.answers()
			p.signal(syscall.SIGTERM)
			p.exits(stopsWithin)
			if text, err := io.ReadAll(r); !strings.Contains(string(text), `"query":"localhost. A"`) {
				t.Errorf("%q, %v\n%s", text, err, p.stderr.String())
			}
		})
	}
}

// TestAWatchWhoseReaderIsGone prints to a pipe without a reader, and goes on.
func TestAWatchWhoseReaderIsGone(t *testing.T) {
	t.Parallel()
	r, w := pipe(t, false)
	r.Close()
	gateway, _ := serving(t, nil)
	verdict := filepath.Join(t.TempDir(), "verdict")
	p := newProgram(t, nil, "healthcheck", "--watch", verdict)
	p.Env, p.Stdout = gateway.Env, w
	p.run()
	w.Close()
	reads := func(want string) {
		until(t, "the verdict "+want, func() bool {
			got, err := os.ReadFile(verdict)
			return err == nil && strings.TrimSpace(string(got)) == want
		})
	}
	reads("1") // it has no upstream
	gateway.signal(syscall.SIGTERM)
	gateway.exits(stopsWithin)
	reads("2")
	p.signal(syscall.SIGTERM)
	if code := p.exits(stopsWithin); code != 0 {
		t.Errorf("exit code %d, %v\n%s", code, p.ProcessState, p.stderr.String())
	}
}

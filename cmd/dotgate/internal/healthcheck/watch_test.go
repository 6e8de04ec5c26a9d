package healthcheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/gateway/wire"
)

func TestAWatchTellsWhatKeepalivedShouldThink(t *testing.T) {
	path := filepath.Join(t.TempDir(), "verdict")
	verdict := func() string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	synctest.Test(t, func(t *testing.T) {
		var stuck, alone atomic.Bool
		var said bytes.Buffer
		w := &watch{path: path, out: &said, verdict: useless, questions: []*question{
			{every: 100 * time.Millisecond, patience: 150 * time.Millisecond, proves: useless, proved: useless, fails: watchFails, ask: func(ctx context.Context) error {
				if stuck.Load() {
					<-ctx.Done()
				}
				return ctx.Err()
			}},
			{every: time.Second, patience: time.Second, proves: cutOff, proved: useless, fails: watchFails, ask: func(context.Context) error {
				if alone.Load() {
					return errors.New("SERVFAIL")
				}
				return nil
			}},
		}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- w.run(ctx) }()
		// after compares the verdict in so long.
		after := func(d time.Duration, want string) {
			t.Helper()
			time.Sleep(d) // fake time
			synctest.Wait()
			if got := verdict(); got != want {
				t.Errorf("%q, want %q; it said:\n%s", got, want, &said)
			}
		}
		after(time.Millisecond, "0") // nothing has failed
		alone.Store(true)
		after(900*time.Millisecond, "0")
		after(200*time.Millisecond, "1")
		stuck.Store(true) // and worse
		after(250*time.Millisecond, "1")
		after(200*time.Millisecond, "2")
		stuck.Store(false) // it answers, and has to for a while
		after(900*time.Millisecond, "2")
		after(400*time.Millisecond, "1")
		alone.Store(false)
		after(900*time.Millisecond, "1")
		after(400*time.Millisecond, "0")
		stuck.Store(true)
		after(150*time.Millisecond, "0") // one may be lost
		after(300*time.Millisecond, "2")
		stuck.Store(false)
		after(1600*time.Millisecond, "0")
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		for _, want := range []string{"the gateway can't answer: context deadline exceeded\n", "the gateway has no upstream: SERVFAIL\n", "the gateway can answer\n"} {
			if !strings.Contains(said.String(), want) {
				t.Errorf("it did not say %q but\n%s", want, &said)
			}
		}
	})
}

func TestAWatchEndsIfItCannotTell(t *testing.T) {
	w := &watch{path: filepath.Join(t.TempDir(), "missing", "verdict"), out: new(bytes.Buffer)}
	if err := w.run(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestAWatchLeavesFilesOfOthersAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "verdict")
	if err := os.WriteFile(path, []byte("2001:db8::1 localhost\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := &watch{path: path, out: new(bytes.Buffer)}
	if err := w.run(t.Context()); err == nil || !strings.Contains(err.Error(), "is not a verdict of dotgate healthcheck") {
		t.Errorf("got %v", err)
	}
}

// questioned runs a watch with one question for some time, and returns what it said and
// its last verdict.
func questioned(t *testing.T, vital bool, proves verdict, out io.Writer, times time.Duration, ask func(context.Context) error) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "verdict")
	w := &watch{path: path, out: out, verdict: useless, questions: []*question{{
		every: time.Second, patience: time.Second, vital: vital, proves: proves, proved: useless, fails: watchFails, ask: ask,
	}}}
	ctx, cancel := context.WithTimeout(t.Context(), times)
	defer cancel()
	if err := w.run(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func TestAWatchThatNeverSucceedsTellsWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		got := questioned(t, true, useless, &said, 150*time.Second, func(context.Context) error { return errors.New("no reply") })
		if got != "2" || strings.Count(said.String(), "the gateway can't answer: no reply\n") != 3 {
			t.Errorf("verdict %s; it said:\n%s", got, &said)
		}
	})
}

func TestWhatCannotBeAskedIsNoVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		descriptors := &notAsked{syscall.EMFILE}
		var said bytes.Buffer
		asked := 0
		got := questioned(t, true, useless, &said, time.Minute, func(context.Context) error {
			if asked++; asked == 1 { // it is well, and that stays
				return nil
			}
			return descriptors
		})
		if got != "0" {
			t.Errorf("verdict %s; it said:\n%s", got, &said)
		}
		if got := questioned(t, true, useless, &said, time.Minute, func(context.Context) error { return descriptors }); got != "2" {
			t.Errorf("never asked: verdict %s", got)
		}
		if got := questioned(t, false, cutOff, &said, time.Minute, func(context.Context) error { return descriptors }); got != "0" {
			t.Errorf("not vital: verdict %s", got)
		}
	})
}

// While a gateway stops, its control socket goes first: that it can't be asked any more must
// not undo what it said before. The next gateway may have no control socket, which is fine.
func TestWhatWasProvedHoldsUntilTheVitalQuestionTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		after := func(d time.Duration) bool { return time.Since(began) >= d }
		var said bytes.Buffer
		w := &watch{path: filepath.Join(t.TempDir(), "verdict"), out: &said, verdict: useless, questions: []*question{
			{every: 100 * time.Millisecond, patience: 150 * time.Millisecond, proves: useless, vital: true, ask: func(context.Context) error {
				if after(3500*time.Millisecond) && !after(5*time.Second) {
					return syscall.ECONNREFUSED
				}
				return nil
			}},
			{every: 150 * time.Millisecond, patience: 500 * time.Millisecond, proves: cutOff, ask: func(context.Context) error {
				switch {
				case after(3 * time.Second):
					return &notAsked{syscall.EADDRNOTAVAIL}
				case after(time.Second):
					return &notReady{api.Readiness{Stopping: true}}
				}
				return nil
			}},
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := w.run(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if w.verdict != well || strings.Count(said.String(), "the gateway can answer\n") != 2 {
			t.Errorf("at last: %v; it said:\n%s", w.verdict, &said)
		}
	})
}

func TestProblemsAreToldApart(t *testing.T) {
	f := func(problem error, want verdict) {
		t.Helper()
		if got := provedBy(fmt.Errorf("ask: %w", problem), cutOff); got != want {
			t.Errorf("%v: got %v, want %v", problem, got, want)
		}
	}
	f(errorReply(wire.ServFail), cutOff)
	f(context.DeadlineExceeded, cutOff)
	f(&notReady{api.Readiness{Why: "no upstream"}}, cutOff)
	f(&notReady{api.Readiness{Stopping: true}}, useless)
	f(syscall.ECONNREFUSED, useless)
}

// A reader that stands still keeps no verdict from being written, nor the end.
func TestAWatchDoesNotWaitForItsReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader, writer := io.Pipe()
		n := 0
		got := questioned(t, true, useless, writer, time.Hour, func(context.Context) error {
			if n++; n%10 < 5 || n > 3000 {
				return nil
			}
			return errors.New("no reply")
		})
		if got != "0" || n < 3000 {
			t.Errorf("verdict %s after %d", got, n)
		}
		reader.Close() // ends the write
	})
}

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
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
		stuck.Store(false) // no more, but for how long?
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

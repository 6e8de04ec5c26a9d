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
		var stuck, cutOff atomic.Bool
		var said bytes.Buffer
		w := &watch{path: path, out: &said, questions: []*question{
			{what: "answer", every: 100 * time.Millisecond, patience: 200 * time.Millisecond, fails: watchFails, ask: func(ctx context.Context) error {
				if stuck.Load() {
					<-ctx.Done()
				}
				return ctx.Err()
			}},
			{what: "answer through upstreams", every: time.Second, patience: time.Second, fails: watchFails, ask: func(context.Context) error {
				if cutOff.Load() {
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
		cutOff.Store(true)
		after(900*time.Millisecond, "0")
		after(200*time.Millisecond, "1")
		cutOff.Store(false)
		after(900*time.Millisecond, "1") // well again, but for how long?
		after(400*time.Millisecond, "0")
		stuck.Store(true)
		after(250*time.Millisecond, "0") // one may be lost
		after(350*time.Millisecond, "1")
		stuck.Store(false)
		after(1600*time.Millisecond, "0")
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if !strings.Contains(said.String(), "the gateway can't answer: context deadline exceeded\n") {
			t.Errorf("it said:\n%s", &said)
		}
	})
}

func TestAWatchEndsIfItCannotTell(t *testing.T) {
	w := &watch{path: filepath.Join(t.TempDir(), "missing", "verdict"), out: new(bytes.Buffer)}
	if err := w.run(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

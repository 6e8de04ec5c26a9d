package health

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// An upstream that goes down and comes back each second is logged once in ten seconds;
// the changes between are counted, and the log ends with the state that is right.
func TestAnUpstreamThatFlapsDoesNotFillTheLog(t *testing.T) {
	f := func(lasts time.Duration, last string, want ...string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			var text bytes.Buffer
			var mu sync.Mutex
			log := slog.New(slog.NewTextHandler(lockedWriter{&mu, &text}, nil))
			m, err := New(&fake{exchange: well, begin: time.Now()}, Options{ProbeName: probeName, ProbeType: "A", Log: log})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			written := make(chan struct{})
			go func() { defer close(written); m.writeNotices(ctx) }()
			for range 25 {
				m.eject(Down, errors.New("dead"))
				time.Sleep(lasts)
				m.recordProbe(nil)
				time.Sleep(time.Second - lasts)
			}
			if last == "down" {
				m.eject(Down, errors.New("dead"))
			}
			time.Sleep(time.Minute)
			cancel()
			<-written
			mu.Lock()
			defer mu.Unlock()
			got := regexp.MustCompile(`(upstream is [a-z ]*|outages_not_logged=\d+)`).FindAllString(text.String(), -1)
			if strings.Join(got, ", ") != strings.Join(want, ", ") {
				t.Errorf("up again after %v, %s at the end: got %s", lasts, last, strings.Join(got, ", "))
			}
		})
	}
	const down, up = "upstream is down", "upstream is up again"
	f(600*time.Millisecond, "up", down, up, down, "outages_not_logged=9", up, down, "outages_not_logged=9", up)
	f(600*time.Millisecond, "down", down, up, down, "outages_not_logged=9", up, down, "outages_not_logged=9", up, down, "outages_not_logged=4")
}

type lockedWriter struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(p)
}

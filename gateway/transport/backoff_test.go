package transport

import (
	"log/slog"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestRepeatedSocketErrorsAreLoggedSeldom is a process without descriptors whose clients come and
// go: each accept that fails is followed by one that works.
func TestRepeatedSocketErrorsAreLoggedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log Buffer
		backoff := socketBackoff{doing: "accept TCP", log: slog.New(slog.NewTextHandler(&log, nil))}
		for began := time.Now(); time.Since(began) < 27*time.Second; {
			backoff.wait(t.Context(), syscall.EMFILE)
			backoff.reset()
		}
		time.Sleep(time.Minute)
		got := log.String()
		if fails, works := strings.Count(got, "accept TCP failed"), strings.Count(got, "works again"); fails != 3 || works != 3 {
			t.Errorf("%d and %d lines:\n%s", fails, works, got)
		}
		if !regexp.MustCompile("failures_not_logged=(199[89]|2000)").MatchString(got) {
			t.Error(got)
		}
	})
}

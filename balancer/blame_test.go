package balancer

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAFailureNamesWhoIsToBlame(t *testing.T) {
	f := func(script, want string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			b, err := New(candidatesOf(&journal{begin: time.Now()}, strings.Split(script, "\n")...), Options{Policy: "ordered"})
			if err != nil {
				t.Fatal(err)
			}
			_, err = b.Exchange(t.Context(), query(t, "www.example.com"))
			e, ok := errors.AsType[*Error](err)
			if !ok {
				t.Fatalf("members:\n%s\nExchange returned %v", script, err)
			}
			if got := e.Detail(); got != want {
				t.Errorf("members:\n%s\n got %s\nwant %s", script, got, want)
			}
			time.Sleep(10 * time.Second) // fake time, for what was left behind
		})
	}
	f("a 1ms fail", "a: a failed")
	f("a 1ms fail\nb 2ms fail", "a: a failed; b: b failed")
	f("a silent\nb silent", "a: no answer within 900ms; b: no answer within 860ms")
	// Those that are down are to blame too, and say for how long.
	f("a down never\nb down fail", "a: breaker open for 12s; b: breaker open for 12s")
}

// Outage makes a fake that is down tell why.
func (m *fake) Outage() error { return errors.New(m.name + ": breaker open for 12s") }

func TestADetailIsShort(t *testing.T) {
	s := Story{}
	for i := range 10 {
		name := fmt.Sprintf("a%d", i)
		s.Candidates = append(s.Candidates, CandidateStory{Name: name})
		s.Attempts = append(s.Attempts, AttemptStory{Name: name, Ended: true, Err: errors.New(name + ": \x1b[31m" + strings.Repeat("é", 200))})
	}
	e := new(Error)
	blame(e, s)
	got := e.Detail()
	if !strings.HasPrefix(got, "a0:  [31mé") || !strings.HasSuffix(got, "é…; and 6 more") || len(got) > 540 || strings.ToValidUTF8(got, "") != got {
		t.Errorf("%d octets: %q", len(got), got)
	}
}

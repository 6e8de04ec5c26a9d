package balancer

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAFailureNamesTheMembersThatFailed(t *testing.T) {
	f := func(script, want string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			candidates := candidatesOf(&journal{begin: time.Now()}, strings.Split(script, "\n")...)
			for i, c := range candidates {
				candidates[i].Outage = func() error { return fmt.Errorf("%v: breaker open for 12s", c) }
			}
			b, err := New(candidates, Options{Policy: "ordered"})
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

// unroutable is an error that says that there is no way.
type unroutable struct{ error }

func (unroutable) NoRoute() bool { return true }

// A machine without IPv6 has no way to any IPv6 address. That port 853 is blocked for
// IPv4 is what matters, and comes first.
func TestReasonsWithoutARouteComeLast(t *testing.T) {
	s := Trace{}
	for _, c := range []struct {
		name string
		err  error
	}{
		{"six", fmt.Errorf("six: %w", unroutable{errors.New("network is unreachable")})},
		{"four", errors.New("four: no connection within 1s")},
		{"other", errors.New("other: connection refused")},
	} {
		s.Candidates = append(s.Candidates, CandidateTrace{Name: c.name})
		s.Attempts = append(s.Attempts, AttemptTrace{Name: c.name, Ended: true, Err: c.err})
	}
	e := new(Error)
	attachFailures(e, s)
	if got, want := e.Detail(), "four: no connection within 1s; other: connection refused; six: network is unreachable"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestADetailIsShort(t *testing.T) {
	s := Trace{}
	for i := range 10 {
		name := fmt.Sprintf("a%d", i)
		s.Candidates = append(s.Candidates, CandidateTrace{Name: name})
		s.Attempts = append(s.Attempts, AttemptTrace{Name: name, Ended: true, Err: errors.New(name + ": \x1b[31m" + strings.Repeat("é", 200))})
	}
	e := new(Error)
	attachFailures(e, s)
	got := e.Detail()
	if !strings.HasPrefix(got, "a0:  [31mé") || !strings.HasSuffix(got, "é…; and 6 more") || len(got) > 540 || strings.ToValidUTF8(got, "") != got {
		t.Errorf("%d octets: %q", len(got), got)
	}
}

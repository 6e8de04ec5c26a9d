package upstreams

import (
	"log/slog"
	"testing"
	"time"
)

// A limiter is a server that takes a rate of queries: from each begin of a second on
// or, with a burst, as a token bucket.
type limiter struct {
	rate, burst, tokens float64
	last                int64
}

func (l *limiter) takes(now int64) bool {
	const phase = int64(300 * time.Millisecond)
	switch {
	case l.burst > 0:
		l.tokens = min(l.burst, l.tokens+l.rate*time.Duration(now-l.last).Seconds())
	case (now+phase)/int64(time.Second) != (l.last+phase)/int64(time.Second):
		l.tokens = l.rate
	}
	l.last = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}

// A rateStory is a rateLimit with a server. Queries that have to wait go elsewhere.
type rateStory struct {
	limit         rateLimit
	takes         func(now int64) bool
	err           error // of refused queries; nil: REFUSED
	now           int64
	sent, refused int
	elsewhere     bool // queries that have to wait are not sent
}

func newRateStory(configured int, err error, takes func(now int64) bool) *rateStory {
	s := &rateStory{takes: takes, err: err, now: 1, elsewhere: true}
	s.limit.init(configured, slog.New(slog.DiscardHandler))
	return s
}

// run sends load queries a second, and returns how many were sent and refused, a second.
func (s *rateStory) run(load int, d time.Duration) (sent, refused float64) {
	s.sent, s.refused = 0, 0
	for end := s.now + int64(d); s.now < end; s.now += int64(time.Second) / int64(load) {
		if s.limit.wait(func() int64 { return s.now }) > 0 && s.elsewhere {
			continue
		}
		s.sent++
		s.limit.add(s.now)
		if s.takes(s.now) {
			continue
		}
		s.refused++
		s.limit.onRefused(s.now, s.now, s.err)
	}
	return float64(s.sent) / d.Seconds(), float64(s.refused) / d.Seconds()
}

func TestALimitOfTheRateIsLearnt(t *testing.T) {
	f := func(what string, s *rateStory, load int, least, most, within float64) {
		t.Helper()
		s.run(load, 4*time.Second)
		if sent, refused := s.run(load, 5*time.Second); sent > most || refused > 1 {
			t.Errorf("%s: %.1f queries a second, %.2f refused", what, sent, refused)
		}
		s.run(load, time.Minute)
		if sent, refused := s.run(load, 10*time.Minute); sent < least || refused > within {
			t.Errorf("%s: %.1f queries a second, %.2f refused while it is probed", what, sent, refused)
		}
	}
	limited := &failure{HTTPLimited, new(rateError)}
	f("REFUSED in each second", newRateStory(0, nil, (&limiter{rate: 50}).takes), 80, 44, 50, 0.2)
	f("429 in each second", newRateStory(0, limited, (&limiter{rate: 50}).takes), 200, 44, 50, 0.5)
	f("REFUSED, token bucket", newRateStory(0, nil, (&limiter{rate: 50, burst: 100}).takes), 80, 40, 50, 0.2)
	f("429, few", newRateStory(0, limited, (&limiter{rate: 4}).takes), 10, 2, 4, 0.2)
	f("less than configured", newRateStory(80, nil, (&limiter{rate: 50}).takes), 100, 44, 50, 0.3)
	f("more than configured", newRateStory(30, nil, (&limiter{rate: 50}).takes), 100, 29, 30, 0)
}

// A limit that is over is found to be, sooner if all other upstreams are at theirs.
func TestALearntLimitIsRaised(t *testing.T) {
	server := &limiter{rate: 50}
	s := newRateStory(90, nil, server.takes)
	s.run(100, 5*time.Second)
	server.rate = 200
	if sent, _ := s.run(100, 4*time.Second); sent > 50 {
		t.Errorf("%.1f queries a second at once", sent)
	}
	s.run(100, 10*time.Minute)
	if sent, refused := s.run(100, time.Minute); sent < 87 || sent > 90.1 || refused > 0 {
		t.Errorf("%.1f queries a second after 10 minutes, %.1f refused", sent, refused)
	}
	server.rate = 50
	s.run(100, 5*time.Second)
	server.rate, s.elsewhere = 200, false
	s.run(100, 30*time.Second)
	var c Counts
	if s.limit.addTo(&c); c.Rate != 90 || c.RateLearnt {
		t.Errorf("the limit is %d after half a minute of queries beyond it", c.Rate)
	}
}

// Answers with REFUSED to some names, at any rate, teach no limit, nor do those of a server
// that is asked seldom or that refuses all.
func TestRefusedNamesTeachNoLimit(t *testing.T) {
	f := func(what string, load, taken, of int) {
		t.Helper()
		n := 0
		s := newRateStory(0, nil, func(int64) bool { n++; return n%of < taken })
		s.run(load, 30*time.Second)
		if sent, _ := s.run(load, 9*time.Minute); sent < float64(load)*0.95 {
			t.Errorf("%s: %.1f of %d queries a second are sent", what, sent, load)
		}
	}
	f("one of ten", 100, 9, 10)
	f("half", 100, 1, 2)
	f("all", 100, 0, 1)
	f("seldom", 8, 1, 2)
}

func TestRetryAfterIsHeeded(t *testing.T) {
	f := func(value string, want time.Duration) {
		t.Helper()
		s := newRateStory(0, nil, nil)
		err := named("a", &limitedError{&rateError{parseRetryAfter(value)}})
		s.limit.onRefused(1, 1, err)
		now := func() int64 { return s.now }
		if got := s.limit.wait(now); got != want {
			t.Errorf("Retry-After %q: waits for %v, want %v", value, got, want)
		}
		s.limit.add(s.now)
		if s.now += int64(want); s.limit.wait(now) != 0 {
			t.Errorf("Retry-After %q: waits for longer than %v", value, want)
		}
	}
	f("5", 5*time.Second)
	f("3600", 30*time.Second)
	f("99999999999999999999", 0)
	f("9000000000000000000", 30*time.Second)
	f("-5", 0)
	f("soon", 0)
	f("", 0)
	f("Sun, 06 Nov 1994 08:49:37 GMT", 0)
	f("Sun, 06 Nov 2094 08:49:37 GMT", 30*time.Second)
}

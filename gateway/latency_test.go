package gateway

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"dotgate/gateway/wire"
)

func TestBucketsFollowEachOtherAndAreNarrow(t *testing.T) {
	t.Parallel()
	for i := range latencyBuckets {
		bound := boundOf(i)
		if got := bucketOf(bound - 1); got != i {
			t.Fatalf("just below %v is bucket %d, want %d", bound, got, i)
		}
		if got := bucketOf(bound); got != min(i+1, latencyBuckets-1) {
			t.Fatalf("%v is bucket %d, want %d", bound, got, i+1)
		}
		if i > stepsPerDouble && boundOf(i-1)*17/16 < bound {
			t.Fatalf("bucket %d is from %v to %v", i, boundOf(i-1), bound)
		}
	}
	for d, want := range map[time.Duration]int{-time.Second: 0, 0: 0, time.Hour: latencyBuckets - 1} {
		if got := bucketOf(d); got != want {
			t.Errorf("%v is bucket %d, want %d", d, got, want)
		}
	}
}

func TestQuantiles(t *testing.T) {
	t.Parallel()
	var h histogram
	var before, all Latency
	if got := before.Quantile(0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
	h[bucketOf(time.Second)].Add(1)
	before.add(&h)
	var adding sync.WaitGroup
	for ms := range 1000 {
		adding.Go(func() { h[bucketOf(time.Duration(ms+1)*time.Millisecond-1)].Add(1) })
	}
	adding.Wait()
	all.add(&h)
	l := all.Since(before)
	if l.Count() != 1000 || all.Count() != 1001 {
		t.Errorf("%d and %d, want 1000 and 1001", l.Count(), all.Count())
	}
	f := func(share float64, want time.Duration) {
		t.Helper()
		if got := l.Quantile(share); got < want || got > want*17/16 {
			t.Errorf("%v: got %v, want %v", share, got, want)
		}
	}
	f(0.0001, time.Millisecond)
	f(0.5, 500*time.Millisecond)
	f(0.99, 990*time.Millisecond)
	f(1, time.Second)
}

func TestLatencyIsOfRepliesThatWaited(t *testing.T) {
	t.Parallel()
	const delay = 20 * time.Millisecond
	g, _ := start(t, resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
		time.Sleep(delay)
		switch nameOf(q) {
		case "failed.example.com.":
			return wire.Answer{}, errors.New("nobody answers")
		case "servfail.example.com.":
			return wire.ParseAnswer(q, q.AppendError(nil, wire.ServFail, wire.EDE{}))
		}
		return answer(q)
	}), Options{})
	for _, network := range []string{"udp", "tcp"} {
		c := dial(t, network, g.Addrs()[0])
		for _, name := range []string{"www.example.com.", "failed.example.com.", "servfail.example.com."} {
			exchange(t, c, query(name))
		}
	}
	l, c := g.Latency(), g.Counts()
	if l.Count() != 6 || l.Quantile(0.01) < delay {
		t.Errorf("%d replies, the quickest after %v", l.Count(), l.Quantile(0.01))
	}
	if c.ServFails != (PerTransport{1, 1}) || c.Outcomes[Answered].Total() != 4 {
		t.Errorf("SERVFAIL %v of %v", c.ServFails, c.Outcomes[Answered])
	}
}

func TestToCountALatencyAllocatesNothing(t *testing.T) {
	var h histogram
	began := time.Now()
	if n := testing.AllocsPerRun(100, func() { h.since(began) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkLatency(b *testing.B) {
	var h histogram
	b.Run("count", func(b *testing.B) {
		for b.Loop() {
			h[bucketOf(12345*time.Microsecond)].Add(1)
		}
	})
	b.Run("clock", func(b *testing.B) {
		for b.Loop() {
			h.since(time.Now())
		}
	})
}

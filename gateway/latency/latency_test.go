package latency

import (
	"sync"
	"testing"
	"time"
)

func TestBucketsFollowEachOtherAndAreNarrow(t *testing.T) {
	t.Parallel()
	for i := range buckets {
		bound := boundOf(i)
		if got := bucketOf(bound - 1); got != i {
			t.Fatalf("just below %v is bucket %d, want %d", bound, got, i)
		}
		if got := bucketOf(bound); got != min(i+1, buckets-1) {
			t.Fatalf("%v is bucket %d, want %d", bound, got, i+1)
		}
		if i > stepsPerDouble && boundOf(i-1)*17/16 < bound {
			t.Fatalf("bucket %d is from %v to %v", i, boundOf(i-1), bound)
		}
	}
	for d, want := range map[time.Duration]int{-time.Second: 0, 0: 0, time.Hour: buckets - 1} {
		if got := bucketOf(d); got != want {
			t.Errorf("%v is bucket %d, want %d", d, got, want)
		}
	}
}

func TestQuantiles(t *testing.T) {
	t.Parallel()
	var h Histogram
	var before, all Snapshot
	if got := before.Quantile(0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
	h.Add(time.Second)
	before.Include(&h)
	var adding sync.WaitGroup
	for ms := range 1000 {
		adding.Go(func() { h.Add(time.Duration(ms+1)*time.Millisecond - 1) })
	}
	adding.Wait()
	all.Include(&h)
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
	if sum, want := l.Sum(), 500500*time.Millisecond; sum < want*31/32 || sum > want*33/32 {
		t.Errorf("sum is %v, want %v", sum, want)
	}
}

func TestWithinIsExactForPowersOfTwo(t *testing.T) {
	t.Parallel()
	var h Histogram
	var s Snapshot
	for us := range 5000 {
		h.Add(time.Duration(us) * time.Microsecond)
	}
	s.Include(&h)
	for us := uint64(1); us < 5000; us *= 2 {
		if got := s.Within(time.Duration(us) * time.Microsecond); got != us {
			t.Errorf("within %d µs: %d", us, got)
		}
	}
	if got := s.Within(time.Hour); got != 5000 {
		t.Errorf("within an hour: %d", got)
	}
}

func TestToCountALatencyAllocatesNothing(t *testing.T) {
	var h Histogram
	if n := testing.AllocsPerRun(100, func() { h.Add(12345 * time.Microsecond) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAdd(b *testing.B) {
	var h Histogram
	for b.Loop() {
		h.Add(12345 * time.Microsecond)
	}
}

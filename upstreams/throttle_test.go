package upstreams

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestALongOutageIsDialledAtMostTenTimesAMinute(t *testing.T) {
	var p dialThrottle
	start := time.Now()
	dials := make(map[int]int) // by minute
	for at := time.Duration(0); at < 10*time.Minute; at += 50 * time.Millisecond {
		if now := start.Add(at); p.allow(now) {
			dials[int(at/time.Minute)]++
			p.failed(now, errors.New("no route"))
		}
	}
	if dials[0] < 100 {
		t.Errorf("%d dials in the first minute: a short outage would end late", dials[0])
	}
	for minute := 1; minute < 10; minute++ {
		if n := dials[minute]; n < 6 || n > 10 {
			t.Errorf("%d dials in minute %d", n, minute)
		}
	}
	if err := p.refusal(); err == nil || !errors.Is(err, p.problem) {
		t.Errorf("the refusal %q does not tell why", err)
	}
	p.unproven.Store(true)
	p.answered()
	for range 100 {
		if !p.allow(start.Add(10 * time.Minute)) {
			t.Fatal("still throttleInterval after a success")
		}
	}
}

func TestUpstreamsInAnOutageAreDialledByTurns(t *testing.T) {
	const upstreams = 3
	start := time.Now()
	var dials []time.Duration
	for range upstreams {
		var p dialThrottle
		p.assignTurn()
		p.failed(start, errors.New("no route"))
		for at := unthrottledFor; at < unthrottledFor+time.Minute; at += 10 * time.Millisecond {
			if p.allow(start.Add(at)) {
				dials = append(dials, at)
			}
		}
	}
	slices.Sort(dials)
	for i, at := range dials[upstreams:] { // those of the first turns may come at once
		if gap := at - dials[upstreams+i-1]; gap > throttleInterval/2 {
			t.Errorf("no upstream is dialled for %v", gap)
		}
	}
}

func TestAFewChangesOfTheNetworkAMinuteAllowADialEach(t *testing.T) {
	var p dialThrottle
	// Changes come in the midst of turns: one at the end of a turn is a dial with it.
	start := throttleEpoch.Add(time.Hour + throttleInterval/2 - 2*unthrottledFor)
	if p.networkChanged(start) {
		t.Error("without trouble, a change is of interest")
	}
	p.failed(start, errors.New("no route"))
	dials := 0
	for at := 2 * unthrottledFor; at < 2*unthrottledFor+10*time.Minute; at += 50 * time.Millisecond {
		now := start.Add(at)
		if !p.networkChanged(now) {
			t.Fatal("no trouble")
		}
		if p.allow(now) {
			dials++
		}
	}
	if dials < 95 || dials > 101 {
		t.Errorf("%d dials in 10 minutes of changes, want about 100", dials)
	}
}

func TestADialWaitsLongerInALongOutage(t *testing.T) {
	var p dialThrottle
	start := time.Now()
	f := func(at, want time.Duration) {
		t.Helper()
		if got := p.connectLimit(start.Add(at), time.Second); got != want {
			t.Errorf("after %v: %v, want %v", at, got, want)
		}
	}
	f(0, time.Second)
	p.failed(start, errors.New("no word"))
	f(time.Second, time.Second)
	f(longDialAfter, throttleInterval)
	f(time.Hour, throttleInterval)
	p.unproven.Store(true)
	p.answered()
	f(time.Hour, time.Second)
}

// Connections that bring no answer are limited like dials that fail.
func TestConnectionsWithoutAnswersAreMadeAtMostTenTimesAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(fakeServer)
		u := openFake(t, s, Options{})
		dials := 0
		askFor := func(d time.Duration, hungUp bool) (more int) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				_ = askFake(u)
			}
			before := dials
			dials = s.set(fakeBehaviour{hangsUp: hungUp})
			return dials - before
		}
		s.set(fakeBehaviour{hangsUp: true})
		if n := askFor(unthrottledFor, true); n < 100 {
			t.Errorf("%d dials at first: a short outage would end late", n)
		}
		for range 3 {
			if n := askFor(time.Minute, true); n < 6 || n > 10 {
				t.Errorf("%d dials in a minute", n)
			}
		}
		s.set(fakeBehaviour{})
		askFor(2*throttleInterval, false)
		if err := askFake(u); err != nil {
			t.Error(err)
		}
		s.closeAll()
		if err := askFake(u); err != nil {
			t.Errorf("after the outage: %v", err)
		}
	})
}

// That holds for many queries, too, whose connections overlap: one is silent while the next
// one is made.
func TestSilentConnectionsAreMadeAtMostTenTimesAMinute(t *testing.T) {
	f := func(answers bool) {
		synctest.Test(t, func(t *testing.T) {
			s := new(fakeServer)
			u := openFake(t, s, Options{})
			if answers {
				if err := askFake(u); err != nil {
					t.Fatal(err)
				}
			}
			s.silent.Store(1 << 62)
			var asking sync.WaitGroup
			askFor := func(d time.Duration) (dials int) {
				before := s.set(fakeBehaviour{})
				for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
					asking.Go(func() { _ = askFake(u) })
				}
				return s.set(fakeBehaviour{}) - before
			}
			askFor(unthrottledFor + 10*time.Second)
			if n := askFor(time.Minute); n < 6 || n > 10 {
				t.Errorf("answers at first: %t: %d dials in a minute", answers, n)
			}
			s.silent.Store(0)
			askFor(2 * throttleInterval)
			if err := askFake(u); err != nil {
				t.Error(err)
			}
			asking.Wait()
		})
	}
	f(false)
	f(true)
}

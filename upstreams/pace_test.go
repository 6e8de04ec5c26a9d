package upstreams

import (
	"errors"
	"testing"
	"time"
)

func TestALongOutageIsDialledAtMostTenTimesAMinute(t *testing.T) {
	var p pace
	start := time.Now()
	dials := make(map[int]int) // by minute
	for at := time.Duration(0); at < 10*time.Minute; at += 50 * time.Millisecond {
		if now := start.Add(at); p.allows(now) {
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
	p.succeeded()
	for range 100 {
		if !p.allows(start.Add(10 * time.Minute)) {
			t.Fatal("still paced after a success")
		}
	}
}

//go:build linux && lab

package lab

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"dotgate/gateway/wire"
)

// A timeline has the events of a scenario.
type timeline struct {
	begin, start, end time.Time // of the scenario, and of its fault
	spells            []spell
	samples           []sample
	outcomes          []outcome // sorted by the time of sending
}

// A spell is a time in which an upstream had a fault.
type spell struct {
	upstream int
	from, to time.Time
	fault    fault
}

// runOnce runs a scenario and returns its report.
func runOnce(t *testing.T, s scenario) report {
	w := newWorld(t, s)
	g := w.gateway()
	c := newClient(t, g, w.truth())
	g.waitUntilListening()
	if s.start.empty() {
		waitUntilServing(t, c)
	}
	p := s.phases()
	line := timeline{samples: []sample{w.sample()}, begin: time.Now()}
	stop := make(chan struct{})
	var background sync.WaitGroup
	background.Go(func() { c.run(s, stop) })
	background.Go(func() {
		tick := time.NewTicker(w.pause())
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				line.samples = append(line.samples, w.sample())
			}
		}
	})

	time.Sleep(p.before)
	line.start = time.Now()
	var repeated sync.WaitGroup
	specialName := s.special.label + ".one.lab.example.com"
	if s.special.repeat > 0 {
		repeated.Go(func() { c.runSpecial(specialName, s.special.repeat, p.during) })
	}
	var stopRest func()
	line.spells, stopRest = runFault(w, s, p.during, line.start)
	line.end = time.Now()
	time.Sleep(p.after)
	stopRest()
	repeated.Wait()
	close(stop)
	background.Wait()
	line.samples = append(line.samples, w.sample())
	line.outcomes = c.outs
	slices.SortFunc(line.outcomes, func(a, b outcome) int { return a.at.Compare(b.at) })
	g.stop()
	return judge(w, s, line, w.asked(specialName))
}

// waitUntilServing returns when the gateway has had time to connect to all upstreams, so
// that the phase before the fault has established connections.
func waitUntilServing(t *testing.T, c *client) {
	t.Helper()
	for range 50 {
		o := c.ask(c.truth, "ready.lab.example.com", 100*time.Millisecond)
		if errors.Is(o.err, errWrongAnswer) {
			t.Fatal(o.err)
		}
		if o.err == nil && o.rcode == wire.NoError {
			time.Sleep(200 * time.Millisecond)
			return
		}
	}
	t.Fatal("the gateway does not answer within 5 s of its start")
}

// runFault runs the fault of s for d. It returns which upstreams had it when, and a function
// that ends the fault of those that are not the first to return.
func runFault(w world, s scenario, d time.Duration, begin time.Time) (spells []spell, stopRest func()) {
	end := begin.Add(d)
	on := make(map[int]time.Time)
	f := s.fault
	start := func(i int) {
		on[i] = time.Now()
		w.startFault(i, s.faultAt(i, f))
	}
	stop := func(i int) {
		spells = append(spells, spell{i, on[i], time.Now(), f})
		w.endFault(i, f)
		delete(on, i)
	}
	switch {
	case !s.start.empty():
		f = s.start
		for _, i := range s.on {
			on[i] = begin
		}
	case f.empty():
	case s.shape == rolling:
		for n, i := range s.on {
			start(i)
			time.Sleep(time.Until(begin.Add(d * time.Duration(n+1) / time.Duration(len(s.on)))))
			stop(i)
		}
	case s.shape == flapping:
		for n := 0; time.Until(end) > 10*time.Millisecond; n++ {
			for _, i := range s.on {
				if n%2 == 0 {
					start(i)
				} else {
					stop(i)
				}
			}
			time.Sleep(min(time.Until(begin.Add(time.Duration(n+1)*time.Second)), time.Until(end)))
		}
	default:
		for _, i := range s.on {
			start(i)
		}
	}
	time.Sleep(time.Until(end))
	var rest []int
	for _, i := range s.on {
		_, active := on[i]
		switch {
		case active && s.returns != nil && !slices.Contains(s.returns, i):
			rest = append(rest, i)
		case active:
			stop(i)
		}
	}
	return spells, func() {
		for _, i := range rest {
			stop(i)
		}
	}
}

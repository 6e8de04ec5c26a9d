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

// A timeline is what happened in a scenario, and when.
type timeline struct {
	begin, strike, lift time.Time // of the scenario, and of its fault
	spells              []spell
	samples             []sample
	outs                []outcome // by the time they were sent
}

// A spell is a time in which an upstream was struck.
type spell struct {
	upstream int
	from, to time.Time
	fault    fault
}

// play runs a scenario and judges it.
func play(t *testing.T, s scenario) report {
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
	line.strike = time.Now()
	var repeated sync.WaitGroup
	oddName := s.odd.label + ".one.lab.example.com"
	if s.odd.repeat > 0 {
		repeated.Go(func() { c.runOdd(oddName, s.odd.repeat, p.during) })
	}
	var liftRest func()
	line.spells, liftRest = strike(w, s, p.during, line.strike)
	line.lift = time.Now()
	time.Sleep(p.after)
	liftRest()
	repeated.Wait()
	close(stop)
	background.Wait()
	line.samples = append(line.samples, w.sample())
	line.outs = c.outs
	slices.SortFunc(line.outs, func(a, b outcome) int { return a.at.Compare(b.at) })
	g.stop()
	return judge(w, s, line, w.asked(oddName))
}

// waitUntilServing returns when the gateway has had the time to connect to all
// of its upstreams, so that what is healthy can be told from what is cold.
func waitUntilServing(t *testing.T, c *client) {
	t.Helper()
	for range 50 {
		o := c.ask("ready.lab.example.com", 100*time.Millisecond)
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

// strike runs the fault of s for d, and returns who was struck when, and what
// lifts the fault from those who are not the first to return.
func strike(w world, s scenario, d time.Duration, begin time.Time) (spells []spell, liftRest func()) {
	end := begin.Add(d)
	on := make(map[int]time.Time)
	f := s.fault
	hit := func(i int) {
		on[i] = time.Now()
		w.strike(i, f)
	}
	lift := func(i int) {
		spells = append(spells, spell{i, on[i], time.Now(), f})
		w.lift(i, f)
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
			hit(i)
			time.Sleep(time.Until(begin.Add(d * time.Duration(n+1) / time.Duration(len(s.on)))))
			lift(i)
		}
	case s.shape == flapping:
		for n := 0; time.Until(end) > 10*time.Millisecond; n++ {
			for _, i := range s.on {
				if n%2 == 0 {
					hit(i)
				} else {
					lift(i)
				}
			}
			time.Sleep(min(time.Until(begin.Add(time.Duration(n+1)*time.Second)), time.Until(end)))
		}
	default:
		for _, i := range s.on {
			hit(i)
		}
	}
	time.Sleep(time.Until(end))
	var rest []int
	for _, i := range s.on {
		_, struck := on[i]
		switch {
		case struck && s.returns != nil && !slices.Contains(s.returns, i):
			rest = append(rest, i)
		case struck:
			lift(i)
		}
	}
	return spells, func() {
		for _, i := range rest {
			lift(i)
		}
	}
}

package health

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/wire"
)

func TestAWordMakesAnUpstreamSuspectUntilItAnswers(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, _ func(string) error) {
		before := u.probed()
		if !m.Doubt("b") {
			t.Fatal("the word is not heeded")
		}
		if s := m.Status(); !m.Suspect() || !m.Up() || s.State != Suspect || s.Reason != "b finds it failing" || s.Failing {
			t.Errorf("after the word: %+v", s)
		}
		synctest.Wait()
		if n := u.probed() - before; n != 1 {
			t.Errorf("%d probes, want one at once", n)
		}
		time.Sleep(11 * time.Millisecond) // the probe is answered
		if s := m.Status(); m.Suspect() || s.State != Up {
			t.Errorf("after an answer: %+v", s)
		}
	})
}

func TestAWordIsBorneOutByTheMonitorsOwnProbe(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, _ func(string) error) {
		u.set(silent)
		if !m.Doubt("b") {
			t.Fatal("the word is not heeded")
		}
		begin := time.Now()
		for m.Up() {
			if !m.Suspect() {
				t.Fatalf("not suspect any more after %v", time.Since(begin))
			}
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(begin); took < verdictMin || took > verdictMin+10*time.Millisecond {
			t.Errorf("down after %v; that is for the probe to say, after %v", took, verdictMin)
		}
		if m.Doubt("b") {
			t.Error("a word against an upstream that is down is heeded")
		}
		u.set(well)
		until(t, 15*time.Second, "it returns", m.Up)
		u.set(silent)
		if !m.Doubt("b") {
			t.Error("whose word was borne out is not heard again at once")
		}
	})
}

func TestWhoCriesWolfIsSeldomHeard(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, _ func(string) error) {
		before, heeded := u.probed(), 0
		for range 10 * 60 * 100 { // ten minutes
			if m.Doubt("liar") {
				heeded++
			}
			time.Sleep(10 * time.Millisecond)
		}
		if !m.Up() {
			t.Error("it took the upstream down")
		}
		if heeded < 60 || heeded > 60+doubtBurst {
			t.Errorf("%d words in ten minutes were heeded", heeded)
		}
		if n := u.probed() - before; n > heeded+20 { // and one for each quiet interval
			t.Errorf("%d probes for %d words", n, heeded)
		}
		time.Sleep(doubtBurst * doubtEvery)
		for i := range doubtBurst + 1 {
			if m.Doubt("liar") != (i < doubtBurst) {
				t.Errorf("after a long time, the word %d is heeded: %v", i, i >= doubtBurst)
			}
		}
	})
}

func TestWhoWantsToKnowIsToldOfEveryChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &fake{exchange: well, begin: time.Now()}
		changed := make(chan struct{}, 1)
		m, err := New(u, Options{ProbeName: probeName, ProbeType: "A", Changed: changed})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		defer func() { cancel(); <-done }()
		go func() { done <- m.Run(ctx) }()
		time.Sleep(time.Second)
		told := func(within time.Duration) bool {
			select {
			case <-changed:
				return true
			case <-time.After(within):
				return false
			}
		}
		if told(time.Second) {
			t.Error("told although nothing has changed")
		}
		u.set(silent)
		q := m.query
		m.Ask(q, func(wire.Answer, error) {})
		time.Sleep(41 * time.Millisecond)
		if !m.Suspect() || !told(time.Millisecond) || !m.Up() {
			t.Error("not told that it is suspect")
		}
		if !told(time.Second) || m.Up() {
			t.Error("not told that it is down")
		}
		u.set(well)
		if !told(15*time.Second) || !m.Up() {
			t.Error("not told that it is up again")
		}
		time.Sleep(5 * time.Second) // what was asked in silence is given up
	})
}

package health

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/wire"
)

func TestAPeerReportMakesAnUpstreamSuspectUntilItAnswers(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, _ func(string) error) {
		before := u.probed()
		if !m.PeerReport("b") {
			t.Fatal("the report is not accepted")
		}
		if s := m.Status(); m.State() != Suspect || !m.State().IsUp() || s.State != Suspect || s.Reason != "b finds it failing" || s.Failing {
			t.Errorf("after the report: %+v", s)
		}
		synctest.Wait()
		if n := u.probed() - before; n != 1 {
			t.Errorf("%d probes, want one at once", n)
		}
		time.Sleep(11 * time.Millisecond) // the probe is answered
		if s := m.Status(); m.State() == Suspect || s.State != Up {
			t.Errorf("after an answer: %+v", s)
		}
	})
}

func TestAPeerReportIsConfirmedByTheOwnProbe(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, _ func(string) error) {
		u.set(silent)
		if !m.PeerReport("b") {
			t.Fatal("the report is not accepted")
		}
		begin := time.Now()
		for m.State().IsUp() {
			if m.State() != Suspect {
				t.Fatalf("not suspect any more after %v", time.Since(begin))
			}
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(begin); took < silenceMin || took > silenceMin+10*time.Millisecond {
			t.Errorf("down after %v; that is for the probe to say, after %v", took, silenceMin)
		}
		if m.PeerReport("b") {
			t.Error("a report of an upstream that is down is accepted")
		}
		u.set(well)
		until(t, 15*time.Second, "it returns", func() bool { return m.State().IsUp() })
		u.set(silent)
		if !m.PeerReport("b") {
			t.Error("after a confirmed report, the next one is not accepted at once")
		}
	})
}

func TestPeersThatReportWronglyAreSeldomAccepted(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, _ func(string) error) {
		before, accepted := u.probed(), 0
		for range 10 * 60 * 100 { // ten minutes
			if m.PeerReport("mistaken") {
				accepted++
			}
			time.Sleep(10 * time.Millisecond)
		}
		if !m.State().IsUp() {
			t.Error("it took the upstream down")
		}
		if accepted < 60 || accepted > 60+peerReportBurst {
			t.Errorf("%d reports in ten minutes were accepted", accepted)
		}
		if n := u.probed() - before; n > accepted+20 { // and one for each quiet interval
			t.Errorf("%d probes for %d reports", n, accepted)
		}
		time.Sleep(peerReportBurst * peerReportEvery)
		for i := range peerReportBurst + 1 {
			if m.PeerReport("mistaken") != (i < peerReportBurst) {
				t.Errorf("after a long time, report %d is accepted: %v", i, i >= peerReportBurst)
			}
		}
	})
}

func TestEveryChangeIsAnnounced(t *testing.T) {
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
		m.Ask(t.Context(), q, func(wire.Answer, error) {})
		time.Sleep(41 * time.Millisecond)
		if m.State() != Suspect || !told(time.Millisecond) || !m.State().IsUp() {
			t.Error("not told that it is suspect")
		}
		if !told(time.Second) || m.State().IsUp() {
			t.Error("not told that it is down")
		}
		u.set(well)
		if !told(15*time.Second) || !m.State().IsUp() {
			t.Error("not told that it is up again")
		}
		time.Sleep(5 * time.Second) // what was asked in silence is given up
	})
}

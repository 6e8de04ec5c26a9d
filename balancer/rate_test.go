package balancer

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/wire"
)

// asked sends load queries a second for 5 s, and returns how many each member got in a
// second, and how many of them were beyond its limit.
func asked(t *testing.T, policy string, load int, candidates ...Candidate) (got []float64, beyond int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b, err := New(candidates, Options{Policy: policy})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5 * load {
			b.Ask(t.Context(), query(t, fmt.Sprintf("n%d.example.com", i)), func(_ wire.Answer, err error) {
				if err != nil {
					t.Errorf("%s: %v", policy, err)
				}
			})
			time.Sleep(time.Second / time.Duration(load)) // fake time
		}
		time.Sleep(time.Second)
	})
	for _, c := range candidates {
		m := c.Member.(*fake)
		for i := range m.asked {
			if m.rate > 0 && i >= m.rate && m.asked[i].Sub(m.asked[i-m.rate]) < time.Second {
				beyond++
			}
		}
		got = append(got, float64(len(m.asked))/5)
	}
	return got, beyond
}

func limited(name string, tier, rate int) Candidate {
	c := candidate(name, 10*time.Millisecond, 0, tier)
	c.Member.(*fake).rate = rate
	return c
}

func TestQueriesAreSpreadBeforeALimitOfTheRateIsHit(t *testing.T) {
	for _, policy := range Policies() {
		got, beyond := asked(t, policy, 120, limited("a", 0, 50), limited("b", 0, 50), limited("c", 0, 50))
		if beyond > 0 {
			t.Errorf("%s: %d queries beyond the limits, a second: %.0f", policy, beyond, got)
		}
	}
	got, beyond := asked(t, "ordered", 120, limited("a", 0, 50), limited("b", 1, 0))
	near(t, "a limit and another tier", got, 2, 50, 70)
	if beyond > 0 {
		t.Errorf("%d queries beyond the limit of the lower tier", beyond)
	}
}

// If all are at their limits, the one with the most room is asked, and each query is sent.
func TestQueriesBeyondAllLimitsAreSpreadEvenly(t *testing.T) {
	for _, policy := range Policies() {
		got, _ := asked(t, policy, 300, limited("a", 0, 100), limited("b", 1, 50))
		near(t, policy, got, 8, 200, 100)
	}
}

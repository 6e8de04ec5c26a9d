package balancer

import (
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/wire"
)

func firstOf(b *Balancer, q wire.Query) *member {
	order, _ := b.order(nil, q)
	return order[0]
}

// shares runs n queries, a millisecond apart and many at once, against members
// that take as long as given, and returns the part that each was asked first.
func shares(t *testing.T, policy string, n int, candidates ...Candidate) []float64 {
	t.Helper()
	counts := make([]float64, len(candidates))
	synctest.Test(t, func(t *testing.T) {
		b, err := New(candidates, Options{Policy: policy})
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			q := query(t, fmt.Sprintf("n%d.example.com", i))
			first := firstOf(b, q)
			counts[first.index]++
			first.outstanding.Add(1)
			go func() {
				done := make(chan struct{})
				first.Ask(t.Context(), q, func(wire.Answer, error) { close(done) })
				<-done
				first.outstanding.Add(-1)
			}()
			time.Sleep(time.Millisecond) // fake time
		}
		time.Sleep(time.Second)
	})
	for i := range counts {
		counts[i] /= float64(n)
	}
	return counts
}

func candidate(name string, usual time.Duration, weight, tier int) Candidate {
	return Candidate{Member: &fake{name: name, usual: usual, takes: usual, outcome: "NOERROR", log: &journal{}}, Weight: weight, Tier: tier}
}

func near(t *testing.T, what string, got []float64, tolerance float64, want ...float64) {
	t.Helper()
	for i := range want {
		if math.Abs(got[i]-want[i]) > tolerance {
			t.Errorf("%s: shares %.3f, want %v ± %v", what, got, want, tolerance)
			return
		}
	}
}

func TestEqualMembersGetEqualShares(t *testing.T) {
	const ms = time.Millisecond
	for _, policy := range Policies() {
		if policy == "ordered" {
			continue
		}
		got := shares(t, policy, 6000, candidate("a", 10*ms, 0, 0), candidate("b", 10*ms, 0, 0), candidate("c", 10*ms, 0, 0))
		near(t, policy, got, 0.05, 1./3, 1./3, 1./3)
	}
}

func TestASlowMemberKeepsEnoughToBeMeasured(t *testing.T) {
	const ms = time.Millisecond
	got := shares(t, "latency", 6000, candidate("a", 10*ms, 0, 0), candidate("b", 20*ms, 0, 0), candidate("c", 100*ms, 0, 0))
	if got[2] < 0.01 || got[2] > 0.1 || got[0] < got[1] {
		t.Errorf("shares of members at 10, 20 and 100 ms: %.3f", got)
	}
}

func TestWeightsAndTiersShapeTheShares(t *testing.T) {
	const ms = time.Millisecond
	near(t, "weighted", shares(t, "weighted", 6000, candidate("a", ms, 3, 0), candidate("b", ms, 1, 0)), 0.03, .75, .25)
	near(t, "tiers", shares(t, "latency", 500, candidate("a", 50*ms, 0, 0), candidate("b", ms, 0, 1)), 0, 1, 0)
	near(t, "ordered", shares(t, "ordered", 500, candidate("a", 50*ms, 0, 0), candidate("b", ms, 0, 0)), 0, 1, 0)
	lower := candidate("a", ms, 0, 0)
	lower.Member.(*fake).down = true
	near(t, "tier that is down", shares(t, "latency", 500, lower, candidate("b", ms, 0, 1)), 0, 0, 1)
}

func TestTheHashPolicyKeepsANameWithItsMember(t *testing.T) {
	members := []Candidate{candidate("a", 0, 0, 0), candidate("b", 0, 0, 0), candidate("c", 0, 0, 0)}
	b, err := New(members, Options{Policy: "hash"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := New([]Candidate{members[2], members[0], members[1]}, Options{Policy: "hash"})
	if err != nil {
		t.Fatal(err)
	}
	home := make(map[int]string)
	for i := range 300 {
		lower, upper := query(t, fmt.Sprintf("n%d.example.com", i)), query(t, fmt.Sprintf("N%d.EXAMPLE.com", i))
		home[i] = firstOf(b, lower).String()
		if again := firstOf(other, upper).String(); again != home[i] {
			t.Fatalf("name %d belongs to %s, and to %s in another order and spelling", i, home[i], again)
		}
	}
	members[0].Member.(*fake).down = true
	for i := range 300 {
		now := firstOf(b, query(t, fmt.Sprintf("n%d.example.com", i))).String()
		if home[i] != "a" && now != home[i] {
			t.Fatalf("name %d moved from %s to %s although only a is down", i, home[i], now)
		}
	}
}

func TestAMemberThatComesBackStartsSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		back := candidate("a", 0, 0, 0)
		member := back.Member.(*fake)
		member.down = true
		b, err := New([]Candidate{back, candidate("b", 0, 0, 0)}, Options{Policy: "round_robin"})
		if err != nil {
			t.Fatal(err)
		}
		first := func(queries int) (share float64) {
			for range queries {
				if firstOf(b, query(t, "example.com")).String() == "a" {
					share += 1 / float64(queries)
				}
			}
			return share
		}
		if got := first(100); got != 0 {
			t.Errorf("down: share %.2f", got)
		}
		member.down = false
		if got := first(1000); got > 0.15 {
			t.Errorf("just back: share %.2f, want a small one", got)
		}
		time.Sleep(slowStartTime) // fake time
		if got := first(1000); got < 0.45 {
			t.Errorf("after %v: share %.2f, want half", slowStartTime, got)
		}
	})
}

func TestAnUnknownPolicyAndAnEmptyListAreErrors(t *testing.T) {
	if _, err := New(nil, Options{Policy: "fastest"}); err == nil {
		t.Error("New accepts a policy that does not exist and no members")
	}
	if _, err := New([]Candidate{{Member: &fake{name: "a"}, Weight: -1}}, Options{}); err == nil {
		t.Error("New accepts a negative weight")
	}
}

package balancer

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/wire"
)

// A zone has what members answer to the names of a domain, by member, where that is not
// NOERROR: a response code, or "lost" for no answer.
type zone map[string]string

// solvers returns a Balancer that asks members in their order. They are quick ones, and answer
// the names of some domains as zones says.
func solvers(t *testing.T, zones map[string]zone, members ...Candidate) *Balancer {
	t.Helper()
	for i := range members {
		m := members[i].Member.(*selective)
		m.discounted = true
		m.answer = func(q wire.Query) (wire.RCode, bool) {
			for domain, z := range zones {
				if !strings.HasSuffix("."+q.String(), "."+domain+". A") {
					continue
				}
				switch z[m.name] {
				case "lost":
					return 0, true
				case "SERVFAIL":
					return wire.ServFail, false
				case "NXDOMAIN":
					return wire.NXDomain, false
				}
			}
			return wire.NoError, false
		}
	}
	b, err := New(members, Options{Policy: "ordered"})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// firstFor asks for a name and returns the member that got the query first.
func firstFor(t *testing.T, b *Balancer, name string) string {
	t.Helper()
	_, trace := b.Explain(t.Context(), typed(t, name, "A"))
	if trace.Err != nil {
		t.Fatal(trace.Err)
	}
	time.Sleep(10 * time.Second) // fake time, for what was lost
	return trace.Attempts[0].Name
}

func TestTheOwnerOfAZoneSteersNoOtherDomain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := solvers(t, map[string]zone{"evil.co.uk": {"a": "SERVFAIL"}, "evil.github.io": {"a": "SERVFAIL"}},
			Candidate{Member: quick("a", 10*time.Millisecond, nil)}, Candidate{Member: quick("b", 10*time.Millisecond, nil)})
		for _, suffix := range []string{"co.uk", "github.io"} {
			firstFor(t, b, "evil."+suffix)
			if first := firstFor(t, b, "evil."+suffix); first != "b" {
				t.Errorf("the domain that a can't resolve goes to %s", first)
			}
			if first := firstFor(t, b, "good."+suffix); first != "a" {
				t.Errorf("good.%s goes to %s after errors for another domain", suffix, first)
			}
		}
	})
}

// A member gets the names of a domain first only as long as it has results for them, whether
// its errors count against it or not.
func TestADomainLeavesAMemberThatFailsIt(t *testing.T) {
	f := func(failure string, counts bool) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			here := zone{"a": "SERVFAIL"}
			a, c := quick("a", 10*time.Millisecond, nil), quick("b", 10*time.Millisecond, nil)
			b := solvers(t, map[string]zone{"one.example.com": here}, Candidate{Member: a}, Candidate{Member: c})
			firstFor(t, b, "n1.one.example.com")
			if first := firstFor(t, b, "n2.one.example.com"); first != "b" {
				t.Errorf("the domain that a can't resolve goes to %s", first)
			}
			answering.Lock()
			delete(here, "a")
			here["b"], c.discounted = failure, !counts
			answering.Unlock()
			firstFor(t, b, "n3.one.example.com")
			if first := firstFor(t, b, "n4.one.example.com"); first != "a" {
				t.Errorf("the domain goes to %s after its failure: %s, which counts: %v", first, failure, counts)
			}
		})
	}
	f("SERVFAIL", false)
	f("SERVFAIL", true)
	f("lost", false)
	f("lost", true)
}

// The names of a domain stay within their tier, even if only the next tier resolves one of
// them: it may be a public resolver, which has NXDOMAIN for the other ones.
func TestADomainStaysInItsTier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tier := func(name string, tier int) Candidate {
			return Candidate{Member: quick(name, 10*time.Millisecond, nil), Tier: tier}
		}
		broken := zone{"internal": "SERVFAIL", "public": "SERVFAIL"}
		b := solvers(t, map[string]zone{"broken.corp.example": broken},
			tier("internal", 0), tier("public", 1), tier("other public", 1))
		firstFor(t, b, "broken.corp.example")
		_, trace := b.Explain(t.Context(), typed(t, "www.corp.example", "A"))
		var order []string
		for _, c := range trace.Candidates {
			order = append(order, c.Name)
		}
		if want := []string{"internal", "other public", "public"}; !slices.Equal(order, want) {
			t.Errorf("the order is %q, want %q", order, want)
		}
	})
}

// A distant member that alone resolves a domain has the time that its answers take: hedges to
// the nearer ones, which have errors only, would use up the budget of all other queries.
func TestTheMemberForADomainMayBeDistant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		distant := quick("distant", 200*time.Millisecond, nil)
		distant.patience = 400 * time.Millisecond
		b := solvers(t, map[string]zone{"one.example.com": {"near": "SERVFAIL"}},
			Candidate{Member: quick("near", 10*time.Millisecond, nil)}, Candidate{Member: distant})
		const names = 100
		for i := range names {
			firstFor(t, b, fmt.Sprintf("n%d.one.example.com", i))
		}
		// It is forgotten after a minute, and names are asked for every 10 s.
		if c := b.Counts(); c.Hedges > 0 || c.Attempts > names+names/6+1 {
			t.Errorf("%d names of the domain made %d hedges, and %d attempts", names, c.Hedges, c.Attempts)
		}
	})
}

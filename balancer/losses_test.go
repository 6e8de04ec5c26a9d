package balancer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/wire"
)

// selective is a member that answers by the query.
type selective struct {
	*fake
	answer func(wire.Query) (rcode wire.RCode, lost bool)
}

// answering guards what answers of selective members count.
var answering sync.Mutex

func (m *selective) Ask(_ context.Context, q wire.Query, done func(wire.Answer, error)) {
	answering.Lock()
	rcode, lost := m.answer(q)
	answering.Unlock()
	after := m.takes
	if lost {
		after = 5 * time.Second
	}
	time.AfterFunc(after, func() {
		if lost {
			done(wire.Answer{}, context.DeadlineExceeded)
			return
		}
		done(wire.ParseAnswer(q, q.AppendError(nil, rcode, wire.EDE{})))
	})
}

// quick returns a member that takes d and answers by the query.
func quick(name string, d time.Duration, answer func(wire.Query) (wire.RCode, bool)) *selective {
	return &selective{fake: &fake{name: name, usual: d, takes: d, log: &journal{}}, answer: answer}
}

func honest(wire.Query) (wire.RCode, bool) { return wire.NoError, false }

func typed(t testing.TB, name, recordType string) wire.Query {
	t.Helper()
	q, err := wire.NewQuery(name, recordType)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// A load asks for n names, one each time, of any of the given types. It returns how long answers took, by type, sorted, and how many errors there were.
func load(t *testing.T, b *Balancer, n int, every time.Duration, types ...string) (took map[string][]time.Duration, failed int) {
	t.Helper()
	took = make(map[string][]time.Duration)
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range n {
		recordType := types[rand.IntN(len(types))]
		all.Add(1)
		began := time.Now()
		ctx, cancel := context.WithDeadline(t.Context(), began.Add(4*time.Second))
		b.Ask(ctx, typed(t, fmt.Sprintf("n%d.example.com", i), recordType), func(a wire.Answer, err error) {
			defer all.Done()
			defer cancel()
			mu.Lock()
			defer mu.Unlock()
			took[recordType] = append(took[recordType], time.Since(began))
			if err != nil || a.RCode() != wire.NoError {
				failed++
			}
		})
		time.Sleep(every) // fake time
	}
	all.Wait()
	for _, times := range took {
		slices.Sort(times)
	}
	return took, failed
}

// A member that loses some of its queries costs clients a hedge at most, whatever
// the policy: it is asked first less often, and the budget has hedges for the rest.
func TestALossyMemberIsAskedLessWhateverThePolicy(t *testing.T) {
	f := func(policy string, share int) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			asked := 0
			lossy := quick("a", 10*time.Millisecond, func(wire.Query) (wire.RCode, bool) {
				asked++
				return wire.NoError, asked*share%100 < share
			})
			b, err := New([]Candidate{
				{Member: lossy},
				{Member: quick("b", 20*time.Millisecond, honest)},
				{Member: quick("c", 20*time.Millisecond, honest)},
			}, Options{Policy: policy})
			if err != nil {
				t.Fatal(err)
			}
			const queries = 2000
			took, failed := load(t, b, queries, time.Millisecond, "A")
			// Patience and an answer: 40 ms and 20 ms; the first losses come when
			// nothing is known.
			if got := took["A"][queries*99/100]; got > 70*time.Millisecond || failed > 0 {
				t.Errorf("%s, %d %% lost: p99 %v, %d failed", policy, share, got, failed)
			}
			if got := float64(b.Counts().Attempts) / queries; got > 1.25 {
				t.Errorf("%s, %d %% lost: %.2f attempts a query", policy, share, got)
			}
			time.Sleep(10 * time.Second) // fake time
		})
	}
	for _, policy := range Policies() {
		f(policy, 30)
		f(policy, 100)
	}
}

// An upstream that answers A and never AAAA keeps its place for A, loses it for
// AAAA, and gets it back when it answers them again.
func TestLossesOfOneRecordTypeCostOthersNothing(t *testing.T) {
	f := func(policy string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			mended := false
			asked := map[wire.Type]int{}
			half := quick("a", 10*time.Millisecond, func(q wire.Query) (wire.RCode, bool) {
				asked[q.Type()]++
				return wire.NoError, q.Type() == wire.TypeAAAA && !mended
			})
			b, err := New([]Candidate{{Member: half}, {Member: quick("b", 10*time.Millisecond, honest)}}, Options{Policy: policy})
			if err != nil {
				t.Fatal(err)
			}
			const queries = 2000
			shares := func() (a, aaaa float64) {
				answering.Lock()
				clear(asked)
				answering.Unlock()
				took, failed := load(t, b, queries, time.Millisecond, "A", "AAAA")
				if failed > 0 {
					t.Errorf("%s: %d failed", policy, failed)
				}
				answering.Lock()
				defer answering.Unlock()
				share := func(t wire.Type, name string) float64 { return float64(asked[t]) / float64(len(took[name])) }
				return share(wire.TypeA, "A"), share(wire.TypeAAAA, "AAAA")
			}
			a, aaaa := shares()
			if want := 0.4; a < want || aaaa > 0.1 {
				t.Errorf("%s: asked first for %.2f of A and %.2f of AAAA", policy, a, aaaa)
			}
			answering.Lock()
			mended = true
			answering.Unlock()
			for range 3 {
				shares()
			}
			time.Sleep(10 * time.Second) // fake time
			if a, aaaa := shares(); aaaa < 0.8*a {
				t.Errorf("%s, mended: asked first for %.2f of A and %.2f of AAAA", policy, a, aaaa)
			}
			time.Sleep(10 * time.Second) // fake time
		})
	}
	for _, policy := range Policies() {
		f(policy)
	}
}

// Two of three members can't resolve the names of one domain. That does not count against
// them, so the third gets these names, whatever the policy, and no client an error. The
// other names go where they went before.
func TestADomainGoesToTheMemberThatResolvesIt(t *testing.T) {
	f := func(policy string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			asked := map[string]int{}
			member := func(name string, resolves bool) Candidate {
				m := quick(name, 10*time.Millisecond, func(q wire.Query) (wire.RCode, bool) {
					if strings.HasSuffix(q.String(), "one.example.com. A") {
						asked[name]++
						if !resolves {
							return wire.ServFail, false
						}
					}
					return wire.NoError, false
				})
				m.discounted = true
				return Candidate{Member: m}
			}
			b, err := New([]Candidate{member("a", false), member("b", false), member("c", true)}, Options{Policy: policy})
			if err != nil {
				t.Fatal(err)
			}
			failed, others := 0, 0
			const names = 300
			for i := range 2 * names {
				name := fmt.Sprintf("n%d.one.example.com", i)
				if i%2 == 0 {
					name = fmt.Sprintf("n%d.other.example.com", i)
				}
				before := b.Counts().Attempts
				if a, err := b.Exchange(t.Context(), typed(t, name, "A")); err != nil || a.RCode() != wire.NoError {
					failed++
				}
				if i%2 == 0 {
					others += int(b.Counts().Attempts - before)
				}
				time.Sleep(time.Second / 60) // fake time: 30 names a second of each domain
			}
			if failed > 0 {
				t.Errorf("%s: %d of %d names failed", policy, failed, 2*names)
			}
			if others != names || asked["c"] != names || asked["a"]+asked["b"] > 5 {
				t.Errorf("%s: %d attempts for the names of the other domain; of %d queries for this one, the members got %v", policy, others, names, asked)
			}
			if _, trace := b.Explain(t.Context(), typed(t, "why.one.example.com", "A")); trace.Attempts[0].Reason != Resolves {
				t.Errorf("%s: c was asked as %v", policy, trace.Attempts[0].Reason)
			}
			time.Sleep(domainsFor)
			if !b.resolvedBy.empty() {
				t.Errorf("%s: queries still look for domains", policy)
			}
			if _, err := b.Exchange(t.Context(), typed(t, "last.one.example.com", "A")); err != nil {
				t.Error(err)
			}
		})
	}
	for _, policy := range Policies() {
		f(policy)
	}
}

// Errors that say nothing about a member, as all are below one domain, steer no queries
// for other domains away from it.
func TestErrorsOfOneDomainSteerNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		evil := false
		a := quick("a", 10*time.Millisecond, func(wire.Query) (wire.RCode, bool) {
			if asked++; evil {
				return wire.ServFail, false
			}
			return wire.NoError, false
		})
		a.discounted = true
		b, err := New([]Candidate{{Member: a}, {Member: quick("b", 10*time.Millisecond, honest)}}, Options{Policy: "ordered"})
		if err != nil {
			t.Fatal(err)
		}
		set := func(v bool) {
			answering.Lock()
			defer answering.Unlock()
			evil, asked = v, 0
		}
		set(true)
		for i := range 300 {
			if _, err := b.Exchange(t.Context(), typed(t, fmt.Sprintf("n%d.evil.example", i), "A")); err != nil {
				t.Fatal(err)
			}
		}
		set(false)
		load(t, b, 100, 10*time.Millisecond, "A")
		answering.Lock()
		defer answering.Unlock()
		if asked != 100 {
			t.Errorf("after errors of one domain, %d of 100 queries for another one are sent to the first of the list", asked)
		}
	})
}

// Answers that are late, or never come, say nothing about a member as long as all are
// below one domain, and steer no queries away from it. Those of many domains do.
func TestOneSlowDomainSteersNothing(t *testing.T) {
	f := func(policy string, discounted bool, least, most int) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			asked := 0
			slow := false
			a := quick("a", 10*time.Millisecond, func(wire.Query) (wire.RCode, bool) {
				asked++
				return wire.NoError, slow
			})
			a.discounted = discounted
			b, err := New([]Candidate{{Member: a}, {Member: quick("b", 10*time.Millisecond, honest)}}, Options{Policy: policy})
			if err != nil {
				t.Fatal(err)
			}
			set := func(v bool) {
				answering.Lock()
				defer answering.Unlock()
				slow, asked = v, 0
			}
			set(true)
			load(t, b, 100, 10*time.Millisecond, "A")
			set(false)
			load(t, b, 100, 10*time.Millisecond, "A")
			answering.Lock()
			if asked < least || asked > most {
				t.Errorf("%s, one domain %v: %d of 100 queries are sent to the first of the list, want %d to %d", policy, discounted, asked, least, most)
			}
			answering.Unlock()
			time.Sleep(10 * time.Second) // fake time
		})
	}
	f("ordered", true, 100, 100)
	f("ordered", false, 0, 50)
	f("round_robin", true, 50, 50)
	f("round_robin", false, 0, 30)
}

// If all members lose, no order is better than that of the policy.
func TestLossesEverywhereChangeNoOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var first int
		lossy := func(count *int) func(wire.Query) (wire.RCode, bool) {
			n := 0
			return func(wire.Query) (wire.RCode, bool) {
				n++
				*count++
				return wire.NoError, n%10 == 0
			}
		}
		var rest int
		b, err := New([]Candidate{
			{Member: quick("a", 10*time.Millisecond, lossy(&first))}, {Member: quick("b", 10*time.Millisecond, lossy(&rest))},
		}, Options{Policy: "ordered"})
		if err != nil {
			t.Fatal(err)
		}
		load(t, b, 1000, time.Millisecond, "A") // until that is known
		time.Sleep(10 * time.Second)            // fake time
		first, rest = 0, 0
		load(t, b, 2000, time.Millisecond, "A")
		time.Sleep(10 * time.Second) // fake time
		if first < 3*rest {
			t.Errorf("the first of the list got %d attempts, the second %d", first, rest)
		}
	})
}

// perSecond makes a member refuse more than limit queries in any second.
func perSecond(limit int, rcode wire.RCode) func(wire.Query) (wire.RCode, bool) {
	var window time.Time
	n := 0
	return func(wire.Query) (wire.RCode, bool) {
		if now := time.Now().Truncate(time.Second); now != window {
			window, n = now, 0
		}
		if n++; n > limit {
			return rcode, false
		}
		return wire.NoError, false
	}
}

// Three members that allow 50 queries a second each have room for 120: no client gets
// an error, and no member is reported as broken.
func TestRateLimitedIsNotBroken(t *testing.T) {
	f := func(policy string, rcode wire.RCode) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			var candidates []Candidate
			for i, name := range []string{"a", "b", "c"} {
				candidates = append(candidates, Candidate{Member: quick(name, time.Duration(10*(i+1))*time.Millisecond, perSecond(50, rcode))})
			}
			b, err := New(candidates, Options{Policy: policy})
			if err != nil {
				t.Fatal(err)
			}
			_, failed := load(t, b, 10*120, time.Second/120, "A", "AAAA", "HTTPS")
			if failed > 0 {
				t.Errorf("%s, %v: %d clients got an error", policy, rcode, failed)
			}
			for _, c := range candidates {
				if n := c.Member.(*selective).reported; n > 0 && rcode == wire.Refused {
					t.Errorf("%s: %v was reported %d times", policy, c, n)
				}
			}
			t.Logf("%s, %v: %.2f attempts a query", policy, rcode, float64(b.Counts().Attempts)/(10*120))
		})
	}
	for _, policy := range Policies() {
		f(policy, wire.Refused)
		f(policy, wire.ServFail)
	}
}

// When all refuse, clients get a SERVFAIL of ours that says why.
func TestARefusalIsNotPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuse := perSecond(0, wire.Refused)
		b, err := New([]Candidate{{Member: quick("a", 0, refuse)}, {Member: quick("b", 0, refuse)}}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Exchange(t.Context(), query(t, "example.com"))
		e, ok := errors.AsType[*Error](err)
		if !ok || e.EDE().Text != "upstreams answered REFUSED" {
			t.Fatalf("got %v", err)
		}
		if got := sorted(e.Detail()); got != sorted("a: answered REFUSED; b: answered REFUSED") {
			t.Errorf("the detail is %q", e.Detail())
		}
	})
}

// A hedge or a retry goes to a member of a lower tier before one of a higher tier.
func TestOthersAreAskedByTier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &journal{begin: time.Now()}
		far := parseFake("b 10ms NOERROR", log)
		far.usual = 100 * time.Millisecond
		b, err := New([]Candidate{
			{Member: parseFake("a 0s fail", log)}, {Member: far}, {Member: parseFake("c 1ms NOERROR", log), Tier: 1},
		}, Options{Policy: "ordered"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Exchange(t.Context(), query(t, "example.com")); err != nil || log.String() != "a@0s b@0s" {
			t.Errorf("asked %s: %v", log, err)
		}
	})
}

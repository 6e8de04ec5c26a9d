package balancer

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/wire"
)

func candidatesOf(log *journal, lines ...string) []Candidate {
	var all []Candidate
	for _, line := range lines {
		all = append(all, Candidate{Member: parseFake(line, log)})
	}
	return all
}

func TestQueriesWithSeveralAttemptsAreRecorded(t *testing.T) {
	f := func(script, want string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			var recorded []string
			record := func(s Trace) {
				var words []string
				for _, a := range s.Attempts {
					word := fmt.Sprintf("%s(%v)@%v", a.Name, a.Reason, a.After)
					switch {
					case !a.Ended:
						word += "=open"
					case a.Err != nil:
						word += "=failed+" + a.Took.String()
					default:
						word += "=" + a.RCode.String() + "+" + a.Took.String()
					}
					words = append(words, word)
				}
				recorded = append(recorded, strings.Join(words, " ")+fmt.Sprintf(" %d candidates, failed %v", len(s.Candidates), s.Err != nil))
			}
			b, err := New(candidatesOf(&journal{begin: time.Now()}, strings.Split(script, "\n")...), Options{Policy: "ordered", Record: record})
			if err != nil {
				t.Fatal(err)
			}
			_, _ = b.Exchange(t.Context(), query(t, "www.example.com"))
			if got := strings.Join(recorded, "\n"); got != want {
				t.Errorf("members:\n%s\n got %s\nwant %s", script, got, want)
			}
			time.Sleep(10 * time.Second) // fake time, for what was left behind
		})
	}
	f("a 10ms NOERROR\nb 10ms NOERROR", "") // nothing worth to record
	f("a 500ms NOERROR\nb 10ms NOERROR", "a(first)@0s=open b(hedge)@40ms=NOERROR+10ms 2 candidates, failed false")
	f("a 1ms fail\nb 10ms NOERROR", "a(first)@0s=failed+1ms b(retry)@1ms=NOERROR+10ms 2 candidates, failed false")
	f("a 1ms SERVFAIL\nb 10ms NOERROR", "a(first)@0s=SERVFAIL+1ms b(second opinion)@1ms=NOERROR+10ms 2 candidates, failed false")
	f("a 1ms fail", "a(first)@0s=failed+1ms 1 candidates, failed true")
}

func TestExplainReturnsTheTraceOfASuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := New(candidatesOf(&journal{begin: time.Now()}, "a 10ms NOERROR", "b suspect 10ms NOERROR", "c down 10ms NOERROR"), Options{Policy: "ordered"})
		if err != nil {
			t.Fatal(err)
		}
		a, s := b.Explain(t.Context(), query(t, "www.example.com"))
		if a.IsZero() || s.Err != nil || s.Took != 10*time.Millisecond || len(s.Attempts) != 1 {
			t.Errorf("%v, %+v", a, s)
		}
		var states []string
		for _, c := range s.Candidates {
			states = append(states, fmt.Sprintf("%s %v asked=%v", c.Name, c.State, c.Asked))
		}
		want := "a up asked=true, b suspect asked=false, c down asked=false"
		if got := strings.Join(states, ", "); got != want {
			t.Errorf("got %s", got)
		}
	})
}

func TestAnObserverGetsTheTraceWithTheAnswer(t *testing.T) {
	f := func(script, want string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			b, err := New(candidatesOf(&journal{begin: time.Now()}, strings.Split(script, "\n")...), Options{Policy: "ordered"})
			if err != nil {
				t.Fatal(err)
			}
			ended, end := context.WithCancel(t.Context())
			end() // which is of no matter
			got := make(chan string, 1)
			text := ""
			ctx := WithObserver(ended, func(a wire.Answer, err error, trace func() Trace) {
				s := trace()
				text = fmt.Sprintf("%d attempts, %v, %v, failed %v", len(s.Attempts), s.Took, a.RCode() == s.RCode && err == s.Err, err != nil)
			})
			b.Ask(ctx, query(t, "www.example.com"), func(wire.Answer, error) { got <- text })
			if text := <-got; text != want {
				t.Errorf("members:\n%s\n got %s\nwant %s", script, text, want)
			}
			time.Sleep(10 * time.Second) // fake time, for what was left behind
		})
	}
	f("a 10ms NOERROR\nb 10ms NOERROR", "1 attempts, 10ms, true, failed false")
	f("a 1ms fail\nb 10ms NXDOMAIN", "2 attempts, 11ms, true, failed false")
	f("a 1ms fail\nb 1ms fail", "2 attempts, 2ms, true, failed true")
}

func TestMembersThatStayKeepTheirStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &journal{begin: time.Now()}
		first := candidatesOf(log, "a 1ms fail", "b 1ms NOERROR")
		b, err := New(first, Options{Policy: "ordered"})
		if err != nil {
			t.Fatal(err)
		}
		ask := func() {
			t.Helper()
			if _, err := b.Exchange(t.Context(), query(t, "www.example.com")); err != nil {
				t.Fatal(err)
			}
		}
		ask()
		losses := b.Candidates()[0].Losses
		if losses == 0 {
			t.Fatal("a lost nothing")
		}
		// b leaves, c comes first, a stays.
		next := append(candidatesOf(log, "c 1ms NOERROR"), first[0])
		if err := b.Replace(next, Options{Policy: "ordered"}); err != nil {
			t.Fatal(err)
		}
		if all := b.Candidates(); len(all) != 2 || all[0].Name != "c" || all[0].Losses != 0 || all[1].Losses != losses {
			t.Errorf("%+v", all)
		}
		ask()
		if got := log.String(); got != "a@0s b@1ms c@2ms" {
			t.Errorf("asked %s", got)
		}
		if c := b.Counts(); c.Queries != 2 {
			t.Errorf("%+v", c)
		}
		// What can't be is refused whole.
		if b.Replace(nil, Options{}) == nil || b.Replace(first, Options{Policy: "luck"}) == nil {
			t.Error("Replace accepts an empty list, or a policy that does not exist")
		}
		if all := b.Candidates(); len(all) != 2 {
			t.Errorf("%+v", all)
		}
	})
}

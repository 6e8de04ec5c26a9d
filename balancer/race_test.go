package balancer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/wire"
)

// fake is a member that does what its script says: words out of "down",
// "suspect", a duration to take, and what comes then ("never" is nothing).
type fake struct {
	name    string
	down    bool
	errs    bool // is why it is down
	suspect bool
	silent  bool // suspect as long as it owes an answer for longer than its patience
	takes   time.Duration
	outcome string
	usual   time.Duration
	log     *journal

	mu      sync.Mutex
	pending time.Time
	blamed  int
}

// journal is what happened, as text.
type journal struct {
	mu    sync.Mutex
	begin time.Time
	lines []string
}

func (j *journal) add(text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf("%s@%v", text, time.Since(j.begin)))
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.lines, " ")
}

// sorted sorts words: members that are asked at once are asked in no order.
func sorted(text string) string {
	words := strings.Fields(text)
	slices.Sort(words)
	return strings.Join(words, " ")
}

func parseFake(line string, log *journal) *fake {
	words := strings.Fields(line)
	m := &fake{name: words[0], usual: 10 * time.Millisecond, log: log}
	for _, word := range words[1:] {
		switch word {
		case "down":
			m.down = true
		case "errs":
			m.down, m.errs = true, true
		case "suspect":
			m.suspect = true
		case "silent":
			m.silent, m.outcome = true, "never"
		case "never", "fail", "NOERROR", "NXDOMAIN", "SERVFAIL", "REFUSED":
			m.outcome = word
		default:
			d, err := time.ParseDuration(word)
			if err != nil {
				panic(err)
			}
			m.takes = d
		}
	}
	return m
}

func (m *fake) Ask(q wire.Query, done func(wire.Answer, error)) {
	m.log.add(m.name)
	m.mu.Lock()
	m.pending = time.Now()
	m.mu.Unlock()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		done(m.outcomeFor(ctx, q))
	}()
}

func (m *fake) outcomeFor(ctx context.Context, q wire.Query) (wire.Answer, error) {
	if m.outcome == "never" {
		<-ctx.Done()
		return wire.Answer{}, ctx.Err()
	}
	select {
	case <-time.After(m.takes):
	case <-ctx.Done():
		return wire.Answer{}, ctx.Err()
	}
	for _, r := range []wire.RCode{wire.NoError, wire.NXDomain, wire.ServFail, wire.Refused} {
		if r.String() == m.outcome {
			return wire.ParseAnswer(q, q.AppendError(nil, r, wire.EDE{}))
		}
	}
	return wire.Answer{}, errors.New(m.name + " failed")
}

func (m *fake) Up() bool { return !m.down }

func (m *fake) Errs() bool { return m.errs }

func (m *fake) Suspect() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.suspect || m.silent && !m.pending.IsZero() && time.Since(m.pending) >= 40*time.Millisecond
}

func (m *fake) Alive(time.Time) bool { return !m.silent && (!m.down || m.errs) }

func (m *fake) Silent() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.silent || m.pending.IsZero() {
		return 0
	}
	return time.Since(m.pending)
}

func (m *fake) Latency() (usual, patience time.Duration) { return m.usual, 40 * time.Millisecond }

func (m *fake) Blame(wire.Query, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blamed++
	m.log.add("blame-" + m.name)
}

func (m *fake) String() string { return m.name }

func query(t testing.TB, name string) wire.Query {
	t.Helper()
	q, err := wire.NewQuery(name, "A")
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func TestAQueryWalksTheMembersUntilOneAnswers(t *testing.T) {
	// f runs one query against the members in script, a line each, and compares
	// whom it asked when, and what came of it when.
	f := func(script, want string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			log := &journal{begin: time.Now()}
			var candidates []Candidate
			for line := range strings.Lines(script) {
				candidates = append(candidates, Candidate{Member: parseFake(line, log)})
			}
			b, err := New(candidates, Options{Policy: "ordered"})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			a, err := b.Exchange(ctx, query(t, "www.example.com"))
			if err != nil {
				log.add("error")
			} else {
				log.add(a.RCode().String())
			}
			got := log.String()
			if strings.Count(script, "down") == len(candidates) {
				got = sorted(got)
			}
			if got != want {
				t.Errorf("members:\n%s\n got %s\nwant %s", script, got, want)
			}
			time.Sleep(2 * 5 * time.Second) // fake time, for what was left behind
		})
	}

	// the usual: one is asked, one answers
	f("a 10ms NOERROR\nb 10ms NOERROR", "a@0s NOERROR@10ms")
	f("a 10ms NXDOMAIN\nb 10ms NOERROR", "a@0s NXDOMAIN@10ms")
	// a failure moves on at once
	f("a 0s fail\nb 10ms NOERROR", "a@0s b@0s NOERROR@10ms")
	f("a 5ms fail\nb 5ms fail\nc 10ms NOERROR", "a@0s b@5ms c@10ms NOERROR@20ms")
	f("a 5ms fail\nb 5ms fail", "a@0s b@5ms error@10ms")
	// slowness gets company, and the first answer wins
	f("a 500ms NOERROR\nb 10ms NOERROR", "a@0s b@40ms NOERROR@50ms")
	f("a 50ms NOERROR\nb 100ms NOERROR", "a@0s b@40ms NOERROR@50ms")
	f("a silent\nb silent\nc 10ms NOERROR", "a@0s b@40ms c@80ms NOERROR@90ms")
	// a name that is slow everywhere is waited for, and costs two queries, and a
	// third once in a while, in case that two just lost it
	f("a 2s NOERROR\nb 2s NOERROR\nc 2s NOERROR", "a@0s b@40ms c@400ms NOERROR@2s")
	f("a never\nb never\nc never", "a@0s b@40ms c@400ms error@4s")
	f("a never\nb never\nc 10ms NOERROR", "a@0s b@40ms c@400ms NOERROR@410ms")
	// nobody gives a sign of life: that is known within a second
	f("a silent\nb silent\nc silent", "a@0s b@40ms c@80ms a@120ms b@160ms c@200ms error@900ms")
	// an error gets one second opinion, whoever comes first
	f("a 10ms SERVFAIL\nb 10ms NOERROR\nc 10ms NOERROR", "a@0s b@10ms blame-a@20ms NOERROR@20ms")
	f("a 10ms SERVFAIL\nb 10ms REFUSED\nc 10ms NOERROR", "a@0s b@10ms c@20ms blame-a@30ms blame-b@30ms NOERROR@30ms")
	f("a 10ms SERVFAIL\nb 10ms REFUSED\nc 10ms SERVFAIL", "a@0s b@10ms c@20ms SERVFAIL@30ms")
	f("a 10ms SERVFAIL\nb 10ms REFUSED\nc down 10ms NOERROR", "a@0s b@10ms SERVFAIL@20ms")
	f("a 60ms NOERROR\nb 5ms SERVFAIL\nc 10ms NOERROR", "a@0s b@40ms blame-b@60ms NOERROR@60ms")
	f("a 10ms SERVFAIL\nb 0s fail\nc 10ms NOERROR", "a@0s b@10ms c@10ms blame-a@20ms NOERROR@20ms")
	f("a 10ms SERVFAIL\nb down 10ms NOERROR", "a@0s SERVFAIL@10ms")
	f("a 10ms SERVFAIL\nb never", "a@0s b@10ms SERVFAIL@900ms")
	// members that are not well come last
	f("a down 10ms NOERROR\nb 10ms NOERROR", "b@0s NOERROR@10ms")
	f("a suspect 10ms NOERROR\nb 10ms NOERROR", "b@0s NOERROR@10ms")
	f("a down 10ms NOERROR\nb suspect 0s fail\nc 0s fail", "c@0s b@0s a@0s NOERROR@10ms")
	// one that errs is better than nobody, and no worse for a second opinion
	f("a errs 10ms NOERROR\nb 10ms NOERROR", "b@0s NOERROR@10ms")
	f("a errs 10ms NOERROR\nb 10ms SERVFAIL", "b@0s a@10ms blame-b@20ms NOERROR@20ms")
	f("a errs 10ms SERVFAIL\nb errs 10ms NOERROR", "a@0s b@10ms blame-a@20ms NOERROR@20ms")
	f("a errs 10ms SERVFAIL\nb errs 10ms SERVFAIL", "a@0s b@10ms SERVFAIL@20ms")
	f("a down never\nb errs 10ms NOERROR", "b@0s NOERROR@10ms")
	f("a down never\nb errs 10ms SERVFAIL", "b@0s SERVFAIL@10ms")
	// nobody up: one query finds out whoever is back, and does not wait for long
	f("a down never\nb down never", "a@0s b@0s error@12ms")
	f("a down 9ms NOERROR\nb down never", "NOERROR@9ms a@0s b@0s")
	f("a down 0s fail\nb down 9ms NOERROR", "NOERROR@9ms a@0s b@0s")
	// a single member is asked again when it is slow, not when it fails
	f("a 10ms SERVFAIL", "a@0s SERVFAIL@10ms")
	f("a 0s fail", "a@0s error@0s")
	f("a 60ms NOERROR", "a@0s a@40ms NOERROR@60ms")
}

func TestQueriesThatFindNobodyUpAreRefusedWithoutWaitingButOneThatAsksAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &journal{begin: time.Now()}
		b, err := New([]Candidate{{Member: parseFake("a down never", log)}, {Member: parseFake("b down never", log)}}, Options{Policy: "ordered"})
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if _, err := b.Exchange(t.Context(), query(t, "example.com")); err == nil {
				t.Fatal("an answer from nobody")
			}
		}
		if took := time.Since(log.begin); took > 20*time.Millisecond {
			t.Errorf("100 queries took %v", took)
		}
		if got := sorted(log.String()); got != "a@0s b@0s" {
			t.Errorf("asked %s, want one attempt each", got)
		}
		time.Sleep(tryEvery) // fake time
		if _, err := b.Exchange(t.Context(), query(t, "example.com")); err == nil {
			t.Fatal("an answer from nobody")
		}
		if got := strings.Count(log.String(), "a@"); got != 2 {
			t.Errorf("%d attempts after %v, want 2", got, tryEvery)
		}
		time.Sleep(2 * 5 * time.Second)
	})
}

func TestAMachineThatIsTooBusyToLookHasNotSeenSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := New([]Candidate{{Member: parseFake("a silent", &journal{})}}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		looks := func(after ...time.Duration) (hopeless []bool) {
			r := race{balancer: b, begin: time.Now(), order: b.roster.Load().members}
			for _, d := range after {
				time.Sleep(d) // fake time
				hopeless = append(hopeless, r.hopeless(time.Now()))
			}
			return hopeless
		}
		if got := looks(despair/2, despair/2+time.Millisecond); !slices.Equal(got, []bool{false, true}) {
			t.Errorf("in time: %v", got)
		}
		if got := looks(despair+2*tardy, despair/4, despair/2); !slices.Equal(got, []bool{false, false, true}) {
			t.Errorf("late: %v", got)
		}
	})
}

func TestABrokenNameCostsTwoQueriesHoweverOftenItIsAskedFor(t *testing.T) {
	for _, broken := range []string{"10ms SERVFAIL", "never"} {
		aBrokenNameCostsTwoQueries(t, broken)
	}
}

func aBrokenNameCostsTwoQueries(t *testing.T, broken string) {
	synctest.Test(t, func(t *testing.T) {
		log := &journal{begin: time.Now()}
		var candidates []Candidate
		for _, line := range []string{"a " + broken, "b " + broken, "c " + broken} {
			candidates = append(candidates, Candidate{Member: parseFake(line, log)})
		}
		b, err := New(candidates, Options{Policy: "ordered"})
		if err != nil {
			t.Fatal(err)
		}
		const queries = 200
		var all sync.WaitGroup
		for range queries {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
				defer cancel()
				_, _ = b.Exchange(ctx, query(t, "bogus.example.com"))
			})
			time.Sleep(5 * time.Millisecond) // fake time
		}
		all.Wait()
		time.Sleep(2 * 5 * time.Second)
		if c := b.Counts(); c.Attempts > 2*queries+1 {
			t.Errorf("%d attempts for %d queries", c.Attempts, c.Queries)
		}
		for _, c := range candidates {
			if n := c.Member.(*fake).blamed; n != 0 {
				t.Errorf("%v was blamed %d times for what nobody can do", c, n)
			}
		}
	})
}

func TestAnOutageIsNotAnsweredWithAFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &journal{begin: time.Now()}
		var candidates []Candidate
		for _, line := range []string{"a 1ms fail", "b 1ms fail", "c 1ms fail", "d 1ms fail"} {
			candidates = append(candidates, Candidate{Member: parseFake(line, log)})
		}
		b, err := New(candidates, Options{Policy: "ordered"})
		if err != nil {
			t.Fatal(err)
		}
		const queries = 2000
		for range queries {
			if _, err := b.Exchange(t.Context(), query(t, "example.com")); err == nil {
				t.Fatal("an answer from nobody")
			}
		}
		// One retry each, and what the budget has for more.
		if got, limit := b.Counts().Retries, uint64(queries+retryBurst+retryShare*queries); got > limit || got < queries {
			t.Errorf("%d retries for %d queries, want at most %d", got, queries, limit)
		}
	})
}

func TestHedgesOfHealthyMembersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &journal{begin: time.Now()}
		b, err := New([]Candidate{{Member: parseFake("a 100ms NOERROR", log)}, {Member: parseFake("b 100ms NOERROR", log)}}, Options{Policy: "ordered"})
		if err != nil {
			t.Fatal(err)
		}
		const queries = 2000
		for range queries {
			if _, err := b.Exchange(t.Context(), query(t, "example.com")); err != nil {
				t.Fatal(err)
			}
		}
		if got, limit := b.Counts().Hedges, uint64(hedgeBurst+hedgeShare*queries); got > limit {
			t.Errorf("%d hedges for %d queries, want at most %d", got, queries, limit)
		}
		time.Sleep(2 * 5 * time.Second)
	})
}

// One that has everybody wait, as it waits for a server of names, but answers what it
// knows, is not asked everything twice.
func TestWhoIsSlowButWellIsAskedAgainForFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := New([]Candidate{{Member: parseFake("a 2s NOERROR", new(journal))}}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		const queries = 2000
		for range queries {
			b.Ask(query(t, "example.com"), time.Now().Add(4*time.Second), func(_ wire.Answer, err error) {
				if err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(4 * time.Second) // fake time
		if got, limit := b.Counts().Hedges, uint64(retryBurst+retryShare*queries); got > limit || got == 0 {
			t.Errorf("%d were asked for again of %d, want some, and at most %d", got, queries, limit)
		}
	})
}

// crashing is a member with a bug.
type crashing struct{ *fake }

func (crashing) Ask(wire.Query, func(wire.Answer, error)) { panic("oops") }

func TestAPanicEndsOneQueryOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		b, err := New([]Candidate{{Member: crashing{parseFake("a 10ms", j)}}}, Options{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := b.Exchange(t.Context(), query(t, "example.com")); !errors.Is(err, errCrashed) {
				t.Errorf("got %v", err)
			}
		}
	})
}

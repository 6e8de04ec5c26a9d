package balancer

import (
	"cmp"
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

// A fake is a member that does what its script says: states and faults as words, the
// duration that it takes, and the outcome ("never" is none).
type fake struct {
	name    string
	down    bool
	errs    bool // is why it is down
	suspect bool
	silent  bool // suspect as long as it owes an answer for longer than its patience
	takes   time.Duration
	reached bool          // silent, but a dial got somewhere at once
	pace    time.Duration // or takes a step that often
	falls   time.Duration // down from then on; 0: never
	outcome string
	usual   time.Duration
	lossy   bool          // it lost many queries lately
	within  time.Duration // the client waits for that long
	empty   string        // these budgets are: hedges, retries, thirds, or all of them
	log     *journal

	mu         sync.Mutex
	pending    time.Time
	reported   int
	patience   time.Duration // 0: 40 ms
	discounted bool          // what it is reported for says nothing about it
	answered   time.Time     // when it answered a probe last, for a member that is silent
	rate       int           // how many queries it may get in any second; 0: no limit is known
	asked      []time.Time   // when it got queries
}

// A journal is the list of events, as text.
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
		case "new":
			m.usual = 0
		case "mute":
			m.silent = true
		case "lossy":
			m.lossy = true
		case "reached":
			m.reached = true
		case "never", "fail", "NOERROR", "NXDOMAIN", "SERVFAIL", "REFUSED", "NOTIMP", "YXDOMAIN", "NOTAUTH", "BADCOOKIE", "RCODE15", "RCODE4095":
			m.outcome = word
		default:
			kind, rest, found := strings.Cut(word, "=")
			if !found {
				kind, rest = "", word
			}
			if kind == "empty" {
				m.empty = rest
				continue
			}
			d, err := time.ParseDuration(rest)
			if err != nil {
				panic(err)
			}
			switch kind {
			case "":
				m.takes = d
			case "pace":
				m.pace = d
			case "falls":
				m.falls = d
			case "within":
				m.within = d
			default:
				panic(word)
			}
		}
	}
	return m
}

func (m *fake) Ask(_ context.Context, q wire.Query, done func(wire.Answer, error)) {
	m.log.add(m.name)
	m.mu.Lock()
	m.pending = time.Now()
	m.asked = append(m.asked, m.pending)
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
	for _, r := range []wire.RCode{wire.NoError, wire.NXDomain, wire.ServFail, wire.Refused, wire.NotImp, wire.YXDomain, wire.NotAuth, wire.BadCookie, 15, 4095} {
		if r.String() == m.outcome {
			return wire.ParseAnswer(q, q.AppendError(nil, r, wire.EDE{}))
		}
	}
	return wire.Answer{}, errors.New(m.name + " failed")
}

func (m *fake) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.errs:
		return Erroring
	case m.down || m.falls != 0 && time.Since(m.log.begin) >= m.falls:
		return Down
	case m.suspect || m.silent && !m.pending.IsZero() && time.Since(m.pending) >= 40*time.Millisecond:
		return Suspect
	}
	return Up
}

// LastAnswer returns a time to come for a member that answers all but what is asked.
func (m *fake) LastAnswer() time.Time {
	if m.silent || m.down && !m.errs {
		return m.answered
	}
	return time.Now().Add(time.Hour)
}

func (m *fake) Silent() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.silent || m.pending.IsZero() {
		return 0
	}
	silent := time.Since(m.pending)
	if m.pace > 0 {
		return silent % m.pace
	}
	return silent
}

func (m *fake) Reached() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reached || m.pace > 0 && time.Since(m.pending) >= m.pace
}

// RateWait is for a member that may get rate queries in any second.
func (m *fake) RateWait() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rate == 0 || len(m.asked) < m.rate {
		return 0
	}
	return max(time.Second-time.Since(m.asked[len(m.asked)-m.rate]), 0)
}

func (m *fake) Latency() (usual, patience time.Duration) {
	return m.usual, cmp.Or(m.patience, 40*time.Millisecond)
}

func (m *fake) Report(_ wire.Query, err error) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		m.log.add("right-" + m.name)
		return false
	case errors.Is(err, wire.ErrNoAnswer):
		return !m.discounted
	}
	m.reported++
	m.log.add("report-" + m.name)
	return !m.discounted
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
	// the attempts and the outcome with the times at which they came.
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
			within := 4 * time.Second
			for _, m := range b.set.Load().members {
				fake := m.Member.(*fake)
				within = min(within, cmp.Or(fake.within, within))
				for range 16 {
					m.losses.add(query(t, "www.example.com"), fake.lossy)
				}
				for name, budget := range map[string]*bucket{"hedges": &b.hedges, "retries": &b.retries, "thirds": &b.thirds} {
					if fake.empty == name || fake.empty == "all" {
						budget.level = 0
					}
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), within)
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
	// the budgets hold hedges back, but not from a member that owes a sign of life, nor
	// from a query that has waited for 400 ms
	f("a 2s NOERROR empty=hedges\nb 10ms NOERROR", "a@0s b@400ms NOERROR@410ms")
	f("a silent empty=all\nb 10ms NOERROR", "a@0s b@40ms NOERROR@50ms")
	f("a 2s NOERROR empty=retries", "a@0s NOERROR@2s")
	f("a never empty=thirds\nb never\nc 10ms NOERROR", "a@0s b@40ms error@4s")
	// that of the retries helps out if the attempts are probably lost
	f("a lossy 2s NOERROR empty=hedges\nb lossy 10ms NOERROR", "a@0s b@40ms NOERROR@50ms")
	f("a lossy 2s NOERROR empty=all\nb lossy 10ms NOERROR", "a@0s b@400ms NOERROR@410ms")
	f("a lossy never empty=thirds\nb lossy never\nc lossy 10ms NOERROR", "a@0s b@40ms c@400ms NOERROR@410ms")
	f("a lossy never empty=all\nb lossy never\nc lossy 10ms NOERROR", "a@0s b@400ms error@4s")
	// a client's deadline ends the query, whatever is open
	f("a never within=30ms\nb never", "a@0s error@30ms")
	f("a never within=60ms\nb never", "a@0s b@40ms error@60ms")
	f("a silent within=1s\nb silent", "a@0s b@40ms a@80ms b@120ms error@900ms")
	f("a 10ms SERVFAIL within=60ms\nb never", "a@0s b@10ms SERVFAIL@60ms")
	// no member gives a sign of life: that is known within a second
	f("a silent\nb silent\nc silent", "a@0s b@40ms c@80ms a@120ms b@160ms c@200ms error@900ms")
	// but those that have never answered may be far away if a dial gets somewhere
	f("a new silent", "a@0s a@40ms error@900ms")
	f("a new mute reached 2s NOERROR", "a@0s a@40ms NOERROR@2s")
	f("a new mute reached never", "a@0s a@40ms error@4s")
	f("a new mute reached falls=1.2s never", "a@0s a@40ms error@1.2s")
	f("a silent\nb new mute reached never", "a@0s b@40ms a@80ms b@120ms error@900ms")
	// and so may those that were quick, if a dial takes long, until they are down
	f("a mute reached 2s NOERROR", "a@0s a@40ms NOERROR@2s")
	f("a mute reached never", "a@0s a@40ms error@4s")
	f("a mute reached falls=1.2s never", "a@0s a@40ms error@1.2s")
	f("a mute reached 2s NOERROR\nb silent", "a@0s b@40ms a@80ms b@120ms NOERROR@2s")
	f("a mute pace=600ms 1.9s NOERROR", "a@0s a@40ms NOERROR@1.9s")
	// an error gets one second opinion, whichever attempt ends first
	f("a 10ms SERVFAIL\nb 10ms NOERROR\nc 10ms NOERROR", "a@0s b@10ms report-a@20ms right-b@20ms NOERROR@20ms")
	f("a 10ms SERVFAIL\nb 10ms REFUSED\nc 10ms NOERROR", "a@0s b@10ms c@20ms report-a@30ms report-b@30ms right-c@30ms NOERROR@30ms")
	f("a 10ms SERVFAIL\nb 10ms REFUSED\nc 10ms SERVFAIL", "a@0s b@10ms c@20ms SERVFAIL@30ms")
	f("a 10ms SERVFAIL\nb 10ms REFUSED\nc down 10ms NOERROR", "a@0s b@10ms SERVFAIL@20ms")
	f("a 60ms NOERROR\nb 5ms SERVFAIL\nc 10ms NOERROR", "a@0s b@40ms report-b@60ms right-a@60ms NOERROR@60ms")
	f("a 10ms SERVFAIL\nb 0s fail\nc 10ms NOERROR", "a@0s b@10ms c@10ms report-a@20ms right-c@20ms NOERROR@20ms")
	f("a 10ms SERVFAIL\nb down 10ms NOERROR", "a@0s SERVFAIL@10ms")
	f("a 10ms SERVFAIL\nb never", "a@0s b@10ms SERVFAIL@900ms")
	// every code that is no result of a query is an error
	for _, code := range []string{"NOTAUTH", "BADCOOKIE", "RCODE15", "RCODE4095"} {
		f("a 10ms "+code+"\nb 10ms NOERROR", "a@0s b@10ms report-a@20ms right-b@20ms NOERROR@20ms")
	}
	f("a 10ms YXDOMAIN\nb 10ms NOERROR", "a@0s YXDOMAIN@10ms")
	// a refusal is about us: all others are asked, and none reaches the client
	f("a 10ms REFUSED\nb 10ms REFUSED\nc 10ms NOERROR", "a@0s b@10ms c@20ms report-a@30ms report-b@30ms right-c@30ms NOERROR@30ms")
	f("a 10ms REFUSED\nb 10ms REFUSED\nc 10ms REFUSED\nd 10ms NOERROR", "a@0s b@10ms c@20ms d@30ms report-a@40ms report-b@40ms report-c@40ms right-d@40ms NOERROR@40ms")
	f("a 10ms REFUSED\nb 10ms REFUSED\nc 10ms REFUSED", "a@0s b@10ms c@20ms error@30ms")
	f("a 10ms REFUSED\nb 10ms REFUSED\nc errs 10ms NOERROR", "a@0s b@10ms c@20ms report-a@30ms report-b@30ms right-c@30ms NOERROR@30ms")
	f("a 10ms REFUSED\nb 10ms SERVFAIL\nc down never", "a@0s b@10ms SERVFAIL@20ms")
	f("a 10ms REFUSED\nb 10ms NOTIMP", "a@0s b@10ms error@20ms")
	f("a 10ms REFUSED", "a@0s error@10ms")
	// members that are not well come last
	f("a down 10ms NOERROR\nb 10ms NOERROR", "b@0s NOERROR@10ms")
	f("a suspect 10ms NOERROR\nb 10ms NOERROR", "b@0s NOERROR@10ms")
	f("a down 10ms NOERROR\nb suspect 0s fail\nc 0s fail", "c@0s b@0s a@0s NOERROR@10ms")
	// a member that is Erroring is better than none, and as good for a second opinion
	f("a errs 10ms NOERROR\nb 10ms NOERROR", "b@0s NOERROR@10ms")
	f("a errs 10ms NOERROR\nb 10ms SERVFAIL", "b@0s a@10ms report-b@20ms right-a@20ms NOERROR@20ms")
	f("a errs 10ms SERVFAIL\nb errs 10ms NOERROR", "a@0s b@10ms report-a@20ms right-b@20ms NOERROR@20ms")
	f("a errs 10ms SERVFAIL\nb errs 10ms SERVFAIL", "a@0s b@10ms SERVFAIL@20ms")
	f("a down never\nb errs 10ms NOERROR", "b@0s NOERROR@10ms")
	f("a down never\nb errs 10ms SERVFAIL", "b@0s SERVFAIL@10ms")
	// all are down: one query asks all members, and waits for 10 ms
	f("a down never\nb down never", "a@0s b@0s error@12ms")
	f("a down 9ms NOERROR\nb down never", "NOERROR@9ms a@0s b@0s")
	f("a down 0s fail\nb down 9ms NOERROR", "NOERROR@9ms a@0s b@0s")
	// a single member is asked again when it is slow, not when it fails
	f("a 10ms SERVFAIL", "a@0s SERVFAIL@10ms")
	f("a 0s fail", "a@0s error@0s")
	f("a 60ms NOERROR", "a@0s a@40ms NOERROR@60ms")
}

// A deadFor member never answers for one name, or with an error.
type deadFor struct {
	*fake
	name  string
	rcode wire.RCode // NoError: it does not answer
}

func (m deadFor) Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	switch {
	case q.String() != m.name+". A":
		m.fake.Ask(ctx, q, done)
	case m.rcode != wire.NoError:
		time.AfterFunc(500*time.Millisecond, func() { done(q.OwnAnswer(m.rcode, wire.EDE{}), nil) })
	}
}

// RFC 9520 section 3.2: a failure that only one name has may be cached, an outage not.
func TestAFailureIsAboutTheNameIfOthersAreAnswered(t *testing.T) {
	f := func(code wire.RCode, other bool, want bool) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			log := &journal{begin: time.Now()}
			var candidates []Candidate
			for _, line := range []string{"a 10ms NOERROR", "b 10ms NOERROR"} {
				candidates = append(candidates, Candidate{Member: deadFor{parseFake(line, log), "dead.example.com", code}})
			}
			b, err := New(candidates, Options{Policy: "ordered"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Exchange(t.Context(), query(t, "before.example.com")); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error)
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
				defer cancel()
				_, err := b.Exchange(ctx, query(t, "dead.example.com"))
				ended <- err
			}()
			time.Sleep(100 * time.Millisecond) // fake time
			if other {
				if _, err := b.Exchange(t.Context(), query(t, "other.example.com")); err != nil {
					t.Error(err)
				}
			}
			failed, ok := errors.AsType[*Error](<-ended)
			if !ok || failed.AboutName() != want {
				t.Errorf("code %v, another query %t: got %v", code, other, failed)
			}
		})
	}
	f(wire.NoError, true, true)
	f(wire.NoError, false, false)
	f(wire.NotAuth, true, true)
	f(wire.Refused, true, false)
}

func TestWhenAllAreDownOneQueryAsksAllAndOthersFailAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &journal{begin: time.Now()}
		b, err := New([]Candidate{{Member: parseFake("a down never", log)}, {Member: parseFake("b down never", log)}}, Options{Policy: "ordered"})
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			_, err := b.Exchange(t.Context(), query(t, "example.com"))
			failed, ok := errors.AsType[*Error](err)
			if !ok || failed.AboutName() { // it would be cached, and outlive the outage
				t.Fatalf("got %v although all members fail", err)
			}
		}
		if took := time.Since(log.begin); took > 20*time.Millisecond {
			t.Errorf("100 queries took %v", took)
		}
		if got := sorted(log.String()); got != "a@0s b@0s" {
			t.Errorf("asked %s, want one attempt each", got)
		}
		time.Sleep(downTryInterval) // fake time
		if _, err := b.Exchange(t.Context(), query(t, "example.com")); err == nil {
			t.Fatal("an answer although all members fail")
		}
		if got := strings.Count(log.String(), "a@"); got != 2 {
			t.Errorf("%d attempts after %v, want 2", got, downTryInterval)
		}
		time.Sleep(2 * 5 * time.Second) // fake time
	})
}

// With handshakes of 2 s, the first query after idle is given up. Its answer comes late,
// and later queries wait for longer, until lateFor has passed.
func TestLateAnswersExtendTheSilenceLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := New(candidatesOf(&journal{begin: time.Now()}, "a mute 2s NOERROR"), Options{})
		if err != nil {
			t.Fatal(err)
		}
		f := func(want time.Duration, answered bool) {
			t.Helper()
			began := time.Now()
			_, err := b.Exchange(t.Context(), query(t, "example.com"))
			if took := time.Since(began).Truncate(50 * time.Millisecond); took != want || (err == nil) != answered {
				t.Errorf("took %v, want %v: %v", took, want, err)
			}
			time.Sleep(10 * time.Second) // fake time
		}
		f(timing.silenceLimit, false)
		f(2*time.Second, true)
		f(2*time.Second, true)
		time.Sleep(lateFor) // fake time
		f(timing.silenceLimit, false)
	})
}

// The answers that wait for the end of an outage, or of a pause of this process, are late,
// and the next ones quick. Then a later outage of all members takes no longer to tell.
func TestQuickAnswersMakeUpForALateOne(t *testing.T) {
	f := func(patience time.Duration, answered bool, want time.Duration) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			m := parseFake("a mute 2s NOERROR", &journal{begin: time.Now()})
			b, err := New([]Candidate{{Member: m}}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Exchange(t.Context(), query(t, "example.com")); err == nil {
				t.Error("answered")
			}
			time.Sleep(5 * time.Second) // fake time; the late answer has come
			synctest.Wait()
			m.outcome, m.patience = "never", patience
			if answered {
				m.answered = time.Now()
			}
			began := time.Now()
			if _, err := b.Exchange(t.Context(), query(t, "example.org")); err == nil || time.Since(began).Truncate(50*time.Millisecond) != want {
				t.Errorf("patience %v, answered %t: %v after %v, want %v", patience, answered, err, time.Since(began), want)
			}
			time.Sleep(10 * time.Second) // fake time, for what was left behind
		})
	}
	f(50*time.Millisecond, false, 3*time.Second)
	f(300*time.Millisecond, true, 3*time.Second)
	f(50*time.Millisecond, true, 900*time.Millisecond)
}

func TestALateAlarmExtendsTheSilenceLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := New([]Candidate{{Member: parseFake("a silent", &journal{})}}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		looks := func(after ...time.Duration) (hopeless []bool) {
			r := exchange{balancer: b, begin: time.Now(), order: b.set.Load().members}
			for _, d := range after {
				time.Sleep(d) // fake time
				r.noticeLag(time.Now())
				hopeless = append(hopeless, r.hopeless(time.Now()))
			}
			return hopeless
		}
		if got := looks(timing.silenceLimit/2, timing.silenceLimit/2+time.Millisecond); !slices.Equal(got, []bool{false, true}) {
			t.Errorf("in time: %v", got)
		}
		if got := looks(timing.silenceLimit+2*timing.schedulerLag, timing.silenceLimit/4, timing.silenceLimit/2); !slices.Equal(got, []bool{false, false, true}) {
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
		time.Sleep(2 * 5 * time.Second) // fake time
		if c := b.Counts(); c.Attempts > 2*queries+1 {
			t.Errorf("%d attempts for %d queries", c.Attempts, c.Queries)
		}
		for _, c := range candidates {
			if n := c.Member.(*fake).reported; n != 0 {
				t.Errorf("%v was reported %d times for a name that no member answers", c, n)
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
				t.Fatal("an answer although all members fail")
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
		time.Sleep(2 * 5 * time.Second) // fake time
	})
}

// A member that is slow for many names, because it waits for an authoritative server, but
// answers other names, is not asked for everything twice.
func TestASlowHealthyMemberIsAskedAgainSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := New([]Candidate{{Member: parseFake("a 2s NOERROR", new(journal))}}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		const queries = 2000
		for range queries {
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			b.Ask(ctx, query(t, "example.com"), func(_ wire.Answer, err error) {
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

func (crashing) Ask(context.Context, wire.Query, func(wire.Answer, error)) { panic("oops") }

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

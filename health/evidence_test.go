package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"dotgate/gateway/wire"
)

// stream is a stream of queries: a number of a second, by some clients, for names of
// some domains, of which the upstream gets a share wrong.
type stream struct {
	rate, clients, domains int
	names                  string // format of a name, from a number and a domain's number
	wrong                  float64
	err                    error // how; nil for SERVFAIL
}

// TestWrongAnswersThatEject has streams of queries for a minute, of which other
// resolvers answer all. The balancer reports each name that the upstream gets wrong.
func TestWrongAnswersThatEject(t *testing.T) {
	ordinary := stream{rate: 30, clients: 20, domains: 200, names: "n%d.domain%d.example"}
	with := func(s stream, change func(*stream)) stream { change(&s); return s }
	evil := stream{rate: 30, clients: 1, domains: 1, names: "n%d.evil%d.example", wrong: 1}
	for _, test := range []struct {
		name    string
		streams []stream
		ejects  bool
	}{
		{"one client, one zone, beside ordinary traffic", []stream{ordinary, evil}, false},
		{"ten times as many queries for that zone", []stream{ordinary, with(evil, func(s *stream) { s.rate = 300 })}, false},
		{"many clients, one zone", []stream{ordinary, with(evil, func(s *stream) { s.clients = 50 })}, false},
		{"one client, many zones", []stream{ordinary, with(evil, func(s *stream) { s.domains = 1000 })}, false},
		{"two clients, eight zones, beside many domains", []stream{ordinary, with(evil, func(s *stream) { s.clients, s.domains = 2, 8 })}, false},
		{"ordinary traffic of one domain beside the zone", []stream{with(ordinary, func(s *stream) { s.domains = 1 }), evil}, false},
		{"zones below a public suffix are domains of their own", []stream{with(ordinary, func(s *stream) { s.names = "n%d.domain%d.co.uk" }), with(evil, func(s *stream) { s.names, s.clients = "n%d.evil%d.co.uk", 9 })}, false},
		{"all domains, now and then", []stream{with(ordinary, func(s *stream) { s.wrong = 0.05 })}, false},
		{"30 % of all domains", []stream{with(ordinary, func(s *stream) { s.wrong = 0.3 })}, true},
		{"30 % of all domains, at a tenth of the rate", []stream{with(ordinary, func(s *stream) { s.rate, s.wrong = 6, 0.3 })}, true},
		{"30 % of all domains, at 100 times the rate", []stream{with(ordinary, func(s *stream) { s.rate, s.domains, s.wrong = 3000, 3000, 0.3 })}, true},
		{"all, and there is but one client", []stream{with(ordinary, func(s *stream) { s.clients, s.wrong = 1, 1 })}, true},
		{"all, and there is but one domain", []stream{with(ordinary, func(s *stream) { s.domains, s.wrong = 1, 1 })}, true},
		{"all, and there are three domains and no known client", []stream{with(ordinary, func(s *stream) { s.clients, s.domains, s.wrong = 0, 3, 1 })}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			watch(t, func(t *testing.T, u *fake, m *Monitor, _ func(string) error) {
				u.set(func(context.Context, wire.Query) (wire.RCode, error) { return wire.NoError, nil })
				random := rand.New(rand.NewPCG(1, 2))
				for range 20 { // it is known what there is besides
					test.streams[0].ask(t, m, random)
					time.Sleep(time.Second / 10)
				}
				until := time.Now().Add(time.Minute)
				for time.Now().Before(until) && m.known().IsUp() {
					for _, s := range test.streams {
						for range s.rate / 6 {
							s.ask(t, m, random)
						}
					}
					time.Sleep(time.Second / 6)
				}
				if ejected := !m.known().IsUp(); ejected != test.ejects {
					t.Errorf("ejected: %v, %v", ejected, m.Outage())
				}
				if s := m.known(); test.ejects && s != Erroring {
					t.Errorf("it is %v", s)
				}
			})
		})
	}
}

// TestOneClientOrZoneLowersNoShare has wrong answers for a minute beside ordinary traffic,
// and counts those that may lower the share of queries that an upstream gets.
func TestOneClientOrZoneLowersNoShare(t *testing.T) {
	ordinary := stream{rate: 30, clients: 20, domains: 200, names: "n%d.domain%d.example"}
	f := func(other stream, least, most int) {
		t.Helper()
		for _, err := range []error{errors.New("SERVFAIL"), wire.ErrNoAnswer} {
			other.err = err
			countWrong(t, ordinary, other, least, most)
		}
	}
	f(stream{clients: 1, domains: 1, names: "n%d.evil%d.example", wrong: 1}, 0, 0)
	f(stream{clients: 1, domains: 1000, names: "n%d.evil%d.example", wrong: 1}, 0, 0)
	f(stream{clients: 50, domains: 1, names: "n%d.evil%d.example", wrong: 1}, 0, 10) // one in each window
	f(stream{clients: 50, domains: 200, names: "n%d.domain%d.example", wrong: 0.3}, 100, 60*30)

	// Where there is but one client, or one domain, its queries count.
	ordinary.clients = 1
	f(stream{clients: 1, domains: 200, names: "n%d.domain%d.example", wrong: 1}, 60*28, 60*30)
	ordinary.clients, ordinary.domains = 20, 1
	f(stream{clients: 50, domains: 1, names: "n%d.domain%d.example", wrong: 1}, 60*28, 60*30)
}

// countWrong counts the failures of a stream, beside an ordinary one, that count.
func countWrong(t *testing.T, ordinary, other stream, least, most int) {
	t.Helper()
	watch(t, func(t *testing.T, u *fake, m *Monitor, _ func(string) error) {
		random := rand.New(rand.NewPCG(1, 2))
		for range 100 {
			ordinary.ask(t, m, random)
		}
		counted := 0
		for range 60 * 6 {
			for range 5 {
				ordinary.ask(t, m, random)
				if other.ask(t, m, random) {
					counted++
				}
			}
			time.Sleep(time.Second / 6)
		}
		if counted < least || counted > most {
			t.Errorf("%d of %d failures (%v) count, want %d to %d", counted, 60*30, other.err, least, most)
		}
		if errors.Is(other.err, wire.ErrNoAnswer) && m.Status().Counts.Downs > 0 {
			t.Error("answers that were late took the upstream down")
		}
	})
}

func TestRightAnswersOfBeforeDoNotExcuseWrongOnes(t *testing.T) {
	watch(t, func(t *testing.T, u *fake, m *Monitor, _ func(string) error) {
		good, err := wire.NewQuery("good.example.com", "A")
		if err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			m.onOutcome(good, nil)
		}
		s := stream{clients: 5, domains: 100, names: "n%d.domain%d.example", wrong: 0.5}
		for n := range 60 {
			if s.ask(t, m, rand.New(rand.NewPCG(3, uint64(n)))); !m.known().IsUp() {
				return
			}
		}
		t.Error("still up although half of 60 answers were wrong")
	})
}

// ask sends one query of the stream. It reports whether a wrong answer to it counts.
func (s stream) ask(t *testing.T, m *Monitor, random *rand.Rand) (counts bool) {
	t.Helper()
	domain := random.IntN(s.domains)
	q, err := wire.NewQuery(fmt.Sprintf(s.names, random.IntN(1e6), domain), "A")
	if err != nil {
		t.Fatal(err)
	}
	if s.clients > 0 {
		q = q.WithClient(uint16(1 + len(s.names) + random.IntN(s.clients)))
	}
	m.onOutcome(q, nil)
	// The same domains are wrong each time.
	return float64(domain*7919%1000) < s.wrong*1000 && m.Report(q, cmp.Or(s.err, errors.New("SERVFAIL")))
}

func TestACountOfDomainsIsNearTheTruth(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 5, 100, 1000, 3000} {
		var s domainSet
		for i := range n {
			q, err := wire.NewQuery(fmt.Sprintf("www.n%d.example", i), "A")
			if err != nil {
				t.Fatal(err)
			}
			s.add(q.DomainHash())
			s.add(q.DomainHash())
		}
		if got := s.count(); got < 0.85*float64(n)-0.5 || got > 1.15*float64(n)+0.5 {
			t.Errorf("%d domains are counted as %.0f", n, got)
		}
	}
}

func TestEvidenceOfAnAnswerCostsNoMemory(t *testing.T) {
	q, err := wire.NewQuery("a.name.that.is.longer.than.most.names.are.in.queries.example.co.uk", "A")
	if err != nil {
		t.Fatal(err)
	}
	q = q.WithClient(7)
	var e evidence
	if n := testing.AllocsPerRun(1000, func() { e.answered(q, 1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEvidence(b *testing.B) {
	q, err := wire.NewQuery("www.example.co.uk", "A")
	if err != nil {
		b.Fatal(err)
	}
	var e evidence
	for b.Loop() {
		e.answered(q, 1)
	}
}

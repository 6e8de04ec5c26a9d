package server

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/configs"
	"dotgate/gateway/wire"
	"dotgate/health"
)

// written returns the configuration that a file with this text makes.
func written(t testing.TB, text string) *settings.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "dotgate.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := settings.Load(configs.Sources{File: file})
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func poolsOf(t testing.TB, text string) *pools {
	t.Helper()
	ps, _, err := newPools(written(t, text), time.Time{}, func(string, balancer.Trace) {}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ps.Close)
	return ps
}

func (ps *pools) become(t testing.TB, text string) {
	t.Helper()
	next, err := ps.prepare(written(t, text))
	if err != nil {
		t.Fatal(err)
	}
	next.Commit()
}

func routesOf(ps *pools) string {
	var texts []string
	for _, m := range ps.Members() {
		texts = append(texts, fmt.Sprintf("%v %q", m, m.Routes))
	}
	return strings.Join(texts, ", ")
}

func TestAnUpstreamOfSeveralListsIsOne(t *testing.T) {
	t.Parallel()
	ps := poolsOf(t, `
upstreams: ["tls://192.0.2.1"]
routes:
  a.example: ["udp://192.0.2.53", "udp://192.0.2.54"]
  b.example: ["udp://192.0.2.53", "udp://192.0.2.54"]
  c.example: [{url: "udp://192.0.2.53", weight: 7, tier: 1}, "tcp://192.0.2.53"]
  d.example: ["tls://192.0.2.1"]
  e.example: [{url: "udp://192.0.2.53", name: other}]
`)
	const want = `192.0.2.1 ["" "d.example"], udp://192.0.2.53 ["a.example" "c.example" "e.example"], 192.0.2.54 ["a.example"], tcp://192.0.2.53 ["c.example"]`
	if got := routesOf(ps); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if n := len(ps.all()); n != 5 {
		t.Errorf("%d lists: those that are alike should be one", n)
	}
	for name, want := range map[string]string{"x.a.example": "a.example", "b.example": "b.example", "example": ""} {
		q, err := wire.NewQuery(name, "A")
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := ps.routeOf(q); got != want {
			t.Errorf("%s has the route %s, want %s", name, got, want)
		}
	}
}

func TestAnOperatorsOrderIsForAllListsOfAnUpstream(t *testing.T) {
	t.Parallel()
	ps := poolsOf(t, `
upstreams: [quad9]
routes:
  a.example: [{url: "udp://192.0.2.53", name: one}, "udp://192.0.2.54"]
  b.example: [{url: "udp://192.0.2.53", name: alias}, "udp://192.0.2.55"]
  c.example: ["udp://192.0.2.55"]
`)
	candidates := func() (all []string) {
		for _, f := range ps.all() {
			for _, c := range f.balancer.Candidates() {
				all = append(all, c.Name)
			}
		}
		return all
	}
	if err := ps.SetAdminState("192.0.2.55", health.ForcedDown); err == nil || !strings.Contains(err.Error(), "clients would have no upstream") {
		t.Errorf("c.example is left without an upstream: %v", err)
	}
	if err := ps.SetAdminState("alias", health.ForcedDown); err != nil {
		t.Error(err)
	}
	if got := candidates(); slices.Contains(got, "one") || len(got) != 4 {
		t.Errorf("asked are %q", got)
	}
	if err := ps.SetAdminState("192.0.2.54", health.ForcedDown); err == nil {
		t.Error("a.example is left without an upstream")
	}
	if err := ps.SetAdminState("one", health.Auto); err != nil {
		t.Error(err)
	}
	if got := candidates(); len(got) != 6 {
		t.Errorf("asked are %q", got)
	}
}

func TestAReloadKeepsUpstreamsThatAnyListStillHas(t *testing.T) {
	t.Parallel()
	ps := poolsOf(t, `
upstreams: [quad9]
routes:
  a.example: ["udp://192.0.2.53"]
  b.example: ["udp://192.0.2.53", "udp://192.0.2.54"]
`)
	before := ps.now()
	lists := ps.all()
	ps.become(t, `
upstreams: [quad9]
routes:
  0.example: ["udp://192.0.2.54"]
  b.example: [{url: "udp://192.0.2.54", weight: 3}, "udp://192.0.2.53"]
  a.example: ["udp://192.0.2.53"]
`)
	for _, m := range before {
		if !slices.Contains(ps.now(), m) {
			t.Errorf("%v is another one", m)
		}
	}
	for _, f := range lists {
		if !slices.Contains(ps.all(), f) {
			t.Errorf("the list %s is another one", f.list.Load().label)
		}
	}
	// The name that it is probed with is gone.
	ps.become(t, "upstreams: [quad9]\nroutes: {0.example: ['udp://192.0.2.53']}")
	if got := ps.now()[1]; slices.Contains(before, got) || got.health.ProbeName != "0.example" {
		t.Errorf("%v is probed with %s", got, got.health.ProbeName)
	}
}

func TestAnUpstreamIsProbedWithANameThatItHas(t *testing.T) {
	t.Parallel()
	ps := poolsOf(t, `
health: {probe_name: check.example, probe_type: A}
upstreams: ["tls://192.0.2.1", {url: "tls://192.0.2.2", probe_name: own.example}]
routes:
  - {names: [a.example, b.example], upstreams: ["udp://192.0.2.53", {url: "udp://192.0.2.54", probe_name: x.a.example, probe_type: TXT}]}
  - {names: [c.example], upstreams: ["tls://192.0.2.1"]}
  - {names: ["*.d.example"], upstreams: ["udp://192.0.2.55"]}
`)
	var got []string
	for _, m := range ps.now() {
		got = append(got, m.health.ProbeName+" "+m.health.ProbeType)
	}
	if want := []string{"check.example A", "own.example A", "a.example SOA", "x.a.example TXT", "_probe.d.example SOA"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Orders, reloads and queries at once: the race detector sees what is not guarded.
func TestListsChangeWhileTheyAreAsked(t *testing.T) {
	t.Parallel()
	const a, b = "upstreams: [quad9]\nroutes: {a.example: ['udp://192.0.2.53', 'udp://192.0.2.54']}",
		"upstreams: [quad9]\nroutes: {b.example: ['udp://192.0.2.54', 'udp://192.0.2.55'], a.example: ['udp://192.0.2.53', 'udp://192.0.2.55']}"
	first, second := written(t, a), written(t, b)
	synctest.Test(t, func(t *testing.T) {
		ps, _, err := newPools(first, time.Time{}, func(string, balancer.Trace) {}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		var loading sync.Mutex // as configuration.loading
		all.Go(func() {
			for i := range 50 {
				loading.Lock()
				next, err := ps.prepare([]*settings.Config{first, second}[i%2])
				if err != nil {
					t.Error(err)
				} else {
					next.Commit()
				}
				loading.Unlock()
			}
		})
		all.Go(func() {
			for i := range 50 {
				loading.Lock()
				_ = ps.SetAdminState("192.0.2.54", health.AdminStates()[i%4])
				loading.Unlock()
			}
		})
		all.Go(func() {
			q, _ := wire.NewQuery("a.example", "A")
			for range 50 {
				ps.routeOf(q)
				ps.Members()
				ps.Counts()
				ps.Candidates()
				ps.recheck()
			}
		})
		all.Wait()
		ps.Close()
		time.Sleep(2 * attemptsEnd)
	})
}

// 70,000 names with one list of upstreams cost little more than their text, and
// reloading them takes no longer than reading them.
func BenchmarkManyNames(b *testing.B) {
	var names strings.Builder
	for i := range 70_000 {
		fmt.Fprintf(&names, "name-%d.example.com\n", i)
	}
	file := filepath.Join(b.TempDir(), "names")
	if err := os.WriteFile(file, []byte(names.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	text := "upstreams: [quad9]\nroutes: [{names_file: " + file + ", upstreams: ['udp://192.0.2.53']}]"
	ps := poolsOf(b, text)
	before := written(b, text)
	b.ResetTimer()
	for b.Loop() {
		next := written(b, text)
		if len(before.Differences(next)) != 0 {
			b.Fatal("they differ")
		}
		ps.become(b, text)
	}
}

func TestSuspectsAreAskedForNamesOfTheirOwn(t *testing.T) {
	t.Parallel()
	ps := poolsOf(t, `
upstreams: [quad9, "tls://10.0.0.1"]
routes: {corp.example: ["udp://10.0.0.53"], '*.lab.example': ["tls://10.0.0.1"], eng.example: ["udp://10.0.0.53", "udp://10.0.0.54"]}
`)
	loopSuspects := ps.loopSuspects()
	for name, want := range map[string][]string{"10.0.0.1": {".", "lab.example"}, "10.0.0.53": {"corp.example", "eng.example"}, "10.0.0.54": {"eng.example"}} {
		s := loopSuspects[name]
		if s == nil {
			t.Errorf("%s is missing", name)
			continue
		}
		if got := slices.Compact(s.Zones()); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if len(loopSuspects) != 3 {
		t.Errorf("got %v", loopSuspects)
	}
}

// An upstream that brings queries back is known to be asked for a name until it has
// answered, however many ask at once.
func TestQueriesUnderWayAreTracked(t *testing.T) {
	t.Parallel()
	ps := poolsOf(t, "upstreams: [udp://127.0.0.1:9]")
	w := ps.now()[0].watch
	q, err := wire.NewQuery("a.example", "A")
	if err != nil {
		t.Fatal(err)
	}
	w.Track(true)
	var waiting sync.WaitGroup
	for range 8 {
		waiting.Add(1)
		go w.Ask(t.Context(), q, func(wire.Answer, error) { waiting.Done() })
	}
	done := w.track(q, func(wire.Answer, error) {})
	if !w.Asked(q) {
		t.Error("it was asked")
	}
	waiting.Wait()
	if !w.Asked(q) {
		t.Error("one query is still under way")
	}
	done(wire.Answer{}, nil)
	if w.Asked(q) || len(w.names) != 0 {
		t.Errorf("remembers %v", w.names)
	}
}

package wire_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"dotgate/gateway/wire"
)

// wireName returns a name in wire format.
func wireName(t testing.TB, name string) []byte {
	t.Helper()
	packed, err := wire.PackName(name)
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

func TestRouteNamesKeepTheirOrderAndRoutes(t *testing.T) {
	names := new(wire.RouteNames)
	f := func(pattern string, route, wantHas int, wantAdded bool) {
		t.Helper()
		if has, added, err := names.Add(pattern, route); has != wantHas || added != wantAdded || err != nil {
			t.Errorf("%s: got %d, %t, %v, want %d, %t", pattern, has, added, err, wantHas, wantAdded)
		}
	}
	f("corp.example", 0, 0, true)
	f("lab.example", 1, 1, true)
	f("*.corp.example", 1, 1, true)
	f("Corp.Example.", 2, 0, false) // it is unchanged
	f("*.corp.example", 0, 1, false)
	f(`my\032printer.example`, 0, 0, true)
	if _, added, err := names.Add("b..example", 0); added || err == nil {
		t.Error("b..example was added")
	}
	names.Pack()
	for route, want := range []string{`corp.example my\032printer.example`, "lab.example *.corp.example", ""} {
		if got := strings.Join(slices.Collect(names.Patterns(route)), " "); got != want {
			t.Errorf("route %d has %s, want %s", route, got, want)
		}
		if want != "" && !strings.Contains(want, names.RandomPattern(route)) {
			t.Errorf("route %d has %s", route, names.RandomPattern(route))
		}
	}
	if !names.IsApex("corp.example", []int{1}) || !names.IsApex("corp.example", []int{0}) || names.IsApex("lab.example", []int{0}) || names.IsApex("example", []int{0, 1}) {
		t.Error("IsApex is wrong")
	}
}

// A patternModel maps patterns to routes in the plainest way.
type patternModel map[string]int

func (m patternModel) find(name string) (route, below int, ok bool) {
	for apex, at := name, 0; ; at += 1 + strings.IndexByte(apex, '.') {
		apex = name[at:]
		if route, ok = m["*."+apex]; ok && at > 0 {
			return route, at, true
		}
		if route, ok = m[apex]; ok {
			return route, at, true
		}
		if !strings.Contains(apex, ".") {
			return 0, 0, false
		}
	}
}

// RouteNames must find the same as the model.
func TestRouteNamesFindAsTheModelDoes(t *testing.T) {
	var all wire.RouteNames
	model := make(patternModel)
	random := rand.New(rand.NewPCG(1, 2))
	name := func() string {
		labels := make([]string, 1+random.IntN(4))
		for i := range labels {
			labels[i] = string(rune('a' + random.IntN(4)))
		}
		return strings.Join(labels, ".")
	}
	check := func() {
		for range 2000 {
			text := name()
			packed := wireName(t, text)
			route, below, ok := all.Find(packed)
			want, wantBelow, wantOK := model.find(text)
			if ok != wantOK || ok && (route != want || below != wantBelow) {
				t.Fatalf("%s: got %d, %d, %t, want %d, %d, %t", wire.NameText(packed), route, below, ok, want, wantBelow, wantOK)
			}
		}
	}
	check()
	for i := range 150 {
		pattern := name()
		if random.IntN(2) == 0 {
			pattern = "*." + pattern
		}
		if _, added, _ := all.Add(pattern, i); added {
			model[pattern] = i
		}
		check()
		if i%10 == 0 {
			all.Pack()
			check()
		}
	}
}

// A digest depends on names and lists only, not on order or spelling.
func TestRouteNamesHaveOneDigest(t *testing.T) {
	digest := func(lists []string, routes ...string) string {
		names := new(wire.RouteNames)
		for route, patterns := range routes {
			for pattern := range strings.FieldsSeq(patterns) {
				if _, _, err := names.Add(pattern, route); err != nil {
					t.Fatal(err)
				}
			}
		}
		d := names.Digest(lists)
		return string(d[:])
	}
	want := digest([]string{"1", "2"}, "a.example *.b.example", "c.example")
	if digest([]string{"2", "1"}, "c.example", "*.b.example a.example") != want || digest([]string{"1", "2", "1"}, "a.example", "c.example", "*.b.example") != want {
		t.Error("order matters")
	}
	for _, other := range []string{
		digest([]string{"1", "2"}, "a.example b.example", "c.example"), digest([]string{"1", "3"}, "a.example *.b.example", "c.example"),
		digest([]string{"1", "2"}, "a.example", "*.b.example c.example"), digest([]string{"1"}, "a.example *.b.example"),
	} {
		if other == want {
			t.Error("another configuration has the same digest")
		}
	}
}

// manyNames returns a long list of n names.
func manyNames(t testing.TB, n int) *wire.RouteNames {
	names := new(wire.RouteNames)
	for i := range n {
		if _, _, err := names.Add(fmt.Sprintf("host%d.some-zone%d.example", i, i%977), 0); err != nil {
			t.Fatal(err)
		}
	}
	names.Pack()
	return names
}

func TestFindingRoutesDoesNotAllocate(t *testing.T) {
	routes := wire.NewRoutes(manyNames(t, 1000), []string{"source"})
	hit, miss := wireName(t, "www.host500.some-zone500.example"), wireName(t, "www.static.example.com")
	if n := testing.AllocsPerRun(100, func() {
		if routes.Source(hit) != "source" || routes.Source(miss) != "" {
			t.Error("wrong")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkFindRoute(b *testing.B) {
	names := manyNames(b, 70_000)
	for name, text := range map[string]string{"hit": "www.host50000.some-zone173.example", "miss": "www.static.example.com", "near": "www.host7x.some-zone17.example"} {
		packed := wireName(b, text)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				names.Find(packed)
			}
		})
	}
}

// heap returns the octets in use.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// The heap may grow to three times this size before it is collected: 66 octets a name
// are 200 of the process.
func TestARouteNameTakesLittleMemory(t *testing.T) {
	const count = 70_000
	before := heap()
	names := manyNames(t, count)
	each := (float64(heap()) - float64(before)) / count
	runtime.KeepAlive(names)
	if each > 60 {
		t.Errorf("%.1f octets a name", each)
	}
	t.Logf("%.1f octets a name", each)
}

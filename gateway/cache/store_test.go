package cache

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/maypok86/otter/v2"

	"dotgate/gateway/wire"
)

// A candidate is a store for the cache. The benchmarks compare dotgate's and otter's,
// including all work of a hit and of an insertion.
type candidate interface {
	Append(dst []byte, q wire.Query) ([]byte, Result)
	Put(q wire.Query, a wire.Answer)
	Close()
}

func stores(t testing.TB, size Size) map[string]func() candidate {
	return map[string]func() candidate{
		"ours": func() candidate {
			o := Defaults()
			o.Size = size
			c, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			return c
		},
		"otter": func() candidate { return newOtterStore(size) },
	}
}

// An otterStore keeps a string and an entry for each answer.
type otterStore struct {
	cache *otter.Cache[string, *otterEntry]
	epoch time.Time
	terms *Cache
}

type otterEntry struct {
	answer wire.Answer
	stored time.Duration
	hits   atomic.Uint32
}

// otterOverhead is the memory for an answer besides its bytes and its key, measured by
// BenchmarkMemory: otter's node, its place in the hash table, the entry.
const otterOverhead = 160

func newOtterStore(size Size) *otterStore {
	c := otter.Must(&otter.Options[string, *otterEntry]{
		MaximumWeight: uint64(size),
		Weigher: func(key string, e *otterEntry) uint32 {
			return uint32(len(key) + e.answer.StoredLen() + otterOverhead)
		},
	})
	o, terms := Defaults(), new(Cache)
	terms.options.Store(&o)
	terms.store.Store(new(store))
	return &otterStore{cache: c, epoch: time.Now(), terms: terms}
}

func (s *otterStore) Append(dst []byte, q wire.Query) ([]byte, Result) {
	var buf [wire.MaxKey]byte
	key := q.AppendKey(buf[:0])
	e, ok := s.cache.GetIfPresent(unsafe.String(&key[0], len(key)))
	if !ok {
		return dst, Miss
	}
	age := time.Since(s.epoch) - e.stored
	if age >= time.Duration(e.answer.TTL())*time.Second {
		return dst, Miss
	}
	e.hits.Add(1)
	return e.answer.AppendReply(dst, q, s.terms.termsAt(e.answer, age)), Fresh
}

func (s *otterStore) Put(q wire.Query, a wire.Answer) {
	s.cache.Set(string(q.AppendKey(nil)), &otterEntry{answer: a, stored: time.Since(s.epoch)})
}

func (s *otterStore) Close() { s.cache.StopAllGoroutines() }

// BenchmarkStores: hits are of 10 000 names in a cache of 64 MiB, insertions of
// ever new ones.
func BenchmarkStores(b *testing.B) {
	for name, open := range stores(b, 64<<20) {
		const names = 10_000
		fill := func(s candidate) {
			m := newTemplate(b, 30)
			for n := range uint64(names) {
				q := m.number(n)
				s.Put(q, m.answer(q))
			}
		}
		b.Run("hit/"+name, func(b *testing.B) {
			s := open()
			defer s.Close()
			fill(s)
			m, reply, n := newTemplate(b, 30), make([]byte, 0, 2048), uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				n = (n + 7919) % names
				if _, found := s.Append(reply, m.number(n)); found == Miss {
					b.Fatal("miss")
				}
			}
		})
		b.Run("hits/"+name, func(b *testing.B) {
			s := open()
			defer s.Close()
			fill(s)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				m, reply, n := newTemplate(b, 30), make([]byte, 0, 2048), rand.Uint64N(names)
				for pb.Next() {
					n = (n + 7919) % names
					if _, found := s.Append(reply, m.number(n)); found == Miss {
						b.Error("miss")
						return
					}
				}
			})
		})
		b.Run("insert/"+name, func(b *testing.B) {
			s := open()
			defer s.Close()
			m, n := newTemplate(b, 30), uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				n++
				q := m.number(n)
				s.Put(q, m.answer(q))
			}
		})
	}
}

// residentMemory returns the resident memory of this process, in bytes.
func residentMemory(t testing.TB) int {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip("this system doesn't say how much memory a process has")
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// heapMemory returns the live memory of the Go heap.
func heapMemory() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// BenchmarkMemory reports the memory for each of a million names.
func BenchmarkMemory(b *testing.B) {
	for name, open := range stores(b, 1<<30) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				const names = 1_000_000
				heap, resident := heapMemory(), residentMemory(b)
				s := open()
				m := newTemplate(b, 30)
				for n := range uint64(names) {
					q := m.number(n)
					s.Put(q, m.answer(q))
				}
				b.ReportMetric(float64(heapMemory()-heap)/names, "heap-B/name")
				b.ReportMetric(float64(residentMemory(b)-resident)/names, "rss-B/name")
				s.Close()
			}
		})
	}
}

// BenchmarkHitRatio reports the share of hits, for names with a Zipf distribution, with
// and without a flood of names that are asked for once.
func BenchmarkHitRatio(b *testing.B) {
	for _, w := range []struct {
		names uint64
		skew  float64
		flood int // number of names of the flood for each query
	}{{300_000, 1.01, 0}, {2_000_000, 1.01, 0}, {300_000, 1.01, 2}} {
		for name, open := range stores(b, 16<<20) {
			b.Run(fmt.Sprintf("%d-names-skew-%g-flood-%d/%s", w.names, w.skew, w.flood, name), func(b *testing.B) {
				for b.Loop() {
					s := open()
					zipf := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), w.skew, 1, w.names-1)
					m, reply := newTemplate(b, 30), make([]byte, 0, 2048)
					m.setTTL(24 * time.Hour)
					const queries = 2_000_000
					hits, random := 0, uint64(1)<<40
					for i := range queries {
						q := m.number(zipf.Uint64())
						if _, found := s.Append(reply, q); found != Miss {
							if i >= queries/2 {
								hits++
							}
						} else {
							s.Put(q, m.answer(q))
						}
						for range w.flood {
							random++
							q := m.number(random)
							s.Append(reply, q)
							s.Put(q, m.answer(q))
						}
					}
					b.ReportMetric(100*float64(hits)/(queries/2), "hits-%")
					s.Close()
				}
			})
		}
	}
}

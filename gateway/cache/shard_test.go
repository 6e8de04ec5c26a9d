package cache

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/wire"
)

// check checks that the index has each entry exactly once, in a place where a search
// finds it.
func (s *shard) check(t *testing.T) {
	t.Helper()
	records := uint32(0)
	s.each(func(r entry, main bool) bool {
		records++
		key := wire.AppendStoredKey(nil, r.bytes())
		if found := s.find(r.hash(), key); found == nil || s.offsetOf(found) != s.offsetOf(r) {
			t.Fatalf("%x is not found", key)
		}
		if at := s.offsetOf(r); main != (at >= s.main.base) {
			t.Fatalf("an entry at %d is in the other queue", at)
		}
		return true
	})
	slots := uint32(0)
	for i := range s.index.n {
		if s.index.slot(i) != 0 {
			slots++
		}
	}
	if slots != records || s.index.used != records || slots > s.index.n/5*4 {
		t.Fatalf("%d records, %d slots, %d used", records, slots, s.index.used)
	}
}

// After random insertions, look-ups and removals, each look-up finds the right answer.
func TestLookupsFindTheStoredAnswer(t *testing.T) {
	synctest.Test(t, lookupsFindTheStoredAnswer) // no time passes
}

func lookupsFindTheStoredAnswer(t *testing.T) {
	for seed := range uint64(4) {
		random := rand.New(rand.NewPCG(seed, 0))
		c := open(t, func(o *Options) { o.Size = minSize })
		var templates []*template // of many name lengths
		for i := range 9 {
			templates = append(templates, newTemplate(t, 30+i*5))
		}
		for i := range scaled(60_000) {
			n := random.Uint64N(uint64(scaled(60_000) / 5))
			m := templates[n%uint64(len(templates))]
			q := m.number(n)
			switch reply, found := c.Append(nil, q); {
			case found == Miss && random.IntN(2) == 0:
				c.Put(q, m.answer(q))
			case found != Miss && string(reply) != string(m.answer(q).AppendReply(nil, q, wire.Terms{})):
				t.Fatalf("%v: got %x", q, reply)
			case found != Miss && random.IntN(50) == 0:
				if f, err := c.Flush(q.String()[:len(q.String())-2]); f != 1 || err != nil {
					t.Fatal(f, err)
				}
			case found != Miss && random.IntN(20) == 0:
				c.Put(q, m.answer(q))
			}
			if i%5000 == 0 {
				c.shards()[0].check(t)
			}
		}
		c.shards()[0].check(t)
		if u := c.Usage(); !raceEnabled && u.Evicted == 0 || u.Bytes > u.Size {
			t.Errorf("usage %+v", u)
		}
	}
}

// The new answer is larger or smaller.
func TestAnAnswerIsReplacedByOneOfAnotherSize(t *testing.T) {
	c := open(t, func(o *Options) { o.Size = minSize })
	q := ask(t, "www.example.com TXT tcp")
	text := "www.example.com. 60 IN TXT"
	for i := range scaled(2000) {
		var records []string
		for range i * 7919 % 150 {
			records = append(records, text+` "`+string(slices.Repeat([]byte{'x'}, 200))+`"`)
		}
		if len(records) == 0 {
			records = []string{text + " short"}
		}
		a := says(t, q, records...)
		c.Put(q, a)
		reply, found := c.Append(nil, q)
		if found == Miss || string(reply) != string(a.AppendReply(nil, q, wire.Terms{})) {
			t.Fatalf("%d records: found %d", len(records), found)
		}
		c.shards()[0].check(t)
		if c.Usage().Answers != 1 {
			t.Fatalf("usage %+v", c.Usage())
		}
	}
}

// They would evict half of a shard.
func TestTheLargestAnswersAreNotStored(t *testing.T) {
	c := open(t, func(o *Options) { o.Size = minSize })
	fill(t, c, 1000)
	before := c.Usage().Answers
	q := ask(t, "large.example.com TXT tcp")
	c.Put(q, says(t, q, "large.example.com. 60 IN TXT"+strings.Repeat(` "`+strings.Repeat("x", 200)+`"`, 300)))
	if _, found := c.Append(nil, q); found != Miss || c.Usage().Answers != before {
		t.Errorf("found %d, %+v", found, c.Usage())
	}
}

// A flood of random names, as in an attack on an authoritative server: 2000 a second for
// ten minutes, each repeated by a client that got no answer.
func TestAFloodOfRandomNamesEvictsNoEntriesInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, nil)
		const hot, perSecond = 20_000, 1000 // each asked for every 20 s
		m, reply := newTemplate(t, 30), make([]byte, 0, 2048)
		m.setTTL(time.Hour)
		lost, next, flood := 0, uint64(0), uint64(1)<<40
		askHot := func() (found bool) {
			q := m.number(next % hot)
			next++
			if _, f := c.Append(reply, q); f != Miss {
				return true
			}
			c.Put(q, m.answer(q))
			return false
		}
		for range 3 * hot {
			askHot()
		}
		for range scaled(600) {
			time.Sleep(time.Second)
			for i := range 2000 {
				flood++
				q := m.number(flood)
				c.Append(reply, q)
				c.Put(q, m.answer(q))
				c.Append(reply, q)
				if i%(2000/perSecond) == 0 && !askHot() {
					lost++
				}
			}
		}
		if u := c.Usage(); lost > 0 || !raceEnabled && u.Evicted < 500_000 {
			t.Errorf("of %d names, %d were lost; %+v", hot, lost, u)
		}
	})
}

// Entries in use are kept when others become popular, too.
func TestEntriesInUseOutliveFormerlyPopularOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, func(o *Options) { o.Size = minSize })
		m, reply, lost := newTemplate(t, 30), make([]byte, 0, 2048), 0
		favourite := func(n uint64) {
			q := m.number(n)
			if _, found := c.Append(reply, q); found != Miss {
				return
			}
			lost++
			c.Put(q, m.answer(q))
			for range promotionUses {
				c.Append(reply, q)
			}
		}
		const hot = 1000
		for n := range uint64(hot) {
			favourite(n)
		}
		lost = 0
		newcomers := scaled(100_000)
		for n := range uint64(newcomers) {
			favourite(1<<40 + n)
			if n%4 == 0 {
				favourite(n / 4 % hot)
			}
		}
		// At first they are all adjacent: see maxRequeues.
		if lost -= newcomers; lost > 2*hot/maxRequeues {
			t.Errorf("%d times, one in use was lost", lost)
		}
	})
}

// The memory of the process grows by Usage.
func TestMemoryIsTheConfiguredSize(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has memory of its own")
	}
	const size = 128 << 20
	runtime.GC()
	before, heapBefore := residentMemory(t), heapMemory()
	c := open(t, func(o *Options) { o.Size = size })
	fill(t, c, 1_200_000)
	u := c.Usage()
	grown, heapGrown := residentMemory(t)-before, heapMemory()-heapBefore
	t.Logf("%d names, %d octets each; resident memory grew by %d MiB, the Go heap by %d KiB", u.Answers, size/u.Answers, grown>>20, heapGrown>>10)
	if grown > size*11/10 || grown < size*9/10 || heapGrown > 1<<20 {
		t.Errorf("memory grew by %d, the heap by %d", grown, heapGrown)
	}
	if u.Answers < 900_000 || u.Bytes > size || u.Bytes < size*9/10 {
		t.Errorf("usage %+v", u)
	}
}

// At most 250 octets for each of a million names.
func TestAMillionNames(t *testing.T) {
	names := scaled(1_000_000)
	c := open(t, func(o *Options) { o.Size = Size(250 * names) })
	fill(t, c, names)
	if u := c.Usage(); u.Answers != names || u.Evicted != 0 {
		t.Errorf("usage %+v", u)
	}
}

func TestASizeInBytesIsExact(t *testing.T) {
	for _, size := range []Size{1 << 20, 1<<20 + 12345, 3_000_000, 64 << 20, 1 << 30} {
		c := open(t, func(o *Options) { o.Size = size })
		total := 0
		for i := range c.shards() {
			s := &c.shards()[i]
			total += len(s.arena) + len(s.index.slots) + len(s.ghosts)
			if len(s.probation.mem)%8 != 0 || len(s.main.mem)%8 != 0 {
				t.Fatalf("%v: rings of %d and %d", size, len(s.probation.mem), len(s.main.mem))
			}
		}
		if total > int(size) || total < int(size)*99/100 || len(c.shards())&(len(c.shards())-1) != 0 {
			t.Errorf("%v: %d in %d shards", size, total, len(c.shards()))
		}
		c.Close()
	}
}

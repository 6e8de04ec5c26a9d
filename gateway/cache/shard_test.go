package cache

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/wire"
)

// check checks that the index has each record exactly once, where it is found.
func (s *shard) check(t *testing.T) {
	t.Helper()
	records := uint32(0)
	s.each(func(r record, main bool) bool {
		records++
		key := wire.AppendStoredKey(nil, r.bytes())
		if found := s.find(r.hash(), key); found == nil || s.offsetOf(found) != s.offsetOf(r) {
			t.Fatalf("%x is not found", key)
		}
		if at := s.offsetOf(r); main != (at >= s.main.base) {
			t.Fatalf("a record at %d is in the other queue", at)
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

// Whatever comes in whatever order, all that is found is right.
func TestNothingGetsLostOrMixedUp(t *testing.T) {
	synctest.Test(t, nothingGetsLostOrMixedUp) // no time passes
}

func nothingGetsLostOrMixedUp(t *testing.T) {
	for seed := range uint64(4) {
		random := rand.New(rand.NewPCG(seed, 0))
		c := open(t, func(o *Options) { o.Size = minSize })
		var templates []*template // with names of many lengths
		for i := range 9 {
			templates = append(templates, newTemplate(t, 30+i*5))
		}
		for i := range scaled(60_000) {
			n := random.Uint64N(uint64(scaled(60_000) / 5))
			m := templates[n%uint64(len(templates))]
			q := m.number(n)
			switch reply, found := c.Append(nil, q); {
			case found == Nothing && random.IntN(2) == 0:
				c.Put(q, m.answer(q))
			case found != Nothing && string(reply) != string(m.answer(q).AppendReply(nil, q, wire.Terms{})):
				t.Fatalf("%v: got %x", q, reply)
			case found != Nothing && random.IntN(50) == 0:
				if f, err := c.Flush(q.String()[:len(q.String())-2]); f != 1 || err != nil {
					t.Fatal(f, err)
				}
			case found != Nothing && random.IntN(20) == 0:
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

// An answer may grow and shrink.
func TestAnswersOfAllSizesFollowEachOther(t *testing.T) {
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
		if found == Nothing || string(reply) != string(a.AppendReply(nil, q, wire.Terms{})) {
			t.Fatalf("%d records: found %d", len(records), found)
		}
		c.shards()[0].check(t)
		if c.Usage().Answers != 1 {
			t.Fatalf("usage %+v", c.Usage())
		}
	}
}

// What would push out half of a shard is not worth it.
func TestTheLargestAnswersAreNotKept(t *testing.T) {
	c := open(t, func(o *Options) { o.Size = minSize })
	fill(t, c, 1000)
	before := c.Usage().Answers
	q := ask(t, "large.example.com TXT tcp")
	var records []string
	for range 270 {
		records = append(records, `large.example.com. 60 IN TXT "`+string(slices.Repeat([]byte{'x'}, 200))+`"`)
	}
	c.Put(q, says(t, q, records...))
	if _, found := c.Append(nil, q); found != Nothing || c.Usage().Answers != before {
		t.Errorf("found %d, %+v", found, c.Usage())
	}
}

// A flood of random names, as an attack on somebody's authority makes it, must
// not push out what people ask for: 2000 of them a second for ten minutes, and
// each again by a client that did not get its answer.
func TestAFloodOfRandomNamesEvictsNothingOfUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, nil)
		const hot, perSecond = 20_000, 1000 // each asked for every 20 s
		m, reply := newTemplate(t, 30), make([]byte, 0, 2048)
		m.setTTL(time.Hour)
		lost, next, flood := 0, uint64(0), uint64(1)<<40
		askHot := func() (found bool) {
			q := m.number(next % hot)
			next++
			if _, f := c.Append(reply, q); f != Nothing {
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

// What is used goes on being kept when others become popular too.
func TestWhatIsUsedOutlivesWhatWasPopular(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, func(o *Options) { o.Size = minSize })
		m, reply, lost := newTemplate(t, 30), make([]byte, 0, 2048), 0
		favourite := func(n uint64) {
			q := m.number(n)
			if _, found := c.Append(reply, q); found != Nothing {
				return
			}
			lost++
			c.Put(q, m.answer(q))
			for range promoted {
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
		// At first they are all in a row: see maxReprieves.
		if lost -= newcomers; lost > 2*hot/maxReprieves {
			t.Errorf("%d times, one in use was lost", lost)
		}
	})
}

// Usage is what a process's memory grows by.
func TestMemoryIsWhatTheOptionSays(t *testing.T) {
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

func TestACacheSizedInBytesHasThatMany(t *testing.T) {
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

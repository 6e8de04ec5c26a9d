package cache

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"dotgate/gateway/wire"
)

// Flush forgets all answers for a name, given in presentation format: all types,
// fresh and stale. It returns how many there were.
//
// An answer that is on its way is not stopped: it is newer anyway.
func (c *Cache) Flush(name string) (int, error) {
	top, err := wire.PackName(name)
	if err != nil {
		return 0, err
	}
	return c.flush(func(name []byte) bool { return bytes.Equal(name, top) }), nil
}

// FlushSubtree forgets all answers for a name and for all names below it. "."
// is everything.
func (c *Cache) FlushSubtree(name string) (int, error) {
	top, err := wire.PackName(name)
	if err != nil {
		return 0, err
	}
	return c.flush(func(name []byte) bool { return wire.InSubtree(name, top) }), nil
}

// flush takes a millisecond or so per shard, and keeps others from no more than
// one at a time.
func (c *Cache) flush(concerns func(name []byte) bool) (flushed int) {
	var room [wire.MaxKey]byte
	shards := c.shards()
	for i := range shards {
		s := &shards[i]
		s.mu.Lock()
		s.each(func(r record, _ bool) bool {
			if concerns(wire.KeyName(wire.AppendStoredKey(room[:0], r.bytes()))) {
				s.remove(r)
				flushed++
			}
			return true
		})
		s.mu.Unlock()
	}
	return flushed
}

// MaxHits is as far as hits are counted.
const MaxHits = popular

// An Entry is an answer in the cache, for people.
type Entry struct {
	Question      string // "example.com. A"
	DO, CD        bool   // clients that set these flags get it, and no others
	Kind          wire.Kind
	RCode         wire.RCode
	Age           time.Duration // since it came
	Left          time.Duration // until its end; below 0 if that has passed
	Usable        bool          // it is fresh, or may be given while no upstream answers
	Hits          int           // clients that got it since it came, MaxHits at the most
	wire.Printout               // what a client gets now
}

// Show returns all answers for a name, given in presentation format, by their
// questions and flags.
func (c *Cache) Show(name string) ([]Entry, error) {
	top, err := wire.PackName(name)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	var room [wire.MaxKey]byte
	shards := c.shards()
	for i := range shards {
		s := &shards[i]
		s.mu.RLock()
		now := c.now()
		s.each(func(r record, _ bool) bool {
			key := wire.AppendStoredKey(room[:0], r.bytes())
			if bytes.Equal(wire.KeyName(key), top) {
				entries = append(entries, c.entry(r, key, now))
			}
			return true
		})
		s.mu.RUnlock()
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Question, b.Question), first(a.DO, b.DO), first(a.CD, b.CD))
	})
	return entries, nil
}

// first compares flags: those without come before those with it.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func (c *Cache) entry(r record, key []byte, now time.Duration) Entry {
	a := r.answer()
	e := Entry{
		Kind: a.Kind(), RCode: a.RCode(), Age: r.age(now), Left: r.left(now), Usable: c.usable(r, now), Hits: r.hits(),
	}
	e.DO, e.CD = wire.KeyFlags(key)
	terms := c.termsAt(a, e.Age)
	if e.Left <= 0 && e.Usable {
		terms = staleTerms(e.Kind)
	}
	if q, err := wire.KeyQuery(key); err == nil {
		e.Question, e.Printout = q.String(), a.Print(q, terms)
	}
	return e
}

package cache

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"

	"dotgate/gateway/wire"
)

// Flush removes all answers for a name, given in presentation format: all types, fresh
// and stale. It returns their number.
//
// The answer to a query in progress is stored afterwards.
func (c *Cache) Flush(name string) (int, error) {
	top, err := wire.PackName(name)
	if err != nil {
		return 0, err
	}
	return c.FlushIf(func(name []byte, _ wire.Answer) bool { return bytes.Equal(name, top) }), nil
}

// FlushSubtree removes all answers for a name and for all names below it. "." removes
// all answers.
func (c *Cache) FlushSubtree(name string) (int, error) {
	top, err := wire.PackName(name)
	if err != nil {
		return 0, err
	}
	return c.FlushIf(func(name []byte, _ wire.Answer) bool { return wire.InSubtree(name, top) }), nil
}

// FlushIf removes all answers for which concerns reports true. concerns gets names in
// wire format and lower case, and must not keep its arguments. A flush takes about a
// millisecond for each shard, and locks one shard at a time.
func (c *Cache) FlushIf(concerns func(name []byte, a wire.Answer) bool) (flushed int) {
	var buf [wire.MaxKey]byte
	shards := c.shards()
	for i := range shards {
		s := &shards[i]
		s.mu.Lock()
		s.each(func(e entry, _ bool) bool {
			if concerns(wire.KeyName(wire.AppendStoredKey(buf[:0], e.bytes())), e.answer()) {
				s.remove(e)
				flushed++
			}
			return true
		})
		s.mu.Unlock()
	}
	return flushed
}

// MaxHits is the number up to which hits are counted.
const MaxHits = popularHits

// EntryInfo describes an entry of the cache.
type EntryInfo struct {
	Question      string // "example.com. A"
	DO, CD        bool   // flags of the queries that it answers
	Kind          wire.Kind
	RCode         wire.RCode
	Age           time.Duration // since it was stored
	Left          time.Duration // until it expires; negative if it has expired
	Usable        bool          // it is fresh, or may be sent while no upstream answers
	Hits          int           // number of hits since it was stored, up to MaxHits
	wire.Printout               // the reply that a client would get now
}

// Show returns all entries for a name, given in presentation format, sorted by question
// and flags.
func (c *Cache) Show(name string) ([]EntryInfo, error) {
	top, err := wire.PackName(name)
	if err != nil {
		return nil, err
	}
	var entries []EntryInfo
	var buf [wire.MaxKey]byte
	shards := c.shards()
	for i := range shards {
		s := &shards[i]
		s.mu.RLock()
		now := c.now()
		s.each(func(e entry, _ bool) bool {
			key := wire.AppendStoredKey(buf[:0], e.bytes())
			if bytes.Equal(wire.KeyName(key), top) {
				entries = append(entries, c.info(e, key, now))
			}
			return true
		})
		s.mu.RUnlock()
	}
	slices.SortFunc(entries, func(a, b EntryInfo) int {
		return cmp.Or(cmp.Compare(a.Question, b.Question), cmp.Compare(fmt.Sprint(a.DO, a.CD), fmt.Sprint(b.DO, b.CD)))
	})
	return entries, nil
}

func (c *Cache) info(e entry, key []byte, now time.Duration) EntryInfo {
	a := e.answer()
	info := EntryInfo{
		Kind: a.Kind(), RCode: a.RCode(), Age: e.age(now), Left: e.remaining(now), Usable: c.usable(e, now), Hits: e.hits(),
	}
	info.DO, info.CD = wire.KeyFlags(key)
	terms := c.termsAt(a, info.Age)
	if info.Left <= 0 && info.Usable {
		terms = staleTerms(info.Kind)
	}
	if q, err := wire.KeyQuery(key); err == nil {
		info.Question, info.Printout = q.String(), a.Print(q, terms)
	}
	return info
}

package cache

import (
	"bytes"
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
	for i := range c.shards {
		s := &c.shards[i]
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

// An Entry is an answer in the cache, for people.
type Entry struct {
	Question string // "example.com. A"
	DO, CD   bool   // clients that set these flags get it, and no others
	Kind     wire.Kind
	Answer   string        // in the format of zone files
	Age      time.Duration // since it came
	Left     time.Duration // until its end; below 0 if that has passed
	Usable   bool          // it is fresh, or may be given while no upstream answers
}

// Show returns all answers for a name, given in presentation format.
func (c *Cache) Show(name string) ([]Entry, error) {
	top, err := wire.PackName(name)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	var room [wire.MaxKey]byte
	for i := range c.shards {
		s := &c.shards[i]
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
	return entries, nil
}

func (c *Cache) entry(r record, key []byte, now time.Duration) Entry {
	e := Entry{
		Kind: r.answer().Kind(), Age: r.age(now), Left: r.left(now), Usable: c.usable(r, now),
		Answer: wire.Stored(bytes.Clone(r.bytes())).String(),
	}
	e.DO, e.CD = wire.KeyFlags(key)
	if q, err := wire.KeyQuery(key); err == nil {
		e.Question = q.String()
	}
	return e
}

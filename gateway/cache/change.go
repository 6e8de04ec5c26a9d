package cache

import (
	"errors"
	"fmt"
	"hash/maphash"

	"dotgate/gateway/wire"
)

// A Change is other options of a Cache: ready, but not in effect. One of Commit
// and Abandon has to be called, once.
type Change struct {
	cache   *Cache
	options Options
	next    *store // in place of the one that there is, if resize
	resize  bool
	move    bool // answers, to next
}

// Prepare gets a Change to other options ready; if it is another size, the memory
// is there when it returns, beside what there is. The answers move there if keep is
// true, for which there must be room for both for a moment. Only one Change may be
// there at a time. On an error, there is none.
func (c *Cache) Prepare(o Options, keep bool) (*Change, error) {
	var problems []error
	o.Check(func(option, problem string) {
		problems = append(problems, fmt.Errorf("cache.%s %s", option, problem))
	})
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	before := c.options.Load()
	o.Log = before.Log
	change := &Change{cache: c, options: o, resize: o.Size != before.Size, move: keep}
	var err error
	if change.resize {
		change.next, err = newStore(o)
	}
	return change, err
}

// Abandon gives back what was there for the Change.
func (c *Change) Abandon() { c.next.close() }

// Commit has the options take effect. Answers that are there count as fresh for as
// long as they did; those that there is room for move to where they are from now
// on, the ones in use first. The Cache serves meanwhile. What it is given in that
// time, some tenths of a second for a large one, it may not keep.
func (c *Change) Commit() {
	c.cache.options.Store(&c.options)
	if !c.resize {
		shards := c.cache.shards()
		for i := range shards {
			s := &shards[i]
			s.mu.Lock()
			s.maxStale = c.options.MaxStale
			s.mu.Unlock()
		}
		return
	}
	before := c.cache.store.Load()
	if before != nil && c.next != nil && c.move {
		c.cache.move(before, c.next)
	}
	c.cache.store.Store(c.next)
	if before != nil {
		for i := range before.shards {
			before.shards[i].mu.Lock()
			c.cache.evicted.Add(before.shards[i].evicted)
			before.shards[i].mu.Unlock()
		}
	}
	before.close()
}

// move copies what is of use to another store, which nobody else knows yet. What
// clients have used comes last, and so stays if there is not room for all.
func (c *Cache) move(from, to *store) {
	var copied shard
	for i := range from.shards {
		from.shards[i].copyTo(&copied)
		for _, used := range []bool{false, true} {
			copied.each(func(r record, main bool) bool {
				if inUse := r.uses() >= promoted || main; inUse == used {
					c.moveTo(to, r, inUse)
				}
				return true
			})
		}
	}
}

func (c *Cache) moveTo(to *store, r record, main bool) {
	var room [wire.MaxKey]byte
	now := c.now()
	if !c.usable(r, now) {
		return
	}
	s, hash := to.shardFor(maphash.Bytes(c.seed, wire.AppendStoredKey(room[:0], r.bytes())))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.adopt(r, hash, main, now)
}

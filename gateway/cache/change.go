package cache

import (
	"hash/maphash"

	"dotgate/configs/bounds"
	"dotgate/gateway/wire"
)

// A Change is a prepared change of a Cache's options. Either Commit or Abandon must be
// called, once.
type Change struct {
	cache   *Cache
	options Options
	next    *store // in place of the one that there is, if resize
	resize  bool
	move    bool // answers, to next
}

// Prepare prepares a change to other options. If the size differs, it allocates the new
// memory beside the old. If keep is true, Commit moves the answers there. Only one
// Change may exist at a time. After an error there is none.
func (c *Cache) Prepare(o Options, keep bool) (*Change, error) {
	if err := bounds.Err("cache.", o.Check); err != nil {
		return nil, err
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

// Abandon frees the memory of the Change. The Cache keeps its options.
func (c *Change) Abandon() { c.next.close() }

// Commit puts the options into effect. Stored answers keep their lifetimes. If the size
// differs, as many as fit are moved, those in use preferred. The Cache works meanwhile,
// but answers that are stored during the move (some tenths of a second for a large
// cache) may be lost.
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

// move copies the usable entries to another store, which is not in use yet. Entries that
// clients have used come last, as later entries evict earlier ones.
func (c *Cache) move(from, to *store) {
	var copied shard
	for i := range from.shards {
		from.shards[i].copyTo(&copied)
		for _, used := range []bool{false, true} {
			copied.each(func(e entry, main bool) bool {
				if inUse := e.uses() >= promotionUses || main; inUse == used {
					c.moveTo(to, e, inUse)
				}
				return true
			})
		}
	}
}

func (c *Cache) moveTo(to *store, e entry, main bool) {
	var buf [wire.MaxKey]byte
	now := c.now()
	if !c.usable(e, now) {
		return
	}
	s, hash := to.shardFor(maphash.Bytes(c.seed, wire.AppendStoredKey(buf[:0], e.bytes())))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.insertCopy(e, hash, main, now)
}

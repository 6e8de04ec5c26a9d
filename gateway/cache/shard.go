package cache

import (
	"encoding/binary"
	"sync"
	"time"

	"dotgate/gateway/wire"
)

// A shard is a part of the cache with its own lock. It evicts by S3-FIFO (Yang et al.,
// SOSP 2023): new entries go to a small probation queue. Those that are used there move
// to the main queue; those that are used in the main queue move from its tail back to
// its head. So a flood of names that are asked for once passes through the probation
// queue and evicts no entries in use. An entry that is evicted from probation leaves a
// ghost: if it is stored again soon, it goes to the main queue at once.
type shard struct {
	mu        sync.RWMutex // guards all fields below; held while a reply is made, never during I/O
	arena     []byte       // the memory of both rings
	probation ring
	main      ring
	index     index
	ghosts    []byte // hashes in 4 octets each
	maxStale  time.Duration
	evicted   uint64

	_ [64]byte // so that shards do not share cache lines
}

const (
	// perSlot is the number of octets of a shard for each slot of its index. With 4/5 of
	// the slots in use, entries can have 120 octets on average: a name with one or two
	// addresses. If they are smaller, slots run out before memory.
	perSlot = 104
	// mainReserve is kept free in the main ring, so that a requeued entry fits at its
	// head although the end of the memory may be skipped.
	mainReserve = 4 << 10
	// maxRequeues bounds the time of one insertion to a few microseconds: after this
	// number of entries in use, the next one is evicted although it is in use.
	maxRequeues = 64
	// promotionUses is the number of uses on probation that move an entry to the main
	// queue. A client that asks twice makes one.
	promotionUses = 2
)

// setMemory sets the memory of the shard, which never uses more.
func (s *shard) setMemory(mem []byte) {
	n := len(mem) / perSlot
	take := func(size int) []byte {
		part := mem[: size&^7 : size&^7]
		mem = mem[size&^7:]
		return part
	}
	s.index = index{slots: take(n * slotSize), n: uint32(n)}
	s.ghosts = take(n / 2 * 4)
	// The system allocates pages when they are first written to. Those of the index are
	// written now, so that no query waits for that.
	clear(s.index.slots)
	clear(s.ghosts)
	s.arena = take(len(mem))
	s.probation.mem = s.arena[:len(s.arena)/8&^7]
	s.main.mem, s.main.base = s.arena[len(s.probation.mem):], len(s.probation.mem)
}

// find returns the entry for a key, or nil.
func (s *shard) find(hash uint32, key []byte) entry {
	if s.index.n == 0 {
		return nil
	}
	for i := s.index.home(hash); ; i = s.index.next(i) {
		slot := s.index.slot(i)
		if slot == 0 {
			return nil
		}
		if uint32(slot>>32) != hash {
			continue
		}
		if e := s.entryAt(offset(slot)); wire.StoredFor(e.bytes(), key) {
			return e
		}
	}
}

func (s *shard) entryAt(offset int) entry {
	e := entry(s.arena[offset:])
	return e[:e.size()]
}

// offsetOf returns the offset of e in the arena. Slices of the arena keep its capacity,
// so it can be computed from that.
func (s *shard) offsetOf(e entry) int { return cap(s.arena) - cap(e) }

// put stores a, the answer to q, in place of the entry for the same key, unless it is too
// large: in a shard that is closed, each is. It goes to the
// probation queue unless toMain is true, there is a ghost of it, or the former entry is
// in the main queue.
func (s *shard) put(hash uint32, key []byte, a wire.Answer, q wire.Query, stored time.Duration, life uint32, now time.Duration, toMain bool) {
	size := entrySize(a.StoredLen())
	old := s.find(hash, key)
	toMain = s.removeGhost(hash) || toMain || old != nil && s.offsetOf(old) >= s.main.base
	switch {
	case old == nil:
	case size <= old.size() && size >= old.size()/2:
		old.replace(a, q, stored, life)
		return
	default:
		s.remove(old)
	}
	to := &s.probation
	if toMain {
		to = &s.main
	}
	if !s.makeSpace(to, size, now) {
		return
	}
	e, at := to.push(size)
	e.fill(size, hash, a, q, stored, life)
	s.index.insert(hash, at)
}

// insertCopy stores a copy of an entry of another shard. This shard must not have its
// key.
func (s *shard) insertCopy(e entry, hash uint32, main bool, now time.Duration) {
	to := &s.probation
	if main {
		to = &s.main
	}
	if !s.makeSpace(to, len(e), now) {
		return
	}
	own, at := to.push(len(e))
	copy(own, e)
	s.index.insert(hash, at)
}

// remove removes e from the index. Its memory is freed when it reaches the tail of its
// queue.
func (s *shard) remove(e entry) {
	s.index.remove(e.hash(), s.offsetOf(e))
	e.state().Or(flagRemoved)
}

// makeSpace evicts until an entry of this size fits into a ring and into the index. It
// reports false for entries that are too large to be stored.
func (s *shard) makeSpace(to *ring, size int, now time.Duration) bool {
	if size > len(s.probation.mem)/2 {
		return false
	}
	requeues := maxRequeues
	for s.index.full() {
		// Probation may have 1/8 of the main queue: entries beyond that go first.
		if s.probation.used() > s.main.used()/8 {
			s.evictFromProbation(now, &requeues)
		} else {
			s.evictFromMain(now, &requeues)
		}
	}
	if to == &s.main {
		s.makeMainSpace(size, now, &requeues)
		return true
	}
	for !to.fits(size) {
		s.evictFromProbation(now, &requeues)
	}
	return true
}

func (s *shard) makeMainSpace(size int, now time.Duration, requeues *int) {
	for !s.main.fits(size + mainReserve) {
		s.evictFromMain(now, requeues)
	}
}

// evictFromProbation removes the oldest entry of the probation queue. It moves it to the
// main queue if it was used, or if there is free space, and evicts it otherwise.
func (s *shard) evictFromProbation(now time.Duration, requeues *int) {
	e, at := s.probation.oldest()
	if e.isPadding() {
		s.probation.pop()
		return
	}
	free := s.main.fits(len(e)+mainReserve) && !s.index.full()
	if !s.isUsable(e, now) || e.uses() < promotionUses && !free {
		s.evict(e, at)
		s.addGhost(e.hash())
		s.probation.pop()
		return
	}
	s.makeMainSpace(len(e), now, requeues)
	e.state().And(^uint32(allUses)) // only uses from now on count
	s.moveToMain(e, at)
	s.probation.pop()
}

// evictFromMain removes the oldest entry of the main queue. It moves it to the head if
// it was used, and evicts it otherwise.
func (s *shard) evictFromMain(now time.Duration, requeues *int) {
	e, at := s.main.oldest()
	if e.isPadding() {
		s.main.pop()
		return
	}
	uses := e.uses()
	s.main.pop()
	if uses == 0 || *requeues == 0 || !s.isUsable(e, now) || !s.main.fits(len(e)) {
		s.evict(e, at)
		return
	}
	*requeues--
	e.state().Add(^uint32(oneUse - 1))
	s.moveToMain(e, at)
}

// moveToMain moves an entry to the head of the main queue, where it must fit.
func (s *shard) moveToMain(e entry, from int) {
	hash := e.hash()
	to, at := s.main.push(len(e))
	copy(to, e) // source and target may overlap
	s.index.move(hash, from, at)
}

func (s *shard) evict(e entry, at int) {
	s.index.remove(e.hash(), at)
	s.evicted++
}

// isUsable reports whether e is fresh, or within max_stale and no error.
func (s *shard) isUsable(e entry, now time.Duration) bool {
	left := e.remaining(now)
	return left > 0 || left > -s.maxStale && e.answer().Kind() != wire.Failure
}

func (s *shard) ghost(hash uint32) []byte {
	i := uint64(hash) * uint64(len(s.ghosts)/4) >> 32
	return s.ghosts[i*4:][:4]
}

// addGhost adds a ghost for an entry that was evicted from probation. It replaces the
// ghost in the same place.
func (s *shard) addGhost(hash uint32) { binary.NativeEndian.PutUint32(s.ghost(hash), hash) }

// removeGhost removes the ghost for a hash, and reports whether there was one.
func (s *shard) removeGhost(hash uint32) bool {
	if len(s.ghosts) == 0 {
		return false
	}
	g := s.ghost(hash)
	if hash == 0 || binary.NativeEndian.Uint32(g) != hash {
		return false
	}
	clear(g)
	return true
}

// each calls f for each entry until it returns false: first those of the main queue,
// from the oldest on.
func (s *shard) each(f func(e entry, main bool) bool) {
	for _, ring := range []*ring{&s.main, &s.probation} {
		for at := ring.tail; at < ring.head; {
			e := ring.at(at)
			e = e[:e.size()]
			if !e.isPadding() && !f(e, ring == &s.main) {
				return
			}
			at += uint64(len(e))
		}
	}
}

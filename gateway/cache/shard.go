package cache

import (
	"encoding/binary"
	"sync"
	"time"

	"dotgate/gateway/wire"
)

// A shard is a part of the cache with a lock of its own. It evicts by S3-FIFO
// (Yang et al., SOSP 2023): newcomers are on probation in a small queue; those
// that are used again there go to the main queue, from whose end those that were
// used go back to its head. So a flood of names that nobody asks for twice
// passes through the small queue and pushes out nothing else. Evicted newcomers
// leave a ghost: if they come back soon, they go to the main queue at once.
type shard struct {
	mu        sync.RWMutex // guards all below; held to write a reply, never during I/O
	arena     []byte       // the memory of both rings
	probation ring
	main      ring
	index     index
	ghosts    []byte // hashes in 4 octets each
	maxStale  time.Duration
	evicted   uint64

	_ [64]byte // shards don't share cache lines
}

const (
	// perSlot is how many octets of a shard go with each slot of its index. With
	// the index at most 4/5 full, that is room for records of 120 octets: a
	// name with one or two addresses. If they are smaller, slots are what is short.
	perSlot = 104
	// slack is kept free in the main ring, so that what is used again finds
	// room at its head in spite of what is skipped at the end of the memory.
	slack = 4 << 10
	// maxReprieves bounds the work of one insertion, to a few microseconds: where
	// so many in a row are in use, one in use has to go.
	maxReprieves = 64
	// promoted is how many uses on probation lead to the main queue: one more
	// than a client that asks twice.
	promoted = 2
)

// layOut gives the shard its memory. It is all that the shard will ever use.
func (s *shard) layOut(mem []byte) {
	n := len(mem) / perSlot
	take := func(size int) []byte {
		part := mem[: size&^7 : size&^7]
		mem = mem[size&^7:]
		return part
	}
	s.index = index{slots: take(n * slotSize), n: uint32(n)}
	s.ghosts = take(n / 2 * 4)
	// These are written all over from the start. The system gives each page when
	// it is first written to, which a query should not have to wait for.
	clear(s.index.slots)
	clear(s.ghosts)
	s.arena = take(len(mem))
	s.probation.mem = s.arena[:len(s.arena)/8&^7]
	s.main.mem, s.main.base = s.arena[len(s.probation.mem):], len(s.probation.mem)
}

// find returns the record for a key, or nil.
func (s *shard) find(hash uint32, key []byte) record {
	if s.index.n == 0 {
		return nil
	}
	for i := s.index.home(hash); ; i = s.index.after(i) {
		slot := s.index.slot(i)
		if slot == 0 {
			return nil
		}
		if uint32(slot>>32) != hash {
			continue
		}
		if r := s.recordAt(offset(slot)); wire.StoredFor(r.bytes(), key) {
			return r
		}
	}
}

func (s *shard) recordAt(offset int) record {
	r := record(s.arena[offset:])
	return r[:r.size()]
}

// offsetOf returns where r, which is of this shard, begins: nothing that is cut
// from the arena gives up its capacity.
func (s *shard) offsetOf(r record) int { return cap(s.arena) - cap(r) }

// put makes a the answer to q, in place of what there was. It is on probation
// unless it is known by now, to us or to the caller.
func (s *shard) put(hash uint32, key []byte, a wire.Answer, q wire.Query, stored time.Duration, life uint32, now time.Duration, known bool) {
	size := recordSize(a.StoredLen())
	old := s.find(hash, key)
	known = s.forgetGhost(hash) || known || old != nil && s.offsetOf(old) >= s.main.base
	switch {
	case old == nil:
	case size <= old.size() && size >= old.size()/2:
		old.renew(a, q, stored, life)
		return
	default:
		s.remove(old)
	}
	to := &s.probation
	if known {
		to = &s.main
	}
	if !s.makeRoom(to, size, now) {
		return
	}
	r, at := to.push(size)
	r.fill(size, hash, a, q, stored, life)
	s.index.insert(hash, at)
}

// adopt takes a copy of a record of another shard, whose key is not here, if there
// is room for it.
func (s *shard) adopt(r record, hash uint32, main bool, now time.Duration) {
	to := &s.probation
	if main {
		to = &s.main
	}
	if !s.makeRoom(to, len(r), now) {
		return
	}
	own, at := to.push(len(r))
	copy(own, r)
	s.index.insert(hash, at)
}

// remove takes r out. Its memory is free when the end of the queue gets there.
func (s *shard) remove(r record) {
	s.index.remove(r.hash(), s.offsetOf(r))
	r.state().Or(flagDead)
}

// makeRoom evicts until a record fits into a ring and into the index. It reports
// false for one that is too large to be worth it.
func (s *shard) makeRoom(to *ring, size int, now time.Duration) bool {
	if size > len(s.probation.mem)/2 {
		return false
	}
	reprieves := maxReprieves
	for s.index.full() {
		// Probation gives up its excess first, but it is never starved.
		if s.probation.used() > s.main.used()/8 {
			s.leaveProbation(now, &reprieves)
		} else {
			s.leaveMain(now, &reprieves)
		}
	}
	if to == &s.main {
		s.makeMainRoom(size, now, &reprieves)
		return true
	}
	for !to.fits(size) {
		s.leaveProbation(now, &reprieves)
	}
	return true
}

func (s *shard) makeMainRoom(size int, now time.Duration, reprieves *int) {
	for !s.main.fits(size + slack) {
		s.leaveMain(now, reprieves)
	}
}

// leaveProbation takes one record from the end of the probation queue: to the
// main queue if it was used or while there is room, or else away.
func (s *shard) leaveProbation(now time.Duration, reprieves *int) {
	r, at := s.probation.oldest()
	if r.isPadding() {
		s.probation.drop()
		return
	}
	free := s.main.fits(len(r)+slack) && !s.index.full()
	if !s.useful(r, now) || r.uses() < promoted && !free {
		s.evict(r, at)
		s.rememberGhost(r.hash())
		s.probation.drop()
		return
	}
	s.makeMainRoom(len(r), now, reprieves)
	r.state().And(^uint32(allUses)) // it has had its reward; who came before it is in use now
	s.moveToMain(r, at)
	s.probation.drop()
}

// leaveMain takes one record from the end of the main queue: to its head if it
// was used, or else away.
func (s *shard) leaveMain(now time.Duration, reprieves *int) {
	r, at := s.main.oldest()
	if r.isPadding() {
		s.main.drop()
		return
	}
	uses := r.uses()
	s.main.drop()
	if uses == 0 || *reprieves == 0 || !s.useful(r, now) || !s.main.fits(len(r)) {
		s.evict(r, at)
		return
	}
	*reprieves--
	r.state().Add(^uint32(oneUse - 1))
	s.moveToMain(r, at)
}

// moveToMain moves a record to the head of the main queue, where it fits.
func (s *shard) moveToMain(r record, from int) {
	hash := r.hash()
	to, at := s.main.push(len(r))
	copy(to, r) // they may overlap
	s.index.move(hash, from, at)
}

func (s *shard) evict(r record, at int) {
	s.index.remove(r.hash(), at)
	s.evicted++
}

// useful reports whether r, or its like with the longest use, is not past it.
func (s *shard) useful(r record, now time.Duration) bool {
	left := r.left(now)
	return left > 0 || left > -s.maxStale && r.answer().Kind() != wire.Failure
}

func (s *shard) ghost(hash uint32) []byte {
	i := uint64(hash) * uint64(len(s.ghosts)/4) >> 32
	return s.ghosts[i*4:][:4]
}

// rememberGhost notes that a newcomer left. Ghosts push each other out.
func (s *shard) rememberGhost(hash uint32) { binary.NativeEndian.PutUint32(s.ghost(hash), hash) }

// forgetGhost reports whether a newcomer with this hash left not long ago.
func (s *shard) forgetGhost(hash uint32) bool {
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

// each calls f for every record, the oldest of the main queue first, until it
// returns false.
func (s *shard) each(f func(r record, main bool) bool) {
	for _, ring := range []*ring{&s.main, &s.probation} {
		for at := ring.tail; at < ring.head; {
			r := ring.at(at)
			r = r[:r.size()]
			if !r.isPadding() && !f(r, ring == &s.main) {
				return
			}
			at += uint64(len(r))
		}
	}
}

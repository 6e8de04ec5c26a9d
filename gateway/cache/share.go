package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"dotgate/gateway/wire"
)

// TransferCount has the numbers of answers that were read from another cache.
type TransferCount struct {
	Received int
	Used     int // of Received; the others were no better than entries of this cache, or did not fit
	Invalid  int // of Received, those that could not be verified; one more if the transfer is damaged
}

// WriteHot writes the time of this machine's clock and all usable answers for another
// cache, in the format of a file: first popular fresh ones, then other fresh ones, then
// stale ones. It blocks as w does, and holds no lock meanwhile.
func (c *Cache) WriteHot(w io.Writer) (answers int, err error) {
	started := c.clock.stamp()
	if _, err := w.Write(binary.BigEndian.AppendUint64(nil, uint64(started.wall.UnixNano()))); err != nil {
		return 0, err
	}
	return c.writeAll(w, streamMagic, started, (*Cache).hot, (*Cache).rarelyUsed, (*Cache).stale)
}

func (c *Cache) hot(e entry, now time.Duration) bool {
	return c.isFreshResult(e, now) && e.hits() == popularHits
}

func (c *Cache) rarelyUsed(e entry, now time.Duration) bool {
	return c.isFreshResult(e, now) && e.hits() < popularHits
}

func (c *Cache) isFreshResult(e entry, now time.Duration) bool {
	return e.remaining(now) > 0 && e.answer().Kind() != wire.Failure
}

func (c *Cache) stale(e entry, now time.Duration) bool {
	return e.remaining(now) <= 0 && c.mayBeStale(e.answer().Kind(), e.remaining(now))
}

// ReadHot stores answers that WriteHot of another cache wrote. asked is when they were
// requested: ages are counted from then, so that no answer outlives its TTL, whatever
// the difference of the clocks and the duration of the transfer.
//
// Each answer is verified as if an upstream had sent it, and admit must accept it. It
// evicts no entry, and replaces none that is fresh or was stored later. ReadHot blocks
// as r does.
func (c *Cache) ReadHot(r io.Reader, asked time.Time, admit func(wire.Query, wire.Answer) bool) (n TransferCount, err error) {
	if len(c.shards()) == 0 {
		return n, nil
	}
	started, before := c.now(), time.Since(asked)
	var clock [8]byte
	if err := readFull(r, clock[:]); err != nil {
		return n, fmt.Errorf("the other cache's answers: %w", err)
	}
	theirs := time.Unix(0, int64(binary.BigEndian.Uint64(clock[:])))
	err = readAll(r, streamMagic, func(e fileEntry) {
		n.Received++
		age := min(theirs.Sub(e.arrived), 3*maxStale) // the sum below must not overflow
		f, err := c.verify(e, age+before+c.now()-started)
		switch {
		case errors.Is(err, errExpired):
		case err != nil || !admit(f.query, f.answer):
			n.Invalid++
		case c.merge(e, f):
			n.Used++
		}
	})
	if errors.Is(err, errFormat) || errors.Is(err, errDamaged) {
		n.Invalid++
	}
	if err != nil {
		err = fmt.Errorf("the other cache's answers: %w", err)
	}
	return n, err
}

// merge stores an answer of another cache if the entry for its key is not better.
func (c *Cache) merge(e fileEntry, f verified) bool {
	if f.answer.Kind() == wire.Failure {
		return false
	}
	now := c.now()
	s, hash := c.shardFor(e.key)
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.find(hash, e.key)
	if old != nil && (old.remaining(now) > 0 || old.answer().Kind() != wire.Failure && old.storedAt() >= now-f.age) {
		return false
	}
	size := entrySize(f.answer.StoredLen())
	toMain := e.main && s.main.fits(size+mainReserve)
	if old == nil && (s.index.full() || !toMain && !s.probation.fits(size)) {
		return false
	}
	s.put(hash, e.key, f.answer, f.query, now-f.age, f.life, now, toMain)
	c.changes.Add(1)
	return true
}

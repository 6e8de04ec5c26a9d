package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"dotgate/gateway/wire"
)

// Shared is what one cache got from another.
type Shared struct {
	Received int // answers
	Used     int // of these: for the others there was something better, or no room
	Invalid  int // these could not be verified, or the whole is damaged
}

// WriteHot writes all answers that may still be of use for another cache, those
// first that were used a lot and are fresh, in the form of a file, after the time
// of this machine's clock. It blocks as w does, and holds no lock meanwhile.
func (c *Cache) WriteHot(w io.Writer) (answers int, err error) {
	if _, err := w.Write(binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))); err != nil {
		return 0, err
	}
	return c.writeAll(w, (*Cache).hot, (*Cache).lukewarm, (*Cache).stale)
}

func (c *Cache) hot(r record, now time.Duration) bool { return c.sound(r, now) && r.hits() == popular }

func (c *Cache) lukewarm(r record, now time.Duration) bool {
	return c.sound(r, now) && r.hits() < popular
}

// sound reports whether r is fresh and no error.
func (c *Cache) sound(r record, now time.Duration) bool {
	return r.left(now) > 0 && r.answer().Kind() != wire.Failure
}

func (c *Cache) stale(r record, now time.Duration) bool {
	return r.left(now) <= 0 && c.mayBeStale(r.answer().Kind(), r.left(now))
}

// ReadHot takes in what WriteHot of another cache wrote, which was asked for at the
// time given, in ages that count from then: however far the clocks are apart, and
// however long it took, no answer gets older than its TTL allows.
//
// Every answer is verified as if an upstream had sent it, and must be admitted. It
// takes room that is free, and the place of none that is fresh or has come later.
// What came before an error is kept. ReadHot blocks as r does.
func (c *Cache) ReadHot(r io.Reader, asked time.Time, admit func(wire.Query, wire.Answer) bool) (n Shared, err error) {
	if len(c.shards()) == 0 {
		return n, nil
	}
	var clock [8]byte
	if _, err := io.ReadFull(r, clock[:]); err != nil {
		return n, fmt.Errorf("the other cache's answers: %w", cut(err))
	}
	theirs := time.Unix(0, int64(binary.BigEndian.Uint64(clock[:])))
	err = readAll(r, func(e fileEntry) {
		n.Received++
		e.came = asked.Add(-theirs.Sub(e.came))
		f, err := c.verify(e)
		switch {
		case errors.Is(err, errPast):
		case err != nil || !admit(f.query, f.answer):
			n.Invalid++
		case c.merge(e, f):
			n.Used++
		}
	})
	if errors.Is(err, errNotOurs) || errors.Is(err, errDamaged) {
		n.Invalid++
	}
	if err != nil {
		err = fmt.Errorf("the other cache's answers: %w", err)
	}
	return n, err
}

// merge puts an answer of another cache where nothing better is.
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
	if s.index.n == 0 { // closed meanwhile
		return false
	}
	old := s.find(hash, e.key)
	if old != nil && (old.left(now) > 0 || old.answer().Kind() != wire.Failure && old.stored() >= now-f.age) {
		return false
	}
	size := recordSize(f.answer.StoredLen())
	known := e.main && s.main.fits(size+slack)
	if old == nil && (s.index.full() || !known && !s.probation.fits(size)) {
		return false
	}
	s.put(hash, e.key, f.answer, f.query, now-f.age, f.life, now, known)
	return true
}

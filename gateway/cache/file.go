package cache

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"dotgate/gateway/wire"
)

// The file of a cache begins with fileMagic. For each answer it has a head of
// fileHead octets: when the answer came, in Unix nanoseconds (8), whether it had
// proved itself (1), the lengths of its key (2) and its message (2); then the key
// and the message, with the OPT record that its EDEs travel in. A head of zeros
// ends the list, and the CRC-32C of all before ends the file. Numbers are big
// endian. Reading verifies every message as if an upstream had sent it.
const (
	fileMagic = "dotgate cache 1\n"
	fileHead  = 13
)

// saveInterval is what a crash loses at the most.
const saveInterval = 10 * time.Minute

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Run saves the cache from time to time and, when ctx is done, for the last
// time. It blocks until then and returns nil: what fails is logged, for it is no
// reason not to serve.
func (c *Cache) Run(ctx context.Context) error {
	ticker := time.NewTicker(saveInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			c.logSave()
			return nil
		}
		c.logSave()
	}
}

func (c *Cache) logSave() {
	o := c.options.Load()
	if o.File == "" || c.store.Load() == nil {
		return
	}
	if n, err := c.Save(); err != nil {
		o.Log.Warn("the cache could not be saved", "err", err)
	} else {
		o.Log.Debug("saved the cache", "answers", n, "file", o.File)
	}
}

// Save writes all answers that may still be of use to Options.File, which has
// either all of them or what it had before. It returns how many.
func (c *Cache) Save() (answers int, err error) {
	name := c.options.Load().File
	// Always the same other name: what a crash leaves behind is not to pile up.
	if err := os.Remove(name + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("cache.file: %w", err)
	}
	f, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, fmt.Errorf("cache.file: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("cache.file: save %s: %w", name, err)
			f.Close()
			os.Remove(f.Name())
		}
	}()
	out := bufio.NewWriterSize(f, 64<<10)
	if answers, err = c.writeAll(out, (*Cache).usable); err != nil {
		return 0, err
	}
	// Sync, or else a crash may leave the new name on an empty file.
	for _, step := range []func() error{out.Flush, f.Sync, f.Close} {
		if err = step(); err != nil {
			return 0, err
		}
	}
	return answers, os.Rename(f.Name(), name)
}

// writeAll writes a whole file: first the answers that the first of turns wants, then
// those that the second one does, and so on.
func (c *Cache) writeAll(w io.Writer, turns ...func(c *Cache, r record, now time.Duration) bool) (answers int, err error) {
	sum := crc32.New(castagnoli)
	w = io.MultiWriter(w, sum)
	if _, err = io.WriteString(w, fileMagic); err != nil {
		return 0, err
	}
	var buf []byte
	var copied shard
	shards := c.shards()
	for _, wanted := range turns {
		for i := range shards {
			shards[i].copyTo(&copied)
			now, wall := c.now(), time.Now()
			copied.each(func(r record, main bool) bool {
				if !wanted(c, r, now) {
					return true
				}
				proved := main || r.uses() >= promoted // it is only that nothing has pushed it there yet
				if buf, err = appendEntry(buf[:0], r, proved, wall.Add(-r.age(now))); err != nil {
					return false
				}
				_, err = w.Write(buf)
				answers++
				return err == nil
			})
			if err != nil {
				return 0, err
			}
		}
	}
	if _, err = w.Write(make([]byte, fileHead)); err != nil {
		return 0, err
	}
	_, err = w.Write(sum.Sum(nil))
	return answers, err
}

// usable reports whether r is fresh, or stale and may be given.
func (c *Cache) usable(r record, now time.Duration) bool {
	left := r.left(now)
	return left > 0 || c.mayBeStale(r.answer().Kind(), left)
}

// copyTo makes a copy for those who want to look at a shard at leisure. Readers
// count what they use, so it shuts them out too.
func (s *shard) copyTo(to *shard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	to.arena = append(to.arena[:0], s.arena...)
	to.probation, to.main = s.probation, s.main
	to.probation.mem = to.arena[:len(s.probation.mem)]
	to.main.mem = to.arena[len(s.probation.mem):]
}

func appendEntry(dst []byte, r record, proved bool, came time.Time) ([]byte, error) {
	key := wire.AppendStoredKey(nil, r.bytes())
	q, err := wire.KeyQuery(key)
	if err != nil {
		return dst, fmt.Errorf("BUG: %w", err)
	}
	flag := byte(0)
	if proved {
		flag = 1
	}
	dst = binary.BigEndian.AppendUint64(dst, uint64(came.UnixNano()))
	dst = append(dst, flag)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(key)))
	dst = binary.BigEndian.AppendUint16(dst, 0)
	dst = append(dst, key...)
	dst = r.answer().AppendReply(dst, q, wire.Terms{})
	binary.BigEndian.PutUint16(dst[fileHead-2:], uint16(len(dst)-fileHead-len(key)))
	return dst, nil
}

// Load reads what Save wrote, with the ages that answers have by now. It returns
// how many are of use. Without a file there is nothing to load; a file that is
// damaged, or not of a cache, is an error, and nothing of it is used.
func (c *Cache) Load() (answers int, err error) {
	name := c.options.Load().File
	if name == "" || c.store.Load() == nil {
		return 0, nil
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		// It will be written there: better to hear now that it can't.
		if _, err := os.Stat(filepath.Dir(name)); err != nil {
			return 0, fmt.Errorf("cache.file: %w", err)
		}
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("cache.file: %w", err)
	}
	defer f.Close()
	// Twice: what the first reading verifies is what the second one uses.
	for _, use := range []func(fileEntry){func(fileEntry) {}, func(e fileEntry) {
		if c.restore(e) {
			answers++
		}
	}} {
		if _, err = f.Seek(0, io.SeekStart); err == nil {
			err = readAll(f, use)
		}
		if err != nil {
			return 0, fmt.Errorf("cache.file: %s is ignored: %w", name, err)
		}
	}
	return answers, nil
}

// A fileEntry is one answer in a file. Its bytes are good until the next one.
type fileEntry struct {
	came         time.Time
	main         bool
	key, message []byte
}

var (
	errNotOurs = errors.New("it is no cache of this version of dotgate")
	errDamaged = errors.New("it is damaged: the checksum is wrong")
	errCut     = errors.New("it is damaged: it ends too early")
)

func readAll(f io.Reader, use func(fileEntry)) error {
	in := &summed{in: bufio.NewReaderSize(f, 64<<10), sum: crc32.New(castagnoli)}
	magic := make([]byte, len(fileMagic))
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != fileMagic {
		return errNotOurs
	}
	var head [fileHead]byte
	var body []byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return cut(err)
		}
		if head == [fileHead]byte{} {
			break
		}
		keyLen := int(binary.BigEndian.Uint16(head[9:]))
		size := keyLen + int(binary.BigEndian.Uint16(head[11:]))
		if cap(body) < size {
			body = make([]byte, size)
		}
		body = body[:size]
		if _, err := io.ReadFull(in, body); err != nil {
			return cut(err)
		}
		use(fileEntry{
			came: time.Unix(0, int64(binary.BigEndian.Uint64(head[:]))), main: head[8] == 1,
			key: body[:keyLen], message: body[keyLen:],
		})
	}
	want := in.sum.Sum(nil)
	got := make([]byte, len(want))
	switch _, err := io.ReadFull(in, got); {
	case err != nil:
		return cut(err)
	case !bytes.Equal(got, want):
		return errDamaged
	}
	if _, err := in.in.ReadByte(); err != io.EOF {
		return errDamaged
	}
	return nil
}

// cut returns err, unless it is that the file ends.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errCut
	}
	return err
}

// summed sums up what is read.
type summed struct {
	in  *bufio.Reader
	sum hash.Hash32
}

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.in.Read(p)
	s.sum.Write(p[:n])
	return n, err
}

// restore puts an answer of a file where it was, if it is of use.
func (c *Cache) restore(e fileEntry) bool {
	f, err := c.verify(e)
	if err != nil {
		return false
	}
	now := c.now()
	s, hash := c.shardFor(e.key)
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(hash, e.key, f.answer, f.query, now-f.age, f.life, now, e.main)
	return true
}

// A verified is an answer of a file, verified as one of an upstream's is.
type verified struct {
	query  wire.Query
	answer wire.Answer
	age    time.Duration
	life   uint32 // in seconds
}

var (
	errPast = errors.New("its time is over")
	errAge  = errors.New("nobody knows how old it is")
)

// verify reads what is in e. The error is errPast if that was good once.
func (c *Cache) verify(e fileEntry) (f verified, err error) {
	if f.query, err = wire.KeyQuery(e.key); err != nil {
		return f, err
	}
	if f.answer, err = wire.ParseAnswer(f.query, e.message); err != nil {
		return f, err
	}
	f.age = time.Since(e.came)
	switch {
	case f.age < 0: // it is younger than nothing
		return f, errAge
	case f.age > 2*maxStale:
		return f, errPast
	}
	life, ok := c.life(f.answer)
	f.life = life
	if left := time.Duration(life)*time.Second - f.age; !ok || left <= 0 && !c.mayBeStale(f.answer.Kind(), left) {
		return f, errPast
	}
	return f, nil
}

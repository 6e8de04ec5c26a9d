package cache

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"dotgate/configs/files"
	"dotgate/gateway/wire"
)

// The file of a cache begins with fileMagic and the digest of the configuration that its
// answers depend on (Bind). A transfer to another gateway begins with streamMagic only.
// Each answer has a header of entryHeaderSize octets: when it was stored, in Unix
// nanoseconds (8), whether it was in the main queue (1), the lengths of its key (2) and
// of its message (2). The key and the message follow, with EDEs in an OPT record. A
// header of zeros ends the list, and the CRC-32C of all octets before it ends the file.
// Numbers are big endian. Each message is verified when it is read, as if an upstream had
// sent it.
const (
	fileMagic       = "dotgate cache 2\n"
	streamMagic     = "dotgate cache 1\n"
	entryHeaderSize = 13
	// minFileLimit is the least size limit for files, whatever the size of the cache.
	minFileLimit = 1 << 30
)

// saveInterval is the time between saves: a crash loses at most the answers since then.
const saveInterval = 10 * time.Minute

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Run saves the cache every saveInterval, and once more when ctx is done. It blocks
// until then and returns nil: failures are logged, as the gateway can serve without the
// file.
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
		o.Log.Warn("the cache could not be saved", "error", err)
	} else {
		o.Log.Debug("saved the cache", "answers", n, "file", o.File)
	}
}

// kind describes the files that Save may replace.
var kind = files.Kind{Name: "a cache file of dotgate", Own: func(head []byte) bool {
	return bytes.HasPrefix(head, []byte("dotgate cache ")) // of any version
}}

// Save writes all usable answers to Options.File, and returns their number. The file is
// replaced as a whole or unchanged, unless it can only be written in place. A file that
// is not a cache is left unchanged, which is an error.
func (c *Cache) Save() (answers int, err error) {
	name := c.options.Load().File
	bound := c.bound.Load()
	if bound == nil {
		return 0, fmt.Errorf("save the cache to %s (cache.file): %w", name, errChanging)
	}
	err = kind.Replace(name, 0o600, func(w io.Writer) error {
		out := bufio.NewWriterSize(w, 64<<10)
		var err error
		if answers, err = c.writeAll(out, fileMagic+string(bound[:]), c.clock.stamp(), (*Cache).usable); err != nil {
			return err
		}
		if c.bound.Load() != bound {
			return errChanging
		}
		return out.Flush()
	})
	if err != nil {
		return 0, fmt.Errorf("save the cache to %s (cache.file): %w", name, err)
	}
	return answers, nil
}

// writeAll writes a whole file: first the answers for which the first of turns is true,
// then those of the second one, and so on. Times are by the wall clock as it was at the
// stamp, even if it is set meanwhile.
func (c *Cache) writeAll(w io.Writer, header string, started stamp, turns ...func(c *Cache, e entry, now time.Duration) bool) (answers int, err error) {
	sum := crc32.New(castagnoli)
	w = io.MultiWriter(w, sum)
	if _, err = io.WriteString(w, header); err != nil {
		return 0, err
	}
	var buf []byte
	var copied shard
	shards := c.shards()
	for _, wanted := range turns {
		for i := range shards {
			shards[i].copyTo(&copied)
			now := c.now()
			copied.each(func(e entry, main bool) bool {
				if !wanted(c, e, now) {
					return true
				}
				inMain := main || e.uses() >= promotionUses // it would move there at the end of probation
				if buf, err = appendEntry(buf[:0], e, inMain, started.wallAt(e.storedAt())); err != nil {
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
	if _, err = w.Write(make([]byte, entryHeaderSize)); err != nil {
		return 0, err
	}
	_, err = w.Write(sum.Sum(nil))
	return answers, err
}

// usable reports whether e is fresh, or stale and may be sent.
func (c *Cache) usable(e entry, now time.Duration) bool {
	left := e.remaining(now)
	return left > 0 || c.mayBeStale(e.answer().Kind(), left)
}

// copyTo copies the shard's entries, to be read without the lock. Readers change the
// state of entries, so it takes the write lock.
func (s *shard) copyTo(to *shard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	to.arena = append(to.arena[:0], s.arena...)
	to.probation, to.main = s.probation, s.main
	to.probation.mem = to.arena[:len(s.probation.mem)]
	to.main.mem = to.arena[len(s.probation.mem):]
}

func appendEntry(dst []byte, e entry, inMain bool, arrived time.Time) ([]byte, error) {
	key := wire.AppendStoredKey(nil, e.bytes())
	q, err := wire.KeyQuery(key)
	if err != nil {
		return dst, fmt.Errorf("BUG: %w", err)
	}
	flag := byte(0)
	if inMain {
		flag = 1
	}
	dst = binary.BigEndian.AppendUint64(dst, uint64(arrived.UnixNano()))
	dst = append(dst, flag)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(key)))
	dst = binary.BigEndian.AppendUint16(dst, 0)
	dst = append(dst, key...)
	dst = e.answer().AppendReply(dst, q, wire.Terms{})
	binary.BigEndian.PutUint16(dst[entryHeaderSize-2:], uint16(len(dst)-entryHeaderSize-len(key)))
	return dst, nil
}

// Load reads Options.File. Answers have aged since they were saved. It returns the
// number of usable ones. A missing file is no error. A file that is damaged or not a
// cache is an error, and nothing of it is used. A file that was written while the cache
// was bound to another digest (Bind) is ErrOtherConfiguration, as an answer does not tell
// which upstream it came from.
func (c *Cache) Load() (answers int, err error) {
	name := c.options.Load().File
	if name == "" || c.store.Load() == nil {
		return 0, nil
	}
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // to open a FIFO must not block
	if errors.Is(err, fs.ErrNotExist) {
		// Report a missing directory now rather than when the file is written.
		if _, err := os.Stat(filepath.Dir(name)); err != nil {
			return 0, fmt.Errorf("cache.file: %w", err)
		}
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("cache.file: %w", err)
	}
	defer f.Close()
	header := fileMagic
	if bound := c.bound.Load(); bound != nil {
		header += string(bound[:])
	}
	most := max(minFileLimit, 4*int64(c.options.Load().Size))
	switch info, err := f.Stat(); {
	case err != nil:
		return 0, fmt.Errorf("cache.file: %w", err)
	case !info.Mode().IsRegular():
		return 0, fmt.Errorf("cache.file: %s is ignored: it is no regular file", name)
	case info.Size() > most:
		return 0, fmt.Errorf("cache.file: %s is ignored: it is larger than %d octets, four times cache.size", name, most)
	}
	// The first pass verifies the checksum, the second one stores the answers.
	for _, use := range []func(fileEntry){func(fileEntry) {}, func(e fileEntry) {
		if c.restore(e) {
			answers++
		}
	}} {
		if _, err = f.Seek(0, io.SeekStart); err == nil {
			err = readAll(f, header, use)
		}
		if err != nil {
			return 0, fmt.Errorf("cache.file: %s is ignored: %w", name, err)
		}
	}
	return answers, nil
}

// ErrOtherConfiguration means that a file has the answers of another configuration.
var ErrOtherConfiguration = errors.New("its answers come from another configuration: other routes or upstreams, or another gateway.ecs, block_private, allow_private or forward_local")

// Bind sets the digest of the parts of the configuration that answers depend on. Nil
// means that the configuration is about to change, and answers may be of the old or the
// new one: until the next Bind, no file is saved. A new Cache is bound to a digest of
// zeros.
func (c *Cache) Bind(digest *[sha256.Size]byte) {
	if digest != nil {
		digest = new(*digest) // a save in progress must notice the call, even with the same digest
	}
	c.bound.Store(digest)
}

// A fileEntry is one answer in a file. Its bytes are valid until the next one is read.
type fileEntry struct {
	arrived      time.Time
	main         bool
	key, message []byte
}

var (
	errFormat    = errors.New("it is no cache of this version of dotgate")
	errChanging  = errors.New("the configuration is just changing")
	errDamaged   = errors.New("it is damaged: the checksum is wrong")
	errTruncated = errors.New("it is damaged: it ends too early")
)

// readAll reads a file that writeAll wrote with this header.
func readAll(f io.Reader, header string, use func(fileEntry)) error {
	all, sum := bufio.NewReaderSize(f, 64<<10), crc32.New(castagnoli)
	in := io.TeeReader(all, sum)
	begin := make([]byte, len(header))
	magic, digest := begin[:len(fileMagic)], begin[len(fileMagic):]
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != header[:len(magic)] {
		return errFormat
	}
	if err := readFull(in, digest); err != nil {
		return err
	}
	if string(begin) != header {
		return ErrOtherConfiguration
	}
	var head [entryHeaderSize]byte
	var body []byte
	for {
		if err := readFull(in, head[:]); err != nil {
			return err
		}
		if head == [entryHeaderSize]byte{} {
			break
		}
		keyLen := int(binary.BigEndian.Uint16(head[9:]))
		size := keyLen + int(binary.BigEndian.Uint16(head[11:]))
		body = slices.Grow(body[:0], size)[:size]
		if err := readFull(in, body); err != nil {
			return err
		}
		use(fileEntry{
			arrived: time.Unix(0, int64(binary.BigEndian.Uint64(head[:]))), main: head[8] == 1,
			key: body[:keyLen], message: body[keyLen:],
		})
	}
	want := sum.Sum(nil)
	got := make([]byte, len(want))
	if err := readFull(all, got); err != nil {
		return err
	}
	if _, err := all.ReadByte(); err != io.EOF || !bytes.Equal(got, want) {
		return errDamaged
	}
	return nil
}

// readFull fills p, or returns errTruncated if the file ends before.
func readFull(r io.Reader, p []byte) error {
	_, err := io.ReadFull(r, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errTruncated
	}
	return err
}

// restore stores an answer of a file in its former queue, if it is usable.
func (c *Cache) restore(e fileEntry) bool {
	f, err := c.verify(e, time.Since(e.arrived))
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
	c.changes.Add(1)
	return true
}

// A verified is a verified answer of a file.
type verified struct {
	query  wire.Query
	answer wire.Answer
	age    time.Duration
	life   uint32 // in seconds
}

var (
	errExpired    = errors.New("it has expired")
	errUnknownAge = errors.New("its time is in the future")
)

// verify verifies e, which has this age. The error is errExpired if it was usable once.
func (c *Cache) verify(e fileEntry, age time.Duration) (f verified, err error) {
	if f.query, err = wire.KeyQuery(e.key); err != nil {
		return f, err
	}
	if f.answer, err = wire.ParseAnswer(f.query, e.message); err != nil {
		return f, err
	}
	f.age = age
	switch {
	case f.age < 0:
		return f, errUnknownAge
	case f.age > 2*maxStale:
		return f, errExpired
	}
	life, ok := c.lifetime(f.answer)
	f.life = life
	if left := time.Duration(life)*time.Second - f.age; !ok || left <= 0 && !c.mayBeStale(f.answer.Kind(), left) {
		return f, errExpired
	}
	return f, nil
}

package cache

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/wire"
)

func withFile(name string) func(*Options) {
	return func(o *Options) { o.File = name }
}

// copied returns what a file makes of a cache: one that has loaded it.
func copied(t *testing.T, c *Cache, want int) *Cache {
	t.Helper()
	if n, err := c.Save(); err != nil {
		t.Fatal(n, err)
	}
	again := open(t, withFile(c.options.Load().File))
	if n, err := again.Load(); n != want || err != nil {
		t.Fatalf("loaded %d, %v; want %d", n, err, want)
	}
	return again
}

func TestAFileKeepsAnswersWithTheirAges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache")
	synctest.Test(t, func(t *testing.T) {
		c := open(t, withFile(file))
		positive, do, negative, failed := ask(t, "wWw.example.com A"), ask(t, "www.example.com A do"), ask(t, "no.example.com A cd"), ask(t, "bad.example.com A")
		c.Put(positive, says(t, positive, "www.example.com. 1000 IN A 192.0.2.1"))
		c.Put(do, says(t, do, "www.example.com. 1000000 IN A 192.0.2.2"))
		c.Put(negative, says(t, negative, "NXDOMAIN", soa(300, 300)))
		c.Put(failed, says(t, failed, "SERVFAIL"))
		time.Sleep(100 * time.Second)
		if n, err := c.Save(); n != 3 || err != nil {
			t.Fatalf("saved %d, %v", n, err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
			t.Errorf("got %v, %v", info.Mode(), err)
		}
		c.Close()
		time.Sleep(150 * time.Second) // we are not running
		again := open(t, withFile(file))
		if n, err := again.Load(); n != 3 || err != nil {
			t.Fatalf("loaded %d, %v", n, err)
		}
		f := func(q wire.Query, stale bool, want string) {
			t.Helper()
			if got := again.reply(t, q, stale); got != want {
				t.Errorf("%v: got %s, want %s", q, got, want)
			}
		}
		f(positive, false, "fresh NOERROR 750")
		f(do, false, "fresh NOERROR 86150")
		f(negative, false, "fresh NXDOMAIN 50")
		f(failed, false, "nothing")
		time.Sleep(750 * time.Second)
		f(positive, true, "stale NOERROR 30 ede=3")
		again = copied(t, again, 2) // the name that is none has been stale for too long
		time.Sleep(24*time.Hour - time.Second)
		f(positive, true, "stale NOERROR 30 ede=3")
		f(negative, true, "nothing")
		time.Sleep(time.Second)
		again = copied(t, again, 1)
		time.Sleep(24 * time.Hour)
		copied(t, again, 0)
	})
}

func TestAFileFromTheFutureIsOfNoUse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache")
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Hour)
		c := open(t, withFile(file))
		fill(t, c, 10)
		if _, err := c.Save(); err != nil {
			t.Fatal(err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // its clock starts again
		c := open(t, withFile(file))
		if n, err := c.Load(); n != 0 || err != nil {
			t.Errorf("loaded %d, %v", n, err)
		}
	})
}

func TestAFileKeepsWhatProvedItself(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache")
	c := open(t, func(o *Options) { o.File, o.Size = file, 4*minSize })
	m := newTemplate(t, 30)
	fillFrom(t, c, 1<<40, 50_000) // more than there is room for
	hot := m.number(7)
	c.Put(hot, m.answer(hot))
	for range 3 {
		c.Append(nil, hot)
	}
	fillFrom(t, c, 2<<40, 50_000)
	before := c.Usage().Answers
	again := copied(t, c, before)
	fillFrom(t, again, 3<<40, scaled(500_000))
	if _, found := again.Append(nil, m.number(7)); found == Nothing {
		t.Error("what proved itself was lost")
	}
}

func TestFilesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	c := open(t, withFile(good))
	fill(t, c, 100)
	if _, err := c.Save(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	f := func(name string, content []byte, want string) {
		t.Helper()
		file := filepath.Join(dir, "bad")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		c := open(t, withFile(file))
		n, err := c.Load()
		if err == nil || n != 0 || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) || c.Usage().Answers != 0 {
			t.Errorf("%s: loaded %d, %v; want %s", name, n, err, want)
		}
	}
	const foreign, damaged, short = "no cache of this version", "checksum", "ends too early"
	f("empty", nil, foreign)
	f("foreign", []byte("hello"), foreign)
	f("another version", bytes.Replace(content, []byte("cache 1"), []byte("cache 2"), 1), foreign)
	f("with more", append(bytes.Clone(content), 0), damaged)
	for _, n := range []int{len(fileMagic), len(fileMagic) + 5, len(content) / 2, len(content) - 4, len(content) - 1} {
		f(fmt.Sprintf("the first %d octets", n), content[:n], short)
	}
	for at := len(fileMagic); at < len(content); at += 97 {
		bad := bytes.Clone(content)
		bad[at] ^= 1
		f(fmt.Sprintf("with a bit flipped at %d", at), bad, "it is damaged")
	}
	// A file that somebody made: its checksum is right, its messages are not.
	forged := []byte(fileMagic)
	entry := func(key, message []byte) {
		forged = binary.BigEndian.AppendUint64(forged, uint64(time.Now().UnixNano()))
		forged = append(forged, 1)
		forged = binary.BigEndian.AppendUint16(forged, uint16(len(key)))
		forged = binary.BigEndian.AppendUint16(forged, uint16(len(message)))
		forged = append(append(forged, key...), message...)
	}
	m := newTemplate(t, 30)
	q := m.number(1)
	key := q.AppendKey(nil)
	entry(key, m.response)
	m.number(2)
	entry(key, m.response) // of another name
	entry(key, []byte("rubbish"))
	entry([]byte("rubbish"), m.response)
	entry(nil, m.response)
	forged = append(forged, make([]byte, fileHead)...)
	forged = binary.BigEndian.AppendUint32(forged, crc32.Checksum(forged, castagnoli))
	file := filepath.Join(dir, "forged")
	if err := os.WriteFile(file, forged, 0o600); err != nil {
		t.Fatal(err)
	}
	c = open(t, withFile(file))
	if n, err := c.Load(); n != 1 || err != nil || c.Usage().Answers != 1 {
		t.Errorf("loaded %d, %v", n, err)
	}
}

func TestAFileThatCannotBe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "none", "cache")
	c := open(t, withFile(file))
	if n, err := c.Load(); n != 0 || err == nil || !strings.Contains(err.Error(), "cache.file") {
		t.Errorf("loaded %d, %v", n, err)
	}
	if n, err := c.Save(); n != 0 || err == nil || !strings.Contains(err.Error(), "cache.file") {
		t.Errorf("saved %d, %v", n, err)
	}
	none := open(t, withFile(filepath.Join(t.TempDir(), "cache")))
	if n, err := none.Load(); n != 0 || err != nil {
		t.Errorf("without a file: loaded %d, %v", n, err)
	}
}

// A save that fails leaves the file as it was, and nothing else.
func TestASaveIsWholeOrNone(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cache")
	if err := os.Mkdir(file, 0o700); err != nil { // which no file can replace
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(file, "in it"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := open(t, withFile(file))
	fill(t, c, 10)
	for range 2 {
		if _, err := c.Save(); err == nil {
			t.Fatal("no error")
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left are %v, %v", entries, err)
	}
}

func TestRunSavesNowAndThenAndAtTheEnd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache")
	synctest.Test(t, func(t *testing.T) {
		c := open(t, func(o *Options) { o.File, o.Log = file, slog.New(slog.DiscardHandler) })
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Run(ctx) }()
		size := func() int64 {
			synctest.Wait()
			info, err := os.Stat(file)
			if err != nil {
				return 0
			}
			return info.Size()
		}
		fill(t, c, 10)
		time.Sleep(10*time.Minute - time.Second)
		if n := size(); n != 0 {
			t.Errorf("there is a file of %d octets before its time", n)
		}
		time.Sleep(time.Second)
		first := size()
		if first == 0 {
			t.Error("there is no file after ten minutes")
		}
		fill(t, c, 20)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if last := size(); last <= first {
			t.Errorf("from %d to %d octets at the end", first, last)
		}
	})
	none := open(t, nil)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := none.Run(over); err != nil {
		t.Error(err)
	}
}

// FuzzLoad reads files whose checksum is right.
func FuzzLoad(f *testing.F) {
	c := open(f, withFile(filepath.Join(f.TempDir(), "cache")))
	fill(f, c, 3)
	if _, err := c.Save(); err != nil {
		f.Fatal(err)
	}
	content, err := os.ReadFile(c.options.Load().File)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(content[:len(content)-4])
	f.Fuzz(func(t *testing.T, content []byte) {
		content = binary.BigEndian.AppendUint32(bytes.Clone(content), crc32.Checksum(content, castagnoli))
		c := open(t, func(o *Options) { o.Size = minSize })
		_ = readAll(bytes.NewReader(content), func(e fileEntry) { c.restore(e) })
		c.shards()[0].each(func(r record, _ bool) bool {
			q, err := wire.KeyQuery(wire.AppendStoredKey(nil, r.bytes()))
			if err != nil {
				t.Fatal(err)
			}
			c.AppendStale(nil, q)
			return true
		})
		c.shards()[0].check(&testing.T{})
	})
}

package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

func withFile(name string) func(*Options) {
	return func(o *Options) { o.File = name }
}

// copied returns a cache that has loaded the file of c.
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
		time.Sleep(150 * time.Second) // the gateway is not running
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
		again = copied(t, again, 2) // NXDOMAIN has been stale for too long
		time.Sleep(24*time.Hour - time.Second)
		f(positive, true, "stale NOERROR 30 ede=3")
		f(negative, true, "nothing")
		time.Sleep(time.Second)
		again = copied(t, again, 1)
		time.Sleep(24 * time.Hour)
		copied(t, again, 0)
	})
}

func TestAFileFromTheFutureIsRejected(t *testing.T) {
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

func TestAFileKeepsEntriesInTheMainQueue(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache")
	c := open(t, func(o *Options) { o.File, o.Size = file, 4*minSize })
	m := newTemplate(t, 30)
	fillFrom(t, c, 1<<40, 50_000) // more than fit
	hot := m.number(7)
	c.Put(hot, m.answer(hot))
	for range 3 {
		c.Append(nil, hot)
	}
	fillFrom(t, c, 2<<40, 50_000)
	before := c.Usage().Answers
	again := copied(t, c, before)
	fillFrom(t, again, 3<<40, scaled(500_000))
	if _, found := again.Append(nil, m.number(7)); found == Miss {
		t.Error("what proved itself was lost")
	}
}

func TestInvalidFilesAreRejected(t *testing.T) {
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
	f("another version", bytes.Replace(content, []byte("cache 2"), []byte("cache 1"), 1), foreign)
	f("with more", append(bytes.Clone(content), 0), damaged)
	for _, n := range []int{len(fileMagic), len(fileMagic) + 5, len(content) / 2, len(content) - 4, len(content) - 1} {
		f(fmt.Sprintf("the first %d octets", n), content[:n], short)
	}
	for at := len(fileMagic) + sha256.Size; at < len(content); at += 97 {
		bad := bytes.Clone(content)
		bad[at] ^= 1
		f(fmt.Sprintf("with a bit flipped at %d", at), bad, "it is damaged")
	}
	// A forged file: its checksum is right, its messages are not.
	forged := append([]byte(fileMagic), make([]byte, sha256.Size)...)
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
	forged = append(forged, make([]byte, entryHeaderSize)...)
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

func TestAFileInAMissingDirectoryIsReported(t *testing.T) {
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

// Answers of one configuration are not served under another one.
func TestAFileIsOfOneConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache")
	first, second := sha256.Sum256([]byte("first")), sha256.Sum256([]byte("second"))
	c := open(t, withFile(file))
	fill(t, c, 10)
	c.Bind(&first)
	if n, err := c.Save(); n == 0 || err != nil {
		t.Fatal(n, err)
	}
	load := func(digest [sha256.Size]byte) (int, error) {
		again := open(t, withFile(file))
		again.Bind(&digest)
		n, err := again.Load()
		if usage := again.Usage().Answers; usage != n {
			t.Errorf("loaded %d, has %d", n, usage)
		}
		return n, err
	}
	if n, err := load(second); n != 0 || !errors.Is(err, ErrOtherConfiguration) || !strings.Contains(err.Error(), file) {
		t.Errorf("loaded %d, %v", n, err)
	}
	// While the configuration changes, the file is unchanged.
	c.Bind(nil)
	if n, err := c.Save(); n != 0 || err == nil {
		t.Errorf("saved %d, %v", n, err)
	}
	if n, err := load(first); n == 0 || err != nil {
		t.Errorf("loaded %d, %v", n, err)
	}
	c.Bind(&second)
	if n, err := c.Save(); n == 0 || err != nil {
		t.Errorf("saved %d, %v", n, err)
	}
	if n, err := load(second); n == 0 || err != nil {
		t.Errorf("loaded %d, %v", n, err)
	}
	if n, err := load(first); n != 0 || !errors.Is(err, ErrOtherConfiguration) {
		t.Errorf("loaded %d, %v", n, err)
	}
}

// A save and a change of the configuration at once: the answers in the file are of the
// configuration whose digest it has.
func TestAFileIsOfOneConfigurationWhileThatChanges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache")
	c := open(t, withFile(file))
	digests := [2][sha256.Size]byte{{1}, {2}}
	q := ask(t, "www.example.com A")
	texts := [2]string{"www.example.com. 1000 IN A 192.0.2.1", "www.example.com. 1000 IN A 192.0.2.2"}
	c.Bind(nil)
	c.Put(q, says(t, q, texts[0]))
	c.Bind(&digests[0])
	var saving sync.WaitGroup
	stop := make(chan struct{})
	saving.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = c.Save()
			}
		}
	})
	// load checks the file if it is of configuration j.
	load := func(j int) (loaded bool) {
		again := open(t, withFile(file))
		defer again.Close()
		again.Bind(&digests[j])
		if n, err := again.Load(); n == 0 || err != nil {
			return false
		}
		packet, _ := again.Append(nil, q)
		var m dns.Msg
		if err := m.Unpack(packet); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("192.0.2.%d", j+1); m.Answer[0].(*dns.A).A.String() != want {
			t.Fatalf("the file of configuration %d has %v", j, m.Answer)
		}
		return true
	}
	for i := 1; i < 300; i++ {
		c.Bind(nil)
		c.Put(q, says(t, q, texts[i%2]))
		c.Bind(&digests[i%2])
		if i%10 > 0 {
			continue
		}
		load(1 - i%2)
		for deadline := time.Now().Add(10 * time.Second); !load(i % 2); {
			if time.Now().After(deadline) {
				t.Fatal("no save succeeds although the configuration stays")
			}
		}
	}
	close(stop)
	saving.Wait()
}

// A failed save leaves no other files either.
func TestAFailedSaveLeavesTheFileUnchanged(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cache")
	if err := os.Mkdir(file, 0o700); err != nil { // a directory can't be replaced by a file
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

func TestRunSavesRegularlyAndAtTheEnd(t *testing.T) {
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
		_ = readAll(bytes.NewReader(content), fileMagic+string(make([]byte, sha256.Size)), func(e fileEntry) { c.restore(e) })
		c.shards()[0].each(func(r entry, _ bool) bool {
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

// TestOtherFilesAreLeftUnchanged saves to, and loads from, files that cache.file may name
// by mistake.
func TestOtherFilesAreLeftUnchanged(t *testing.T) {
	dir := t.TempDir()
	foreign, fifo, large := filepath.Join(dir, "hosts"), filepath.Join(dir, "fifo"), filepath.Join(dir, "large")
	if err := os.WriteFile(foreign, []byte("127.0.0.1 localhost\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(large, nil, 0o600), os.Truncate(large, 2<<30)); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		foreign:     "is not a cache file of dotgate, and is left as it is",
		fifo:        "is a FIFO, which is not replaced",
		"/dev/null": "is a device, which is not replaced",
		large:       "is not a cache file of dotgate",
	} {
		c := open(t, withFile(file))
		fill(t, c, 3)
		before, _ := os.Lstat(file)
		if _, err := c.Save(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "cache.file") {
			t.Errorf("save to %s: %v", file, err)
		}
		if n, err := c.Load(); err == nil || n > 0 {
			t.Errorf("load from %s: %d, %v", file, n, err)
		}
		if after, err := os.Lstat(file); err != nil || !os.SameFile(before, after) || after.Size() != before.Size() {
			t.Errorf("%s: it is %v, was %v", file, after, before)
		}
	}
}

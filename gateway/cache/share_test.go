package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/gateway/wire"
)

func anything(wire.Query, wire.Answer) bool { return true }

// written returns the output of WriteHot.
func written(t *testing.T, c *Cache) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := c.WriteHot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAnotherCacheGetsAnswersWithTheirAges(t *testing.T) {
	f := func(skew, slow time.Duration) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			a, b := open(t, nil), open(t, nil)
			positive, none, failed := ask(t, "www.example.com A"), ask(t, "no.example.com A do"), ask(t, "bad.example.com A")
			a.Put(positive, says(t, positive, "www.example.com. 1000 IN A 192.0.2.1"))
			a.Put(none, says(t, none, "NXDOMAIN", soa(300, 300)))
			a.Put(failed, says(t, failed, "SERVFAIL"))
			time.Sleep(100 * time.Second)
			text := written(t, a)
			// The other machine's clock differs by skew.
			for at := 0; at < len(text)-4-entryHeaderSize; {
				binary.BigEndian.PutUint64(text[at:], binary.BigEndian.Uint64(text[at:])+uint64(skew))
				if at == 0 {
					at = 8 + len(streamMagic)
					continue
				}
				at += entryHeaderSize + int(binary.BigEndian.Uint16(text[at+9:])) + int(binary.BigEndian.Uint16(text[at+11:]))
			}
			text = binary.BigEndian.AppendUint32(text[:len(text)-4], crc32.Checksum(text[8:len(text)-4], castagnoli))
			asked := time.Now()
			time.Sleep(slow)
			if n, err := b.ReadHot(bytes.NewReader(text), asked, anything); n != (TransferCount{Received: 2, Used: 2}) || err != nil {
				t.Fatalf("skew %v: got %+v, %v", skew, n, err)
			}
			for q, left := range map[*wire.Query]time.Duration{&positive: 900 * time.Second, &none: 200 * time.Second} {
				if got, want := b.reply(t, *q, false), fmt.Sprint(" ", (left-slow).Seconds()); !strings.HasPrefix(got, "fresh ") || !strings.HasSuffix(got, want) {
					t.Errorf("skew %v, slow %v: got %s, want%s", skew, slow, got, want)
				}
			}
		})
	}
	f(0, 0)
	f(time.Hour, 0)
	f(-time.Hour, 0)
	f(0, time.Minute)
	f(-30*24*time.Hour, time.Minute)
}

func TestAnswersOfAnotherCacheReplaceNoBetterOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := open(t, nil), open(t, nil)
		put := func(c *Cache, q wire.Query, texts ...string) { c.Put(q, says(t, q, texts...)) }
		fresh, old, later, failed, secret := ask(t, "fresh.example.com A"), ask(t, "old.example.com A"), ask(t, "later.example.com A"),
			ask(t, "failed.example.com A"), ask(t, "secret.example.com A")
		put(b, fresh, "fresh.example.com. 1000 IN A 192.0.2.1")
		put(b, old, "old.example.com. 10 IN A 192.0.2.1")
		time.Sleep(60 * time.Second)
		put(a, fresh, "fresh.example.com. 2000 IN A 192.0.2.2")
		put(a, old, "old.example.com. 2000 IN A 192.0.2.2")
		put(a, later, "later.example.com. 20 IN A 192.0.2.2")
		put(a, failed, "failed.example.com. 2000 IN A 192.0.2.2")
		put(a, secret, "secret.example.com. 2000 IN A 10.0.0.1")
		time.Sleep(time.Second)
		put(b, later, "later.example.com. 1 IN A 192.0.2.1")
		put(b, failed, "SERVFAIL")
		time.Sleep(30 * time.Second)
		n, err := b.ReadHot(bytes.NewReader(written(t, a)), time.Now(), func(_ wire.Query, a wire.Answer) bool {
			_, ok := a.WithoutPrivate(func([]byte) bool { return false })
			return ok
		})
		if n != (TransferCount{Received: 5, Used: 2, Invalid: 1}) || err != nil {
			t.Errorf("got %+v, %v", n, err)
		}
		f := func(q wire.Query, want string) {
			t.Helper()
			if got := b.reply(t, q, true); got != want {
				t.Errorf("%v: got %s, want %s", q, got, want)
			}
		}
		f(fresh, "fresh NOERROR 909")
		f(old, "fresh NOERROR 1969")
		f(later, "stale NOERROR 30 ede=3")
		f(failed, "fresh NOERROR 1969")
		f(secret, "nothing")
		if n, err := b.ReadHot(bytes.NewReader(written(t, b)), time.Now(), anything); n.Used != 0 || err != nil {
			t.Errorf("of its own answers it used %+v, %v", n, err)
		}
	})
}

// A brim is a writer that fails after a number of octets.
type brim struct {
	bytes.Buffer
	space int
}

var errFull = errors.New("full")

func (b *brim) Write(p []byte) (int, error) {
	if len(p) > b.space {
		return 0, errFull
	}
	b.space -= len(p)
	return b.Buffer.Write(p)
}

// If the transfer ends early, it has the most useful part.
func TestPopularAnswersAreSentFirst(t *testing.T) {
	a := open(t, func(o *Options) { o.Size = 8 * minSize })
	fill(t, a, 10_000)
	m := newTemplate(t, 30)
	const hot = 1000
	for i := range uint64(hot) {
		for range popularHits {
			a.Append(nil, m.number(1<<40+i*10))
		}
	}
	out := &brim{space: hot * 130}
	if _, err := a.WriteHot(out); !errors.Is(err, errFull) {
		t.Fatal(err)
	}
	b := open(t, nil)
	n, err := b.ReadHot(&out.Buffer, time.Now(), anything)
	if err == nil || n.Used < hot || n.Used > 2*hot {
		t.Errorf("got %+v, %v", n, err)
	}
	for i := range uint64(hot) {
		if b.Lookup(m.number(1<<40+i*10)) != Fresh {
			t.Fatalf("the hot answer %d is not among the first %d", i, n.Used)
		}
	}
}

// A full cache keeps its entries, whatever another cache sends.
func TestAnswersOfAnotherCacheEvictNothing(t *testing.T) {
	a, b := open(t, nil), open(t, func(o *Options) { o.Size = minSize })
	fillFrom(t, a, 1<<40, 50_000)
	fillFrom(t, b, 2<<40, 20_000)
	before := b.Usage()
	n, err := b.ReadHot(bytes.NewReader(written(t, a)), time.Now(), anything)
	if after := b.Usage(); err != nil || n.Received != 50_000 || after.Evicted != before.Evicted || after.Answers != before.Answers+n.Used {
		t.Errorf("got %+v, %v; %+v before and %+v after", n, err, before, after)
	}
	shards := b.shards()
	for i := range shards {
		shards[i].check(t)
	}
}

func TestInvalidAnswersOfAnotherCacheAreRejected(t *testing.T) {
	m := newTemplate(t, 30)
	q := m.number(1)
	key := q.AppendKey(nil)
	now := time.Now()
	f := func(what string, want TransferCount, clock, came time.Time, key, message []byte) {
		t.Helper()
		b := open(t, nil)
		text := []byte(streamMagic)
		text = binary.BigEndian.AppendUint64(text, uint64(came.UnixNano()))
		text = append(text, 1)
		text = binary.BigEndian.AppendUint16(text, uint16(len(key)))
		text = binary.BigEndian.AppendUint16(text, uint16(len(message)))
		text = append(append(text, key...), message...)
		text = append(text, make([]byte, entryHeaderSize)...)
		text = binary.BigEndian.AppendUint32(text, crc32.Checksum(text, castagnoli))
		text = append(binary.BigEndian.AppendUint64(nil, uint64(clock.UnixNano())), text...)
		if n, err := b.ReadHot(bytes.NewReader(text), now, anything); n != want || err != nil || b.Usage().Answers != want.Used {
			t.Errorf("%s: got %+v, %v", what, n, err)
		}
	}
	good, other := bytes.Clone(m.response), bytes.Clone(m.response)
	other[14] ^= 1
	f("the truth", TransferCount{1, 1, 0}, now, now, key, good)
	f("the answer to another question", TransferCount{1, 0, 1}, now, now, key, other)
	f("no message", TransferCount{1, 0, 1}, now, now, key, []byte("rubbish"))
	f("no key", TransferCount{1, 0, 1}, now, now, []byte("rubbish"), good)
	f("from the future", TransferCount{1, 0, 1}, now, now.Add(time.Minute), key, good)
	f("from long ago", TransferCount{1, 0, 0}, now, now.Add(-30*24*time.Hour), key, good)
	f("a clock gone mad", TransferCount{1, 0, 1}, time.Unix(0, -1<<63), time.Unix(0, 1<<63-1), key, good)
	f("a clock gone mad the other way", TransferCount{1, 0, 0}, time.Unix(0, 1<<63-1), time.Unix(0, -1<<63), key, good)

	b := open(t, nil)
	for text, want := range map[string]string{
		"": "ends too early", "1234567": "ends too early", "12345678": "no cache of this version", "12345678dotgate cache 3\n": "no cache of this version",
		"12345678" + streamMagic: "ends too early",
	} {
		if n, err := b.ReadHot(strings.NewReader(text), now, anything); n.Received+n.Used != 0 || n.Invalid == 0 && strings.Contains(want, "version") || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %+v, %v", text, n, err)
		}
	}
	if n, err := new(Cache).ReadHot(io.MultiReader(), now, anything); n != (TransferCount{}) || err != nil {
		t.Errorf("without a cache: %+v, %v", n, err)
	}
}

// As with an answer of an upstream, cache.max_ttl applies to a TTL of a week.
func TestMaxTTLAppliesToAnswersOfAnotherCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := open(t, func(o *Options) { o.MaxTTL = 7 * 24 * time.Hour }), open(t, func(o *Options) { o.MaxTTL = time.Hour })
		q := ask(t, "www.example.com A")
		a.Put(q, says(t, q, "www.example.com. 604800 IN A 192.0.2.1"))
		time.Sleep(time.Minute)
		if n, err := b.ReadHot(bytes.NewReader(written(t, a)), time.Now(), anything); n.Used != 1 || err != nil {
			t.Fatal(n, err)
		}
		if got := b.reply(t, q, false); got != "fresh NOERROR 3540" {
			t.Error(got)
		}
		time.Sleep(59 * time.Minute)
		if got := b.reply(t, q, true); got != "stale NOERROR 30 ede=3" {
			t.Error(got)
		}
	})
}

package cache

import (
	"bytes"
	"io"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// sleeper is a machine that a test puts to sleep.
type sleeper struct{ ns atomic.Int64 }

func (s *sleeper) slept() time.Duration { return time.Duration(s.ns.Load()) }

func (s *sleeper) sleep(d time.Duration) { s.ns.Add(int64(d)) }

func openSleeping(t *testing.T, change func(*Options)) (*Cache, *sleeper) {
	c, s := open(t, change), new(sleeper)
	c.clock.slept, c.clock.base = s.slept, 0
	return c, s
}

func TestTimeAsleepCountsForAges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache")
	synctest.Test(t, func(t *testing.T) {
		c, s := openSleeping(t, withFile(file))
		q := ask(t, "www.example.com A")
		c.Put(q, says(t, q, "www.example.com. 300 IN A 192.0.2.1"))
		s.sleep(100 * time.Second)
		time.Sleep(clockCheck)
		if got := c.reply(t, q, false); !strings.HasSuffix(got, " 200") {
			t.Errorf("after 100 s asleep: got %q, want 200 s left", got)
		}
		if _, err := c.Save(); err != nil {
			t.Fatal(err)
		}
		s.sleep(250 * time.Second)
		time.Sleep(clockCheck)
		if _, found := c.Append(nil, q); found != Expired {
			t.Errorf("350 s after it came, 300 s of which it is good for: %v", found)
		}
		if _, found := c.AppendStale(nil, q); found != Stale {
			t.Errorf("it is not stale but %v", found)
		}
		again := open(t, withFile(file))
		if n, err := again.Load(); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if got := again.reply(t, q, false); !strings.HasSuffix(got, " 200") {
			t.Errorf("from the file: got %q, want 200 s left", got)
		}
	})
}

func TestAClockNeverGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := openSleeping(t, nil)
		before := c.now()
		for _, d := range []time.Duration{time.Hour, -time.Second, clockNoise / 2, -time.Hour, 2 * time.Hour} {
			s.sleep(d)
			time.Sleep(clockCheck)
			now := c.now()
			if passed := now - before; passed < clockCheck {
				t.Errorf("after %v asleep: %v have passed", d, passed)
			}
			before = now
		}
		if awake := 5 * clockCheck; before != awake+2*time.Hour-time.Second+clockNoise/2+2*maxStale {
			t.Errorf("it is %v", before-2*maxStale)
		}
	})
}

func TestTimeAsleepDuringATransferCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t, nil)
		b, s := openSleeping(t, nil)
		q := ask(t, "www.example.com A")
		a.Put(q, says(t, q, "www.example.com. 300 IN A 192.0.2.1"))
		text := written(t, a)
		half := readerFunc(func(p []byte) (int, error) {
			s.sleep(100 * time.Second)
			time.Sleep(clockCheck)
			return 0, io.EOF
		})
		r := io.MultiReader(bytes.NewReader(text[:8]), half, bytes.NewReader(text[8:]))
		if n, err := b.ReadHot(r, time.Now(), anything); n.Used != 1 || err != nil {
			t.Fatalf("%+v, %v", n, err)
		}
		if got := b.reply(t, q, false); !strings.HasSuffix(got, " 200") {
			t.Errorf("got %q, want 200 s left", got)
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestTimeAsleepOfTheSystem(t *testing.T) {
	first := slept()
	if first < -time.Second { // a bit less than 0 if it was never asleep
		t.Errorf("%v", first)
	}
	for range 1000 {
		if again := slept(); again > first+time.Second {
			t.Fatalf("%v and then %v", first, again)
		}
	}
}

func BenchmarkClock(b *testing.B) {
	c := open(b, nil)
	b.Run("with sleep", func(b *testing.B) {
		for b.Loop() {
			c.now()
		}
	})
	b.Run("without", func(b *testing.B) {
		for b.Loop() {
			_ = time.Since(c.clock.epoch)
		}
	})
}

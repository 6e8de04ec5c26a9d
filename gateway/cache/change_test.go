package cache

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// change changes the options of c.
func change(t *testing.T, c *Cache, edit func(*Options)) {
	t.Helper()
	o := *c.options.Load()
	edit(&o)
	next, err := c.Prepare(o, true)
	if err != nil {
		t.Fatal(err)
	}
	next.Commit()
}

// putAll stores this number of names in c.
func putAll(t *testing.T, c *Cache, names int) {
	t.Helper()
	for i := range names {
		q := ask(t, fmt.Sprintf("n%d.example.com A", i))
		c.Put(q, says(t, q, fmt.Sprintf("n%d.example.com. 300 IN A 192.0.2.1", i)))
	}
}

// found returns the number of these names that c has.
func found(t *testing.T, c *Cache, names int) (n int) {
	t.Helper()
	for i := range names {
		if _, f := c.Append(nil, ask(t, fmt.Sprintf("n%d.example.com A", i))); f == Fresh {
			n++
		}
	}
	return n
}

func TestAChangeOfSizeKeepsAnswers(t *testing.T) {
	const names = 3000
	c := open(t, func(o *Options) { o.Size = 2 << 20 })
	putAll(t, c, names)
	f := func(size Size, want int) {
		t.Helper()
		change(t, c, func(o *Options) { o.Size = size })
		shards := c.shards()
		for i := range shards {
			shards[i].check(t)
		}
		u := c.Usage()
		if n := found(t, c, names); n < want || n != u.Answers || Size(u.Size) != size {
			t.Errorf("with %v, %d of %d answers are there, want %d; %+v", size, n, names, want, u)
		}
	}
	f(2<<20, names)
	f(8<<20, names)
	f(1<<20, names)
	f(0, 0)
	putAll(t, c, 10) // has no effect
	f(1<<20, 0)
	putAll(t, c, 10)
	f(4<<20, 10)
	o := *c.options.Load()
	o.Size = 2 << 20
	next, err := c.Prepare(o, false)
	if err != nil {
		t.Fatal(err)
	}
	next.Commit()
	if n := found(t, c, names); n != 0 {
		t.Errorf("%d answers moved that were not to", n)
	}
}

func TestASmallerCacheKeepsEntriesInUse(t *testing.T) {
	const names, inUse = 10_000, 500
	c := open(t, func(o *Options) { o.Size = 8 << 20 })
	putAll(t, c, names)
	for range 3 {
		found(t, c, inUse)
	}
	for i := range names { // so that entries in use move to the main queue
		q := ask(t, fmt.Sprintf("m%d.example.com A", i))
		c.Put(q, says(t, q, fmt.Sprintf("m%d.example.com. 300 IN A 192.0.2.1", i)))
	}
	before := c.Usage()
	change(t, c, func(o *Options) { o.Size = 1 << 20 })
	after := c.Usage()
	if n := found(t, c, inUse); n < inUse*9/10 {
		t.Errorf("%d of the %d in use are left; before %+v, after %+v", n, inUse, before, after)
	}
	if after.Evicted <= before.Evicted || after.Answers >= before.Answers || after.Bytes > 1<<20 {
		t.Errorf("before %+v, after %+v", before, after)
	}
	change(t, c, func(o *Options) { o.Size = 2 << 20 })
	if u := c.Usage(); u.Evicted < after.Evicted {
		t.Errorf("evictions went from %d back to %d", after.Evicted, u.Evicted)
	}
}

func TestOtherLimitsApplyAtOnce(t *testing.T) {
	c := open(t, nil)
	q := ask(t, "www.example.com A")
	f := func(edit func(*Options), want uint32) {
		t.Helper()
		change(t, c, edit)
		c.Put(q, says(t, q, "www.example.com. 300 IN A 192.0.2.1"))
		reply, _ := c.Append(nil, q)
		var m dns.Msg
		if err := m.Unpack(reply); err != nil || len(m.Answer) != 1 {
			t.Fatalf("got %v, %v", m, err)
		}
		if got := m.Answer[0].Header().Ttl; got != want {
			t.Errorf("TTL %d, want %d", got, want)
		}
	}
	f(func(*Options) {}, 300)
	f(func(o *Options) { o.MaxTTL = time.Minute }, 60)
	f(func(o *Options) { o.MaxTTL, o.MinTTL = time.Hour, 10*time.Minute }, 600)
	change(t, c, func(o *Options) { o.StaleAfter = time.Second })
	if got := c.StaleAfter(); got != time.Second {
		t.Errorf("stale answers after %v", got)
	}
	for _, edit := range []func(*Options){
		func(o *Options) { o.MaxTTL = 0 },
		func(o *Options) { o.Size = 1 },
	} {
		o := *c.options.Load()
		edit(&o)
		if _, err := c.Prepare(o, true); err == nil {
			t.Errorf("%+v can be had", o)
		}
	}
}

// A look-up that has just got a reference to the old store uses the new one.
func TestALookupDuringAChangeUsesTheNewStore(t *testing.T) {
	c := open(t, func(o *Options) { o.Size = 2 << 20 })
	putAll(t, c, 1)
	for range 100 {
		next, err := newStore(*c.options.Load())
		if err != nil {
			t.Fatal(err)
		}
		before := c.store.Load()
		c.move(before, next)
		before.close()
		looks := make(chan int)
		go func() {
			looks <- 0
			looks <- found(t, c, 1)
		}()
		<-looks
		runtime.Gosched()
		c.store.Store(next)
		if n := <-looks; n != 1 {
			t.Fatal("the answer was not found")
		}
	}
}

// TestACacheServesWhileItChanges is for the race detector, and for look-ups in memory
// that is freed.
func TestACacheServesWhileItChanges(t *testing.T) {
	const names = 500
	c := open(t, func(o *Options) { o.Size = 2 << 20 })
	putAll(t, c, names)
	end := make(chan struct{})
	var clients sync.WaitGroup
	for range 3 {
		clients.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				if n := found(t, c, names); n < names {
					t.Errorf("%d of %d answers", n, names)
				}
				putAll(t, c, names/10)
				c.Usage()
			}
		})
	}
	for i := range 20 {
		change(t, c, func(o *Options) { o.Size = Size(2+i%3) << 20 })
	}
	close(end)
	clients.Wait()
}

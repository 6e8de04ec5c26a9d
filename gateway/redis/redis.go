// Package redis is a second-level cache that several gateways share, in Redis or
// Valkey.
//
// It is asked when a gateway's own cache has no answer, for five milliseconds at the
// most, and written to behind the back of queries. Gateways need it for nothing: as
// soon as it is slow, gone, or full of rubbish, they do without, and try now and then
// whether it is back.
package redis

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"dotgate/gateway/wire"
)

const (
	// maxReads is how many queries wait for it at once; others do without.
	maxReads = 32
	// maxFailures is how many times in a row it may fail before it is left alone.
	// Then it costs nothing: a ping, not a client's query, finds out when it is back.
	maxFailures = 3
	// pingMin and pingMax bound the time between two pings, which grows.
	pingMin, pingMax = 250 * time.Millisecond, 5 * time.Second
	// pingLimit and dialLimit are how long a ping and a connection may take, and
	// writeLimit how long a batch may: no query waits for any of these.
	pingLimit, dialLimit, writeLimit = time.Second, 500 * time.Millisecond, time.Second
	// maxQueue is how many answers wait to be written, and maxBatch how many are in
	// one go.
	maxQueue, maxBatch = 1024, 64
	// maxLife is how long anything is kept.
	maxLife = 24 * time.Hour
	// apart is how far the clocks of gateways may be apart for their answers to be
	// of use. Nothing gets older than its TTL from here on.
	apart = 2 * time.Second
	// ending is the part of its life that an answer must have left, one in so many:
	// who renews what is popular before its end would get the same again.
	ending = 10
)

// A Resolver is who knows what the cache does not.
type Resolver interface {
	// Ask has done called once with the answer to q, or an error, by the deadline.
	// Neither of them blocks.
	Ask(q wire.Query, deadline time.Time, done func(wire.Answer, error))
}

// A Cache is the connection to it.
type Cache struct {
	o      Options
	digest func() [32]byte
	client redis.UniversalClient
	log    *slog.Logger
	up     atomic.Bool
	failed atomic.Int32  // in a row
	down   chan struct{} // one place: it is left alone from now on
	reads  chan struct{} // a place for each
	queue  chan entry
	counts counters
}

// An entry is an answer to be written.
type entry struct {
	key   string
	value []byte
	life  time.Duration
}

// New checks all options and returns a Cache. Digest is of all that answers depend
// on: gateways with different ones share nothing. Call Run; until then, the Cache
// has nothing and takes nothing.
func New(o Options, digest func() [32]byte) (*Cache, error) {
	var problems []error
	o.Check(func(option, problem string) {
		problems = append(problems, fmt.Errorf("cache.redis.%s %s", option, problem))
	})
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	options, err := o.client()
	if err != nil {
		return nil, fmt.Errorf("cache.redis.ca_file: %w", err)
	}
	quieten.Do(func() { redis.SetLogger(quiet{o.Log}) })
	return &Cache{
		o: o, digest: digest, client: redis.NewUniversalClient(options), log: o.Log,
		down: make(chan struct{}, 1), reads: make(chan struct{}, maxReads), queue: make(chan entry, maxQueue),
	}, nil
}

// quieten is for the one logger that all clients of a process have.
var quieten sync.Once

// quiet has what the client logs told to who wants to know everything.
type quiet struct{ log *slog.Logger }

func (q quiet) Printf(_ context.Context, format string, v ...any) {
	q.log.Debug("redis", "says", fmt.Sprintf(format, v...))
}

// Before returns a Resolver that looks here before it asks next. If c is nil, it is
// next itself.
func (c *Cache) Before(next Resolver) Resolver {
	if c == nil {
		return next
	}
	return &before{c, next}
}

type before struct {
	*Cache
	next Resolver
}

// Ask has done called with the answer that the cache has for q, or else with what
// the Resolver says. While the cache is left alone, it is as if there were none.
func (b *before) Ask(q wire.Query, deadline time.Time, done func(wire.Answer, error)) {
	b.ask(q, done, func(done func(wire.Answer, error)) { b.next.Ask(q, deadline, done) })
}

// AskFor is Ask for who may want to know what the Resolver does, if it can tell: it
// does so to what is in ctx.
func (b *before) AskFor(ctx context.Context, q wire.Query, deadline time.Time, done func(wire.Answer, error)) {
	telling, ok := b.next.(interface {
		AskFor(ctx context.Context, q wire.Query, deadline time.Time, done func(wire.Answer, error))
	})
	if !ok {
		b.Ask(q, deadline, done)
		return
	}
	b.ask(q, done, func(done func(wire.Answer, error)) { telling.AskFor(ctx, q, deadline, done) })
}

// ask does what Ask does, with next to ask the Resolver.
func (b *before) ask(q wire.Query, done func(wire.Answer, error), next func(done func(wire.Answer, error))) {
	if q.Scoped() || !b.up.Load() {
		next(done)
		return
	}
	keep := func(a wire.Answer, err error) {
		done(a, err) // the client comes first
		if err == nil && !a.IsZero() {
			b.put(q, a)
		}
	}
	select {
	case b.reads <- struct{}{}:
	default:
		b.counts.skipped.Add(1)
		next(keep)
		return
	}
	go func() { // Run waits for it
		a, ok := b.get(q)
		<-b.reads
		if ok {
			done(a, nil)
			return
		}
		next(keep)
	}()
}

func (c *Cache) get(q wire.Query) (a wire.Answer, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), c.o.Limit)
	defer cancel()
	value, err := c.client.Get(ctx, c.key(q)).Bytes()
	switch {
	case errors.Is(err, redis.Nil):
		c.worked()
		c.counts.misses.Add(1)
		return a, false
	case err != nil:
		c.counts.readErrors.Add(1)
		c.failure(err)
		return a, false
	}
	c.worked()
	if a, err = decode(q, value, time.Now()); err != nil {
		if errors.Is(err, errEnding) {
			c.counts.misses.Add(1)
		} else {
			c.counts.invalid.Add(1)
		}
		return a, false
	}
	c.counts.hits.Add(1)
	return a, true
}

func (c *Cache) put(q wire.Query, a wire.Answer) {
	if a.Kind() == wire.Failure || a.TTL() == 0 {
		return
	}
	value, err := encode(q, a, time.Now())
	if err != nil {
		return // there is no such query
	}
	select {
	case c.queue <- entry{c.key(q), value, min(time.Duration(a.TTL())*time.Second, maxLife)}:
	default:
		c.counts.dropped.Add(1)
	}
}

func (c *Cache) key(q wire.Query) string {
	digest := c.digest()
	key := append([]byte(c.o.Prefix), hex.EncodeToString(digest[:6])...)
	return string(q.AppendKey(append(key, ':')))
}

var (
	errEnding  = errors.New("its end is near")
	errInvalid = errors.New("not an answer of a gateway, or from a clock that goes wrong")
)

// encode returns what is kept of a, the answer to q, which has just come: when that
// was, in Unix nanoseconds, and the message.
func encode(q wire.Query, a wire.Answer, came time.Time) ([]byte, error) {
	ours, err := wire.KeyQuery(q.AppendKey(nil))
	if err != nil {
		return nil, err
	}
	return a.AppendReply(binary.BigEndian.AppendUint64(nil, uint64(came.UnixNano())), ours, wire.Terms{}), nil
}

// decode verifies what encode made as if an upstream had sent it, and returns the
// answer to q with the TTLs that it has left.
func decode(q wire.Query, value []byte, now time.Time) (wire.Answer, error) {
	if len(value) < 8 {
		return wire.Answer{}, errInvalid
	}
	age := now.Sub(time.Unix(0, int64(binary.BigEndian.Uint64(value))))
	if age < -apart {
		return wire.Answer{}, errInvalid
	}
	ours, err := wire.KeyQuery(q.AppendKey(nil))
	if err != nil {
		return wire.Answer{}, err
	}
	whole, err := wire.ParseAnswer(ours, value[8:])
	if err != nil || whole.Kind() == wire.Failure {
		return wire.Answer{}, errInvalid
	}
	life := time.Duration(whole.TTL()) * time.Second
	if age = max(age, 0); life-age < max(life/ending, time.Second) {
		return wire.Answer{}, errEnding
	}
	// The TTLs in the message count down, so that whoever gets it counts on.
	return wire.ParseAnswer(q, whole.AppendReply(nil, ours, wire.Terms{Age: age}))
}

func (c *Cache) worked() {
	if c.failed.Load() != 0 {
		c.failed.Store(0)
	}
}

// failure takes note that it did not work. A query that ends is no failure.
func (c *Cache) failure(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	if c.failed.Add(1) == maxFailures && c.up.CompareAndSwap(true, false) {
		c.log.Warn("the shared cache fails and is left alone (cache.redis)", "error", err)
		c.counts.downs.Add(1)
		select {
		case c.down <- struct{}{}:
		default:
		}
	}
}

// Run writes, and looks whether the server is there while it is not, until ctx is
// done. It blocks, and returns nil: what fails is logged, for it is no reason not to
// serve. From then on the Cache is left alone. If c is nil, there is nothing to do.
func (c *Cache) Run(ctx context.Context) error {
	if c == nil {
		return nil
	}
	defer c.client.Close()
	defer func() {
		c.up.Store(false)
		for range maxReads { // those that there are end, and no other begins
			c.reads <- struct{}{}
		}
	}()
	told := false
	for wait := pingMin; ctx.Err() == nil; {
		if err := c.ping(ctx); err == nil {
			wait, told = pingMin, false
			c.failed.Store(0)
			c.up.Store(true)
			c.log.Info("the shared cache is there (cache.redis)", "at", c.o.URL)
			c.write(ctx)
		} else if !told && ctx.Err() == nil && c.counts.downs.Load() == 0 {
			told = true
			c.log.Warn("the shared cache is not there; it is looked for (cache.redis)", "at", c.o.URL, "error", err)
		}
		c.forget()
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		wait = min(2*wait, pingMax)
	}
	return nil
}

func (c *Cache) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingLimit)
	defer cancel()
	return c.client.Ping(ctx).Err()
}

// forget drops what was to be written.
func (c *Cache) forget() {
	for {
		select {
		case <-c.queue:
			c.counts.dropped.Add(1)
		default:
			return
		}
	}
}

// write writes what comes, as long as that works.
func (c *Cache) write(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.down:
			return
		case first := <-c.queue:
			batch := []entry{first}
			for len(batch) < maxBatch && len(c.queue) > 0 {
				batch = append(batch, <-c.queue)
			}
			c.writeBatch(ctx, batch)
		}
	}
}

func (c *Cache) writeBatch(ctx context.Context, batch []entry) {
	ctx, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	_, err := c.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, e := range batch {
			p.Set(ctx, e.key, e.value, e.life)
		}
		return nil
	})
	if err != nil {
		c.counts.writeErrors.Add(uint64(len(batch)))
		c.failure(err)
		return
	}
	c.worked()
	c.counts.written.Add(uint64(len(batch)))
}

type counters struct {
	hits, misses, skipped, invalid, readErrors atomic.Uint64
	written, dropped, writeErrors, downs       atomic.Uint64
}

// Counts are totals since New.
type Counts struct {
	Up     bool              // it is asked now
	Downs  uint64            // times that it was left alone
	Reads  map[string]uint64 // by result: hit, miss, skipped, invalid, failed
	Writes map[string]uint64 // answers, by result: written, dropped, failed
}

// Counts returns those of now. A nil Cache has none.
func (c *Cache) Counts() Counts {
	if c == nil {
		return Counts{}
	}
	n := &c.counts
	return Counts{
		Up: c.up.Load(), Downs: n.downs.Load(),
		Reads: map[string]uint64{
			"hit": n.hits.Load(), "miss": n.misses.Load(), "skipped": n.skipped.Load(),
			"invalid": n.invalid.Load(), "failed": n.readErrors.Load(),
		},
		Writes: map[string]uint64{"written": n.written.Load(), "dropped": n.dropped.Load(), "failed": n.writeErrors.Load()},
	}
}

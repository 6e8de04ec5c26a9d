// Package redis is a second-level cache that several gateways share, in Redis or
// Valkey.
//
// A gateway reads from it when its own cache has no answer, for 5 ms at most by default,
// and writes to it in the background. No gateway depends on it: after maxFailures
// failures in a row it is bypassed, and pings find out when it works again. Values are
// verified as answers of upstreams are.
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

	"dotgate/configs/bounds"
	"dotgate/gateway/statelog"
	"dotgate/gateway/wire"
)

const (
	// maxReads bounds concurrent reads; further queries bypass the shared cache.
	maxReads = 32
	// maxFailures is the number of failures in a row after which the server is bypassed.
	// Then it costs clients nothing: pings find out when it works again.
	maxFailures = 3
	// pingMin and pingMax bound the growing pause between two pings.
	pingMin, pingMax = 250 * time.Millisecond, 5 * time.Second
	// pingLimit, dialLimit and writeLimit bound a ping, a new connection and the write
	// of a batch. No query waits for any of these.
	pingLimit, dialLimit, writeLimit = time.Second, 500 * time.Millisecond, time.Second
	// maxQueue bounds the answers that wait to be written, and maxBatch those in one
	// write.
	maxQueue, maxBatch = 1024, 64
	// maxLife bounds the time to live of a value in Redis.
	maxLife = 24 * time.Hour
	// maxSkew is how far ahead the clock of another gateway may be. Answers from further
	// in the future are not used.
	maxSkew = 2 * time.Second
	// remainingPart: an answer is used while more than 1/remainingPart of its TTL is
	// left. A prefetch near the end of the TTL would otherwise get the same answer again.
	remainingPart = 10
)

// A Resolver answers the queries that the shared cache has no answer for.
type Resolver interface {
	// Ask has done called once with the answer to q, or an error, by the deadline of ctx.
	// Neither of them blocks.
	Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error))
}

// A Cache is a client of the shared cache. A nil Cache is none.
type Cache struct {
	o      Options
	client redis.UniversalClient
	log    *slog.Logger
	state  statelog.State
	up     atomic.Bool
	failed atomic.Int32  // in a row
	down   chan struct{} // of size 1: the server is bypassed from now on
	reads  chan struct{} // a slot for each read
	queue  chan entry
	counts counters
}

// An entry is an answer to be written.
type entry struct {
	key   string
	value []byte
	life  time.Duration
}

// New checks all options and returns a Cache. Until Run is called, the Cache neither
// reads nor writes.
func New(o Options) (*Cache, error) {
	if err := bounds.Err("cache.redis.", o.Check); err != nil {
		return nil, err
	}
	options, err := o.client()
	if err != nil {
		return nil, fmt.Errorf("cache.redis.ca_file: %w", err)
	}
	setLogger.Do(func() { redis.SetLogger(debugLog{o.Log}) })
	return &Cache{
		o: o, client: redis.NewUniversalClient(options), log: o.Log,
		down: make(chan struct{}, 1), reads: make(chan struct{}, maxReads), queue: make(chan entry, maxQueue),
	}, nil
}

// setLogger sets the one logger that all clients of a process share.
var setLogger sync.Once

// debugLog receives the client library's log at level debug.
type debugLog struct{ log *slog.Logger }

func (q debugLog) Printf(_ context.Context, format string, v ...any) {
	q.log.Debug("redis", "says", fmt.Sprintf(format, v...))
}

// Before returns a Resolver that reads from c before it asks next. If c is nil, Before
// returns next. Digest covers the configuration that the answers of next depend on:
// Resolvers with different digests share nothing.
func (c *Cache) Before(next Resolver, digest [32]byte) Resolver {
	if c == nil {
		return next
	}
	return &before{c, next, c.o.Prefix + hex.EncodeToString(digest[:6]) + ":"}
}

type before struct {
	*Cache
	next   Resolver
	prefix string // of all keys
}

// Ask calls done with the answer of the shared cache or, if it has none or is bypassed,
// with the result of the Resolver.
func (b *before) Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	if q.Scoped() || !b.up.Load() {
		b.next.Ask(ctx, q, done)
		return
	}
	keep := func(a wire.Answer, err error) {
		done(a, err) // before the write: a client waits
		if err == nil && !a.IsZero() {
			b.put(q, a)
		}
	}
	select {
	case b.reads <- struct{}{}:
	default:
		b.counts.skipped.Add(1)
		b.next.Ask(ctx, q, keep)
		return
	}
	go func() { // Run waits for it
		a, ok := b.get(q)
		<-b.reads
		if ok {
			done(a, nil)
			return
		}
		b.next.Ask(ctx, q, keep)
	}()
}

func (c *before) get(q wire.Query) (a wire.Answer, ok bool) {
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
		if errors.Is(err, errExpiring) {
			c.counts.misses.Add(1)
		} else {
			c.counts.invalid.Add(1)
		}
		return a, false
	}
	c.counts.hits.Add(1)
	return a, true
}

func (c *before) put(q wire.Query, a wire.Answer) {
	if a.Kind() == wire.Failure || a.TTL() == 0 {
		return
	}
	value, err := encode(q, a, time.Now())
	if err != nil {
		return // cannot happen: q was parsed
	}
	select {
	case c.queue <- entry{c.key(q), value, min(time.Duration(a.TTL())*time.Second, maxLife)}:
	default:
		c.counts.dropped.Add(1)
	}
}

func (c *before) key(q wire.Query) string { return string(q.AppendKey([]byte(c.prefix))) }

var (
	errExpiring = errors.New("most of the TTL has passed")
	errInvalid  = errors.New("not an answer of a gateway, or written by a clock that is ahead")
)

// encode returns the value for a, the answer to q: the time at which it arrived, in Unix
// nanoseconds, and the message.
func encode(q wire.Query, a wire.Answer, arrived time.Time) ([]byte, error) {
	ours, err := wire.KeyQuery(q.AppendKey(nil))
	if err != nil {
		return nil, err
	}
	return a.AppendReply(binary.BigEndian.AppendUint64(nil, uint64(arrived.UnixNano())), ours, wire.Terms{}), nil
}

// decode verifies a value of encode as an answer of an upstream is verified, and returns
// the answer to q with the remaining TTLs.
func decode(q wire.Query, value []byte, now time.Time) (wire.Answer, error) {
	if len(value) < 8 {
		return wire.Answer{}, errInvalid
	}
	age := now.Sub(time.Unix(0, int64(binary.BigEndian.Uint64(value))))
	if age < -maxSkew {
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
	if age = max(age, 0); life-age < max(life/remainingPart, time.Second) {
		return wire.Answer{}, errExpiring
	}
	// The TTLs in the message are reduced by its age, so that caches count on from there.
	return wire.ParseAnswer(q, whole.AppendReply(nil, ours, wire.Terms{Age: age}))
}

func (c *Cache) worked() {
	if c.failed.Load() != 0 {
		c.failed.Store(0)
	}
}

// failure counts a failed command. A cancelled one is no failure.
func (c *Cache) failure(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	if c.failed.Add(1) == maxFailures && c.up.CompareAndSwap(true, false) {
		c.state.Fail(func(skipped int) {
			c.log.Warn("the shared cache failed and is bypassed (cache.redis)", "error", err, "failures_not_logged", skipped)
		})
		c.counts.downs.Add(1)
		select {
		case c.down <- struct{}{}:
		default:
		}
	}
}

// Run writes answers, and pings the server while it is bypassed, until ctx is done. It
// blocks. It returns nil, because a failure of the shared cache is logged and does not
// stop the gateway. After Run, the Cache is bypassed. Run of a nil Cache returns at once.
func (c *Cache) Run(ctx context.Context) error {
	if c == nil {
		return nil
	}
	defer c.client.Close()
	defer func() {
		c.up.Store(false)
		for range maxReads { // waits for the reads under way, and starts no other
			c.reads <- struct{}{}
		}
	}()
	logged := false
	for wait := pingMin; ctx.Err() == nil; {
		if err := c.ping(ctx); err == nil {
			wait, logged = pingMin, false
			c.failed.Store(0)
			c.up.Store(true)
			answered := func() { c.log.Info("the shared cache answered (cache.redis)", "address", c.o.URL) }
			if c.counts.downs.Load() == 0 {
				answered() // for the first time
			}
			c.state.Work(answered)
			c.write(ctx)
		} else if !logged && ctx.Err() == nil && c.counts.downs.Load() == 0 {
			logged = true
			c.log.Warn("the shared cache did not answer: pinging it until it does (cache.redis)", "address", c.o.URL, "error", err)
		}
		c.discard()
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, pingMax)
	}
	return nil
}

func (c *Cache) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingLimit)
	defer cancel()
	return c.client.Ping(ctx).Err()
}

func (c *Cache) discard() {
	for {
		select {
		case <-c.queue:
			c.counts.dropped.Add(1)
		default:
			return
		}
	}
}

// write writes queued answers until the server is bypassed.
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
	Up     bool              `json:"up"`     // false while the server is bypassed
	Downs  uint64            `json:"-"`      // changes from up to bypassed
	Reads  map[string]uint64 `json:"reads"`  // by result: hit, miss, skipped, invalid, failed
	Writes map[string]uint64 `json:"writes"` // answers, by result: written, dropped, failed
}

// Counts returns the totals. Those of a nil Cache are zero.
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

// Package querylog writes a log of queries and their replies, as JSON or dnstap.
//
// Note copies a query and its reply into an entry and returns at once. Run writes the
// entries to a file, a FIFO, a standard stream or a dnstap reader's socket. The log
// never delays a query: if 1,024 entries are pending, further ones are dropped and
// counted. If the output fails, it is opened again after 5 s, and entries are dropped
// meanwhile. Client addresses are anonymised before they are written, unless the option
// clients is full.
//
// Only regular files that are empty or a query log are renamed, truncated or removed.
// Of a query up to 512 octets are kept, of a reply up to 4,096.
package querylog

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"dotgate/configs/bounds"
	"dotgate/gateway/statelog"
	"dotgate/gateway/wire"
)

const (
	// maxPending is the most entries that wait to be written.
	maxPending = 1024
	// maxPacket and maxReply are the most octets of a query and a reply that are kept.
	maxPacket = 512
	maxReply  = 4096
	// retryDelay is the time after a failure until the output is tried again.
	retryDelay = 5 * time.Second
	// flushInterval is the longest time that an entry stays in a buffer.
	flushInterval = time.Second
	// drainTimeout is the longest time that pending entries are written at the end.
	drainTimeout = time.Second
)

// A Log is a query log. A nil Log discards all entries.
type Log struct {
	config  atomic.Pointer[config]
	entries chan *entry
	free    chan *entry
	sampled atomic.Uint64
	counts  counts
}

type counts struct{ written, dropped, failed atomic.Uint64 }

// A config is the configuration of a Log. It is immutable: Prepare replaces it.
type config struct {
	Options
	clients Clients
}

// An entry is a query and its reply. Entries are reused.
type entry struct {
	at        time.Time // of the reply
	took      time.Duration
	client    netip.AddrPort
	via       wire.Transport
	packet    []byte
	reply     []byte
	cached    bool
	packetBuf [maxPacket]byte
	replyBuf  [maxReply]byte
	truncated bool // the reply was longer than maxReply
}

// New checks all options and returns a Log, which writes in Run. Without an output it
// writes nothing.
func New(o Options) (*Log, error) {
	first, err := newConfig(o)
	if err != nil {
		return nil, err
	}
	l := &Log{entries: make(chan *entry, maxPending), free: make(chan *entry, maxPending)}
	l.config.Store(first)
	return l, nil
}

func newConfig(o Options) (*config, error) {
	c := &config{Options: o}
	return c, bounds.Err("query_log.", func(report bounds.Report) { c.clients = o.check(report) })
}

// Prepare prepares other options. The function that it returns puts them into effect,
// also for pending entries. After an error nothing has changed.
func (l *Log) Prepare(o Options) (commit func(), err error) {
	o.Log = l.config.Load().Log
	next, err := newConfig(o)
	return func() { l.config.Store(next) }, err
}

// Note logs packet, a query, and the reply to it. took is the time until the answer
// arrived, or 0 if no upstream was asked. It copies its arguments and never blocks.
func (l *Log) Note(client netip.AddrPort, via wire.Transport, packet, reply []byte, took time.Duration) {
	if l == nil || len(reply) < 12 || len(packet) > maxPacket {
		return
	}
	c := l.config.Load()
	failed := wire.HeaderRCode(reply) == wire.ServFail
	if c.Output == "" || c.Sample > 1 && l.sampled.Add(1)%uint64(c.Sample) != 0 && !failed {
		return
	}
	if len(l.entries) == maxPending {
		l.counts.dropped.Add(1)
		return
	}
	var e *entry
	select {
	case e = <-l.free:
	default:
		e = new(entry)
	}
	e.at, e.took, e.client, e.via, e.cached = time.Now(), took, client, via, took == 0
	e.packet = append(e.packetBuf[:0], packet...)
	e.truncated = len(reply) > maxReply
	e.reply = append(e.replyBuf[:0], reply[:min(len(reply), maxReply)]...)
	select {
	case l.entries <- e:
	default:
		l.counts.dropped.Add(1)
	}
}

// Counts are totals since New.
type Counts struct {
	Written uint64
	Dropped uint64 // because the output was too slow
	Failed  uint64 // because of an error of the output
}

// Counts returns the current totals.
func (l *Log) Counts() Counts {
	if l == nil {
		return Counts{}
	}
	return Counts{Written: l.counts.written.Load(), Dropped: l.counts.dropped.Load(), Failed: l.counts.failed.Load()}
}

// Run writes entries until ctx is done, and then the pending ones, for at most a second.
// It blocks, and always returns nil.
func (l *Log) Run(ctx context.Context) error {
	if l == nil {
		return nil
	}
	w := writer{log: l}
	defer w.close()
	tick := time.NewTicker(flushInterval)
	defer tick.Stop()
	for {
		select {
		case e := <-l.entries:
			w.put(e)
		case <-tick.C:
			w.applyConfig()
			w.flush()
		case <-ctx.Done():
			w.drain(time.Now().Add(drainTimeout))
			return nil
		}
	}
}

// A writer writes entries to the configured output.
type writer struct {
	log       *Log
	config    *config
	out       output // or nil
	notBefore time.Time
	failing   bool // the last write failed, or the reader stalled
	state     statelog.State
}

// applyConfig closes the output if the configuration has changed.
func (w *writer) applyConfig() {
	if now := w.log.config.Load(); now != w.config {
		w.close()
		w.config, w.notBefore, w.failing, w.state = now, time.Time{}, false, statelog.State{}
	}
}

func (w *writer) close() {
	if w.out != nil {
		w.out.close()
		w.out = nil
	}
}

// drain writes the pending entries, until deadline.
func (w *writer) drain(deadline time.Time) {
	for {
		select {
		case e := <-w.log.entries:
			if time.Now().After(deadline) {
				w.log.counts.dropped.Add(1)
				w.log.release(e)
				continue
			}
			w.put(e)
		default:
			return
		}
	}
}

func (w *writer) put(e *entry) {
	l := w.log
	defer l.release(e)
	w.applyConfig()
	if w.config.Output == "" {
		return // the output was removed after the entry was added
	}
	if time.Now().Before(w.notBefore) {
		l.counts.failed.Add(1)
		return
	}
	var err error
	if w.out == nil {
		w.out, err = w.config.open(&l.counts)
	}
	if err == nil {
		err = w.out.put(w.config.anonymize(e))
	}
	switch {
	case errors.Is(err, errStalled):
		l.counts.dropped.Add(1)
	case err != nil:
		l.counts.failed.Add(1)
	case w.failing:
		err = w.out.flush() // that it fits into the buffer does not mean that the output works
	}
	w.result(err)
}

func (w *writer) flush() {
	if w.out == nil || time.Now().Before(w.notBefore) {
		return
	}
	if err := w.out.flush(); err != nil {
		w.result(err)
	}
}

// result handles the result of a write. A failed output is closed, and opened again
// after retryDelay. If the reader stalls or the disk is full, the output stays open, as
// its buffer has the rest of a partly written entry.
func (w *writer) result(err error) {
	r := w.config
	if err == nil {
		if w.failing {
			w.state.Work(func() { r.logger().Info("the query log is written again", "output", r.Output) })
		}
		w.failing = false
		return
	}
	if !errors.Is(err, errStalled) {
		w.notBefore = time.Now().Add(retryDelay)
		if !isTemporary(err) {
			w.close()
		}
	}
	w.failing = true
	w.state.Fail(func(skipped int) {
		r.logger().Warn("the query log could not be written, and entries are dropped (query_log.output)",
			"output", r.Output, "error", err, "failures_not_logged", skipped)
	})
}

func (l *Log) release(e *entry) {
	select {
	case l.free <- e:
	default:
	}
}

// anonymize changes the client of e as the option clients says, and returns e. The port
// is removed unless clients is full.
func (r *config) anonymize(e *entry) *entry {
	addr, port := r.clients.Show(e.client.Addr()), e.client.Port()
	if r.Clients != "full" {
		port = 0
	}
	e.client = netip.AddrPortFrom(addr, port)
	return e
}

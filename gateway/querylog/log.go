// Package querylog writes down what clients asked and got.
//
// It never holds up a query: what it can't write in time is dropped, and counted.
// Clients are anonymised before anything leaves memory, unless one asks for it.
package querylog

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

const (
	// waiting is how many entries may wait to be written.
	waiting = 1024
	// packetMax and replyMax are how much of an entry's messages is kept.
	packetMax = 512
	replyMax  = 4096
	// retry is how long after a failure the output is tried again.
	retry = 5 * time.Second
	// flushEvery is how long an entry may wait in a buffer.
	flushEvery = time.Second
)

// A Log takes entries.
type Log struct {
	rules   atomic.Pointer[rules]
	entries chan *entry
	free    chan *entry
	turn    atomic.Uint64
	counts  struct{ written, dropped, failed atomic.Uint64 }
}

// Rules are what may change while a Log writes. They never change; others take
// their place.
type rules struct {
	Options
	clients Clients
}

// An entry is what was asked and answered. It is used again and again.
type entry struct {
	at     time.Time // of the reply
	took   time.Duration
	client netip.AddrPort
	via    wire.Transport
	packet []byte
	reply  []byte
	cached bool
	pRoom  [packetMax]byte
	rRoom  [replyMax]byte
	cutOff bool // the reply was longer
}

// New checks all options and returns a Log. Run has to be called for it to write;
// without an output, it writes nothing.
func New(o Options) (*Log, error) {
	first, err := newRules(o)
	if err != nil {
		return nil, err
	}
	l := &Log{entries: make(chan *entry, waiting), free: make(chan *entry, waiting)}
	l.rules.Store(first)
	return l, nil
}

func newRules(o Options) (*rules, error) {
	var problems []error
	r := &rules{Options: o}
	r.clients = o.check(func(option, problem string) {
		problems = append(problems, fmt.Errorf("query_log.%s %s", option, problem))
	})
	return r, errors.Join(problems...)
}

// Prepare gets other options ready. They take effect with the function that it
// returns, for what has not been written by then too. On an error, nothing has
// changed.
func (l *Log) Prepare(o Options) (commit func(), err error) {
	o.Log = l.rules.Load().Log
	next, err := newRules(o)
	return func() { l.rules.Store(next) }, err
}

// Note takes note of a reply to packet, which took so long; 0 if it could be had
// at once. It copies what it keeps, and doesn't wait.
func (l *Log) Note(client netip.AddrPort, via wire.Transport, packet, reply []byte, took time.Duration) {
	if l == nil || len(reply) < 12 || len(packet) > packetMax {
		return
	}
	now := l.rules.Load()
	failed := wire.HeaderRCode(reply) == wire.ServFail
	if now.Output == "" || now.Sample > 1 && l.turn.Add(1)%uint64(now.Sample) != 0 && !failed {
		return
	}
	if len(l.entries) == waiting {
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
	e.packet = append(e.pRoom[:0], packet...)
	e.cutOff = len(reply) > replyMax
	e.reply = append(e.rRoom[:0], reply[:min(len(reply), replyMax)]...)
	select {
	case l.entries <- e:
	default:
		l.counts.dropped.Add(1)
	}
}

// Counts are totals since New.
type Counts struct {
	Written uint64
	Dropped uint64 // because the output was not quick enough
	Failed  uint64 // because it could not be written
}

// Counts returns the totals.
func (l *Log) Counts() Counts {
	if l == nil {
		return Counts{}
	}
	return Counts{Written: l.counts.written.Load(), Dropped: l.counts.dropped.Load(), Failed: l.counts.failed.Load()}
}

// Run writes entries until ctx is done, and then those that wait. It blocks. If
// the output fails, it tries again after a while, and goes on without meanwhile.
func (l *Log) Run(ctx context.Context) error {
	if l == nil {
		return nil
	}
	w := writer{log: l}
	defer w.close()
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case e := <-l.entries:
			w.put(e)
		case <-tick.C:
			w.follow()
			if w.out != nil {
				w.out.flush() // an error comes again with the next entry
			}
		case <-ctx.Done():
			for {
				select {
				case e := <-l.entries:
					w.put(e)
				default:
					return nil
				}
			}
		}
	}
}

// A writer writes entries to the output that the rules of the moment have.
type writer struct {
	log       *Log
	rules     *rules
	out       output // or nil
	notBefore time.Time
	troubled  bool // which was told
}

// follow leaves the output if there are other rules now.
func (w *writer) follow() {
	if now := w.log.rules.Load(); now != w.rules {
		w.close()
		w.rules, w.notBefore, w.troubled = now, time.Time{}, false
	}
}

func (w *writer) close() {
	if w.out != nil {
		w.out.close()
		w.out = nil
	}
}

func (w *writer) put(e *entry) {
	l := w.log
	defer l.release(e)
	w.follow()
	if w.rules.Output == "" {
		return // there was one when it came
	}
	if w.out == nil && time.Now().Before(w.notBefore) {
		l.counts.failed.Add(1)
		return
	}
	var err error
	if w.out == nil {
		w.out, err = w.rules.open()
	}
	if err == nil {
		err = w.out.put(w.rules.anonymous(e))
	}
	if err == nil {
		l.counts.written.Add(1)
		if w.troubled {
			w.rules.logger().Info("the query log is written again", "output", w.rules.Output)
		}
		w.troubled = false
		return
	}
	l.counts.failed.Add(1)
	w.close()
	w.notBefore = time.Now().Add(retry)
	if !w.troubled {
		w.rules.logger().Warn("the query log can't be written (query_log.output)", "output", w.rules.Output, "error", err)
	}
	w.troubled = true
}

func (l *Log) release(e *entry) {
	select {
	case l.free <- e:
	default:
	}
}

// anonymous returns e with its client as the options want it. Only one that is shown
// in full has its port.
func (r *rules) anonymous(e *entry) *entry {
	addr, port := r.clients.Show(e.client.Addr()), e.client.Port()
	if r.Clients != "full" {
		port = 0
	}
	e.client = netip.AddrPortFrom(addr, port)
	return e
}

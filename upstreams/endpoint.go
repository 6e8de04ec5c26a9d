package upstreams

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// suspectFor is how long an address that may have failed is tried after the others.
	suspectFor = 30 * time.Second
	// An address that failed, or was slower, while another one worked is avoided for
	// pauseMin at first, then longer each time, up to pauseMax.
	pauseMin = 30 * time.Second
	pauseMax = 15 * time.Minute
	// ednsPause is how long queries leave out EDNS for a server that does not know it
	// (RFC 6891 section 6.2.2), and casePause how long the case of letters is not mixed for
	// a server that does not keep it.
	ednsPause = 10 * time.Minute
	casePause = time.Hour
	// caseChangesMin is how many answers in a row must match in all but the case of
	// letters to show that a server does not keep it.
	caseChangesMin = 3
)

// An endpoint is one address of an upstream and one transport, with what is known about it.
type endpoint struct {
	addr        netip.AddrPort
	via         transport           // nil for UDP
	rung        int                 // of via: 0 for the best transport of the upstream
	port        *port               // or nil, if no Network is asked
	suspected   expiring[time.Time] // when it last seemed to fail
	hello       expiring[helloMemory]
	noEDNS      limitation                // the server does not know EDNS
	ignoresCase limitation                // the server does not keep the case of letters
	caseChanges atomic.Int32              // answers in a row that match in all but the case of letters
	answered    atomic.Pointer[time.Time] // last, over UDP; or nil

	attempts, dials outcomeCounts
	dialled         atomic.Pointer[dialResult] // the last one, or nil

	mu        sync.Mutex // guards the fields below
	penalties int        // how often it failed while another address worked, since it last worked
	until     time.Time  // when it may be probed
	probing   bool       // a probe is in progress
}

// A dialResult is the result of a dial.
type dialResult struct {
	at      time.Time
	outcome Outcome
}

// countDial takes note of a dial that has ended.
func (e *endpoint) countDial(outcome Outcome) {
	e.dials[outcome].Add(1)
	e.dialled.Store(&dialResult{time.Now(), outcome})
}

// transport returns the name of the transport, or "" if e stands for no address.
func (e *endpoint) transport() string {
	switch {
	case e.via != nil:
		return e.via.String()
	case e.addr.IsValid():
		return UDP
	}
	return ""
}

// String returns the address and the transport, for people.
func (e *endpoint) String() string { return fmt.Sprintf("%v (%s)", e.addr, e.transport()) }

// An expiring is something learnt, which is forgotten after some time. The zero expiring
// knows nothing.
type expiring[T any] struct{ known atomic.Pointer[lesson[T]] }

type lesson[T any] struct {
	what  T
	until time.Time
}

func (e *expiring[T]) learn(what T, d time.Duration) {
	e.known.Store(&lesson[T]{what, time.Now().Add(d)})
}

func (e *expiring[T]) forget() { e.known.Store(nil) }

// get returns what was learnt, or zero and false.
func (e *expiring[T]) get() (what T, holds bool) {
	if known := e.known.Load(); known != nil && time.Now().Before(known.until) {
		return known.what, true
	}
	return what, false
}

// A limitation is something that a server does not support, as long as that is remembered.
type limitation struct{ expiring[struct{}] }

func (l *limitation) learn(d time.Duration) { l.expiring.learn(struct{}{}, d) }

func (l *limitation) holds() bool {
	_, holds := l.get()
	return holds
}

// suspect puts the address behind the others for a while.
func (e *endpoint) suspect() { e.suspected.learn(time.Now(), suspectFor) }

// penalize records that the address failed, or was slower, while another one worked. It is
// avoided until a probe succeeds, which is made after a pause that grows. Several failures
// within one pause count once.
func (e *endpoint) penalize(log *slog.Logger, reason Outcome) {
	now := time.Now()
	e.mu.Lock()
	if e.penalties > 0 && now.Before(e.until) {
		e.mu.Unlock()
		return
	}
	pause := min(pauseMin<<min(e.penalties, 10), pauseMax)
	e.penalties++
	e.until = now.Add(pause)
	first := e.penalties == 1
	e.mu.Unlock()
	if first {
		log.Warn("address is avoided: another one works better", "address", e.addr, "reason", reason, "pause", pause)
	}
}

// clearPenalties records that the address works.
func (e *endpoint) clearPenalties(log *slog.Logger) {
	e.suspected.forget()
	e.mu.Lock()
	penalties := e.penalties
	e.penalties, e.until = 0, time.Time{}
	e.mu.Unlock()
	if penalties > 0 {
		log.Info("address works again", "address", e.addr, "failures", penalties)
	}
}

// startProbe reports whether the caller is to probe the address: the pause is over, and no
// other probe is in progress. After true, endProbe has to be called.
func (e *endpoint) startProbe() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.penalties == 0 || e.probing || time.Now().Before(e.until) {
		return false
	}
	e.probing = true
	return true
}

func (e *endpoint) endProbe() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.probing = false
}

// networkChanged ends the pause: the cause of the failures may be gone.
func (e *endpoint) networkChanged() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.until = time.Time{}
}

// avoided returns until when the address is avoided at least, and how often it failed;
// zero if it is not avoided.
func (e *endpoint) avoided() (until time.Time, penalties int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.until, e.penalties
}

// A rank orders addresses: the lower the better.
type rank struct {
	blocked   int // 1 if its port is
	penalties int
	suspected time.Time // zero if it is not
}

func (e *endpoint) rank() (s rank) {
	if e.port.blockedAt() != nil {
		s.blocked = 1
	}
	_, s.penalties = e.avoided()
	s.suspected, _ = e.suspected.get()
	return s
}

func (s rank) compare(t rank) int {
	return cmp.Or(cmp.Compare(s.blocked, t.blocked), cmp.Compare(s.penalties, t.penalties), s.suspected.Compare(t.suspected))
}

// inOrder returns endpoints, the best first: those that work, those at ports that the network
// blocks at the end. In between are those that failed, the one that failed least often first, and of
// these the one that failed last at the end.
func inOrder[E interface {
	comparable
	rank() rank
}](endpoints []E) []E {
	ranks := make(map[E]rank, len(endpoints))
	for _, e := range endpoints {
		ranks[e] = e.rank()
	}
	order := slices.Clone(endpoints)
	slices.SortStableFunc(order, func(a, b E) int { return ranks[a].compare(ranks[b]) })
	return order
}

// without describes what ClientHellos and queries leave out, for people.
func (e *endpoint) without() string {
	var left []string
	if hello, _ := e.hello.get(); hello.without != omitNothing {
		left = append(left, hello.without.String())
	}
	if e.noEDNS.holds() {
		left = append(left, "edns")
	}
	if e.ignoresCase.holds() {
		left = append(left, "case")
	}
	return strings.Join(left, ",")
}

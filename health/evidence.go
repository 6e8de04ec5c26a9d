package health

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

const (
	// window is how long a wrong answer that the balancer has reported counts.
	window = 10 * time.Second
	// An upstream is Erroring if, within a window, it got mismatchedNamesMin names wrong,
	// and with them mismatchedShare of all answers and domainShare of all domains. Upstreams
	// that get 30 % wrong are to be found. Both shares are lower, because they are
	// estimates, and because the domains are those of up to two windows.
	mismatchedNamesMin = 10
	mismatchedShare    = 0.25
	domainShare        = 0.2
	// The names must be of mismatchedDomainsMin registrable domains, and asked for by
	// mismatchedClientsMin clients: one client, or the owner of one zone, must not take an
	// upstream out for all others. If fewer domains or clients were seen, all of them are
	// enough.
	mismatchedDomainsMin = 5
	mismatchedClientsMin = 2
	// namesMax bounds the number of names that are counted.
	namesMax = 1024
	// suspectProbePause is the least time between two probes that wrong answers cause.
	suspectProbePause = 500 * time.Millisecond
)

// evidence has what live queries say about the answers of an upstream.
type evidence struct {
	// Answers write these.
	answers   atomic.Int64
	seenSince atomic.Int64 // instant of the begin of seen
	seen      audience     // of all answers, right or wrong
	before    audience     // the same, of the window before

	// These are guarded by mu of the Monitor, and cover one window.
	opened          time.Time
	mismatchedNames map[uint64]struct{} // hashes of the names that it got wrong
	mismatched      audience            // of the queries for them
	rightNames      map[uint64]struct{} // hashes of names with a result here and an error elsewhere, since the last wrong one
	right           audience            // of the queries for them
	probed          time.Time           // the time of the last probe that they caused

	// These are guarded by mu of the Monitor, too. They decide which losses count, and never
	// change the state.
	missedSince time.Time // when the window began
	missed      audience  // of queries without an answer in time
}

// An audience is the set of domains and the set of clients of some queries.
type audience struct {
	domains domainSet
	clients clientSet
}

func (a *audience) add(q wire.Query) {
	a.domains.add(q.DomainHash())
	a.clients.add(q.Client())
}

func (a *audience) join(other *audience) {
	a.domains.join(&other.domains)
	a.clients.join(&other.clients)
}

// size returns how many domains and clients are in a.
func (a *audience) size() audienceSize { return audienceSize{a.domains.count(), a.clients.count()} }

func (a *audience) clear() {
	a.domains.clear()
	a.clients.clear()
}

// reset begins a new window of wrong answers.
func (e *evidence) reset(now time.Time) {
	e.answers.Store(0)
	e.mismatched.clear()
	e.opened, e.mismatchedNames = now, make(map[uint64]struct{})
	e.forgetRight()
}

func (e *evidence) forgetRight() {
	clear(e.rightNames)
	e.right.clear()
}

// answered records an answer to q, right or wrong, at the instant now. It may be called
// concurrently; an answer between two windows may get lost.
func (e *evidence) answered(q wire.Query, now int64) {
	if since := e.seenSince.Load(); now-since > int64(window) && e.seenSince.CompareAndSwap(since, now) {
		e.before.clear()
		if now-since < 2*int64(window) {
			e.before.join(&e.seen)
		}
		e.seen.clear()
	}
	e.answers.Add(1)
	e.seen.add(q)
}

// wrong records that the answer to q was wrong, and returns whether that says something
// about the upstream; see counts. A window begins with the first wrong answer: many right
// answers before do not excuse an upstream that begins to err.
func (e *evidence) wrong(q wire.Query, now time.Time) (counts bool) {
	if len(e.mismatchedNames) == 0 || now.Sub(e.opened) > window {
		e.reset(now)
		e.answers.Store(1)
	}
	e.forgetRight()
	if len(e.mismatchedNames) < namesMax {
		e.mismatchedNames[q.NameHash()] = struct{}{} // collisions only make names fewer
	}
	return e.counts(&e.mismatched, q)
}

// unanswered records that q had no answer in time, and returns whether that says something
// about the upstream; see counts.
func (e *evidence) unanswered(q wire.Query, now time.Time) (counts bool) {
	if now.Sub(e.missedSince) > window {
		e.missed.clear()
		e.missedSince = now
	}
	return e.counts(&e.missed, q)
}

// counts adds q to the audience of one kind of failure. It returns whether the failure of
// q says something about the upstream: the failures are of several clients, and either of
// many domains, or q is the first one of its domain in this window.
func (e *evidence) counts(failures *audience, q wire.Query) bool {
	before := failures.domains.count()
	failures.add(q)
	size, all := failures.size(), e.all()
	return size.ofClients(all) && (size.domains > before || size.ofDomains(all))
}

// all returns the size of the audience of up to two windows, with and without an answer.
func (e *evidence) all() audienceSize {
	var all audience
	all.join(&e.before)
	all.join(&e.seen)
	all.join(&e.missed)
	return all.size()
}

// An audienceSize is the number of domains and clients in an audience.
type audienceSize struct {
	domains float64 // an estimate
	clients int     // two for several
}

// ofDomains reports whether failures are of enough domains for the upstream to be the
// cause, and ofClients whether they are of enough clients.
func (failures audienceSize) ofDomains(all audienceSize) bool {
	return failures.ofSeveralDomains(all) && failures.domains >= domainShare*all.domains
}

func (failures audienceSize) ofSeveralDomains(all audienceSize) bool {
	return failures.domains >= min(mismatchedDomainsMin-0.5, all.domains)
}

func (failures audienceSize) ofClients(all audienceSize) bool {
	return failures.clients >= min(mismatchedClientsMin, all.clients)
}

// share returns the share of wrong answers.
func (e *evidence) share() float64 {
	return float64(len(e.mismatchedNames)) / float64(max(e.answers.Load(), 1))
}

// ejects reports whether the wrong answers make the upstream Erroring.
func (e *evidence) ejects() bool {
	if len(e.mismatchedNames) < mismatchedNamesMin || e.share() < mismatchedShare {
		return false
	}
	mismatched, all := e.mismatched.size(), e.all()
	return mismatched.ofDomains(all) && mismatched.ofClients(all)
}

// redeems records a result for q where another upstream had an error, and reports whether
// there have been enough in a row for a probe: for as many names as make an upstream
// Erroring, of several domains and clients, where there are several. It starts again then.
func (e *evidence) redeems(q wire.Query) bool {
	if e.rightNames == nil {
		e.rightNames = make(map[uint64]struct{})
	}
	if len(e.rightNames) < mismatchedNamesMin {
		e.rightNames[q.NameHash()] = struct{}{}
	}
	e.right.add(q)
	right, all := e.right.size(), e.all()
	if len(e.rightNames) < mismatchedNamesMin || !right.ofSeveralDomains(all) || !right.ofClients(all) {
		return false
	}
	e.forgetRight()
	return true
}

// suspects reports whether a probe is to find out.
func (e *evidence) suspects(now time.Time) bool {
	if len(e.mismatchedNames) < 3 || e.share() < mismatchedShare/2 || now.Sub(e.probed) < suspectProbePause {
		return false
	}
	e.probed = now
	return true
}

// Report records that the upstream answered q with an error although another upstream had
// a result or, if err wraps wire.ErrNoAnswer, that it did not answer, or not in time.
// Failures of one name, one domain or one client are no evidence, however many there are:
// some names are broken or slow for some resolvers only, and some are made to be. For the
// same reason, Report returns whether the failure may lower the share of queries that the
// upstream gets. A missing answer has no other effect: onOutcome and the probes decide what
// it means for the state.
//
// Without err, the upstream had the result where another one had an error. Enough of these,
// with the same reserve, say more than a probe does, so one that is Erroring is probed before
// erroringPause is over: the others may be worse by now.
func (m *Monitor) Report(q wire.Query, err error) (counts bool) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		if m.known() == Erroring && m.evidence.redeems(q) {
			m.ProbeNow()
		}
		return false
	case errors.Is(err, wire.ErrNoAnswer):
		return m.evidence.unanswered(q, now)
	}
	counts = m.evidence.wrong(q, now)
	switch {
	case !m.known().IsUp():
	case m.evidence.ejects():
		m.recordLocked(outcome{ejects: Erroring, err: fmt.Errorf("%d names got an error here and an answer elsewhere, the last: %w", len(m.evidence.mismatchedNames), err)})
	case m.evidence.suspects(now):
		m.reason = err
		m.wakeProbe() // a probe may decide it sooner
	}
	return counts
}

// reported reports whether the upstream got a name wrong within the last window.
func (m *Monitor) reported() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.evidence.mismatchedNames) > 0 && time.Since(m.evidence.opened) <= window
}

// A domainSet estimates how many different hashes were added by the number of bits that
// are set (linear counting). It is good for up to some thousands. Hashes may be added
// concurrently; a hash that is added while the set is being cleared may get lost.
type domainSet [16]atomic.Uint64

func (s *domainSet) add(hash uint64) {
	word, bit := &s[hash>>6%uint64(len(s))], uint64(1)<<(hash%64)
	if word.Load()&bit == 0 {
		word.Or(bit)
	}
}

func (s *domainSet) clear() {
	for i := range s {
		s[i].Store(0)
	}
}

func (s *domainSet) join(other *domainSet) {
	for i := range s {
		s[i].Or(other[i].Load())
	}
}

func (s *domainSet) count() float64 {
	set := 0
	for i := range s {
		set += bits.OnesCount64(s[i].Load())
	}
	size := float64(len(s) * 64)
	return -size * math.Log(1-min(float64(set), size-0.5)/size)
}

// A clientSet tells whether no client, one client, or several were added.
type clientSet struct {
	first atomic.Uint32 // the class of the first client; 0 if there is none
	more  atomic.Bool   // there are further ones
}

// add adds a client by its class. Class 0 is for no client, and not added.
func (s *clientSet) add(class uint16) {
	if class == 0 || s.more.Load() {
		return
	}
	if first := s.first.Load(); first == uint32(class) || first == 0 && s.first.CompareAndSwap(0, uint32(class)) {
		return
	}
	s.more.Store(s.first.Load() != uint32(class))
}

func (s *clientSet) join(other *clientSet) {
	s.add(uint16(other.first.Load()))
	if other.more.Load() {
		s.more.Store(true)
	}
}

func (s *clientSet) clear() {
	s.more.Store(false)
	s.first.Store(0)
}

// count returns 2 for several.
func (s *clientSet) count() int {
	switch {
	case s.more.Load():
		return 2
	case s.first.Load() != 0:
		return 1
	}
	return 0
}

package upstreams

import (
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A rate is the number of queries in any rateSpan. They are counted in slots: rateSlots of
	// them are a little longer than rateSpan wherever it begins in the first one. rateHistory
	// slots are kept, for queries that are refused after some time.
	rateSpan    = time.Second
	rateSlot    = 25 * time.Millisecond
	rateSlots   = int64(rateSpan/rateSlot) + 1
	rateHistory = 128
	// rateMargin is the share of a limit that a server shows which is kept to: packets may
	// arrive closer to each other than they were sent.
	rateMargin = 0.95
	// A learnt limit that keeps queries away is raised after rateHeldMin, to find out whether it
	// still holds; after twice as long each time that it is learnt again, at most after
	// rateHeldMax. It is raised by a tenth, and by twice as much each time until a query is
	// refused.
	rateHeldMin  = 5 * time.Second
	rateHeldMax  = time.Minute
	rateRaise    = 0.1
	rateRaiseMax = 1
	// rateQuiet is how long no query is refused until none is counted any more, if no limit is
	// known.
	rateQuiet = 10 * time.Second
	// REFUSED may be about the name. It teaches no limit below rateRefusedMin, as a server that
	// is asked seldom has none, and none for rateDoubt if rateCuts lower limits in a row have not
	// ended it.
	rateRefusedMin = 10
	rateCuts       = 4
	rateDoubt      = 10 * time.Minute
	// retryAfterMax is the longest that a server is spared as its Retry-After demands it.
	retryAfterMax = 30 * time.Second
)

// A rateLimit is how many queries a second an upstream is to be spared from exceeding: what
// the operator has set, or less if the upstream shows that. It refuses no query. All instants
// are those of its upstream.
type rateLimit struct {
	log        *slog.Logger
	configured int         // Options.Rate, of all addresses that are asked by turns; 0: none
	active     atomic.Bool // queries are counted: there is a limit, or a query was refused lately

	mu        sync.Mutex // guards the fields below
	limit     int        // 0: none is known
	slots     [rateHistory]rateSlotCounts
	since     int64 // instant since when queries are counted
	exceeded  uint64
	notBefore int64         // instant of Retry-After
	refusedAt int64         // instant of the last query that was refused
	beyond    int           // queries beyond the limit since then
	waits     bool          // the limit has kept queries away since it was learnt
	raiseAt   int64         // instant
	held      time.Duration // how long the next limit is kept that is learnt
	raise     float64       // the share by which the limit is raised next
	cuts      int           // limits learnt from REFUSED in a row
	cutAt     int64         // instant of the last one
	doubt     int64         // instant until which REFUSED teaches nothing
}

// A rateSlotCounts counts the queries sent in one rateSlot.
type rateSlotCounts struct {
	number        int64 // of the slot, since the epoch
	sent, refused int
}

func (l *rateLimit) init(configured int, log *slog.Logger) {
	l.log, l.held, l.raise = log, rateHeldMin, rateRaise
	l.configured, l.limit = configured, configured
	l.active.Store(configured > 0)
}

func (l *rateLimit) addTo(c *Counts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.OverRate, c.Rate, c.RateLearnt = l.exceeded, l.limit, l.limit != l.configured
}

// slotLocked returns the counts of the slot with this number, nil if they are not kept.
func (l *rateLimit) slotLocked(number int64) *rateSlotCounts {
	s := &l.slots[number%rateHistory]
	switch {
	case number > s.number:
		*s = rateSlotCounts{number: number}
	case number < s.number:
		return nil
	}
	return s
}

// countLocked returns how many queries were sent in the rateSlots up to the one of an instant,
// and were not refused.
func (l *rateLimit) countLocked(at int64) (sent, taken int) {
	last := at / int64(rateSlot)
	for number := max(last-rateSlots+1, 0); number <= last; number++ {
		if s := &l.slots[number%rateHistory]; s.number == number {
			sent, taken = sent+s.sent, taken+s.sent-s.refused
		}
	}
	return sent, taken
}

// wait returns how long a query would have to wait to be within the limit.
func (l *rateLimit) wait(clock func() int64) time.Duration {
	if !l.active.Load() {
		return 0
	}
	now := clock()
	l.mu.Lock()
	defer l.mu.Unlock()
	at := max(l.notBefore, now)
	if sent, _ := l.countLocked(now); l.limit > 0 && sent >= l.limit {
		number := now/int64(rateSlot) - rateSlots
		for sent >= l.limit {
			number++
			if s := &l.slots[max(number, 0)%rateHistory]; s.number == number {
				sent -= s.sent
			}
		}
		l.waits = true
		at = max(at, (number+rateSlots)*int64(rateSlot))
	}
	return time.Duration(at - now)
}

// add counts a query.
func (l *rateLimit) add(now int64) {
	if !l.active.Load() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	sent, _ := l.countLocked(now)
	if s := l.slotLocked(now / int64(rateSlot)); s != nil {
		s.sent++
	}
	switch learnt := l.limit != l.configured; {
	case l.limit == 0:
		l.active.Store(now-l.refusedAt < int64(rateQuiet) || now < l.notBefore)
		return
	case sent >= l.limit:
		l.exceeded++
		if l.beyond++; learnt && l.beyond > l.limit { // a second's queries, and none was refused
			l.raiseLocked(now)
		}
	case learnt && l.waits && now > l.raiseAt:
		l.raiseLocked(now)
	}
}

func (l *rateLimit) raiseLocked(now int64) {
	l.limit += 1 + int(float64(l.limit)*l.raise)
	if l.configured > 0 {
		l.limit = min(l.limit, l.configured)
	}
	l.raise = min(2*l.raise, rateRaiseMax)
	l.waits, l.beyond, l.raiseAt = false, 0, now+int64(l.held)
}

// onRefused learns from a query, sent at an instant, that got HTTP status 429, which is err,
// or REFUSED, if err is nil.
func (l *rateLimit) onRefused(sent, now int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := errors.AsType[*limitedError](err); ok && e.after > 0 {
		l.notBefore = max(l.notBefore, now+int64(e.after))
	}
	l.refusedAt, l.beyond = now, 0
	if !l.active.Load() {
		l.since = now
		l.active.Store(true)
	}
	if s := l.slotLocked(sent / int64(rateSlot)); s != nil && s.sent > s.refused {
		s.refused++
	}
	if sent-l.since >= int64(rateSpan) && (err != nil || now >= l.doubt) {
		l.learnLocked(sent, now, err == nil)
	}
}

// learnLocked learns from a refused query, which got REFUSED or 429: all that the server takes
// was sent within the rateSpan before.
func (l *rateLimit) learnLocked(sent, now int64, isRefused bool) {
	_, taken := l.countLocked(sent)
	limit := int(rateMargin * float64(taken))
	if limit == 0 || l.limit > 0 && limit >= l.limit || isRefused && l.doubtLocked(limit, now) {
		return
	}
	if l.limit == l.configured {
		l.log.Info("sending fewer queries a second: the upstream refuses more", "limit", limit)
	}
	if now > l.raiseAt-int64(l.held)/2 { // not just another step of the last time
		l.held = min(2*l.held, rateHeldMax)
	}
	l.limit, l.waits, l.raise, l.raiseAt = limit, false, rateRaise, now+int64(l.held)
}

// doubtLocked counts a limit learnt from REFUSED, one in rateSpan, and reports whether REFUSED
// seems to have another reason. Then no limit but that of the operator is known any more.
func (l *rateLimit) doubtLocked(limit int, now int64) bool {
	switch since := now - l.cutAt; {
	case l.cutAt == 0 || since > int64(rateQuiet):
		l.cuts, l.cutAt = 1, now
	case since >= int64(rateSpan):
		l.cuts++
		l.cutAt = now
	}
	if l.cuts <= rateCuts && limit >= rateRefusedMin {
		return false
	}
	if l.cuts > 1 {
		l.cuts, l.doubt, l.limit = 0, now+int64(rateDoubt), l.configured
	}
	return true
}

// A rateError is a response with HTTP status 429 (RFC 6585 section 4).
type rateError struct {
	after time.Duration // of its Retry-After, at most retryAfterMax; 0 if it has none
}

func (e *rateError) Error() string {
	text := "server limits the rate of requests (HTTP status 429"
	if e.after > 0 {
		text += ", retry after " + e.after.String()
	}
	return text + ")"
}

// parseRetryAfter returns the value of a Retry-After (RFC 9110 section 10.2.3), at most
// retryAfterMax, or 0.
func parseRetryAfter(value string) time.Duration {
	var after time.Duration
	if seconds, err := strconv.Atoi(value); err == nil {
		after = time.Duration(min(seconds, int(retryAfterMax/time.Second))) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		after = time.Until(at).Round(time.Second)
	} else {
		return 0
	}
	return min(max(after, 0), retryAfterMax)
}

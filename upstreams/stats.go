package upstreams

import (
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"dotgate/gateway/latency"
	"dotgate/gateway/wire"
)

// counters count queries and answers, and what went wrong with them, by reason.
type counters struct {
	sent, answered, resent                      atomic.Uint64
	unsolicited, mismatched, foreign, malformed atomic.Uint64
	stripped                                    atomic.Uint64
}

func (c *counters) accept(a wire.Answer) {
	c.answered.Add(1)
	if a.Stripped() {
		c.stripped.Add(1)
	}
}

// drop counts a response that is no answer, by the reason that ParseAnswer gave.
func (c *counters) drop(reason error) {
	switch {
	case errors.Is(reason, wire.ErrWrongQuestion):
		c.mismatched.Add(1)
	case errors.Is(reason, wire.ErrUnrelated):
		c.foreign.Add(1)
	default:
		c.malformed.Add(1)
	}
}

func (c *counters) addTo(totals *Counts) {
	totals.Sent, totals.Answered, totals.Resent = c.sent.Load(), c.answered.Load(), c.resent.Load()
	totals.Unsolicited, totals.Mismatched, totals.OutOfBailiwick = c.unsolicited.Load(), c.mismatched.Load(), c.foreign.Load()
	totals.Malformed, totals.Stripped = c.malformed.Load(), c.stripped.Load()
}

// Counts are totals since New, except Open.
type Counts struct {
	Dials      uint64 `json:"dials"`      // connections tried, over TCP and QUIC
	Handshakes uint64 `json:"handshakes"` // TLS handshakes completed
	Resumed    uint64 `json:"resumed"`    // of these: resumed sessions
	// Of the handshakes, those with a plainer ClientHello: without ALPN, and without the large key share.
	WithoutALPN     uint64 `json:"without_alpn"`
	WithoutKeyShare uint64 `json:"without_key_share"`
	Sent            uint64 `json:"sent"`             // queries
	Answered        uint64 `json:"answered"`         // answers accepted
	Resent          uint64 `json:"resent"`           // queries sent again after their connection had ended
	Unsolicited     uint64 `json:"unsolicited"`      // responses to no pending query: late, duplicate, or with a wrong ID
	Mismatched      uint64 `json:"mismatched"`       // responses to another question
	OutOfBailiwick  uint64 `json:"out_of_bailiwick"` // responses with answers about names that were not asked for
	Malformed       uint64 `json:"malformed"`        // responses that are not well-formed, or truncated
	Stripped        uint64 `json:"stripped"`         // answers accepted without some of their records, which did not belong to the question
	OverRate        uint64 `json:"over_rate"`        // queries sent although the upstream was at the limit of its rate

	Open      int    `json:"-"` // connections open now
	Transport string `json:"-"` // the best of theirs: dot, doh, doq, doh3 or tcp; empty if none is open
	// Instead is the transport that is preferred to that, as no connection over it can be
	// made; empty if there is none.
	Instead    string `json:"-"`
	Rate       int    `json:"-"` // how many queries a second it is spared from exceeding; 0 if no limit is known
	RateLearnt bool   `json:"-"` // that was learnt; Options.Rate has another limit, or none
}

// Counts returns the totals.
func (u *Upstream) Counts() Counts {
	c := Counts{
		Dials: u.dialer.tcp.dials.Load(), Open: int(u.open.Load()), Transport: u.transport(),
	}
	if best := u.dialer.ladder[0].String(); c.Transport != "" && c.Transport != best {
		c.Instead = best
	}
	for t := range u.dialer.identities() {
		c.Handshakes += t.handshakes.Load()
		c.Resumed += t.resumed.Load()
	}
	for _, t := range []*tlsTransport{&u.dialer.dot, &u.dialer.doh} {
		c.WithoutALPN += t.withoutALPN.Load()
		c.WithoutKeyShare += t.withoutKeyShare.Load()
	}
	for _, t := range []*quicTransport{&u.dialer.doq, &u.dialer.doh3} {
		c.Dials += t.dials.Load()
	}
	u.counts.addTo(&c)
	u.rate.addTo(&c)
	return c
}

// transport returns the best transport of the open connections, or "".
func (u *Upstream) transport() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.streams) == 0 {
		return ""
	}
	best := slices.MinFunc(u.streams, func(a, b *stream) int { return a.endpoint.rung - b.endpoint.rung })
	return best.endpoint.via.String()
}

// outcomeCounts counts attempts at one address, or dials there.
type outcomeCounts [outcomes]atomic.Uint64

func (t *outcomeCounts) addTo(counts *[outcomes]uint64) {
	for i := range t {
		counts[i] += t[i].Load()
	}
}

// recordCall counts an attempt that ended, now if the instant is 0: once, before done is
// called.
func (u *Upstream) recordCall(c *call, now int64, a wire.Answer, err error) {
	outcome, to := outcomeOf(a, err), c.endpoint
	var at *addressError
	if to == nil && err != nil && errors.As(err, &at) {
		to = at.at
	}
	if to == nil {
		to = &u.dialer.noAddress
	}
	to.attempts[outcome].Add(1)
	if c.trace != nil && err != nil {
		c.trace.noteAt(to.addr, "%v: %v", outcome, err)
	} else if c.trace != nil {
		c.trace.noteAt(to.addr, "verified: %v", a.RCode())
	}
	if now == 0 {
		now = u.now()
	}
	u.attemptStats.add(outcome, time.Duration(now-c.began), err)
	if outcome == GotRefused || outcome == HTTPLimited {
		u.rate.onRefused(c.began, now, err)
	}
}

// attemptStats has how long attempts took, at all addresses together.
type attemptStats struct {
	took, failing latency.Histogram       // attempts that were answered, and that failed
	lastFailure   atomic.Pointer[Failure] // or nil
}

func (s *attemptStats) add(outcome Outcome, took time.Duration, err error) {
	switch {
	case outcome.Answered():
		s.took.Add(took)
	case !outcome.Excused():
		s.failing.Add(took)
	}
	if err != nil && !outcome.Excused() {
		s.lastFailure.Store(&Failure{At: time.Now(), Outcome: outcome, Err: err})
	}
}

func (s *attemptStats) addTo(h *History) {
	h.Answered.Include(&s.took)
	h.Failed.Include(&s.failing)
}

// A Failure is an attempt that got no answer.
type Failure struct {
	At      time.Time
	Outcome Outcome
	Err     error
}

// LastFailure returns the latest attempt that failed; its Err is nil if none did.
func (s *attemptStats) LastFailure() Failure {
	if f := s.lastFailure.Load(); f != nil {
		return *f
	}
	return Failure{}
}

// A History has the outcomes of all attempts and dials since New.
type History struct {
	Addresses []AddressHistory
	Answered  latency.Snapshot // how long attempts took that got an answer, dials included
	Failed    latency.Snapshot // how long those took that failed
	// NotAfter is the end of the certificate that was seen last; zero if none was seen.
	NotAfter time.Time
}

// An AddressHistory has the outcomes of attempts and dials at one address.
type AddressHistory struct {
	// Address is not valid for attempts that went to no address, and for those at
	// addresses that the upstream no longer has.
	Address netip.AddrPort
	// Transport is dot, doh, doq, doh3, tcp or udp; empty without an address.
	Transport string
	Open      int              // connections open there
	Dialled   time.Time        // when the last dial ended; zero if there was none
	Result    Outcome          // of it
	Attempts  [outcomes]uint64 // indexed by Outcome
	Dials     [outcomes]uint64 // the same; GotNoError stands for a connection made
	// Avoided is when the address, which failed or was slower while another one worked,
	// may be probed; zero if it is not avoided.
	Avoided time.Time
	// Without lists what has to be left out there, separated by commas: of ClientHellos
	// "alpn" and "key_share", of queries in clear text "edns" and "case".
	Without string
}

// Attempts returns how many attempts got an answer, and how many failed.
func (h *History) Attempts() (answered, failed uint64) {
	for _, a := range h.Addresses {
		for o, n := range a.Attempts {
			switch o := Outcome(o); {
			case o.Answered():
				answered += n
			case !o.Excused():
				failed += n
			}
		}
	}
	return answered, failed
}

// History returns the outcomes of all attempts and dials.
func (u *Upstream) History() History {
	h := History{Addresses: u.dialer.history()}
	u.mu.Lock()
	for _, s := range u.streams {
		for i := range h.Addresses {
			if a := &h.Addresses[i]; a.Address == s.endpoint.addr && a.Transport == s.endpoint.transport() {
				a.Open++
			}
		}
	}
	u.mu.Unlock()
	u.attemptStats.addTo(&h)
	for t := range u.dialer.identities() {
		if at := time.Unix(t.notAfter.Load(), 0); at.Unix() != 0 && at.After(h.NotAfter) {
			h.NotAfter = at
		}
	}
	return h
}

// history has an entry for each address, and a last one for all other attempts.
func (d *dialer) history() []AddressHistory {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []AddressHistory
	for _, e := range d.endpoints {
		all = append(all, e.history())
	}
	return append(all, d.noAddress.history())
}

func (e *endpoint) history() AddressHistory {
	h := AddressHistory{Address: e.addr, Transport: e.transport(), Without: e.without()}
	if until, penalties := e.avoided(); penalties > 0 {
		h.Avoided = until
	}
	if last := e.dialled.Load(); last != nil {
		h.Dialled, h.Result = last.at, last.outcome
	}
	e.attempts.addTo(&h.Attempts)
	e.dials.addTo(&h.Dials)
	return h
}

// inherit adds the counts of an address that the upstream no longer has.
func (e *endpoint) inherit(former *endpoint) {
	for i := range e.attempts {
		e.attempts[i].Add(former.attempts[i].Load())
		e.dials[i].Add(former.dials[i].Load())
	}
}

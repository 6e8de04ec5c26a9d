package upstreams

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"dotgate/gateway/latency"
	"dotgate/gateway/wire"
)

// An Outcome is what became of one attempt: one call of Ask, whatever it
// took. Each has exactly one, that of the connection or dial that decided it.
type Outcome uint8

const (
	// Answers, by response code.
	GotNoError Outcome = iota
	GotNXDomain
	GotServFail
	GotRefused
	GotFormErr
	GotNotImp
	GotOther // any other code

	// What came was no answer.
	WrongQuestion
	ForeignRecords // an answer about names that were not asked for
	Unparsable     // malformed, truncated, or no response at all
	ShortFrame     // the connection ended in the midst of a message

	// The connection ended before an answer came.
	WriteFailed
	Reset
	ClosedByPeer
	WentSilent    // nothing came for so long that we closed it
	ImproperPeer  // it brought so many improper messages that we closed it
	ReadFailed    // any other reason
	TimedOut      // it did not end, but the attempt's time was up
	Bootstrapping // no address could be found for the host

	// No connection could be made.
	DialRefused
	DialTimedOut
	DialUnreachable // by the system's word: no route, no such host or network
	DialFailed      // any other reason
	TLSTimedOut
	TLSAlert       // the peer ended the handshake, or what came after it, with an alert
	TLSCertificate // it does not verify, or has none of the pinned keys
	TLSFailed      // any other reason, such as a peer that speaks no TLS
	DialPaced      // it was not tried: it failed for long and just a moment ago

	// What says nothing about the upstream.
	Overloaded // ErrBusy
	Abandoned  // who asked left, or Close was called

	outcomes int = iota
)

var outcomeNames = [outcomes]string{
	GotNoError: "noerror", GotNXDomain: "nxdomain", GotServFail: "servfail", GotRefused: "refused",
	GotFormErr: "formerr", GotNotImp: "notimp", GotOther: "other_rcode",
	WrongQuestion: "wrong_question", ForeignRecords: "foreign_records", Unparsable: "unparsable", ShortFrame: "short_frame",
	WriteFailed: "write", Reset: "reset", ClosedByPeer: "closed", WentSilent: "silent", ImproperPeer: "improper",
	ReadFailed: "read", TimedOut: "timeout", Bootstrapping: "bootstrap",
	DialRefused: "dial_refused", DialTimedOut: "dial_timeout", DialUnreachable: "dial_unreachable", DialFailed: "dial",
	TLSTimedOut: "tls_timeout", TLSAlert: "tls_alert", TLSCertificate: "certificate", TLSFailed: "tls", DialPaced: "dial_paced",
	Overloaded: "busy", Abandoned: "abandoned",
}

// Outcomes returns all there are, in order.
func Outcomes() []Outcome {
	all := make([]Outcome, outcomes)
	for i := range all {
		all[i] = Outcome(i)
	}
	return all
}

// String returns the outcome in a form fit for a metric's label.
func (o Outcome) String() string {
	if int(o) < outcomes {
		return outcomeNames[o]
	}
	return fmt.Sprintf("Outcome(%d)", uint8(o))
}

// Answered reports whether it is an answer, be it an error.
func (o Outcome) Answered() bool { return o <= GotOther }

// OfDial reports whether it may become of a dial.
func (o Outcome) OfDial() bool { return o >= DialRefused && o <= DialPaced }

// Excused reports whether it says nothing about the upstream.
func (o Outcome) Excused() bool { return o == Overloaded || o == Abandoned }

// A failure is an error of which we know, where it occurs, what it is.
type failure struct {
	outcome Outcome
	err     error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// An addressError is a failure at one of the addresses.
type addressError struct {
	at  *endpoint
	err error
}

func (e *addressError) Error() string { return e.at.addr.String() + ": " + e.err.Error() }
func (e *addressError) Unwrap() error { return e.err }

var errWrite = errors.New("write")

// OutcomeOf returns what became of an attempt that ended with err, which is not nil.
func OutcomeOf(err error) Outcome { return outcomeOf(wire.Answer{}, err) }

// outcomeOf is the one place that tells outcomes apart: by type, never by text.
// Of a dial that failed at several addresses, the first decides.
func outcomeOf(a wire.Answer, err error) Outcome {
	if err == nil {
		return answerOutcome(a.RCode())
	}
	var known *failure
	var at *addressError
	if paced := errors.As(err, &known) && known.outcome == DialPaced; !paced && errors.As(err, &at) {
		return outcomeOf(a, at.err)
	}
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.Is(err, ErrBusy):
		return Overloaded
	case errors.Is(err, ErrClosed), errors.Is(err, context.Canceled):
		return Abandoned
	case errors.Is(err, wire.ErrWrongQuestion):
		return WrongQuestion
	case errors.Is(err, wire.ErrForeign):
		return ForeignRecords
	case errors.Is(err, wire.ErrMalformed), errors.Is(err, wire.ErrTruncated), errors.Is(err, wire.ErrNotResponse):
		return Unparsable
	case errors.As(err, &known):
		return known.outcome
	case errors.Is(err, errPin), errors.As(err, &certificate):
		return TLSCertificate
	case alerted(err):
		return TLSAlert
	case errors.Is(err, errHandshake):
		return TLSFailed
	}
	var died *connError
	if errors.As(err, &died) {
		return endOutcome(died)
	}
	return dialOutcome(err)
}

// alerted reports whether the peer ended the handshake, or the connection, with
// an alert: that is the operation which crypto/tls gives for it, its type is its
// own.
func alerted(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

func answerOutcome(rcode wire.RCode) Outcome {
	switch rcode {
	case wire.NoError:
		return GotNoError
	case wire.NXDomain:
		return GotNXDomain
	case wire.ServFail:
		return GotServFail
	case wire.Refused:
		return GotRefused
	case wire.FormErr:
		return GotFormErr
	case wire.NotImp:
		return GotNotImp
	}
	return GotOther
}

// endOutcome is about a connection that ended under an attempt.
func endOutcome(died *connError) Outcome {
	switch {
	case errors.Is(died, errSilent):
		return WentSilent
	case errors.Is(died, errBad):
		return ImproperPeer
	case errors.Is(died, errIdle):
		return ClosedByPeer // both closed it at once
	case errors.Is(died, errWrite):
		return WriteFailed
	case errors.Is(died, io.ErrUnexpectedEOF):
		return ShortFrame
	case errors.Is(died, io.EOF):
		return ClosedByPeer
	case errors.Is(died, syscall.ECONNRESET):
		return Reset
	}
	return ReadFailed
}

// dialOutcome is about everything before a connection is there.
func dialOutcome(err error) Outcome {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return TimedOut
	case errors.Is(err, syscall.ECONNREFUSED):
		return DialRefused
	case errors.Is(err, syscall.ETIMEDOUT):
		return DialTimedOut
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH),
		errors.Is(err, syscall.ENETDOWN), errors.Is(err, syscall.EHOSTDOWN), errors.Is(err, syscall.EADDRNOTAVAIL):
		return DialUnreachable
	}
	return DialFailed
}

// A tally counts attempts at one address, or dials there.
type tally [outcomes]atomic.Uint64

func (t *tally) addTo(counts *[outcomes]uint64) {
	for i := range t {
		counts[i] += t[i].Load()
	}
}

// record counts an attempt that ended: once, before anybody is told.
func (u *Upstream) record(call *call, a wire.Answer, err error) {
	outcome, from := outcomeOf(a, err), call.from
	var at *addressError
	if from == nil && err != nil && errors.As(err, &at) {
		from = at.at
	}
	if from == nil {
		from = &u.dialer.nowhere
	}
	from.attempts[outcome].Add(1)
	if call.trace != nil && err != nil {
		u.noteAt(call.trace, from.addr, "%v: %v", outcome, err)
	} else if call.trace != nil {
		u.noteAt(call.trace, from.addr, "verified: %v", a.RCode())
	}
	u.ledger.enter(outcome, time.Duration(u.now()-call.began), err)
}

// A ledger has what became of attempts, wherever they went.
type ledger struct {
	took, failing latency.Histogram       // attempts that were answered, and that failed
	lastFailure   atomic.Pointer[Failure] // or nil
}

func (l *ledger) enter(outcome Outcome, took time.Duration, err error) {
	switch {
	case outcome.Answered():
		l.took.Add(took)
	case !outcome.Excused():
		l.failing.Add(took)
	}
	if err != nil && !outcome.Excused() {
		l.lastFailure.Store(&Failure{At: time.Now(), Outcome: outcome, Err: err})
	}
}

func (l *ledger) addTo(h *History) {
	h.Answered.Include(&l.took)
	h.Failed.Include(&l.failing)
}

// A Failure is an attempt that got no answer.
type Failure struct {
	At      time.Time
	Outcome Outcome
	Err     error
}

// LastFailure returns the latest attempt that failed; its Err is nil if none did.
func (l *ledger) LastFailure() Failure {
	if f := l.lastFailure.Load(); f != nil {
		return *f
	}
	return Failure{}
}

// A History is what became of all attempts and dials since New.
type History struct {
	Addresses []AddressHistory
	Answered  latency.Snapshot // how long attempts took that got an answer, dials included
	Failed    latency.Snapshot // how long those took that failed
	// NotAfter is when the certificate that was seen last ends; zero if none was.
	NotAfter time.Time
}

// An AddressHistory is what became of attempts and dials at one address.
type AddressHistory struct {
	// Address is not valid for what came to no address, and for those at
	// addresses that the upstream has no more.
	Address  netip.AddrPort
	Attempts [outcomes]uint64 // indexed by Outcome
	Dials    [outcomes]uint64 // the same; GotNoError stands for a connection made
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

// History returns what became of all attempts and dials.
func (u *Upstream) History() History {
	h := History{Addresses: u.dialer.history()}
	u.ledger.addTo(&h)
	if at := u.dialer.notAfter.Load(); at != 0 {
		h.NotAfter = time.Unix(at, 0)
	}
	return h
}

// history has an entry for each address, and a last one for everything else.
func (d *dialer) history() []AddressHistory {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []AddressHistory
	for _, e := range d.endpoints {
		all = append(all, e.history())
	}
	return append(all, d.nowhere.history())
}

func (e *endpoint) history() AddressHistory {
	h := AddressHistory{Address: e.addr}
	e.attempts.addTo(&h.Attempts)
	e.dials.addTo(&h.Dials)
	return h
}

// inherit takes over what was counted at an address that is no longer one.
func (e *endpoint) inherit(former *endpoint) {
	for i := range e.attempts {
		e.attempts[i].Add(former.attempts[i].Load())
		e.dials[i].Add(former.dials[i].Load())
	}
}

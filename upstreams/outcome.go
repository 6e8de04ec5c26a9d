package upstreams

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"

	"dotgate/gateway/wire"
)

// An Outcome is the result of one attempt: one call of Ask, with all that was done for
// it. Each has exactly one, that of the connection or dial that decided it.
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

	// The response was not an answer.
	WrongQuestion
	OutOfBailiwick // an answer about names that were not asked for
	Unparsable     // malformed, truncated, or no response at all
	ShortFrame     // the connection ended within a message

	// The connection ended before an answer came.
	WriteFailed
	Reset
	ClosedByPeer
	WentSilent    // it was silent for so long that it was closed
	ImproperPeer  // it was closed because of too many improper messages
	ReadFailed    // any other reason
	TimedOut      // the connection did not end, but the attempt expired
	Bootstrapping // no address could be found for the host

	// No connection could be made.
	DialRefused
	DialTimedOut
	DialUnreachable // the system has no route, or does not know the host or network
	DialFailed      // any other reason
	DialSlower      // another address was faster, although it was tried 250 ms later
	TLSTimedOut
	TLSAlert       // the peer ended the handshake or the connection with an alert
	TLSCertificate // it does not verify, or has none of the pinned keys
	TLSFailed      // any other reason, such as a peer without TLS
	DialThrottled  // it was not tried: dials of an upstream that is out of reach are limited

	// The server responded over HTTPS, but not with a DNS message.
	HTTPFailed  // any status but 200
	HTTPLimited // 429: it limits the rate of queries
	HTTPNotDNS  // 200, with another type of content, or more than a DNS message can have

	// Outcomes that say nothing about the upstream.
	Overloaded // ErrBusy
	Abandoned  // the caller gave up, or Close was called

	outcomes int = iota
)

var outcomeNames = [outcomes]string{
	GotNoError: "noerror", GotNXDomain: "nxdomain", GotServFail: "servfail", GotRefused: "refused",
	GotFormErr: "formerr", GotNotImp: "notimp", GotOther: "other_rcode",
	WrongQuestion: "wrong_question", OutOfBailiwick: "out_of_bailiwick", Unparsable: "unparsable", ShortFrame: "short_frame",
	WriteFailed: "write", Reset: "reset", ClosedByPeer: "closed", WentSilent: "silent", ImproperPeer: "improper",
	ReadFailed: "read", TimedOut: "timeout", Bootstrapping: "bootstrap",
	DialRefused: "dial_refused", DialTimedOut: "dial_timeout", DialUnreachable: "dial_unreachable", DialFailed: "dial", DialSlower: "dial_slower",
	TLSTimedOut: "tls_timeout", TLSAlert: "tls_alert", TLSCertificate: "certificate", TLSFailed: "tls", DialThrottled: "dial_throttled",
	HTTPFailed: "http_status", HTTPLimited: "http_rate_limit", HTTPNotDNS: "http_content",
	Overloaded: "overload", Abandoned: "abandoned",
}

// Outcomes returns all outcomes, in order.
func Outcomes() []Outcome {
	all := make([]Outcome, outcomes)
	for i := range all {
		all[i] = Outcome(i)
	}
	return all
}

// String returns the outcome in a form fit for a metric's label.
func (o Outcome) String() string { return outcomeNames[o] }

// Answered reports whether there was an answer, which may be an error.
func (o Outcome) Answered() bool { return o <= GotOther }

// OfDial reports whether a dial can have this outcome.
func (o Outcome) OfDial() bool { return o >= DialRefused && o <= DialThrottled }

func (o Outcome) ofHTTP() bool { return o >= HTTPFailed && o <= HTTPNotDNS }

// Excused reports whether it says nothing about the upstream.
func (o Outcome) Excused() bool { return o == Overloaded || o == Abandoned }

// A failure is an error whose outcome is known where it occurs.
type failure struct {
	outcome Outcome
	err     error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// A namedError is an error of the upstream with this name.
type namedError struct {
	name string
	err  error
}

// named returns err with the name of its upstream, once: a query over UDP that goes on
// over TCP gets its error from there.
func named(name string, err error) error {
	if e, ok := err.(*namedError); ok && e.name == name {
		return err
	}
	return &namedError{name, err}
}

func (e *namedError) Error() string { return e.name + ": " + e.err.Error() }
func (e *namedError) Unwrap() error { return e.err }

// An addressError is a failure at one of the endpoints.
type addressError struct {
	at  *endpoint
	err error
}

func (e *addressError) Error() string { return e.at.String() + ": " + e.err.Error() }
func (e *addressError) Unwrap() error { return e.err }

// A dialError has the errors of a dial at several addresses. The first one is the one
// that an operator can act on: "no route" is the error at each address of a family that
// this machine does not have, whatever else is wrong.
type dialError []error

// withProblem returns old, which is nil or an earlier result, with err.
func withProblem(old, err error) error {
	if old == nil {
		return err
	}
	all, ok := old.(dialError)
	if !ok {
		all = dialError{old}
	}
	all = append(slices.Clone(all), err)
	slices.SortStableFunc(all, func(a, b error) int { return noRoute(a) - noRoute(b) })
	return all
}

// noRoute returns 1 if err only says that the system has no route, else 0.
func noRoute(err error) int {
	if OutcomeOf(err) == DialUnreachable {
		return 1
	}
	return 0
}

func (e dialError) Error() string {
	texts := make([]string, len(e))
	for i, err := range e {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (e dialError) Unwrap() []error { return e }

// NoRoute reports whether err only says that the system has no route to an address.
func (e *addressError) NoRoute() bool { return noRoute(e.err) == 1 }

// NoRoute reports whether that holds for all addresses.
func (e dialError) NoRoute() bool { return noRoute(e[0]) == 1 }

var errWrite = errors.New("write")

// OutcomeOf returns the outcome of an attempt that ended with err, which is not nil.
func OutcomeOf(err error) Outcome { return outcomeOf(wire.Answer{}, err) }

// outcomeOf is the one place that distinguishes outcomes: by type, never by text. For a
// dial that failed at several addresses, the first error of its dialError decides.
func outcomeOf(a wire.Answer, err error) Outcome {
	if err == nil {
		return answerOutcome(a.RCode())
	}
	var known *failure
	var at *addressError
	if throttleInterval := errors.As(err, &known) && known.outcome == DialThrottled; !throttleInterval && errors.As(err, &at) {
		return outcomeOf(a, at.err)
	}
	if outcome, ok := find(answerCauses, err); ok {
		return outcome
	}
	var certificate *tls.CertificateVerificationError
	var died *connError
	switch {
	case errors.As(err, &known):
		return known.outcome
	case errors.Is(err, errPin), errors.Is(err, errCertHash), errors.As(err, &certificate):
		return TLSCertificate
	case alerted(err):
		return TLSAlert
	case errors.Is(err, errHandshake):
		return TLSFailed
	case errors.As(err, &died):
		if outcome, ok := find(endCauses, died); ok {
			return outcome
		}
		return ReadFailed
	}
	if outcome, ok := find(dialCauses, err); ok {
		return outcome
	}
	return DialFailed
}

// A cause is an error, and the outcome of an attempt that it ended.
type cause struct {
	err     error
	outcome Outcome
}

var (
	answerCauses = []cause{
		{ErrBusy, Overloaded}, {ErrClosed, Abandoned}, {context.Canceled, Abandoned},
		{wire.ErrWrongQuestion, WrongQuestion}, {wire.ErrUnrelated, OutOfBailiwick},
		{wire.ErrMalformed, Unparsable}, {wire.ErrTruncated, Unparsable}, {wire.ErrNotResponse, Unparsable},
	}
	// endCauses are those of a connection that ended during an attempt.
	endCauses = []cause{
		{errSilent, WentSilent}, {errImproper, ImproperPeer}, {errGoAway, ClosedByPeer},
		{errIdle, ClosedByPeer}, // both sides closed it at the same time
		{errWrite, WriteFailed}, {io.ErrUnexpectedEOF, ShortFrame}, {io.EOF, ClosedByPeer}, {syscall.ECONNRESET, Reset},
	}
	// dialCauses are for all that happens before there is a connection.
	dialCauses = []cause{
		{context.DeadlineExceeded, TimedOut}, {syscall.ECONNREFUSED, DialRefused}, {syscall.ETIMEDOUT, DialTimedOut},
		{syscall.EHOSTUNREACH, DialUnreachable}, {syscall.ENETUNREACH, DialUnreachable}, {syscall.ENETDOWN, DialUnreachable},
		{syscall.EHOSTDOWN, DialUnreachable}, {syscall.EADDRNOTAVAIL, DialUnreachable},
		{syscall.ENODEV, DialUnreachable}, // the interface of Options.Source
	}
)

// find returns the outcome of the first cause that is in err.
func find(causes []cause, err error) (Outcome, bool) {
	for _, c := range causes {
		if errors.Is(err, c.err) {
			return c.outcome, true
		}
	}
	return 0, false
}

// alerted reports whether the peer ended the handshake or the connection with an alert.
// crypto/tls names that in Op; the type of the alert is not exported.
func alerted(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

func answerOutcome(rcode wire.RCode) Outcome {
	if int(rcode) < len(answerOutcomes) {
		return answerOutcomes[rcode]
	}
	return GotOther
}

var answerOutcomes = [...]Outcome{
	wire.NoError: GotNoError, wire.FormErr: GotFormErr, wire.ServFail: GotServFail,
	wire.NXDomain: GotNXDomain, wire.NotImp: GotNotImp, wire.Refused: GotRefused,
}

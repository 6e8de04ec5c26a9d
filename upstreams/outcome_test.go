package upstreams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

// The problem that an operator can act on comes first: port 853 is blocked. That this
// machine has no IPv6 comes after it.
func TestADialErrorBeginsWithTheProblemToActOn(t *testing.T) {
	six := &addressError{&endpoint{addr: netip.MustParseAddrPort("[2001:db8::1]:853"), via: new(tcpTransport)}, os.NewSyscallError("connect", syscall.ENETUNREACH)}
	four := &addressError{&endpoint{addr: netip.MustParseAddrPort("192.0.2.1:853"), via: new(tcpTransport)}, noConnection(time.Second)}
	const want = "192.0.2.1:853 (tcp): no connection within 1s (setting connect_timeout); [2001:db8::1]:853 (tcp): connect: network is unreachable"
	for _, order := range [][]error{{six, four}, {four, six}} {
		var problem error
		for _, err := range order {
			problem = withProblem(problem, err)
		}
		if problem.Error() != want || OutcomeOf(problem) != DialTimedOut || problem.(dialError).NoRoute() {
			t.Errorf("got %v, %v", problem, OutcomeOf(problem))
		}
	}
	if problem := withProblem(withProblem(nil, six), six); !problem.(dialError).NoRoute() || OutcomeOf(problem) != DialUnreachable {
		t.Errorf("got %v", problem)
	}
}

// Each attempt is counted once, whatever its outcome, so that no error path is forgotten.
func TestEveryAttemptIsCountedOnceByItsReason(t *testing.T) {
	wrongName := func(ca *dottest.CA) dottest.Options {
		return dottest.Options{CA: ca, Certificate: ca.Issue(dottest.CertOptions{Names: []string{"other.example.com"}})}
	}
	expired := func(ca *dottest.CA) dottest.Options {
		return dottest.Options{CA: ca, Certificate: ca.Issue(dottest.CertOptions{
			Names: []string{dottest.ServerName}, NotAfter: time.Now().Add(-time.Hour),
		})}
	}
	for _, f := range []struct {
		name  string
		fault dottest.Fault
		serve func(*dottest.CA) dottest.Options
		drill *Drill
		gone  bool // the port is closed
		limit time.Duration
		want  Outcome
	}{
		{name: "well", want: GotNoError},
		{name: "NXDOMAIN", fault: dottest.Fault{RCode: wire.NXDomain}, want: GotNXDomain},
		{name: "SERVFAIL", fault: dottest.Fault{RCode: wire.ServFail}, want: GotServFail},
		{name: "REFUSED", fault: dottest.Fault{RCode: wire.Refused}, want: GotRefused},
		{name: "FORMERR", fault: dottest.Fault{RCode: wire.FormErr}, want: GotFormErr},
		{name: "NOTIMP", fault: dottest.Fault{RCode: wire.NotImp}, want: GotNotImp},
		{name: "another code", fault: dottest.Fault{RCode: 9}, want: GotOther},
		{name: "another question", fault: dottest.Fault{Mangle: dottest.WrongQuestion}, want: WrongQuestion},
		{name: "another name's records", fault: dottest.Fault{Mangle: dottest.Foreign}, want: OutOfBailiwick},
		{name: "another name's records besides", fault: dottest.Fault{Mangle: dottest.Stray}, want: GotNoError},
		{name: "truncated", fault: dottest.Fault{Mangle: dottest.Truncated}, want: Unparsable},
		{name: "the query itself", fault: dottest.Fault{Mangle: dottest.Echo}, want: Unparsable},
		{name: "silent, and left", fault: dottest.Fault{Never: true}, limit: 150 * time.Millisecond, want: WentSilent},
		{name: "silent", fault: dottest.Fault{Never: true}, limit: 5 * time.Second, want: WentSilent},
		{name: "cut in a frame", fault: dottest.Fault{Mangle: dottest.LengthLong, CloseAfter: 1, Closing: dottest.FIN}, want: ShortFrame},
		{name: "port closed", gone: true, want: DialRefused},
		{name: "closed at once", fault: dottest.Fault{Greeting: dottest.ClosedWhenNew}, want: TLSFailed},
		{name: "reset", fault: dottest.Fault{Greeting: dottest.HandshakeReset}, want: TLSFailed},
		{name: "no TLS", fault: dottest.Fault{Greeting: dottest.PlainText}, want: TLSFailed},
		{name: "alert", fault: dottest.Fault{Greeting: dottest.HandshakeAlert}, want: TLSAlert},
		{name: "stalls", fault: dottest.Fault{Greeting: dottest.HandshakeStalls}, limit: 5 * time.Second, want: TLSTimedOut},
		{name: "silence", fault: dottest.Fault{Greeting: dottest.Silence}, limit: 5 * time.Second, want: TLSTimedOut},
		{name: "another's certificate", serve: wrongName, want: TLSCertificate},
		{name: "an old certificate", serve: expired, want: TLSCertificate},
		{name: "no way there", drill: &Drill{Fault: Blackhole}, limit: 5 * time.Second, want: DialTimedOut},
		{name: "closed", drill: &Drill{Fault: Hangup}, want: ClosedByPeer},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			ca := dottest.NewCA()
			options := dottest.Options{CA: ca, Faults: []dottest.Fault{f.fault}}
			if f.serve != nil {
				options = f.serve(ca)
			}
			server := dottest.NewServer(t, options)
			o := trusting(t, server)
			if f.want == DialTimedOut || f.want == TLSTimedOut { // all else may take longer on a busy machine
				o.ConnectTimeout, o.HandshakeTimeout = 400*time.Millisecond, 400*time.Millisecond
			}
			if f.gone {
				server.Close()
			}
			u := open(t, o)
			if f.drill != nil {
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- u.Drill(ctx, *f.drill) }()
				defer func() { cancel(); <-done }()
				eventually(t, "the drill begins", func() bool { return u.dialer.faults.active.Load() != nil })
			}
			const attempts = 3
			var asking sync.WaitGroup
			for i := range attempts {
				asking.Go(func() { _ = askWithin(u, fmt.Sprintf("name%d.example.com", i), max(f.limit, time.Second)) })
			}
			asking.Wait()
			// An attempt ends by itself, also after its caller has left. The counts of an
			// address and the latencies are not read at the same moment.
			h := u.History()
			ended := func() uint64 {
				answered, failed := h.Attempts()
				return min(answered+failed, h.Answered.Count()+h.Failed.Count())
			}
			for deadline := time.Now().Add(2 * answerLimit); ended() < attempts && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
				h = u.History()
			}
			total := uint64(0)
			for _, a := range h.Addresses {
				for o, n := range a.Attempts {
					total += n
					if n > 0 && (Outcome(o) != f.want || a.Address != server.Addr()) {
						t.Errorf("%d attempts at %v are %v, want %v at %v", n, a.Address, Outcome(o), f.want, server.Addr())
					}
				}
			}
			answered, failed := h.Attempts()
			if total != attempts || h.Answered.Count() != answered || h.Failed.Count() != failed || answered+failed != attempts {
				t.Errorf("%d attempts counted as %d: %d answered (%d measured), %d failed (%d measured)",
					attempts, total, answered, h.Answered.Count(), failed, h.Failed.Count())
			}
			last := u.LastFailure()
			if (last.Err == nil) != f.want.Answered() || last.Err != nil && last.Outcome != f.want {
				t.Errorf("the last failure is %v, %v", last.Outcome, last.Err)
			}
		})
	}
}

func TestOutcomesOfErrors(t *testing.T) {
	t.Parallel()
	f := func(err error, want Outcome) {
		t.Helper()
		for _, err := range []error{err, fmt.Errorf("quad9: %w", err)} {
			if got := outcomeOf(wire.Answer{}, err); got != want {
				t.Errorf("%v: got %v, want %v", err, got, want)
			}
		}
	}
	call := func(op string, number syscall.Errno) error {
		return &net.OpError{Op: op, Net: "tcp", Err: os.NewSyscallError("connect", number)}
	}
	ended := func(err error) error { return &connError{err: err, reused: true} }
	f(call("dial", syscall.EHOSTUNREACH), DialUnreachable)
	f(call("dial", syscall.ENETUNREACH), DialUnreachable)
	f(call("dial", syscall.ETIMEDOUT), DialTimedOut)
	f(call("dial", syscall.EMFILE), DialFailed)
	f(ended(fmt.Errorf("%w: %w", errWrite, call("write", syscall.EPIPE))), WriteFailed)
	f(ended(fmt.Errorf("read: %w", call("read", syscall.ECONNRESET))), Reset)
	f(ended(fmt.Errorf("read: %w", call("read", syscall.EHOSTUNREACH))), ReadFailed)
	f(ended(fmt.Errorf("read: %w", io.EOF)), ClosedByPeer)
	f(ended(errImproper), ImproperPeer)
	f(ended(ErrClosed), Abandoned)
	f(ErrBusy, Overloaded)
	f(fmt.Errorf("no answer within %v: %w", answerLimit, context.DeadlineExceeded), TimedOut)
	f(fmt.Errorf("still connecting: %w", context.DeadlineExceeded), TimedOut)
	at := func(err error) error { return &addressError{new(endpoint), err} }
	f(fmt.Errorf("%w; %w", at(call("dial", syscall.ECONNREFUSED)), at(errHandshake)), DialRefused)
	f(fmt.Errorf("%w; %w", at(errHandshake), at(noConnection(time.Second))), TLSFailed)
	f(&failure{DialThrottled, fmt.Errorf("not reached: %w", at(call("dial", syscall.ECONNREFUSED)))}, DialThrottled)
	f(errors.New("something new"), DialFailed)
}

func TestOutcomesHaveNamesOfTheirOwn(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for _, o := range Outcomes() {
		if name := o.String(); name == "" || seen[name] || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "" {
			t.Errorf("outcome %d is named %q", o, name)
		}
		seen[o.String()] = true
	}
}

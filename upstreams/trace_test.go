package upstreams

import (
	"net/netip"
	"strings"
	"testing"

	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

// The last step of an attempt is its outcome, and where it ended.
func TestATraceSaysWhereAnAttemptEnded(t *testing.T) {
	t.Parallel()
	server, gone := dottest.NewServer(t, dottest.Options{}), dottest.NewServer(t, dottest.Options{})
	o := trusting(t, gone)
	gone.Close()
	f := func(u *Upstream, at netip.AddrPort, what string, outcome Outcome) {
		t.Helper()
		q, err := wire.NewQuery("www.example.com", "A")
		if err != nil {
			t.Fatal(err)
		}
		trace, ended := new(Trace), make(chan error, 1)
		u.Ask(WithTrace(t.Context(), trace), q, func(_ wire.Answer, err error) { ended <- err })
		if err := <-ended; err != nil && OutcomeOf(err) != outcome || (err == nil) != outcome.Answered() {
			t.Errorf("got %v, want %v", err, outcome)
		}
		steps := trace.Steps()
		if last := steps[len(steps)-1]; last.Address != at || !strings.HasPrefix(last.What, what) || last.Upstream != u.String() {
			t.Errorf("the last step is %+v, want %q at %v", last, what, at)
		}
	}
	f(open(t, trusting(t, server)), server.Addr(), "verified: NOERROR", GotNoError)
	f(open(t, o), o.Addresses[0], "dial_refused: ", DialRefused)
}

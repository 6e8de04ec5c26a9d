package upstreams

import (
	"fmt"
	"testing"
	"time"

	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

func examineOne(t *testing.T, s *dottest.Server, idle time.Duration) ProbeReport {
	t.Helper()
	q, err := wire.NewQuery("www.example.com", "A")
	if err != nil {
		t.Fatal(err)
	}
	all, err := Probe(t.Context(), trusting(t, s), q, idle)
	if err != nil || len(all) != 1 {
		t.Fatalf("got %v, %v", all, err)
	}
	return all[0]
}

func TestAProbeReportDescribesAServer(t *testing.T) {
	t.Parallel()
	x := examineOne(t, dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{CloseIdle: 500 * time.Millisecond}}}), 30*time.Second)
	if x.Err != nil || x.Answered != probeQueries || x.Pipelined != burst || x.ALPN != "dot" || x.Without != "" || !x.Resumes || x.IdleLimitReached || len(x.Chain) == 0 {
		t.Errorf("got %+v", x)
	}
	x = examineOne(t, dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{Protocols: "h2"}}}), 0)
	if x.Err != nil || x.Answered != probeQueries || x.ALPN != "" || x.Without != "alpn" || !x.Resumes {
		t.Errorf("without a dot: %+v", x)
	}
	x = examineOne(t, dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{Greeting: dottest.HandshakeAlert}}}), 0)
	if OutcomeOf(x.Err) != TLSAlert || x.Answered != 0 {
		t.Errorf("after an alert: %+v", x)
	}
}

// A server whose system waits for acknowledgements does not seem slower.
func TestAProbeDoesNotMeasureDelayedAcknowledgements(t *testing.T) {
	t.Parallel()
	s := dottest.NewServer(t, dottest.Options{Faults: []dottest.Fault{{Nagle: true}}})
	atBest(t, func() error {
		if x := examineOne(t, s, 0); x.Err != nil || time.Duration(x.P99) > 30*time.Millisecond {
			return fmt.Errorf("P99 is %v (%v)", time.Duration(x.P99), x.Err)
		}
		return nil
	})
}

//go:build linux && (e2e || figures)

package e2e

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"
)

// firstAnswer starts dotgate and returns the time until its first answer.
func firstAnswer(t *testing.T, upstreams []string, name string) time.Duration {
	t.Helper()
	begin := time.Now()
	g := launch(t, upstreams)
	c, err := net.Dial("udp", g.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(begin.Add(startLimit))
	// Until the gateway listens, the system refuses each query at once.
	again := time.NewTicker(500 * time.Microsecond)
	defer again.Stop()
	err = firstReply(c, name)
	for errors.Is(err, syscall.ECONNREFUSED) && time.Since(begin) < startLimit {
		<-again.C
		err = firstReply(c, name)
	}
	took := time.Since(begin)
	if err != nil {
		t.Fatalf("no first answer: %v", err)
	}
	g.stop(t)
	return took
}

func firstReply(c net.Conn, name string) error {
	if _, err := c.Write(newQuery(1, name)); err != nil {
		return err
	}
	reply := make([]byte, 1<<16)
	if _, err := c.Read(reply); err != nil {
		return err
	}
	if rcode := reply[3] & 15; rcode != 0 {
		return fmt.Errorf("RCODE %d", rcode)
	}
	return nil
}

// firstAnswers returns the median of n runs.
func firstAnswers(t *testing.T, upstreams []string, n int) time.Duration {
	t.Helper()
	var all []time.Duration
	for i := range n {
		all = append(all, firstAnswer(t, upstreams, fmt.Sprintf("first%d.example.com", i)).Round(10*time.Microsecond))
	}
	slices.Sort(all)
	t.Logf("from exec to the first answer: median %v, all %v", all[n/2], all)
	return all[n/2]
}

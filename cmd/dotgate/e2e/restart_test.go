//go:build linux && e2e

package e2e

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestNoQueryFailsWhenTheGatewayIsRestarted has a new gateway take over twenty
// times, at a thousand queries a second over UDP. Nothing is sent twice.
func TestNoQueryFailsWhenTheGatewayIsRestarted(t *testing.T) {
	t.Parallel()
	const restarts = 20
	_, urls := startUpstreams(t, 5*time.Millisecond, 8*time.Millisecond)
	more := []string{"DOTGATE_CONTROL_SOCKET=" + filepath.Join(t.TempDir(), "control.sock")}
	addr := ownAddr()
	next := func() *process {
		p := start(t, append(environment(addr, urls), more...), dotgate, "serve", "--takeover")
		p.await(t, "dotgate is serving")
		return p
	}
	serving := next()
	warmUp(t, addr)

	udp := dottestLoad(addr, "restart-udp", 18_000, 900)
	udp.sockets = 32 // so that each of the system's sockets gets some
	done := make(chan outcome)
	go func() { done <- udp.run(t) }()
	tcp := askOverTCP(t, addr, 100)
	for range restarts {
		successor := next()
		if code := serving.exitCode(t, stopLimit); code != 0 {
			t.Errorf("the former gateway exits with %d", code)
		}
		successor.await(t, "took over")
		serving = successor
		time.Sleep(500 * time.Millisecond)
	}
	o := <-done
	o.mustBeWhole(t)
	asked, again, lost := tcp.end()
	t.Logf("%d restarts: UDP %d queries, %d lost; TCP %d queries, %d needed a second try, %d lost",
		restarts, o.queries, o.failed(), asked, again, lost)
	if lost > 0 {
		t.Errorf("%d queries over TCP failed twice", lost)
	}
	serving.signal(syscall.SIGTERM)
	serving.exitCode(t, stopLimit)
}

// A tcpClient sends queries over TCP, several on a connection, and repeats each failed
// query once on a new one.
type tcpClient struct {
	stop               chan struct{}
	done               sync.WaitGroup
	asked, again, lost int
}

// askOverTCP sends queries at this rate until end.
func askOverTCP(t *testing.T, addr netip.AddrPort, rate int) *tcpClient {
	t.Helper()
	c := &tcpClient{stop: make(chan struct{})}
	c.done.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		client := dns.Client{Net: "tcp", Timeout: 3 * time.Second}
		var conn *dns.Conn
		ask := func(name string) error {
			var err error
			if conn == nil {
				if conn, err = client.Dial(addr.String()); err != nil {
					return err
				}
			}
			r, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA), conn)
			if err != nil || r.Rcode != dns.RcodeSuccess {
				conn.Close()
				conn = nil
				return fmt.Errorf("%v: %w", r, err)
			}
			return nil
		}
		for {
			select {
			case <-c.stop:
				return
			case <-tick.C:
			}
			name := fmt.Sprintf("tcp%d.example.com.", c.asked)
			c.asked++
			if ask(name) != nil {
				c.again++
				if ask(name) != nil {
					c.lost++
				}
			}
		}
	})
	return c
}

func (c *tcpClient) end() (asked, again, lost int) {
	close(c.stop)
	c.done.Wait()
	return c.asked, c.again, c.lost
}

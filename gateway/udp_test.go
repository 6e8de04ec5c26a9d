package gateway

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

func TestTenThousandConcurrentQueries(t *testing.T) {
	t.Parallel()
	const clients, each = 100, 100
	arrived := make(chan struct{}, clients*each)
	release := make(chan struct{})
	g, stop := start(t, resolver(func(ctx context.Context, q wire.Query) (wire.Answer, error) {
		arrived <- struct{}{}
		select {
		case <-release:
			return addressed(ctx, q)
		case <-ctx.Done():
			return wire.Answer{}, ctx.Err()
		}
	}), Options{Timeout: time.Minute})
	var conns []net.Conn
	for range clients {
		c := dial(t, "udp", g.Addrs()[0])
		c.SetDeadline(time.Now().Add(time.Minute)) // on a busy machine, this is work
		conns = append(conns, c)
	}
	// The sender is bounded, because UDP is not: bursts of 100 fit into any
	// socket's buffer.
	const burst = 100
	for i := range clients * each {
		m := query(fmt.Sprintf("q%d.example.com.", i))
		m.Id = uint16(i)
		sendQuery(t, conns[i%clients], m)
		if (i+1)%burst == 0 {
			for range burst {
				<-arrived
			}
		}
	}
	if n := g.Counts().InProgress; n != clients*each {
		t.Errorf("%d queries are in progress", n)
	}
	close(release)
	var wrong atomic.Int64
	done := make(chan struct{})
	for i, c := range conns {
		go func() {
			defer func() { done <- struct{}{} }()
			seen := make(map[uint16]bool)
			conn := &dns.Conn{Conn: c}
			for range each {
				m, err := conn.ReadMsg()
				if err != nil {
					t.Error(err)
					return
				}
				if int(m.Id)%clients != i || seen[m.Id] || len(m.Answer) != 1 || m.Question[0].Name != fmt.Sprintf("q%d.example.com.", m.Id) {
					wrong.Add(1)
				}
				seen[m.Id] = true
			}
		}()
	}
	for range conns {
		<-done
	}
	if wrong.Load() != 0 {
		t.Errorf("%d wrong replies", wrong.Load())
	}
	stop()
	if c := g.Counts(); c.Outcomes[Answered][wire.UDP] != clients*each || c.Undelivered.Total() != 0 {
		t.Errorf("counts: %+v", c)
	}
}

// TestReplyComesFromTheAddressThatWasAsked relies on connected client sockets:
// they take packets only from the address that they sent to.
func TestReplyComesFromTheAddressThatWasAsked(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only here is all of 127.0.0.0/8 ours")
	}
	t.Parallel()
	for _, test := range []struct {
		listen string
		asked  []string
	}{
		{"0.0.0.0:0", []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}},
		{"[::]:0", []string{"::1", "127.0.0.1", "127.0.0.2", "127.0.0.3"}},
		{"[::]:0", linkLocalAddresses(t)},
	} {
		g, _ := start(t, addressed, Options{Listen: []netip.AddrPort{netip.MustParseAddrPort(test.listen)}})
		port := g.Addrs()[0].Port()
		for _, asked := range test.asked {
			addr := netip.AddrPortFrom(netip.MustParseAddr(asked), port)
			c := dial(t, "udp", addr)
			if reply := exchange(t, c, query("example.com.")); len(reply.Answer) != 1 {
				t.Errorf("%v: odd reply from the Resolver: %v", addr, reply)
			}
			if reply := exchange(t, c, new(dns.Msg).SetAxfr("example.com.")); reply.Rcode != dns.RcodeRefused {
				t.Errorf("%v: odd reply from the read loop: %v", addr, reply)
			}
			if reply := exchange(t, dial(t, "tcp", addr), query("example.com.")); len(reply.Answer) != 1 {
				t.Errorf("%v: odd reply over TCP: %v", addr, reply)
			}
		}
	}
}

// linkLocalAddresses returns those of this host, with their zones.
func linkLocalAddresses(t *testing.T) (found []string) {
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() && i.Flags&net.FlagUp != 0 {
				found = append(found, p.Addr().WithZone(i.Name).String())
			}
		}
	}
	return found
}

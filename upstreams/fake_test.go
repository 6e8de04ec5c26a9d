package upstreams

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

// fakeServer is a DNS-over-TLS server behind net.Pipe, for tests with fake time.
type fakeServer struct {
	ca          *dottest.CA
	certificate tls.Certificate
	all         sync.WaitGroup // serve
	silent      atomic.Int64   // how many of the first connections answer no query any more

	mu sync.Mutex
	fakeBehaviour
	dials int
	conns []net.Conn
}

// fakeBehaviour is what connections do that are accepted from then on.
type fakeBehaviour struct {
	handshake time.Duration // until the server begins its handshake
	stalls    bool          // it never does
	hangsUp   bool          // it ends the connection instead of the first answer
}

// set changes the behaviour, and returns how many dials there were.
func (s *fakeServer) set(b fakeBehaviour) (dials int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fakeBehaviour = b
	return s.dials
}

// openFake returns an upstream that is s. All of it runs in the bubble of a synctest.
func openFake(t *testing.T, s *fakeServer, o Options) *Upstream {
	t.Helper()
	s.ca = dottest.NewCA()
	s.certificate = s.ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)})
	o.Name, o.ServerName, o.Log = "test", dottest.ServerName, slog.New(slog.DiscardHandler)
	o.Addresses = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:853")}
	t.Cleanup(s.all.Wait)
	u := open(t, o)
	u.dialer.dot.config.RootCAs = s.ca.Pool()
	u.dialer.tcp.network = func(context.Context, netip.AddrPort, time.Duration, bool) (net.Conn, error) {
		client, server := net.Pipe()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.dials++
		s.conns = append(s.conns, server)
		b := s.fakeBehaviour
		number := int64(s.dials)
		s.all.Go(func() { s.serve(server, b, number) })
		return client, nil
	}
	return u
}

func (s *fakeServer) serve(raw net.Conn, b fakeBehaviour, number int64) {
	defer raw.Close()
	time.Sleep(b.handshake)
	if b.stalls {
		_, _ = io.Copy(io.Discard, raw)
		return
	}
	conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{s.certificate}, NextProtos: []string{"dot"}})
	r := bufio.NewReader(conn)
	for {
		frame, err := nextFrame(r)
		if err != nil {
			return
		}
		reply := slices.Clone(frame)
		if _, err := r.Discard(2 + len(frame)); err != nil {
			return
		}
		if b.hangsUp {
			return
		}
		if number <= s.silent.Load() {
			continue
		}
		reply[2] |= 0x80 // a response
		reply[3] |= 0x80 // with recursion
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}

// silence makes the connections that were made so far answer no query any more.
func (s *fakeServer) silence() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent.Store(int64(s.dials))
}

// closeAll ends the connections that were made so far.
func (s *fakeServer) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

// askFake asks u, and returns when the answer has come or will not.
func askFake(u *Upstream) error {
	q, err := wire.NewQuery("www.example.com", "A")
	if err != nil {
		return err
	}
	_, err = u.Exchange(context.Background(), q)
	return err
}

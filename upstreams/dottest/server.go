// Package dottest is a DNS-over-TLS server for tests that misbehaves on
// request, after net/http/httptest.
//
// A Server answers correctly until Set gives it faults, at any time and under load. It is
// cheap enough to be the upstream of a load test. It answers unusual queries, too: Stats
// show whether clients behave.
package dottest

import (
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// ServerName is the name in the default certificate of a Server.
const ServerName = "dns.example.com"

// Options of a Server. A zero field means its default.
type Options struct {
	// Addr is where to listen. Default: any port of a Loopback address.
	Addr string
	// CA issues the default certificate. Default: a new one.
	CA *CA
	// Certificate is the certificate of the server. Default: one issued by CA for
	// ServerName and for the address of Addr.
	Certificate tls.Certificate
	// Handler answers. Default: Answer.
	Handler Handler
	// RTT is the round-trip time: every answer takes so long, and a handshake twice as
	// long, as if the TCP handshake took its part.
	RTT time.Duration
	// Handshake is how much longer than that each handshake takes.
	Handshake time.Duration
	// Faults are active from the start, as with Set.
	Faults []Fault
	// Seed makes the draws of all shares reproducible.
	Seed uint64
	// CountNames fills Stats.Names. It costs memory for each name.
	CountNames bool
}

// A Server is a DNS-over-TLS server for tests. Its methods may be called by any
// number of goroutines, and after Close they do nothing.
type Server struct {
	options Options
	addr    netip.AddrPort
	epoch   time.Time // when clock began
	dice    *dice
	done    chan struct{} // closed by Close
	running sync.WaitGroup

	plan     atomic.Pointer[plan]     // always non-nil
	identity atomic.Pointer[identity] // always non-nil
	tally    *tally                   // always non-nil

	controlling sync.Mutex // guards port: one of Stop, Blackhole, Restart and Close at a time
	port        port

	mu     sync.Mutex // guards the fields below; nothing blocks under it
	conns  map[*conn]struct{}
	open   int // those of conns that have not been closed from here
	closed bool
}

// identity is the part of a server that changes with its certificate.
type identity struct {
	certificate tls.Certificate
	ticketKey   [32]byte
}

// NewServer starts a server that ends with the test.
func NewServer(tb testing.TB, o Options) *Server {
	tb.Helper()
	s, err := Start(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

// Start starts a server. Close ends it.
func Start(o Options) (*Server, error) {
	if o.Addr == "" {
		o.Addr = netip.AddrPortFrom(Loopback(), 0).String()
	}
	if o.Handler == nil {
		o.Handler = Answer
	}
	listener, err := net.Listen("tcp", o.Addr)
	if err != nil {
		return nil, fmt.Errorf("start a DNS-over-TLS server: %w", err)
	}
	addr := listener.Addr().(*net.TCPAddr).AddrPort()
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	if o.CA == nil {
		o.CA = NewCA()
	}
	if o.Certificate.Certificate == nil {
		o.Certificate = o.CA.Issue(CertOptions{Names: []string{ServerName}, IPs: []netip.Addr{addr.Addr()}})
	}
	s := &Server{
		options: o,
		addr:    addr,
		epoch:   time.Now(),
		dice:    newDice(o.Seed),
		done:    make(chan struct{}),
		conns:   make(map[*conn]struct{}),
		tally:   newTally(o.CountNames),
	}
	s.SetCertificate(o.Certificate)
	s.Set(o.Faults...)
	s.listen(listener)
	return s, nil
}

// Addr returns where the server listens. It never changes.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// CA returns the authority that issued the default certificate.
func (s *Server) CA() *CA { return s.options.CA }

// Set replaces the faults of the server; without any, it behaves. Fields about established
// connections apply to those that are open, too. Fields about new connections change
// nothing about others, and an answer that is already delayed stays delayed.
//
// Set panics if a Share is not between 0 and 1.
func (s *Server) Set(faults ...Fault) {
	s.plan.Store(newPlan(faults, s.clock()))
	for _, c := range s.established() {
		c.wakeWriter()
	}
}

// SetCertificate sets the certificate for new connections. Tickets that were issued before
// are no longer accepted.
func (s *Server) SetCertificate(certificate tls.Certificate) {
	id := &identity{certificate: certificate}
	rand.Read(id.ticketKey[:])
	s.identity.Store(id)
}

// CloseConnections closes all open connections. With RST, they are closed when it returns.
// Only RST ends those that are frozen.
func (s *Server) CloseConnections(how Closing) {
	for _, c := range s.established() {
		c.closeBy(how)
	}
}

// FreezeConnections makes all open connections silently dead: they accept queries, and
// nothing comes back, not even their end. New connections work.
func (s *Server) FreezeConnections() {
	for _, c := range s.established() {
		c.raw.freeze()
	}
}

// Stop stops listening: connections are refused. Established ones remain.
func (s *Server) Stop() error { return s.control((*port).refuse) }

// Blackhole stops listening so that packets to the port seem to be lost: the
// handshake of TCP gets no answer. Established connections remain.
func (s *Server) Blackhole() error { return s.control((*port).ignore) }

// Restart listens again after Stop or Blackhole, at the same address.
func (s *Server) Restart() error {
	return s.control(func(p *port, addr netip.AddrPort) error {
		if p.listener != nil {
			return nil
		}
		if err := p.refuse(addr); err != nil { // a holder that listens would be in the way
			return err
		}
		listener, err := net.Listen("tcp", addr.String())
		if err != nil {
			return err
		}
		p.release()
		s.listen(listener)
		return nil
	})
}

func (s *Server) control(what func(*port, netip.AddrPort) error) error {
	s.controlling.Lock()
	defer s.controlling.Unlock()
	if s.isClosed() {
		return net.ErrClosed
	}
	return what(&s.port, s.addr)
}

// Close ends the server, all its connections and all its goroutines.
func (s *Server) Close() {
	s.controlling.Lock()
	defer s.controlling.Unlock()
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	s.mu.Unlock()
	s.port.release()
	for _, c := range s.established() {
		c.closeBy(RST)
	}
	s.running.Wait()
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// clock is the time since the server was started.
func (s *Server) clock() time.Duration { return time.Since(s.epoch) }

func (s *Server) established() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.conns))
}

// listen makes listener the server's. There must be none.
func (s *Server) listen(listener net.Listener) {
	s.port.listener = listener
	s.running.Go(func() { s.acceptLoop(listener) })
}

func (s *Server) acceptLoop(listener net.Listener) {
	for {
		accepted, err := listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // for example no descriptors left, which passes
			select {
			case <-s.done:
				return
			case <-time.After(5 * time.Millisecond):
			}
			continue
		}
		s.begin(accepted.(*net.TCPConn))
	}
}

func (s *Server) begin(accepted *net.TCPConn) {
	p := s.plan.Load()
	struck := p.draw(s.clock(), s.dice, nil)
	c := newConn(s, accepted, struck.Greeting)
	c.raw.mtu = s.plan.Load().conn.MTU
	c.raw.pieces = s.plan.Load().conn.Nagle
	accepted.SetNoDelay(!c.raw.pieces)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tally.accepted.Add(1)
	if s.closed {
		accepted.Close()
		return
	}
	if full := p.conn.MaxConnections > 0 && s.open >= p.conn.MaxConnections; full || struck.Greeting == ClosedWhenNew {
		s.tally.turnedAway.Add(1)
		accepted.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.open++
	atLeast(&s.tally.maxOpen, s.open)
	s.running.Go(c.serve)
}

// retire notes that c has been closed from here. Its goroutines may live until
// the client has closed it as well.
func (s *Server) retire(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.retired {
		c.retired = true
		s.open--
	}
}

func (s *Server) forget(c *conn) {
	s.retire(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// tlsConfig returns the configuration for the handshake of c.
func (s *Server) tlsConfig(c *conn) *tls.Config {
	return &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		s.tally.sawHello(hello)
		fault := s.plan.Load().conn
		resuming := slices.Contains(hello.Extensions, extensionPreSharedKey)
		if c.greeting == HandshakeAlert || fault.Tickets == TicketsFatal && resuming {
			return nil, errors.New("as requested") // crypto/tls makes an alert of any error
		}
		id := s.identity.Load()
		config := &tls.Config{
			Certificates:                []tls.Certificate{id.certificate},
			NextProtos:                  []string{"dot"}, // RFC 7858 has none, this is what IANA registered for it
			MinVersion:                  fault.MinVersion,
			MaxVersion:                  fault.MaxVersion,
			ClientCAs:                   fault.ClientCAs,
			SessionTicketsDisabled:      fault.Tickets == TicketsNotIssued,
			DynamicRecordSizingDisabled: true, // answers are to share records
		}
		if fault.MaxVersion != 0 && fault.MaxVersion < tls.VersionTLS12 && fault.MinVersion == 0 {
			config.MinVersion = tls.VersionTLS10 // the default would leave no version at all
		}
		if fault.Protocols != "" {
			config.NextProtos = strings.Split(fault.Protocols, ",")
		}
		if fault.ClientCAs != nil {
			config.ClientAuth = tls.RequireAndVerifyClientCert
		}
		key := id.ticketKey
		if fault.Tickets == TicketsRefused {
			rand.Read(key[:])
		}
		config.SetSessionTicketKeys([][32]byte{key})
		return config, nil
	}}
}

const extensionPreSharedKey = 41 // RFC 8446 section 4.2

package upstreams

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

const (
	// stagger is how long one address may take before the next is tried beside
	// it (RFC 8305 section 5 recommends 250 ms).
	stagger = 250 * time.Millisecond
	// grudge is how long an address that failed is tried after the others.
	grudge = 30 * time.Second
	// sessionPause is how long no session is resumed after one made a handshake fail.
	sessionPause = 10 * time.Minute
)

var (
	errHandshake = errors.New("TLS handshake failed")
	errPin       = errors.New("no certificate in the verified chain has a pinned key (setting pins)")
)

// A dialer makes connections to one service. Each has a verified certificate.
type dialer struct {
	o                          Options
	log                        *slog.Logger
	config                     *tls.Config // never used as it is: each address gets a copy
	pace                       pace
	noSessions                 atomic.Int64 // until when no session is offered, in Unix nanoseconds
	dials, handshakes, resumed atomic.Uint64
	drill                      atomic.Pointer[rehearsal] // under way, or nil
	tcpTook, tlsTook           atomic.Int64              // of the latest connection, in nanoseconds
	notAfter                   atomic.Int64              // of the latest certificate, in Unix seconds, or 0
	nowhere                    endpoint                  // counts what came to no address

	mu        sync.Mutex
	endpoints []*endpoint
	resolved  time.Time // when Host was, if it is
}

// An endpoint is one address of a service, with what is known about it.
type endpoint struct {
	addr   netip.AddrPort
	failed atomic.Pointer[time.Time] // when it last failed, nil if it works

	attempts, dials tally
}

// suspect puts the address behind the others for a while.
func (e *endpoint) suspect() {
	now := time.Now()
	e.failed.Store(&now)
}

// disgrace returns when the address failed, if that was lately.
func (e *endpoint) disgrace() time.Time {
	if failed := e.failed.Load(); failed != nil && time.Since(*failed) < grudge {
		return *failed
	}
	return time.Time{}
}

func (d *dialer) init(o Options, log *slog.Logger) error {
	roots, err := o.roots()
	if err != nil {
		return err
	}
	certificates, err := o.certificates()
	if err != nil {
		return err
	}
	pins, err := o.pins()
	if err != nil {
		return err
	}
	d.o, d.log = o, log
	d.config = &tls.Config{
		MinVersion:                  tls.VersionTLS12,
		ServerName:                  o.ServerName,
		RootCAs:                     roots,
		Certificates:                certificates,
		NextProtos:                  []string{"dot"}, // RFC 7858 names it; a server on port 443 needs it
		ClientSessionCache:          tls.NewLRUClientSessionCache(0),
		DynamicRecordSizingDisabled: true, // a burst of queries is one record
	}
	if len(pins) > 0 {
		// Unlike VerifyPeerCertificate, this runs on resumed sessions too.
		d.config.VerifyConnection = func(state tls.ConnectionState) error { return checkPins(state, pins) }
	}
	d.setAddresses(o.Addresses)
	d.pace.spread()
	return nil
}

func checkPins(state tls.ConnectionState, pins map[[sha256.Size]byte]bool) error {
	for _, chain := range state.VerifiedChains {
		for _, certificate := range chain {
			if pins[sha256.Sum256(certificate.RawSubjectPublicKeyInfo)] {
				return nil
			}
		}
	}
	return errPin
}

// setAddresses replaces the addresses, keeping what is known of those that stay.
func (d *dialer) setAddresses(addrs []netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.endpoints
	d.endpoints = nil
	for _, addr := range addrs {
		if i := slices.IndexFunc(old, func(e *endpoint) bool { return e.addr == addr }); i >= 0 {
			d.endpoints = append(d.endpoints, old[i])
		} else {
			d.endpoints = append(d.endpoints, &endpoint{addr: addr})
		}
	}
	for _, e := range old {
		if !slices.Contains(d.endpoints, e) {
			d.nowhere.inherit(e)
		}
	}
}

func (d *dialer) addresses() []netip.AddrPort {
	d.mu.Lock()
	defer d.mu.Unlock()
	var addrs []netip.AddrPort
	for _, e := range d.endpoints {
		addrs = append(addrs, e.addr)
	}
	return addrs
}

// ordered returns the addresses, those that failed lately last, and of these
// the latest last.
func (d *dialer) ordered() []*endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	order := slices.Clone(d.endpoints)
	slices.SortStableFunc(order, func(a, b *endpoint) int { return a.disgrace().Compare(b.disgrace()) })
	return order
}

type dialed struct {
	conn *tls.Conn
	from *endpoint
	err  error
}

// dial connects to the first address that lets it. Addresses are tried one
// after the other, the next as soon as one fails or takes long. A patient dial
// waits for a service that is long gone until the next may be made.
func (d *dialer) dial(ctx context.Context, patient bool) (*tls.Conn, *endpoint, error) {
	if err := d.resolve(ctx); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began, limit := time.Now(), d.o.ConnectTimeout
	if patient {
		limit = d.pace.limit(began, limit)
	}
	todo := d.ordered()
	results := make(chan dialed, len(todo))
	underWay := 0
	var problem error
	next := time.NewTimer(0)
	defer next.Stop()
	for len(todo) > 0 || underWay > 0 {
		select {
		case <-next.C:
			if len(todo) == 0 {
				continue
			}
			if !d.pace.allows(time.Now()) {
				todo = nil
				if problem == nil && underWay == 0 {
					return nil, nil, d.pace.refusal()
				}
				continue
			}
			e := todo[0]
			todo = todo[1:]
			underWay++
			go func() { results <- d.dialOne(ctx, e, limit) }()
			next.Reset(stagger)
		case r := <-results:
			underWay--
			if r.err == nil {
				cancel()
				closeRest(results, underWay)
				d.pace.succeeded()
				return r.conn, r.from, nil
			}
			if problem == nil {
				problem = r.err
			} else {
				problem = fmt.Errorf("%w; %w", problem, r.err)
			}
			next.Reset(0)
		}
	}
	if ctx.Err() == nil {
		d.pace.failed(began, problem)
	}
	return nil, nil, problem
}

// closeRest waits for the n dials that lost, so that they leave nothing behind.
// They have been cancelled.
func closeRest(results chan dialed, n int) {
	for range n {
		if r := <-results; r.err == nil {
			r.conn.NetConn().Close()
		}
	}
}

func (d *dialer) dialOne(ctx context.Context, e *endpoint, limit time.Duration) dialed {
	conn, err := d.handshake(ctx, e.addr, limit)
	if err != nil {
		if ctx.Err() == nil {
			e.suspect()
			e.dials[outcomeOf(wire.Answer{}, err)].Add(1)
		}
		return dialed{from: e, err: &addressError{e, err}}
	}
	e.dials[GotNoError].Add(1)
	e.failed.Store(nil)
	return dialed{conn: conn, from: e}
}

// handshake connects to addr within limit and verifies who answers there. A
// handshake that fails over a session that was offered is tried once more
// without one.
func (d *dialer) handshake(ctx context.Context, addr netip.AddrPort, limit time.Duration) (*tls.Conn, error) {
	config := d.config.Clone()
	if config.ServerName == "" {
		config.ServerName = addr.Addr().WithZone("").String()
	}
	sessions := &offeredSessions{ClientSessionCache: config.ClientSessionCache}
	config.ClientSessionCache = sessions
	if time.Now().UnixNano() < d.noSessions.Load() {
		config.ClientSessionCache = nil
	}
	for {
		conn, err := d.secure(ctx, addr, config, limit)
		if err == nil || !sessions.offered || !errors.Is(err, errHandshake) {
			return conn, err
		}
		// The next session would meet the same, so there are none for a while.
		sessions.Put(config.ServerName, nil)
		d.noSessions.Store(time.Now().Add(sessionPause).UnixNano())
		config.ClientSessionCache, sessions.offered = nil, false
	}
}

// offeredSessions notes whether a session was found to offer.
type offeredSessions struct {
	tls.ClientSessionCache
	offered bool
}

func (s *offeredSessions) Get(key string) (*tls.ClientSessionState, bool) {
	session, ok := s.ClientSessionCache.Get(key)
	s.offered = s.offered || ok && session != nil
	return session, ok
}

func (d *dialer) secure(ctx context.Context, addr netip.AddrPort, config *tls.Config, limit time.Duration) (*tls.Conn, error) {
	d.dials.Add(1)
	if err := d.drill.Load().stall(ctx, limit); err != nil {
		return nil, err
	}
	began := time.Now()
	tcp, err := connect(ctx, addr, limit)
	if err != nil {
		return nil, err
	}
	connected := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, d.o.HandshakeTimeout,
		&failure{TLSTimedOut, fmt.Errorf("no TLS handshake within %v (setting handshake_timeout)", d.o.HandshakeTimeout)})
	defer cancel()
	socket, err := newSocket(tcp.(*net.TCPConn))
	if err != nil {
		tcp.Close()
		return nil, err
	}
	conn := tls.Client(socket, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		tcp.Close()
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, explain(err)
	}
	d.handshakes.Add(1)
	d.tcpTook.Store(int64(connected.Sub(began)))
	d.tlsTook.Store(int64(time.Since(connected)))
	d.notAfter.Store(conn.ConnectionState().PeerCertificates[0].NotAfter.Unix())
	if conn.ConnectionState().DidResume {
		d.resumed.Add(1)
	}
	return conn, nil
}

// course tells how the latest connection was made.
func (d *dialer) course(conn *tls.Conn, from *endpoint) string {
	state := conn.ConnectionState()
	kind := "full handshake"
	if state.DidResume {
		kind = "session resumed"
	}
	return fmt.Sprintf("connected to %v: TCP in %v, %s in %v (%s)", from.addr,
		time.Duration(d.tcpTook.Load()).Round(10*time.Microsecond), tls.VersionName(state.Version),
		time.Duration(d.tlsTook.Load()).Round(10*time.Microsecond), kind)
}

func connect(ctx context.Context, addr netip.AddrPort, limit time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: limit}
	conn, err := dialer.DialContext(ctx, "tcp", addr.String())
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil, noConnection(limit)
	}
	return conn, bare(err)
}

// bare returns err without the addresses that package net puts around what the
// system says: whoever tells it names them, once. What a peer says in an alert
// (see alerted) stays as it is.
func bare(err error) error {
	if op, ok := err.(*net.OpError); ok && op.Op != "remote error" {
		return op.Err
	}
	return err
}

func noConnection(limit time.Duration) error {
	if limit == paced { // longer than is set, as it could not be reached for a while
		return &failure{DialTimedOut, fmt.Errorf("no connection within %v", limit)}
	}
	return &failure{DialTimedOut, fmt.Errorf("no connection within %v (setting connect_timeout)", limit)}
}

// explain adds to a certificate's failure what its text leaves open.
func explain(err error) error {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return fmt.Errorf("%w: certificate is valid from %s to %s, and the clock of this machine says %s: %w", errHandshake,
			invalid.Cert.NotBefore.Format(time.RFC3339), invalid.Cert.NotAfter.Format(time.RFC3339),
			time.Now().UTC().Format(time.RFC3339), err)
	}
	return fmt.Errorf("%w: %w", errHandshake, bare(err))
}

package upstreams

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// sessionPause is how long no session is resumed after one made a handshake fail.
const sessionPause = 10 * time.Minute

var (
	errHandshake = errors.New("TLS handshake failed")
	errPin       = errors.New("no certificate in the verified chain has a pinned key (setting pins)")
	errCertHash  = errors.New("no certificate in the verified chain has one of the hashes (setting cert_hashes, or a DNS stamp)")
)

// A tlsIdentity is what all encrypted transports have: how the server is verified, and what
// is known about its handshakes. Nothing of the verification is ever left out.
type tlsIdentity struct {
	kind      string // DoT, DoH, DoQ or DoH3
	path      string // of the resource, over HTTPS
	log       *slog.Logger
	config    *tls.Config // never used as it is: each endpoint gets a copy
	handshake stepLimit
	clock     certificateClock
	notAfter  atomic.Int64 // end of the latest certificate, in Unix seconds, or 0

	handshakes, resumed atomic.Uint64
}

// protocols are the names of the transports in TLS. RFC 7858 has none for DoT, and a server
// on port 443 needs one.
var protocols = map[string]string{DoT: "dot", DoH: http2Protocol, DoQ: "doq", DoH3: http3.NextProtoH3}

func (t *tlsIdentity) init(kind string, o Options, log *slog.Logger) error {
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
	hashes, err := o.certHashes()
	if err != nil {
		return err
	}
	t.kind, t.path, t.log = kind, o.DoHPath, log
	t.handshake.set, t.handshake.usual, t.handshake.max = o.HandshakeTimeout, handshakeUsual, o.Patience
	t.clock = certificateClock{built: o.Built, log: log, warned: &clockWarned}
	t.config = &tls.Config{
		Time:                        t.clock.now,
		MinVersion:                  tls.VersionTLS12,
		ServerName:                  o.ServerName,
		RootCAs:                     roots,
		Certificates:                certificates,
		NextProtos:                  []string{protocols[kind]},
		ClientSessionCache:          tls.NewLRUClientSessionCache(0),
		DynamicRecordSizingDisabled: true, // a burst of queries is one record
	}
	if kind == DoH || kind == DoH3 {
		t.config.ServerName = cmp.Or(o.DoHName, o.ServerName)
	}
	if len(pins)+len(hashes) > 0 {
		// Unlike VerifyPeerCertificate, this runs on resumed sessions too.
		t.config.VerifyConnection = func(state tls.ConnectionState) error { return checkDigests(state, pins, hashes) }
	}
	return nil
}

// established takes note of a handshake that was completed.
func (t *tlsIdentity) established(state *tls.ConnectionState, took time.Duration) {
	t.handshakes.Add(1)
	t.handshake.succeeded(took)
	t.notAfter.Store(state.PeerCertificates[0].NotAfter.Unix())
	if state.DidResume {
		t.resumed.Add(1)
	}
}

// timeout returns the error of a handshake that is not completed within a limit.
func (t *tlsIdentity) timeout(limit time.Duration) error {
	return &failure{TLSTimedOut, fmt.Errorf("no TLS handshake within %v (setting handshake_timeout)", limit)}
}

func (t *tlsIdentity) String() string { return t.kind }

func (t *tlsIdentity) identity() *tlsIdentity { return t }

// A tlsTransport opens connections for DNS over TLS (RFC 7858), or over HTTPS (RFC 8484).
// A handshake that fails for a reason that a plainer ClientHello may avoid is repeated with
// one (see helloRace).
type tlsTransport struct {
	tlsIdentity
	tcp        *tcpTransport
	noSessions limitation // resumption made a handshake fail
	// Handshakes that were completed with a plainer ClientHello, by what it left out.
	withoutALPN, withoutKeyShare atomic.Uint64
}

// checkDigests checks that the verified chain has one of the pinned keys, and one of the
// certificates with these hashes. None of either means any.
func checkDigests(state tls.ConnectionState, pins, hashes digests) error {
	pinned, hashed := len(pins) == 0, len(hashes) == 0
	for _, chain := range state.VerifiedChains {
		for _, certificate := range chain {
			pinned = pinned || pins[sha256.Sum256(certificate.RawSubjectPublicKeyInfo)]
			hashed = hashed || hashes[sha256.Sum256(certificate.RawTBSCertificate)]
		}
	}
	switch {
	case !pinned:
		return errPin
	case !hashed:
		return errCertHash
	}
	return nil
}

func (t *tlsTransport) limits() dialLimits {
	return dialLimits{connect: t.tcp.connect.current(), handshake: t.handshake.current()}
}

func (t *tlsTransport) longest() dialLimits {
	return dialLimits{connect: t.tcp.connect.longest(), handshake: t.handshake.longest()}
}

// summary describes how l, which has no faults, was made.
func (l link) summary(to *endpoint) string {
	const digits = 10 * time.Microsecond
	text := fmt.Sprintf("connected to %v", to)
	if l.tcpTook > 0 {
		text += fmt.Sprintf(": TCP in %v", l.tcpTook.Round(digits))
	}
	if l.tls == nil {
		return text
	}
	kind := "full handshake"
	if l.tls.DidResume {
		kind = "session resumed"
	}
	return fmt.Sprintf("%s, %s in %v (%s)", text, tls.VersionName(l.tls.Version), l.tlsTook.Round(digits), kind)
}

func (t *tlsIdentity) configFor(addr netip.AddrPort) *tls.Config {
	config := t.config.Clone()
	if config.ServerName == "" {
		config.ServerName = addr.Addr().WithZone("").String()
	}
	return config
}

// openTLS makes one connection, with a ClientHello that leaves out something or nothing. A
// handshake that fails after a session was offered is repeated without one.
func (t *tlsTransport) openTLS(ctx context.Context, e *endpoint, without helloOmissions, limits dialLimits, p *helloProgress) (link, error) {
	config := t.configFor(e.addr)
	without.apply(config)
	p.small = without&withoutKeyShare != 0
	sessions := &offeredSessions{ClientSessionCache: config.ClientSessionCache}
	config.ClientSessionCache = sessions
	if t.noSessions.holds() {
		config.ClientSessionCache = nil
	}
	for {
		l, err := t.secure(ctx, e.addr, config, limits, p)
		if err == nil {
			t.count(without)
			return l, nil
		}
		if !sessions.offered || !errors.Is(err, errHandshake) || refusedALPN(err) {
			return l, err
		}
		// The next session would fail as well, so none is offered for a while.
		sessions.Put(config.ServerName, nil)
		t.noSessions.learn(sessionPause)
		config.ClientSessionCache, sessions.offered = nil, false
	}
}

// secure connects, and verifies the server. After a failure, the link says how long the
// steps took.
func (t *tlsTransport) secure(ctx context.Context, addr netip.AddrPort, config *tls.Config, limits dialLimits, p *helloProgress) (link, error) {
	l, err := t.tcp.openSocket(ctx, addr, limits.connect, p.small)
	if err != nil {
		return link{}, err
	}
	p.connected.Store(true)
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, limits.handshake, t.timeout(limits.handshake))
	defer cancel()
	conn := tls.Client(&firstReadConn{Conn: l.raw, progress: p, reached: t.tcp.progress}, config)
	err = conn.HandshakeContext(ctx)
	l.Conn, l.secure, l.tlsTook = conn, err == nil, time.Since(began)
	if err != nil {
		l.abort()
		cause := context.Cause(ctx)
		if cause == nil {
			return l, t.clock.explain(err)
		}
		if OutcomeOf(cause) == TLSTimedOut {
			t.handshake.timedOut()
		}
		return l, cause
	}
	t.tcp.progress(tlsConnected)
	state := conn.ConnectionState()
	t.established(&state, l.tlsTook)
	l.tls = &state
	return l, nil
}

// openOnce makes one connection that is ready for queries.
func (t *tlsTransport) openOnce(ctx context.Context, e *endpoint, without helloOmissions, limits dialLimits, p *helloProgress) (link, error) {
	l, err := t.openTLS(ctx, e, without, limits, p)
	if err != nil || t.kind == DoT {
		return l, err
	}
	conn, err := t.overHTTP(l.Conn, *l.tls, e.addr)
	if err != nil {
		l.abort()
		return link{}, err
	}
	l.Conn, l.capacity, l.abort = conn, conn.capacity, conn.abort(l.raw)
	return l, nil
}

// overHTTP begins HTTP/2 on a connection with TLS.
func (t *tlsTransport) overHTTP(conn net.Conn, state tls.ConnectionState, addr netip.AddrPort) (*http2Conn, error) {
	if state.NegotiatedProtocol != http2Protocol {
		return nil, fmt.Errorf("%w: the server does not offer HTTP/2 (ALPN)", errHandshake)
	}
	return newHTTP2Conn(conn, hostOf(state.ServerName, addr), t.path)
}

func (t *tlsTransport) init(kind string, o Options, tcp *tcpTransport, log *slog.Logger) error {
	t.tcp = tcp
	return t.tlsIdentity.init(kind, o, log)
}

// hostOf returns the :authority of requests to a server (RFC 9113 section 8.3.1).
func hostOf(name string, addr netip.AddrPort) string {
	if name == "" { // the certificate is valid for the address
		name = addr.Addr().WithZone("").String()
	}
	switch {
	case addr.Port() != dohPort:
		return net.JoinHostPort(name, strconv.Itoa(int(addr.Port())))
	case strings.Contains(name, ":"):
		return "[" + name + "]"
	}
	return name
}

func (t *tlsTransport) count(without helloOmissions) {
	if without&withoutALPN != 0 {
		t.withoutALPN.Add(1)
	}
	if without&withoutKeyShare != 0 {
		t.withoutKeyShare.Add(1)
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

// A firstReadConn is a connection during its handshake. It notes the first octets that
// the server sends.
type firstReadConn struct {
	net.Conn
	progress *helloProgress // nil once they have come
	reached  func(step int32)
}

func (c *firstReadConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.progress != nil {
		c.progress.replied.Store(true)
		c.reached(tlsAnswered)
		c.progress = nil
	}
	return n, err
}

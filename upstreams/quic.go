package upstreams

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"dotgate/gateway/wire"
)

const (
	// quicPacket is the size of the largest packets: the least that every path for QUIC
	// carries (RFC 9000 section 14). DNS messages have no need of larger ones.
	quicPacket = 1200
	// quicWindow is how many octets of responses may come before they are read.
	quicWindow = 4 << 20
	// quicRoom is how many streams are used while the server has not shown that it allows
	// fewer: it should allow that many (RFC 9114 section 6.1).
	quicRoom = 100
	// quicTokens is how many tokens are kept that spare a handshake a round trip (RFC 9000
	// section 8.1.3).
	quicTokens = 4
	// quicBuffer is how large the system's buffer of a socket should be, and quicBufferMin
	// where packets may get lost in a burst.
	quicBuffer, quicBufferMin = 1 << 20, 128 << 10
	// doqNoError and doqCancelled are codes of RFC 9250 section 4.3.
	doqNoError, doqCancelled = 0, 3
)

// A quicTransport opens QUIC connections, for DNS over QUIC (RFC 9250), or over HTTP/3
// (RFC 8484 and 9114). No query is sent before the server is verified: there is no 0-RTT.
type quicTransport struct {
	tlsIdentity
	network  networkDial
	reached  func(step int32) // is called when a dial has got further; or nil
	config   *quic.Config
	dials    atomic.Uint64
	warned   atomic.Bool   // of a small buffer
	patience time.Duration // how long an answer is waited for
}

func (t *quicTransport) init(kind string, o Options, network networkDial, reached func(step int32), log *slog.Logger) error {
	t.network, t.reached, t.patience = network, reached, max(answerLimit, o.Patience)
	t.config = &quic.Config{
		InitialPacketSize: quicPacket, DisablePathMTUDiscovery: true,
		InitialStreamReceiveWindow: 1 << 17, InitialConnectionReceiveWindow: quicWindow, MaxConnectionReceiveWindow: quicWindow,
		MaxIncomingStreams: -1, MaxIncomingUniStreams: -1, // RFC 9250 section 4.2
		MaxIdleTimeout: max(2*o.IdleTimeout, t.patience),
		TokenStore:     quic.NewLRUTokenStore(quicTokens, 1),
	}
	if kind == DoH3 {
		t.config.MaxIncomingUniStreams = 0 // for its control streams: the default
	}
	err := t.tlsIdentity.init(kind, o, log)
	if err == nil {
		t.tlsIdentity.config.ClientSessionCache = &ticketCache{ClientSessionCache: t.tlsIdentity.config.ClientSessionCache}
	}
	return err
}

// A ticketCache gives each session to one handshake only: quic-go writes to it, and tickets
// should not be used twice (RFC 8446 section C.4).
type ticketCache struct {
	mu sync.Mutex
	tls.ClientSessionCache
}

func (c *ticketCache) Get(key string) (*tls.ClientSessionState, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	session, ok := c.ClientSessionCache.Get(key)
	c.Put(key, nil)
	return session, ok
}

func (t *quicTransport) limits() dialLimits  { return dialLimits{handshake: t.handshake.current()} }
func (t *quicTransport) longest() dialLimits { return dialLimits{handshake: t.handshake.longest()} }

// open makes one connection. Its handshake is also the connect.
func (t *quicTransport) open(ctx context.Context, e *endpoint, limits dialLimits) (link, error) {
	t.dials.Add(1)
	limit, began := max(limits.connect, limits.handshake), time.Now()
	socket, err := t.network(ctx, e.addr, limit, false)
	if err != nil {
		return link{}, err
	}
	if size := receiveBuffer(socket); size > 0 && size < quicBufferMin && !t.warned.Swap(true) {
		t.log.Warn("the system's buffer for UDP is small: packets of QUIC may get lost in a burst (sysctl net.core.rmem_max)", "octets", size, "wanted", quicBuffer)
	}
	progress := new(helloProgress)
	below := &quic.Transport{Conn: packetConn{&firstReadConn{socket, progress, t.progress}}}
	end := func() {
		below.Close()
		socket.Close()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, t.timeout(limit))
	defer cancel()
	config := t.config.Clone()
	config.HandshakeIdleTimeout = limit
	conn, err := below.Dial(ctx, socket.RemoteAddr(), t.configFor(e.addr), config)
	if err != nil {
		end()
		return link{}, t.explain(ctx, err, limit, progress)
	}
	t.progress(tlsConnected)
	state := conn.ConnectionState().TLS
	l := link{raw: socket, secure: true, tls: &state, tlsTook: time.Since(began)}
	t.established(&state, l.tlsTook)
	c := t.newConn(conn, e.addr, end)
	l.Conn, l.abort, l.capacity = c, func() { c.Close() }, c.capacity
	return l, nil
}

func (t *quicTransport) progress(step int32) {
	if t.reached != nil {
		t.reached(step)
	}
}

// explain returns the error of a dial that failed.
func (t *quicTransport) explain(ctx context.Context, err error, limit time.Duration, p *helloProgress) error {
	_, late := errors.AsType[*quic.IdleTimeoutError](err)
	_, later := errors.AsType[*quic.HandshakeTimeoutError](err)
	cause := context.Cause(ctx)
	switch {
	case late, later, cause != nil && OutcomeOf(cause) == TLSTimedOut:
		t.handshake.timedOut()
		if !p.replied.Load() {
			return &failure{DialTimedOut, fmt.Errorf("no reply over UDP within %v (setting handshake_timeout)", limit)}
		}
		return t.timeout(limit)
	case cause != nil:
		return cause
	}
	if remote, ok := errors.AsType[*quic.TransportError](err); ok && remote.Remote && remote.ErrorCode.IsCryptoError() {
		return &failure{TLSAlert, err}
	}
	if OutcomeOf(err) == DialRefused {
		return fmt.Errorf("UDP: %w", syscall.ECONNREFUSED)
	}
	return t.clock.explain(fmt.Errorf("%w (QUIC)", err))
}

// connectQUIC returns a UDP socket for one address, so that the system tells if nothing
// listens there.
func (s source) connectQUIC(ctx context.Context, addr netip.AddrPort, limit time.Duration, _ bool) (net.Conn, error) {
	conn, err := s.connect(ctx, net.Dialer{Timeout: limit}, "udp", addr)
	if err != nil {
		return nil, unwrapNet(err)
	}
	_ = conn.(*net.UDPConn).SetReadBuffer(quicBuffer) // the system may allow less
	return conn, nil
}

// A packetConn is a connected socket in the form that quic-go needs.
type packetConn struct{ net.Conn }

func (c packetConn) ReadFrom(p []byte) (int, net.Addr, error) {
	n, err := c.Read(p)
	return n, c.RemoteAddr(), err
}

func (c packetConn) WriteTo(p []byte, _ net.Addr) (int, error) { return c.Write(p) }

// SetReadBuffer and SetWriteBuffer keep quic-go from asking for more than connectQUIC has.
func (packetConn) SetReadBuffer(int) error  { return nil }
func (packetConn) SetWriteBuffer(int) error { return nil }

// A quicConn carries DNS messages, each in a QUIC stream of its own. To a stream it looks
// like a connection of DNS-over-TLS, as an http2Conn does, and Read returns a requestError
// for the same reasons.
type quicConn struct {
	*quic.Conn
	ask      func(ctx context.Context, message []byte) ([]byte, error) // of RFC 9250 or of HTTP/3
	code     quic.ApplicationErrorCode                                 // to end with: no error
	end      func()                                                    // of the socket
	patience time.Duration
	open     atomic.Int32 // streams
	room     atomic.Int32 // how many may be open at once

	mu       sync.Mutex   // guards the fields below
	changed  sync.Cond    // of what Read waits for
	answers  bytes.Buffer // of inFlightMax queries at most
	failed   []error      // of requests
	deadline time.Time
	err      error // why the connection ended, or nil
}

func (t *quicTransport) newConn(conn *quic.Conn, addr netip.AddrPort, end func()) *quicConn {
	c := &quicConn{Conn: conn, end: end, patience: t.patience, code: doqNoError}
	c.changed.L = &c.mu
	c.room.Store(quicRoom)
	c.ask = c.askOverQUIC
	if t.kind == DoH3 {
		c.code = quic.ApplicationErrorCode(http3.ErrCodeNoError)
		host := hostOf(conn.ConnectionState().TLS.ServerName, addr)
		over := &http3Asker{
			to:   (&http3.Transport{DisableCompression: true, MaxResponseHeaderBytes: http2HeadersMax}).NewClientConn(conn),
			url:  &url.URL{Scheme: "https", Host: host, Opaque: "https://" + host + t.path}, // has the path as it is
			conn: c,
		}
		c.ask = over.ask
	}
	context.AfterFunc(conn.Context(), func() { c.fail(endOfQUIC(context.Cause(conn.Context()))) })
	return c
}

// endOfQUIC returns the reason for the end of a connection as TCP would have it.
func endOfQUIC(err error) error {
	_, idle := errors.AsType[*quic.IdleTimeoutError](err)
	_, closed := errors.AsType[*quic.ApplicationError](err)
	_, reset := errors.AsType[*quic.StatelessResetError](err)
	switch {
	case idle, closed:
		return fmt.Errorf("%w (%w)", io.EOF, err)
	case reset:
		return fmt.Errorf("%w (%w)", syscall.ECONNRESET, err)
	}
	return err
}

// Write sends each message behind a length in p in a stream of its own. It does not block.
func (c *quicConn) Write(p []byte) (int, error) {
	if err := c.reason(); err != nil {
		return 0, err
	}
	for rest := p; len(rest) > 0; {
		size := int(binary.BigEndian.Uint16(rest))
		message := bytes.Clone(rest[:2+size])
		rest = rest[2+size:]
		go c.exchange(message)
	}
	return len(p), nil
}

// exchange asks the query behind its length, and has the result read.
func (c *quicConn) exchange(query []byte) {
	ctx, cancel := context.WithTimeout(c.Context(), c.patience)
	defer cancel()
	id := wire.ID(query[2:])
	query[2], query[3] = 0, 0 // RFC 9250 section 4.2.1, RFC 8484 section 4.1
	answer, err := c.ask(ctx, query)
	if err != nil && (errors.Is(err, net.ErrClosed) || c.Context().Err() != nil || errors.Is(err, context.DeadlineExceeded)) {
		return // the connection has ended, or the query been given up
	}
	if err == nil && len(answer) < 2 {
		err = errTooShort
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.failed = append(c.failed, &requestError{id, err})
	} else {
		c.answers.Write(binary.BigEndian.AppendUint16(c.answers.AvailableBuffer(), uint16(len(answer))))
		binary.BigEndian.PutUint16(answer, id)
		c.answers.Write(answer)
	}
	c.changed.Signal()
}

// askOverQUIC sends a query in a new stream and reads the answer (RFC 9250 section 4.2).
func (c *quicConn) askOverQUIC(ctx context.Context, query []byte) ([]byte, error) {
	s, err := c.OpenStream()
	if _, full := errors.AsType[*quic.StreamLimitReachedError](err); full {
		c.room.Store(max(1, c.open.Load()))
		s, err = c.OpenStreamSync(ctx)
	}
	if err != nil {
		return nil, err
	}
	if open := c.open.Add(1); open > c.room.Load() {
		c.room.Store(open)
	}
	defer c.open.Add(-1)
	limit, _ := ctx.Deadline()
	_ = s.SetDeadline(limit)
	defer s.CancelRead(doqCancelled) // without effect after the whole answer
	if _, err = s.Write(query); err == nil {
		err = s.Close()
	}
	var answer []byte
	if err == nil {
		answer, err = readMessage(s)
	}
	if err != nil {
		return nil, ofStream(err)
	}
	return answer, nil
}

// readMessage reads a message behind its length. It takes no memory for what has not come.
func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	length := int(binary.BigEndian.Uint16(size[:]))
	message, err := io.ReadAll(io.LimitReader(r, int64(length)))
	if err == nil && len(message) < length {
		err = io.ErrUnexpectedEOF
	}
	return message, err
}

// ofStream returns why a stream brought no answer.
func ofStream(err error) error {
	ofHTTP, _ := errors.AsType[*http3.Error](err)
	_, reset := errors.AsType[*quic.StreamError](err)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	case errors.Is(err, net.ErrClosed): // of the connection
		return err
	case ofHTTP != nil && ofHTTP.Remote && ofHTTP.ErrorCode == http3.ErrCodeRequestRejected: // RFC 9114 section 4.1.1
		return errNotProcessed
	case reset:
		return &failure{Reset, err}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &failure{ShortFrame, errors.New("the QUIC stream ended within its answer")}
	}
	return &failure{Unparsable, err}
}

// An http3Asker asks over HTTP/3.
type http3Asker struct {
	to   *http3.ClientConn
	url  *url.URL
	conn *quicConn
}

func (a *http3Asker) ask(ctx context.Context, query []byte) ([]byte, error) {
	query = query[2:]
	request := &http.Request{
		Method: http.MethodPost, URL: a.url,
		Header:        http.Header{"Accept": {dnsMessage}, "Content-Type": {dnsMessage}, "User-Agent": nil},
		Body:          io.NopCloser(bytes.NewReader(query)),
		ContentLength: int64(len(query)),
	}
	response, err := a.to.RoundTrip(request.WithContext(ctx))
	if err != nil {
		return nil, a.explain(err)
	}
	defer response.Body.Close()
	h := responseHeader{status: response.StatusCode, after: parseRetryAfter(response.Header.Get("Retry-After"))}
	h.setContentType(response.Header.Get("Content-Type"))
	h.setAge(response.Header.Get("Age"))
	if err := h.check(); err != nil {
		return nil, err
	}
	answer, err := io.ReadAll(io.LimitReader(response.Body, wire.MaxSize+1))
	if err != nil {
		return nil, ofStream(err)
	}
	if len(answer) > wire.MaxSize {
		return nil, errTooLong
	}
	wire.SubtractAge(answer, h.age)
	return answer, nil
}

// explain returns why a request has no response. After GOAWAY, the connection takes no
// further ones, which the attempt to begin one shows.
func (a *http3Asker) explain(err error) error {
	if a.conn.Context().Err() != nil {
		return net.ErrClosed
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, ended := a.to.OpenRequestStream(ctx); !errors.Is(ended, context.Canceled) {
		a.conn.fail(errGoAway)
		return errNotProcessed
	}
	return ofStream(err)
}

// Read returns messages behind their lengths.
func (c *quicConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.answers.Len() == 0 {
		switch {
		case len(c.failed) > 0:
			err := c.failed[0]
			c.failed = c.failed[1:]
			return 0, err
		case c.err != nil:
			return 0, c.err
		case !c.deadline.IsZero() && !time.Now().Before(c.deadline):
			return 0, os.ErrDeadlineExceeded
		}
		c.changed.Wait()
	}
	return c.answers.Read(p)
}

// SetReadDeadline bounds the wait of Read.
func (c *quicConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	if !t.IsZero() {
		time.AfterFunc(time.Until(t)+1, func() {
			c.mu.Lock() // so that Read, which has just looked at the deadline, waits by now
			defer c.mu.Unlock()
			c.changed.Broadcast()
		})
	}
	return nil
}

// SetDeadline bounds the wait of Read; Write does not wait.
func (c *quicConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetWriteDeadline has no effect: Write does not wait.
func (c *quicConn) SetWriteDeadline(time.Time) error { return nil }

// capacity returns how many queries the server answers at once.
func (c *quicConn) capacity() int { return int(c.room.Load()) }

// Close ends the connection. The server is told, and none of its packets is waited for.
func (c *quicConn) Close() error {
	c.fail(net.ErrClosed)
	_ = c.CloseWithError(c.code, "") // it is a courtesy
	c.end()
	return nil
}

// fail ends reading and writing with err, unless they have ended.
func (c *quicConn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = cmp.Or(c.err, err)
	c.changed.Broadcast()
}

func (c *quicConn) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

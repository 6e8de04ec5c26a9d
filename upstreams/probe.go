package upstreams

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"dotgate/gateway/latency"
	"dotgate/gateway/wire"
)

const (
	// probeQueries is how many queries measure the latency, and burst how many are sent at
	// once to see whether a server answers them in parallel.
	probeQueries = 20
	burst        = 8
	// probeAnswerLimit is how long an answer may take.
	probeAnswerLimit = 3 * time.Second
)

// A ProbeReport describes one address of an upstream: whether it works, how fast, and what
// it supports.
type ProbeReport struct {
	Address   netip.AddrPort `json:"address,omitzero"`
	Transport string         `json:"transport,omitempty"` // dot, doh, doq or doh3
	// Err is the first error; the fields that are measured after it are not set.
	Err error `json:"-"`

	TCP              latency.Millis      `json:"tcp_ms"` // the time of the handshakes
	TLS              latency.Millis      `json:"tls_ms"`
	Version          string              `json:"tls_version,omitempty"`
	Cipher           string              `json:"cipher,omitempty"`
	ALPN             string              `json:"alpn,omitempty"`    // empty if none was agreed upon
	Without          string              `json:"without,omitempty"` // what the ClientHello had to leave out: "alpn", "key_share" or both with a comma
	Chain            []*x509.Certificate `json:"-"`                 // the server's certificate first; unverified if verification failed
	Resumes          bool                `json:"resumes"`           // a second connection was resumed
	Asked            int                 `json:"asked"`             // queries that were sent one after the other
	Answered         int                 `json:"answered"`          // of these
	P50              latency.Millis      `json:"p50_ms"`
	P90              latency.Millis      `json:"p90_ms"`
	P99              latency.Millis      `json:"p99_ms"`
	Pipelined        int                 `json:"pipelined"`               // answers to queries that were sent at once
	OutOfOrder       bool                `json:"out_of_order"`            // at least one of these answers overtook another
	Padded           bool                `json:"padded"`                  // answers to padded queries are padded (RFC 8467)
	Idle             latency.Millis      `json:"idle_ms,omitempty"`       // how long an idle connection stayed open
	IdleLimitReached bool                `json:"idle_at_least,omitempty"` // it was still open then
}

// Probe examines each address of the upstream that o describes. It sends q there, and
// waits for at most idle to see how long the server keeps idle connections. It blocks for
// that long, and some seconds more.
func Probe(ctx context.Context, o Options, q wire.Query, idle time.Duration) ([]ProbeReport, error) {
	u, err := New(o)
	if err != nil {
		return nil, err
	}
	defer u.Close()
	if o.Host != "" {
		if err := u.dialer.setHosts(ctx); err != nil {
			return nil, named(o.Name, err)
		}
	}
	var all []*ProbeReport
	var probes sync.WaitGroup
	for _, e := range u.dialer.ordered() {
		if t, ok := e.via.(prober); ok {
			x := &ProbeReport{Address: e.addr, Transport: e.via.String()}
			all = append(all, x)
			probes.Go(func() { x.probe(ctx, t, q, idle) })
		}
	}
	probes.Wait()
	reports := make([]ProbeReport, len(all))
	for i, x := range all {
		reports[i] = *x
	}
	return reports, nil
}

// A prober is a transport that can be examined.
type prober interface {
	// examine makes a connection and fills in what is known of it. On failure it sets Err.
	examine(ctx context.Context, x *ProbeReport) (conn net.Conn, again redial)
}

// A redial makes another connection as the first one, with its session or with none.
type redial func(ctx context.Context, resume bool) (conn net.Conn, resumed bool, err error)

func (x *ProbeReport) probe(ctx context.Context, t prober, q wire.Query, idle time.Duration) {
	conn, again := t.examine(ctx, x)
	if x.Err != nil {
		return
	}
	defer conn.Close()
	var waiting sync.WaitGroup
	waiting.Go(func() { x.idle(ctx, again, q, idle) })
	defer waiting.Wait()
	r := bufio.NewReaderSize(conn, 2+wire.MaxSize)
	if x.Err = x.measure(conn, r, q); x.Err != nil {
		return
	}
	if x.Err = x.pipeline(conn, r, q); x.Err != nil {
		return
	}
	if second, resumed, err := again(ctx, true); err == nil {
		x.Resumes = resumed
		second.Close()
	}
}

func (t *tlsTransport) examine(ctx context.Context, x *ProbeReport) (net.Conn, redial) {
	config := t.configFor(x.Address)
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	conn := x.secure(ctx, t, config)
	if x.Err != nil {
		return nil, nil
	}
	return conn, func(ctx context.Context, resume bool) (net.Conn, bool, error) {
		config := config.Clone()
		if !resume {
			config.ClientSessionCache = nil
		}
		l, err := t.secure(ctx, x.Address, config, t.longest(), new(helloProgress))
		if err != nil {
			return nil, false, err
		}
		var conn net.Conn = l
		if t.kind == DoH {
			conn, err = t.overHTTP(l, *l.tls, x.Address)
		}
		return conn, l.tls.DidResume, err
	}
}

func (t *quicTransport) examine(ctx context.Context, x *ProbeReport) (net.Conn, redial) {
	open := func(ctx context.Context) (link, error) {
		return t.open(ctx, &endpoint{addr: x.Address}, t.longest())
	}
	l, err := open(ctx)
	if x.Err = err; err != nil {
		if bad, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			x.Chain = bad.UnverifiedCertificates
		}
		return nil, nil
	}
	x.TLS = latency.Millis(l.tlsTook)
	x.describe(l.tls)
	return l, func(ctx context.Context, _ bool) (net.Conn, bool, error) {
		l, err := open(ctx)
		return l, err == nil && l.tls.DidResume, err
	}
}

func (x *ProbeReport) describe(state *tls.ConnectionState) {
	x.Version, x.Cipher, x.ALPN = tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite), state.NegotiatedProtocol
	x.Chain = state.PeerCertificates
}

// A promptConn has the system acknowledge the next segments at once, as a stream does at
// first: a server may delay its answer until then, and would seem to take 40 ms.
type promptConn struct {
	net.Conn
	raw net.Conn
}

func (c *promptConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	acknowledgeAtOnce(c.raw)
	return n, err
}

// secure makes a connection, with a plainer ClientHello where that is needed, and changes
// config accordingly. On failure it sets x.Err.
func (x *ProbeReport) secure(ctx context.Context, t *tlsTransport, config *tls.Config) *promptConn {
	var without helloOmissions
	for {
		p := helloProgress{small: without&withoutKeyShare != 0, optionalALPN: t.kind == DoT}
		l, err := t.secure(ctx, x.Address, config, t.longest(), &p)
		x.Err, x.TCP, x.TLS = err, latency.Millis(l.tcpTook), latency.Millis(l.tlsTook)
		if err == nil {
			x.describe(l.tls)
			conn := &promptConn{l, l.raw}
			if t.kind == DoH {
				var over *http2Conn
				if over, x.Err = t.overHTTP(&promptConn{l, l.raw}, *l.tls, x.Address); x.Err != nil {
					l.abort()
					return nil
				}
				conn.Conn = over
			}
			return conn
		}
		var bad *tls.CertificateVerificationError
		if errors.As(err, &bad) {
			x.Chain = bad.UnverifiedCertificates
		}
		left := p.remedy(err, helloMemory{cut: true}) &^ without
		if left == omitNothing {
			return nil
		}
		without |= left
		left.apply(config)
		x.Without = without.String()
	}
}

// measure sends one query after the other.
func (x *ProbeReport) measure(conn net.Conn, r *bufio.Reader, q wire.Query) error {
	var h latency.Histogram
	for id := range uint16(probeQueries) {
		began := time.Now()
		x.Asked++
		if err := writeFrames(conn, q.AppendUpstream(nil, id)); err != nil {
			return err
		}
		message, err := readFrame(conn, r)
		if err != nil {
			return fmt.Errorf("answer %d: %w", id+1, err)
		}
		if _, err := wire.ParseAnswer(q, message); err != nil {
			return fmt.Errorf("answer %d: %w", id+1, err)
		}
		x.Padded = wire.Padded(message)
		h.Add(time.Since(began))
		x.Answered++
	}
	var s latency.Snapshot
	s.Include(&h)
	x.P50, x.P90, x.P99 = latency.Millis(s.Quantile(0.5)), latency.Millis(s.Quantile(0.9)), latency.Millis(s.Quantile(0.99))
	return nil
}

// pipeline sends several queries at once: every other one for a name that the
// server can hardly have in its cache, so that the others may be answered first.
func (x *ProbeReport) pipeline(conn net.Conn, r *bufio.Reader, q wire.Query) error {
	var frames [][]byte
	for id := range uint16(burst) {
		asked := q
		if id%2 == 0 {
			var err error
			if asked, err = wire.NewQuery(fmt.Sprintf("probe-%d-%d.example.com", time.Now().UnixNano(), id), "A"); err != nil {
				return err
			}
		}
		frames = append(frames, asked.AppendUpstream(nil, id))
	}
	if err := writeFrames(conn, frames...); err != nil {
		return err
	}
	var order []uint16
	for range burst {
		message, err := readFrame(conn, r)
		if err != nil {
			return fmt.Errorf("%d queries at once: %w", burst, err)
		}
		order = append(order, wire.ID(message))
		x.Pipelined++
	}
	x.OutOfOrder = !slices.IsSorted(order)
	return nil
}

// idle sends one query on a connection of its own, and waits for the end of the connection.
func (x *ProbeReport) idle(ctx context.Context, again redial, q wire.Query, limit time.Duration) {
	if limit <= 0 {
		return
	}
	conn, _, err := again(ctx, false)
	if err != nil {
		return
	}
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 2+wire.MaxSize)
	if writeFrames(conn, q.AppendUpstream(nil, 1)) != nil {
		return
	}
	if _, err := readFrame(conn, r); err != nil {
		return
	}
	began := time.Now()
	_ = conn.SetReadDeadline(began.Add(limit))
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })()
	_, err = r.Peek(1)
	var timeout net.Error
	x.Idle = latency.Millis(time.Since(began))
	x.IdleLimitReached = errors.As(err, &timeout) && timeout.Timeout()
}

func writeFrames(w io.Writer, messages ...[]byte) error {
	var frames []byte
	for _, m := range messages {
		frames = append(binary.BigEndian.AppendUint16(frames, uint16(len(m))), m...)
	}
	_, err := w.Write(frames)
	return err
}

// readFrame returns the next message, with bytes of its own, at least as long as
// an ID.
func readFrame(conn net.Conn, r *bufio.Reader) ([]byte, error) {
	_ = conn.SetReadDeadline(time.Now().Add(probeAnswerLimit))
	frame, err := nextFrame(r)
	if err != nil {
		return nil, err
	}
	if len(frame) < 2 {
		return nil, wire.ErrMalformed
	}
	message := slices.Clone(frame)
	_, err = r.Discard(2 + len(frame))
	return message, err
}

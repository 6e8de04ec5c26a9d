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
	"time"

	"dotgate/gateway/latency"
	"dotgate/gateway/wire"
)

const (
	// examined is how many queries latencies are measured with, and burst how many
	// are sent at once to see whether a server works on several.
	examined = 20
	burst    = 8
	// examineLimit is how long an answer may take.
	examineLimit = 3 * time.Second
)

// An Examination is what one address of an upstream does and can.
type Examination struct {
	Address netip.AddrPort
	// Err is what went wrong first; what comes after it is then unknown.
	Err error

	TCP, TLS         time.Duration // how long the handshakes took
	Version, Cipher  string
	ALPN             string              // empty if none was agreed upon
	Chain            []*x509.Certificate // the server's first; of a failed verification, what came
	Resumes          bool                // a second connection resumed the session
	Asked, Answered  int                 // one after the other
	P50, P90, P99    time.Duration       // of these
	Pipelined        int                 // answers to so many queries that were sent at once
	OutOfOrder       bool                // at least one of these answers overtook another
	Padded           bool                // answers to padded queries are padded (RFC 8467)
	Idle             time.Duration       // after so long without a query it closed the connection…
	IdleLimitReached bool                // … or had not, when we did not wait any longer
}

// Examine looks at each address of the upstream that o describes, asks for q
// there, and waits for at most idle to see how long it keeps idle connections. It
// blocks, for some seconds beyond that at the most.
func Examine(ctx context.Context, o Options, q wire.Query, idle time.Duration) ([]Examination, error) {
	u, err := New(o)
	if err != nil {
		return nil, err
	}
	defer u.Close()
	if err := u.dialer.resolve(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	addrs := u.Addresses()
	all := make([]Examination, len(addrs))
	done := make(chan struct{})
	for i, addr := range addrs {
		go func() {
			all[i] = u.dialer.examine(ctx, addr, q, idle)
			done <- struct{}{}
		}()
	}
	for range addrs {
		<-done
	}
	return all, nil
}

func (d *dialer) examine(ctx context.Context, addr netip.AddrPort, q wire.Query, idle time.Duration) (x Examination) {
	x.Address = addr
	config := d.config.Clone()
	if config.ServerName == "" {
		config.ServerName = addr.Addr().WithZone("").String()
	}
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	began := time.Now()
	tcp, err := connect(ctx, addr, d.o.ConnectTimeout)
	if err != nil {
		x.Err = err
		return x
	}
	x.TCP = time.Since(began)
	conn := tls.Client(tcp, config)
	defer tcp.Close()
	if x.Err = x.handshake(ctx, conn, d.o.HandshakeTimeout); x.Err != nil {
		return x
	}
	waiting := make(chan struct{})
	go func() {
		defer close(waiting)
		x.idle(ctx, addr, config.Clone(), q, idle)
	}()
	defer func() { <-waiting }()
	r := bufio.NewReaderSize(conn, 2+wire.MaxSize)
	if x.Err = x.measure(conn, r, q); x.Err != nil {
		return x
	}
	if x.Err = x.pipeline(conn, r, q); x.Err != nil {
		return x
	}
	x.resume(ctx, addr, config)
	return x
}

func (x *Examination) handshake(ctx context.Context, conn *tls.Conn, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	err := conn.HandshakeContext(ctx)
	x.TLS = time.Since(began)
	var bad *tls.CertificateVerificationError
	if errors.As(err, &bad) {
		x.Chain = bad.UnverifiedCertificates
	}
	if err != nil {
		return explain(err)
	}
	state := conn.ConnectionState()
	x.Version, x.Cipher, x.ALPN = tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite), state.NegotiatedProtocol
	x.Chain = state.PeerCertificates
	return nil
}

// measure asks one query after the other.
func (x *Examination) measure(conn net.Conn, r *bufio.Reader, q wire.Query) error {
	var h latency.Histogram
	for id := range uint16(examined) {
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
	x.P50, x.P90, x.P99 = s.Quantile(0.5), s.Quantile(0.9), s.Quantile(0.99)
	return nil
}

// pipeline sends several queries at once: every other one for a name that the
// server can hardly know already, so that those between may overtake.
func (x *Examination) pipeline(conn net.Conn, r *bufio.Reader, q wire.Query) error {
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

func (x *Examination) resume(ctx context.Context, addr netip.AddrPort, config *tls.Config) {
	again := tls.Dialer{Config: config}
	ctx, cancel := context.WithTimeout(ctx, examineLimit)
	defer cancel()
	if conn, err := again.DialContext(ctx, "tcp", addr.String()); err == nil {
		x.Resumes = conn.(*tls.Conn).ConnectionState().DidResume
		conn.Close()
	}
}

// idle asks once on a connection of its own, and waits for its end.
func (x *Examination) idle(ctx context.Context, addr netip.AddrPort, config *tls.Config, q wire.Query, limit time.Duration) {
	if limit <= 0 {
		return
	}
	config.ClientSessionCache = nil
	dialer := tls.Dialer{Config: config}
	first, cancel := context.WithTimeout(ctx, examineLimit)
	defer cancel()
	conn, err := dialer.DialContext(first, "tcp", addr.String())
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
	x.Idle = time.Since(began)
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
	_ = conn.SetReadDeadline(time.Now().Add(examineLimit))
	frame, err := nextFrame(r)
	if err != nil {
		return nil, err
	}
	message := slices.Clone(frame)
	if _, err := r.Discard(2 + len(frame)); err != nil {
		return nil, err
	}
	if len(message) < 2 {
		return nil, wire.ErrMalformed
	}
	return message, nil
}

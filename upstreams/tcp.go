package upstreams

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// tcpTransport opens TCP connections. DNS over TCP uses them as they are, and DoT below
// TLS.
type tcpTransport struct {
	connect stepLimit
	network networkDial
	reached func(step int32) // is called when a dial has got further; or nil
	dials   atomic.Uint64
}

func (t *tcpTransport) init(o Options, network networkDial, reached func(step int32)) {
	t.network, t.reached = network, reached
	t.connect.set, t.connect.usual, t.connect.max = o.ConnectTimeout, connectUsual, o.Patience
}

func (t *tcpTransport) open(ctx context.Context, e *endpoint, limits dialLimits) (link, error) {
	return t.openSocket(ctx, e.addr, limits.connect, false)
}

// openSocket connects, with small packets only if small is set.
func (t *tcpTransport) openSocket(ctx context.Context, addr netip.AddrPort, limit time.Duration, small bool) (link, error) {
	t.dials.Add(1)
	began := time.Now()
	socket, err := t.network(ctx, addr, limit, small)
	if err != nil {
		if OutcomeOf(err) == DialTimedOut {
			t.connect.timedOut()
		}
		return link{}, err
	}
	l := newLink(socket, socket, false)
	l.tcpTook = time.Since(began)
	t.connect.succeeded(l.tcpTook)
	t.progress(tcpConnected)
	return l, nil
}

func (t *tcpTransport) progress(step int32) {
	if t.reached != nil {
		t.reached(step)
	}
}

func (t *tcpTransport) String() string      { return TCP }
func (t *tcpTransport) limits() dialLimits  { return dialLimits{connect: t.connect.current()} }
func (t *tcpTransport) longest() dialLimits { return dialLimits{connect: t.connect.longest()} }

// connectTCP returns a TCP connection, with small packets only if small is set.
func (s source) connectTCP(ctx context.Context, addr netip.AddrPort, limit time.Duration, small bool) (net.Conn, error) {
	dialer := net.Dialer{Timeout: limit}
	if small {
		dialer.Control = smallSegments
	}
	conn, err := s.connect(ctx, dialer, "tcp", addr)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil, noConnection(limit)
	}
	if err != nil {
		return nil, unwrapNet(err)
	}
	socket, err := newSocket(conn.(*net.TCPConn))
	if err != nil {
		conn.Close()
	}
	return socket, err
}

// unwrapNet returns err without the addresses that package net adds to errors of the
// system: an addressError names the address, once. An alert of the peer (see alerted)
// stays as it is.
func unwrapNet(err error) error {
	if op, ok := err.(*net.OpError); ok && op.Op != "remote error" {
		return op.Err
	}
	return err
}

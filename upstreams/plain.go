package upstreams

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

const (
	// plainTimeout is how long an answer is waited for at all.
	plainTimeout = 4 * time.Second
	// resendMin is the least time before a query is sent again over UDP, which
	// loses some; it doubles each time.
	resendMin = 300 * time.Millisecond
	// plainSockets is how many queries may be under way: each has a socket of its
	// own, whose port nobody can guess.
	plainSockets = 1000
	// plainIdle is how many idle TCP connections are kept.
	plainIdle = 8
	// maxForged is how many packets that are no answer a query endures before it
	// is asked over TCP, where nobody can forge any.
	maxForged = 16
)

// A Plain is a server that is asked in clear text, over UDP or TCP: for servers of
// one's own network, most of which speak nothing else. Anybody on the way can read
// and change what it says.
//
// Over UDP each query has a port, an ID and a spelling of the name of its own, all
// at random, so that an answer is hard to forge for those who are not on the way.
// What comes truncated, or in another spelling, is asked again over TCP.
type Plain struct {
	o       Options
	log     *slog.Logger
	epoch   time.Time // what instants count from
	next    atomic.Uint32
	rtt     estimator
	waiting atomic.Int64 // instant of the first query since the last answer, or 0
	sockets chan struct{}
	counts  counters
	dials   atomic.Uint64
	ledger
	attempts tally // at all addresses

	wg   sync.WaitGroup
	ctx  context.Context // ends with Close
	stop context.CancelFunc

	mu   sync.Mutex // guards idle
	idle []*plainConn
}

// A plainConn is a TCP connection that carries one query at a time.
type plainConn struct {
	net.Conn
	r       *bufio.Reader
	retired time.Time // when it has been idle for too long
}

// NewPlain checks all options and returns a Plain that has asked nothing yet.
func NewPlain(o Options) (*Plain, error) {
	o = o.withDefaults()
	var problems []error
	o.Check(func(option, problem string) {
		problems = append(problems, fmt.Errorf("upstream %s: %s %s", o.Name, option, problem))
	})
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	p := &Plain{o: o, log: o.Log.With("upstream", o.Name), epoch: time.Now(), sockets: make(chan struct{}, plainSockets)}
	p.ctx, p.stop = context.WithCancel(context.Background())
	for _, a := range o.Addresses {
		if IsPublic(a.Addr()) {
			p.log.Warn("asking a public server in clear text: anybody on the way can read and change it (upstreams: write tls:// if it speaks TLS)", "address", a)
		}
	}
	return p, nil
}

// IsPublic reports whether a is reached through networks of others.
func IsPublic(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsGlobalUnicast() && !a.IsPrivate()
}

// String returns the upstream's name.
func (p *Plain) String() string { return p.o.Name }

// Addresses returns where the upstream is.
func (p *Plain) Addresses() []netip.AddrPort { return p.o.Addresses }

// Latency returns how long an answer usually takes, 0 while that is not known, and
// how long one may be waited for before something seems wrong.
func (p *Plain) Latency() (usual, patience time.Duration) { return p.rtt.usual() }

// Silent returns how long the upstream has owed a sign of life.
func (p *Plain) Silent() time.Duration {
	since := p.waiting.Load()
	if since == 0 {
		return 0
	}
	return time.Duration(p.now() - since)
}

func (p *Plain) now() int64 { return int64(time.Since(p.epoch)) + 1 }

// Counts returns the totals. Nobody shakes hands here.
func (p *Plain) Counts() Counts {
	c := Counts{Dials: p.dials.Load()}
	p.counts.addTo(&c)
	p.mu.Lock()
	defer p.mu.Unlock()
	c.Open = len(p.idle)
	return c
}

// Connect does nothing: there is no connection to be had ahead.
func (p *Plain) Connect(context.Context) error { return nil }

// NetworkChanged reports true: a server that did not answer may do so now.
func (p *Plain) NetworkChanged() bool { return true }

// Drill fails: there is no connection to have a fault.
func (p *Plain) Drill(context.Context, Drill) error {
	return fmt.Errorf("%s is asked in clear text; a drill needs an upstream with TLS", p.o.Name)
}

// Ask sends q, and has done called with its verified answer, or with why there is
// none: once, and within seconds. It doesn't block.
func (p *Plain) Ask(q wire.Query, done func(wire.Answer, error)) {
	select {
	case p.sockets <- struct{}{}:
	default:
		p.attempts[Overloaded].Add(1)
		done(wire.Answer{}, fmt.Errorf("%s: %w", p.o.Name, ErrBusy))
		return
	}
	p.waiting.CompareAndSwap(0, p.now())
	p.wg.Go(func() {
		began := time.Now()
		a, err := p.ask(q)
		<-p.sockets
		outcome := outcomeOf(a, err)
		p.attempts[outcome].Add(1)
		p.ledger.enter(outcome, time.Since(began), err)
		if err != nil {
			done(wire.Answer{}, fmt.Errorf("%s: %w", p.o.Name, err))
			return
		}
		p.waiting.Store(0)
		p.rtt.sample(time.Since(began))
		p.counts.accept(a)
		done(a, nil)
	})
}

// History returns what became of all queries; it doesn't tell addresses apart.
func (p *Plain) History() History {
	h := History{Addresses: make([]AddressHistory, 1)}
	p.attempts.addTo(&h.Addresses[0].Attempts)
	p.ledger.addTo(&h)
	return h
}

// Exchange is Ask for those who wait. It returns when ctx is done at the latest.
func (p *Plain) Exchange(ctx context.Context, q wire.Query) (wire.Answer, error) {
	if a, err, ended := waitFor(ctx, p.Ask, q); ended {
		return a, err
	}
	return wire.Answer{}, fmt.Errorf("%s: %w", p.o.Name, context.Cause(ctx))
}

// Close fails the queries under way, and returns when every goroutine is gone.
func (p *Plain) Close() error {
	p.stop()
	p.wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.idle {
		c.Close()
	}
	p.idle = nil
	return nil
}

// errByTCP means that UDP won't do for a query.
var errByTCP = errors.New("to be asked over TCP")

func (p *Plain) ask(q wire.Query) (a wire.Answer, err error) {
	ctx, cancel := context.WithTimeout(p.ctx, plainTimeout)
	defer cancel()
	q = q.Respelled(rand.Uint64)
	to := p.o.Addresses[int(p.next.Add(1)-1)%len(p.o.Addresses)]
	if p.o.Protocol == UDP {
		if a, err = p.askUDP(ctx, q, to); err != errByTCP {
			return a, p.explain(err)
		}
	}
	a, err = p.askTCP(ctx, q, to)
	return a, p.explain(err)
}

// explain makes of a deadline what others understand.
func (p *Plain) explain(err error) error {
	switch {
	case p.ctx.Err() != nil:
		return ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer from %v within %v: %w", p.o.Addresses, plainTimeout, context.DeadlineExceeded)
	}
	return err
}

// askUDP asks q from a socket that has no other query.
func (p *Plain) askUDP(ctx context.Context, q wire.Query, to netip.AddrPort) (wire.Answer, error) {
	// Being connected, it takes packets from there only, and learns that nobody
	// listens.
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return wire.Answer{}, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	id := uint16(rand.Uint32())
	packet := q.AppendPlain(nil, id)
	_, patience := p.rtt.usual()
	again := max(2*patience, resendMin)
	buffer := make([]byte, 4096)
	for forged := 0; ; {
		if _, err := c.Write(packet); err != nil {
			return wire.Answer{}, err
		}
		p.counts.sent.Add(1)
		due := time.Now().Add(again)
		for {
			c.SetReadDeadline(due)
			if ctx.Err() != nil { // in between, so that ours may have come last
				return wire.Answer{}, ctx.Err()
			}
			n, err := c.Read(buffer)
			if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
				break
			}
			if err != nil {
				return wire.Answer{}, err
			}
			a, err := p.judge(q, id, buffer[:n])
			if err == nil || err == errByTCP {
				return a, err
			}
			// It may be forged, so that the true one is still to come.
			if forged++; forged >= maxForged {
				return wire.Answer{}, errByTCP
			}
		}
		p.counts.resent.Add(1)
		again *= 2
	}
}

// judge tells whether message, which came over UDP, is the answer to q.
func (p *Plain) judge(q wire.Query, id uint16, message []byte) (wire.Answer, error) {
	if len(message) < 2 || wire.ID(message) != id {
		p.counts.unasked.Add(1)
		return wire.Answer{}, wire.ErrNotResponse
	}
	a, err := p.parse(q, message)
	switch {
	case errors.Is(err, wire.ErrTruncated):
		return a, errByTCP
	case err == nil && !q.SameSpelling(message):
		p.counts.mismatched.Add(1)
		return a, errByTCP
	}
	return a, err
}

// parse is wire.ParseAnswer, counted.
func (p *Plain) parse(q wire.Query, message []byte) (wire.Answer, error) {
	a, err := wire.ParseAnswer(q, message)
	if err != nil && !errors.Is(err, wire.ErrTruncated) {
		p.counts.drop(err)
	}
	return a, err
}

// askTCP asks q on an idle connection, and on a fresh one if there is none or it
// has died meanwhile.
func (p *Plain) askTCP(ctx context.Context, q wire.Query, to netip.AddrPort) (wire.Answer, error) {
	if c := p.pick(to); c != nil {
		if a, err := p.askOn(ctx, c, q); err == nil || ctx.Err() != nil {
			return a, err
		}
		p.counts.resent.Add(1)
	}
	p.dials.Add(1)
	d := net.Dialer{Timeout: p.o.ConnectTimeout}
	nc, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return wire.Answer{}, err
	}
	return p.askOn(ctx, &plainConn{Conn: nc, r: bufio.NewReader(nc)}, q)
}

// askOn asks q on c, and then keeps c or closes it.
func (p *Plain) askOn(ctx context.Context, c *plainConn, q wire.Query) (a wire.Answer, err error) {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if stop() && err == nil {
			p.keep(c)
		} else {
			c.Close()
		}
	}()
	id := uint16(rand.Uint32())
	frame := q.AppendPlain(make([]byte, 2, 512), id)
	binary.BigEndian.PutUint16(frame, uint16(len(frame)-2))
	if _, err := c.Write(frame); err != nil {
		return a, err
	}
	p.counts.sent.Add(1)
	var prefix [2]byte
	if _, err := io.ReadFull(c.r, prefix[:]); err != nil {
		return a, err
	}
	message := make([]byte, binary.BigEndian.Uint16(prefix[:]))
	if _, err := io.ReadFull(c.r, message); err != nil {
		return a, err
	}
	if len(message) < 2 || wire.ID(message) != id {
		p.counts.unasked.Add(1)
		return a, wire.ErrNotResponse
	}
	return p.parse(q, message)
}

// pick takes an idle connection to that address, or returns nil.
func (p *Plain) pick(to netip.AddrPort) *plainConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	var kept []*plainConn
	var found *plainConn
	for _, c := range p.idle {
		switch remote, ok := c.RemoteAddr().(*net.TCPAddr); {
		case time.Now().After(c.retired):
			c.Close()
		case found == nil && ok && remote.AddrPort() == to:
			found = c
		default:
			kept = append(kept, c)
		}
	}
	p.idle = kept
	return found
}

func (p *Plain) keep(c *plainConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) >= plainIdle || p.ctx.Err() != nil {
		c.Close()
		return
	}
	c.retired = time.Now().Add(p.o.IdleTimeout)
	p.idle = append(p.idle, c)
}

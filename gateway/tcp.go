package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A tcpListener serves the clients of one TCP socket.
type tcpListener struct {
	gateway *Gateway
	ln      acceptor
	tally   tally
}

// newTCPListener takes over a listener. It closes it if there is an error.
func newTCPListener(g *Gateway, ln *net.TCPListener) (*tcpListener, error) {
	if err := boundBuffers(ln); err != nil {
		ln.Close()
		return nil, err
	}
	return &tcpListener{gateway: g, ln: ln}, nil
}

// An acceptor is what a *net.TCPListener does for us.
type acceptor interface {
	net.Listener
	SetDeadline(time.Time) error
}

// serve accepts connections until shortly after ctx is done, so that the
// backlog is not met by resets, and then waits for those that are open.
func (l *tcpListener) serve(ctx context.Context) {
	var open sync.WaitGroup
	defer open.Wait()
	defer l.ln.Close()
	stop := context.AfterFunc(ctx, func() { l.ln.SetDeadline(time.Now().Add(lastCall)) })
	defer stop()
	clients := &l.gateway.clients
	failing := setback{log: l.gateway.log, doing: "accept TCP"}
	for {
		nc, err := l.ln.Accept()
		switch {
		case err == nil:
			failing.over()
		case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, syscall.ECONNABORTED): // gone while in the backlog
			continue
		default:
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
				clients.evict()
			}
			failing.wait(ctx, err)
			continue
		}
		c := newConnection(l.gateway, nc.(stream), &l.tally)
		if !clients.admit(c) {
			nc.Close()
			continue
		}
		open.Go(func() {
			defer clients.leave(c)
			c.serve(ctx)
		})
	}
}

// connectionBuffer is what the system may keep for a connection in each direction:
// the longest message, or a hundred queries of a client that sends each by itself.
// Left alone, it keeps megabytes for one that does not read.
const connectionBuffer = 64 << 10

// boundBuffers bounds those of all connections that ln accepts, for which they need
// not be asked one by one.
func boundBuffers(ln *net.TCPListener) error {
	c, err := ln.SyscallConn()
	if err != nil {
		return err
	}
	e := c.Control(func(fd uintptr) {
		err = errors.Join(
			os.NewSyscallError("setsockopt SO_RCVBUF", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, connectionBuffer)),
			os.NewSyscallError("setsockopt SO_SNDBUF", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, connectionBuffer)))
	})
	return errors.Join(e, err)
}

// connections are the open TCP connections of all listeners.
//
// When there are too many, the one that has been idle longest makes room: it
// costs its client a handshake with the next query, whereas turning the
// newcomer away costs an answer. It also means that a crowd that connects and
// says nothing keeps nobody out (RFC 7766 section 6.2.3 permits it). If it is one
// client that has too many, one of its own makes room.
type connections struct {
	unsent atomic.Int64 // octets of replies that wait to be written

	mu           sync.Mutex // guards all below; not held during I/O
	max          int
	maxPerClient int
	open         map[*connection]struct{}
	clients      map[netip.Prefix]int // how many of them each has
	counts
}

type counts struct{ accepted, evicted, rejected, idle, stalled, slow uint64 }

// limit sets how many there may be from now on. Those that are open stay.
func (cs *connections) limit(all, perClient int) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.max, cs.maxPerClient = all, perClient
}

// admit makes c one of the open connections, unless there is no room.
func (cs *connections) admit(c *connection) bool {
	cs.mu.Lock()
	var evicted *connection
	cs.accepted++
	prefix := prefixOf(c.client.addr)
	full := len(cs.open) >= cs.max
	if crowded := cs.clients[prefix] >= cs.maxPerClient; full || crowded {
		anybody := !crowded
		if evicted = cs.removeIdle(func(other *connection) bool { return anybody || prefixOf(other.client.addr) == prefix }); evicted == nil {
			cs.rejected++
			cs.mu.Unlock()
			return false
		}
	}
	cs.open[c] = struct{}{}
	cs.clients[prefix]++
	cs.mu.Unlock()
	if evicted != nil {
		evicted.nc.Close()
	}
	return true
}

// relieve cuts off whoever has the most octets waiting, and the next, until what waits
// for the others is not too much. That is who does not read, among those who do.
func (cs *connections) relieve() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for {
		all, most := int64(0), (*connection)(nil)
		for c := range cs.open {
			if c.broken.Load() {
				continue // what it has is about to go
			}
			all += c.unsent.Load()
			if most == nil || c.unsent.Load() > most.unsent.Load() {
				most = c
			}
		}
		if all <= unsentMax || most == nil {
			return
		}
		most.cutOff()
	}
}

// evict closes the connection that has been idle longest, if there is any.
func (cs *connections) evict() {
	cs.mu.Lock()
	evicted := cs.removeIdle(func(*connection) bool { return true })
	cs.mu.Unlock()
	if evicted != nil {
		evicted.nc.Close()
	}
}

// removeIdle returns the connection that has been idle longest, of those that may
// go, which is then no longer among the open ones, or nil.
//
// It looks at all of them: a microsecond per hundred, and only when it is full.
func (cs *connections) removeIdle(may func(*connection) bool) (idlest *connection) {
	var since time.Duration
	for c := range cs.open {
		if idle, ok := c.idleFor(); ok && (idlest == nil || idle > since) && may(c) {
			idlest, since = c, idle
		}
	}
	if idlest != nil {
		cs.remove(idlest)
		cs.evicted++
	}
	return idlest
}

// remove takes c out of the open connections.
func (cs *connections) remove(c *connection) {
	delete(cs.open, c)
	prefix := prefixOf(c.client.addr)
	if cs.clients[prefix]--; cs.clients[prefix] == 0 {
		delete(cs.clients, prefix)
	}
}

// leave counts why c ended. One that was evicted has been counted.
func (cs *connections) leave(c *connection) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if _, ok := cs.open[c]; !ok {
		return
	}
	cs.remove(c)
	switch c.end {
	case wasIdle:
		cs.idle++
	case wasStalled:
		cs.stalled++
	case wasSlow:
		cs.slow++
	}
}

func (cs *connections) closeAll() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c := range cs.open {
		c.nc.Close() // doesn't wait: SO_LINGER is not set
	}
}

func (cs *connections) addTo(c *Counts) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c.Connections.Open = len(cs.open)
	c.Connections.Accepted = cs.accepted
	c.Connections.Evicted = cs.evicted
	c.Connections.Rejected = cs.rejected
	c.Connections.Idle = cs.idle
	c.Connections.Stalled = cs.stalled
	c.Connections.Slow = cs.slow
}

package transport

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

	"dotgate/gateway/access"
)

// A tcpListener serves the clients of one TCP socket.
type tcpListener struct {
	server *Server
	ln     acceptor
}

// newTCPListener takes over ln. It closes it if there is an error.
func newTCPListener(s *Server, ln *net.TCPListener) (*tcpListener, error) {
	if err := boundBuffers(ln); err != nil {
		ln.Close()
		return nil, err
	}
	return &tcpListener{server: s, ln: ln}, nil
}

// An acceptor is the part of *net.TCPListener that a tcpListener uses.
type acceptor interface {
	net.Listener
	SetDeadline(time.Time) error
}

// serve accepts connections until shutdownRead after ctx is done, so that clients in the
// backlog get no reset, and then waits for the open connections.
func (l *tcpListener) serve(ctx context.Context) {
	var open sync.WaitGroup
	defer open.Wait()
	defer l.ln.Close()
	stop := context.AfterFunc(ctx, func() { l.ln.SetDeadline(time.Now().Add(shutdownRead)) })
	defer stop()
	clients := &l.server.clients
	backoff := socketBackoff{log: l.server.log, doing: "accept TCP"}
	for {
		nc, err := l.ln.Accept()
		switch {
		case err == nil:
			backoff.reset()
		case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, syscall.ECONNABORTED): // the client left while in the backlog
			continue
		default:
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
				clients.evict()
			}
			backoff.wait(ctx, err)
			continue
		}
		c := newConnection(l.server, nc.(stream))
		if !clients.admit(c, l.server.handler.IsOwn(c.client.Addr)) {
			nc.Close()
			continue
		}
		open.Go(func() {
			defer clients.closed(c)
			c.serve(ctx)
		})
	}
}

// connectionBuffer is the size of a connection's socket buffers, one for each direction: the
// longest message, or a hundred queries of a client that sends each by itself. Without this
// bound, the system would keep megabytes for a client that does not read.
const connectionBuffer = 64 << 10

// boundBuffers sets the buffer sizes of all connections that ln accepts, which inherit them.
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

const (
	// checkConnections is how many connections of this machine may be open beyond the
	// limits, as long as they bring health checks.
	checkConnections = 8
	// checkTimeout is how long a connection beyond the limits may take to bring one.
	checkTimeout = 500 * time.Millisecond
)

// connections holds the open TCP connections of all listeners.
//
// When there are too many, the one that has been idle longest is closed: that costs its
// client a handshake with the next query, whereas turning the new one away costs an answer.
// Clients that connect and send nothing thus keep no other client out (RFC 7766 section
// 6.2.3 permits it). If one client has too many, one of its own is closed.
type connections struct {
	unsent atomic.Int64 // octets of replies that wait to be written, on all connections

	mu           sync.Mutex // guards all below; not held during I/O
	max          int
	maxPerClient int
	checksOnly   int // open ones beyond the limits
	open         map[*connection]struct{}
	clients      map[netip.Prefix]int // number of open ones by client prefix
	counts       ConnectionCounts     // except those of now
}

// limit sets the limits for new connections. Those that are open stay.
func (cs *connections) limit(all, perClient int) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.max, cs.maxPerClient = all, perClient
}

// admit adds c to the open connections, unless the limits forbid it. If own is set, the
// client is on this machine and may send a health check, which is admitted beyond the
// limits.
func (cs *connections) admit(c *connection, own bool) bool {
	cs.mu.Lock()
	var evicted *connection
	cs.counts.Accepted++
	prefix := access.ClientPrefix(c.client.Addr)
	full := len(cs.open)-cs.checksOnly >= cs.max
	if crowded := cs.clients[prefix] >= cs.maxPerClient; full || crowded {
		evicted = cs.removeIdle(func(other *connection) bool {
			return !other.client.ChecksOnly && (!crowded || access.ClientPrefix(other.client.Addr) == prefix)
		})
		if evicted == nil && own {
			if cs.checksOnly == checkConnections {
				evicted = cs.removeIdle(func(other *connection) bool { return other.client.ChecksOnly })
			}
			c.client.ChecksOnly = cs.checksOnly < checkConnections
		}
		if evicted == nil && !c.client.ChecksOnly {
			cs.counts.Rejected++
			cs.mu.Unlock()
			return false
		}
	}
	cs.open[c] = struct{}{}
	if c.client.ChecksOnly {
		cs.checksOnly++
	} else {
		cs.clients[prefix]++
	}
	cs.mu.Unlock()
	if evicted != nil {
		evicted.nc.Close()
	}
	return true
}

// shedSlowReaders disconnects the client with the most unsent octets, and the next, until
// the rest is within unsentMax: among clients that read, that is one that does not.
func (cs *connections) shedSlowReaders() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for {
		all, most := int64(0), (*connection)(nil)
		for c := range cs.open {
			if c.broken.Load() {
				continue // its replies are being discarded
			}
			all += c.unsent.Load()
			if most == nil || c.unsent.Load() > most.unsent.Load() {
				most = c
			}
		}
		if all <= unsentMax || most == nil {
			return
		}
		most.abort()
	}
}

// evict closes the connection that has been idle longest, if there is one.
func (cs *connections) evict() {
	cs.mu.Lock()
	evicted := cs.removeIdle(func(*connection) bool { return true })
	cs.mu.Unlock()
	if evicted != nil {
		evicted.nc.Close()
	}
}

// removeIdle removes and returns the connection that has been idle longest of those that may
// be closed, or nil.
//
// It looks at all connections: a microsecond per hundred, and only at the limit.
func (cs *connections) removeIdle(may func(*connection) bool) (idlest *connection) {
	var since time.Duration
	for c := range cs.open {
		if idle, ok := c.idleFor(); ok && (idlest == nil || idle > since) && may(c) {
			idlest, since = c, idle
		}
	}
	if idlest != nil {
		cs.remove(idlest)
		cs.counts.Evicted++
	}
	return idlest
}

// remove removes c from the open connections. The caller holds mu.
func (cs *connections) remove(c *connection) {
	delete(cs.open, c)
	if c.client.ChecksOnly {
		cs.checksOnly--
		return
	}
	prefix := access.ClientPrefix(c.client.Addr)
	if cs.clients[prefix]--; cs.clients[prefix] == 0 {
		delete(cs.clients, prefix)
	}
}

// closed removes c and counts its closeReason. One that was evicted has been counted.
func (cs *connections) closed(c *connection) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if _, ok := cs.open[c]; !ok {
		return
	}
	cs.remove(c)
	switch c.reason {
	case closedIdle:
		cs.counts.Idle++
	case closedStalled:
		cs.counts.Stalled++
	case closedSlow:
		cs.counts.Slow++
	case closedRejected:
		cs.counts.Rejected++
	}
}

func (cs *connections) closeAll() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c := range cs.open {
		c.nc.Close() // does not block: SO_LINGER is not set
	}
}

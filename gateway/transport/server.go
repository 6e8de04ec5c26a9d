package transport

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// When a Server stops:
const (
	// shutdownRead is how long UDP sockets are still read, and connections accepted: queries
	// that had reached this host are answered.
	shutdownRead = 50 * time.Millisecond
	// shutdownConnection is how long connections are still read. Their clients connect again
	// at once. If this process still listened then, and stopped just after, it would reset
	// the new connection, which the next process could have served.
	shutdownConnection = 2 * shutdownRead
	// shutdownDrain is how long a UDP socket is read after it left the group of those
	// that share its port, and gets no more packets.
	shutdownDrain = 5 * time.Millisecond
	// shutdownGrace is how long queries in progress may go on. Clients ask again after 1 s
	// to 5 s. With what follows, the process stops within 2 s.
	shutdownGrace = 1100 * time.Millisecond
	// shutdownFlush is how long TCP clients may take to read their replies after that.
	shutdownFlush = 250 * time.Millisecond
)

// A Server serves clients at its listen addresses: NewServer, SetOptions, then Listen or
// Adopt, then Serve, which are called once.
type Server struct {
	handler Handler
	log     *slog.Logger
	current atomic.Pointer[Options] // use options()
	clients connections

	// bindAbsent is whether sockets may be bound to addresses that no interface has, as
	// far as the system allows it. False in tests only.
	bindAbsent bool

	// opening is held while sockets are opened for unbound addresses, and while a Change
	// begins, so that no address is opened twice.
	opening sync.Mutex

	mu          sync.Mutex // guards all below; not held during I/O
	adopted     bool       // the listeners were adopted, and no Change replaces them
	listeners   []*listener
	unbound     []unboundAddress
	changing    bool        // a Change is neither committed nor abandoned yet
	draining    []*listener // removed, with queries in progress
	pastDropped uint64      // of listeners that were removed and have closed
	service     service
}

// NewServer returns a Server whose clients h answers. It opens nothing, and starts nothing.
func NewServer(h Handler, log *slog.Logger) *Server {
	s := &Server{handler: h, log: log, bindAbsent: true}
	s.clients = connections{open: make(map[*connection]struct{}), clients: make(map[netip.Prefix]int)}
	return s
}

// SetOptions puts o into effect. Connections that are open stay.
func (s *Server) SetOptions(o Options) {
	s.current.Store(&o)
	s.clients.limit(o.MaxConnections, o.MaxPerClient)
}

func (s *Server) options() *Options { return s.current.Load() }

// Addrs returns where s listens, with the ports that were chosen for port 0.
func (s *Server) Addrs() (all []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		all = append(all, l.addrs...)
	}
	return all
}

// Dropped returns how many packets the system has dropped because a socket was full; 0 where
// it does not tell.
func (s *Server) Dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.pastDropped
	for _, l := range slices.Concat(s.listeners, s.draining) {
		sum += l.dropped()
	}
	return sum
}

// Connections returns the current counts of connections.
func (s *Server) Connections() ConnectionCounts {
	cs := &s.clients
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.counts
	c.Open, c.Unsent = len(cs.open), cs.unsent.Load()
	return c
}

// Serve serves clients until ctx is done. It blocks. Queries that have reached this host by
// then are answered. shutdownGrace later it calls giveUp, which has to reply to all pending
// queries, and once more at the end, for queries without a client. It closes all sockets
// shutdownFlush later at most. All goroutines of s have ended when it returns.
func (s *Server) Serve(ctx context.Context, giveUp func()) error {
	if !s.begin(ctx) {
		return errors.New("serve: nothing is listening")
	}
	s.log.Debug("serving clients", "addresses", s.Addrs())
	<-ctx.Done()
	s.end(giveUp)
	giveUp()
	s.log.Debug("stopped serving clients")
	return nil
}

// A Change is a change of the listen addresses of a Server: ready, but not in effect. Either
// Commit or Abandon has to be called, once.
type Change struct {
	server *Server
	openResult
}

// Prepare gets a Change ready by which s serves at other addresses. Sockets for new addresses
// are open when it returns. Addresses that stay keep their sockets, and so do all if they
// were adopted. A Server may have one Change at a time. On an error, there is none.
func (s *Server) Prepare(listen []netip.AddrPort) (*Change, error) {
	have, draining, adopted := s.beginChange()
	if adopted {
		return &Change{s, openResult{kept: have}}, nil
	}
	opened, err := s.open(listen, false, have, draining)
	if err != nil {
		s.endChange()
		return nil, err
	}
	return &Change{s, opened}, nil
}

// beginChange returns the listeners that serve, and those that drain. Until endChange,
// RetryUnbound does nothing.
func (s *Server) beginChange() (have, draining []*listener, adopted bool) {
	s.opening.Lock()
	defer s.opening.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changing = true
	return slices.Clone(s.listeners), slices.Clone(s.draining), s.adopted
}

func (s *Server) endChange() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changing = false
}

// Commit puts the Change into effect, unless the Server has stopped serving. It calls apply
// before a client is served at a new address. Clients of a removed one still receive replies
// to queries already in progress.
func (c *Change) Commit(apply func()) {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changing = false
	if s.service.ending {
		c.close()
		return
	}
	apply()
	before := s.listeners
	s.listeners, s.unbound = append(c.kept, c.added...), c.unbound
	for _, l := range before {
		if !slices.Contains(c.kept, l) {
			s.draining = append(s.draining, l)
		}
	}
	if s.service.ctx == nil {
		return // begin serves all, and drains those that were removed
	}
	for _, l := range c.added {
		s.serve(l)
	}
	for _, l := range before {
		if !slices.Contains(c.kept, l) {
			l.drain()
		}
	}
}

// Abandon closes the sockets that were opened for the Change.
func (c *Change) Abandon() {
	c.close()
	c.server.endChange()
}

func (c *Change) close() {
	for _, l := range c.added {
		l.close()
	}
}

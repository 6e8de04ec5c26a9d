package api

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// A Kind says what a connection of an HTTP server is used for. Connections of a higher kind
// are closed later when the limit is reached.
type Kind uint8

const (
	Waiting Kind = iota // for a request, or for the rest of one
	Stream              // gets events until it is closed
	Asking              // waits for a response
	Vital               // waits for readiness or metrics, which keep the service alive
	Trusted             // belongs to an authenticated operator; it is never closed
)

// Connections bounds the connections of an HTTP server. A new connection never waits: at
// the limit, the least important connection is closed, which is the one of the lowest kind
// and, among those, the oldest one of the client with the most connections. So a client
// that opens connections to keep them open loses its own, and a health check gets one.
type Connections struct {
	max, streams, streamsPerClient int

	mu   sync.Mutex // guards the rest, and the state of places
	open map[*place]struct{}
}

// NewConnections returns Connections with these limits: of connections, of streams, and of
// streams for each client.
func NewConnections(most, streams, streamsPerClient int) *Connections {
	return &Connections{max: most, streams: streams, streamsPerClient: streamsPerClient, open: make(map[*place]struct{})}
}

// A place is an open connection.
type place struct {
	net.Conn
	places *Connections
	client netip.Prefix // zero for Unix sockets
	kind   Kind
	since  time.Time // of its kind
}

// Listen returns a listener like l whose connections have places.
func (p *Connections) Listen(l net.Listener) net.Listener { return &placing{l, p} }

type placing struct {
	net.Listener
	places *Connections
}

// Accept returns the next connection that gets a place.
func (l *placing) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &place{Conn: conn, places: l.places, client: clientOf(conn.RemoteAddr()), since: time.Now()}
		if l.places.enter(c) {
			return c, nil
		}
		conn.Close()
	}
}

// clientOf returns the prefix that counts as one client: an IPv4 address, or an IPv6 /64.
func clientOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr, bits := tcp.AddrPort().Addr().Unmap(), 64
	if addr.Is4() {
		bits = 32
	}
	prefix, err := addr.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}

// Close closes the connection and releases its place.
func (c *place) Close() error {
	c.places.mu.Lock()
	delete(c.places.open, c)
	c.places.mu.Unlock()
	return c.Conn.Close()
}

// enter gives c a place, and closes another connection if necessary. It reports false if
// none may be closed.
func (p *Connections) enter(c *place) bool {
	p.mu.Lock()
	var leaves *place
	if len(p.open) >= p.max {
		if leaves = p.least(func(*place) bool { return true }); leaves == nil {
			p.mu.Unlock()
			return false
		}
		delete(p.open, leaves)
	}
	p.open[c] = struct{}{}
	p.mu.Unlock()
	if leaves != nil {
		leaves.Conn.Close()
	}
	return true
}

// least returns the least important of the connections that may be closed; nil if none may
// be. The caller holds mu.
func (p *Connections) least(may func(*place) bool) (found *place) {
	of := make(map[netip.Prefix]int)
	for c := range p.open {
		of[c.client]++
	}
	for c := range p.open {
		if c.kind == Trusted || !may(c) {
			continue
		}
		switch {
		case found == nil,
			c.kind < found.kind,
			c.kind == found.kind && of[c.client] > of[found.client],
			c.kind == found.kind && of[c.client] == of[found.client] && c.since.Before(found.since):
			found = c
		}
	}
	return found
}

type placeKey struct{}

func connContext(ctx context.Context, conn net.Conn) context.Context {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	return context.WithValue(ctx, placeKey{}, conn)
}

const (
	// headerLimit bounds the time until the header of a request has arrived, headerMax its
	// size.
	headerLimit = 5 * time.Second
	headerMax   = 16 << 10
	// shutdownLimit bounds the time for responses in progress when the gateway stops.
	shutdownLimit = 500 * time.Millisecond
)

// Serve serves requests on l, whose connections have places, until ctx is done. Then it
// lets requests in progress end within shutdownLimit, closes l and returns nil. An error is
// that of l. It blocks.
func (p *Connections) Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	web := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerLimit,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    headerMax,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       connContext,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	var closing sync.WaitGroup
	closing.Add(1)
	stop := context.AfterFunc(ctx, func() {
		defer closing.Done()
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownLimit)
		defer cancel()
		if web.Shutdown(late) != nil {
			web.Close()
		}
	})
	err := web.Serve(l)
	if stop() {
		web.Close()
		return err
	}
	closing.Wait()
	return nil
}

// Begin gives the connection of r a kind until end is called. It reports false if the
// client has too many streams. Connections of other listeners have no kind.
func (p *Connections) Begin(r *http.Request, k Kind) (end func(), ok bool) {
	c, placed := r.Context().Value(placeKey{}).(*place)
	if !placed {
		return func() {}, true
	}
	p.mu.Lock()
	var leaves *place
	if k == Stream {
		all, own := 0, 0
		for other := range p.open {
			if other.kind == Stream {
				all++
				if other.client == c.client {
					own++
				}
			}
		}
		if own >= p.streamsPerClient {
			p.mu.Unlock()
			return nil, false
		}
		if all >= p.streams {
			leaves = p.least(func(other *place) bool { return other.kind == Stream })
			delete(p.open, leaves)
		}
	}
	c.become(k)
	p.mu.Unlock()
	if leaves != nil {
		leaves.Conn.Close()
	}
	return func() {
		p.mu.Lock()
		c.become(Waiting)
		p.mu.Unlock()
	}, true
}

// become changes the kind. The caller holds mu.
func (c *place) become(k Kind) { c.kind, c.since = k, time.Now() }

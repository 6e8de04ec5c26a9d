// Package admin serves operators, orchestrators and Prometheus over HTTP: liveness,
// readiness, metrics, a page, and the calls of package api.
//
// It reads counters that the other packages keep anyway, and no query waits for it.
// Requests that show names of queries or change something need the token or a client
// certificate. All other requests are open to every client that reaches the address, and
// bounded: 128 connections, 64 pages, 16 pages of one client.
package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/tracing"
	"dotgate/configs/bounds"
	"dotgate/gateway/querylog"
)

const (
	// writeLimit bounds the time until a client has read a response, unless the client
	// is an authenticated operator.
	writeLimit = 10 * time.Second
	// connectionsMax bounds the open connections, streamsMax those of pages, and
	// streamsPerClient those of the pages of one client.
	connectionsMax, streamsMax, streamsPerClient = 128, 64, 16
)

// Parts are the other components that a Server reads. All are required.
type Parts struct {
	api.Options             // those of Control
	Control     *api.Server // its calls are served below /api/
	// Recent is the age up to which the last answer of an upstream proves that it
	// answers.
	Recent   func() time.Duration
	Reloads  func() Reloads
	QueryLog func() querylog.Counts
	Tracing  func() tracing.Counts
}

// Reloads counts reloads of the configuration.
type Reloads struct {
	Done, Failed uint64
	Last         time.Time // of the last successful one, or the start
	Problem      string    // why the last one failed; empty if it did not
}

// A Server serves HTTP on the listeners that Listen returns.
type Server struct {
	terms atomic.Pointer[terms]
	p     Parts
	watch *watch
	// connections has those of all listeners. The texts of events and health are made
	// once for all clients that wait for them.
	connections    *api.Connections
	events, health *rounds
	draining       atomic.Bool
}

// terms are the options in effect. A reload replaces them.
type terms struct {
	Options
	token    [sha256.Size]byte // hash of it
	hasToken bool
	tls      *tls.Config // or nil
}

func newTerms(o Options) (*terms, error) {
	if err := bounds.Err("admin.", o.Check); err != nil {
		return nil, err
	}
	t := &terms{Options: o}
	token, err := o.token()
	if err != nil {
		return nil, fmt.Errorf("admin.token_file: %w", err)
	}
	t.token, t.hasToken = sha256.Sum256([]byte(token)), token != ""
	if t.tls, err = o.tls(); err != nil {
		return nil, fmt.Errorf("admin.cert_file: %w", err)
	}
	return t, nil
}

// Prepare checks new options and reads the files that they name. The options take effect
// when commit is called, except Listen, which is the caller's. On an error, nothing has
// changed.
func (s *Server) Prepare(o Options) (commit func(), err error) {
	next, err := newTerms(o)
	return func() { s.terms.Store(next) }, err
}

// New checks all options and returns a Server. It opens no socket and starts no goroutine.
func New(o Options, p Parts) (*Server, error) {
	now, err := newTerms(o)
	if err != nil {
		return nil, err
	}
	s := &Server{p: p}
	s.terms.Store(now)
	s.watch = newWatch(s)
	s.connections = api.NewConnections(connectionsMax, streamsMax, streamsPerClient)
	s.events = &rounds{interval: eventInterval, make: s.event}
	s.health = &rounds{make: s.healthText}
	return s, nil
}

// Listen opens the socket.
func Listen(at Address) (net.Listener, error) {
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err // the rest stands here
		}
		return nil, fmt.Errorf("listen tcp %v (admin.listen): %w", at, err)
	}
	return l, nil
}

// Drain reports from now on that the gateway is not ready, although it still answers:
// it is about to stop.
func (s *Server) Drain() { s.draining.Store(true) }

// Run samples the counters for the windows of the page until ctx is done. It blocks.
func (s *Server) Run(ctx context.Context) { s.watch.run(ctx) }

// Serve serves on l until ctx is done, and returns when all connections are closed. It
// blocks. An error of l is logged and not returned: the gateway answers queries without
// the admin address, too.
func (s *Server) Serve(ctx context.Context, l net.Listener) {
	if err := s.connections.Serve(ctx, &tlsListener{s.connections.Listen(l), s}, s.Handler(ctx), s.p.Log); err != nil {
		s.p.Log.Warn("admin.listen is not served any more", "error", err)
	}
}

// Handler returns the handler that Serve uses.
func (s *Server) Handler(stopping context.Context) http.Handler {
	mux := http.NewServeMux()
	open := func(pattern string, kind api.Kind, h http.HandlerFunc) { mux.Handle(pattern, s.at(kind, h)) }
	open("GET /livez", api.Vital, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	open("GET /readyz", api.Vital, s.serveReady)
	open("GET /healthz", api.Vital, s.serveHealth)
	open("GET /metrics", api.Vital, s.metrics().ServeHTTP)
	open("GET /{$}", api.Asking, s.servePage)
	open("GET /events", api.Stream, func(w http.ResponseWriter, r *http.Request) { s.serveEvents(stopping, w, r) })
	mux.Handle("/api/", s.trusted(http.StripPrefix("/api", s.p.Control.Handler(stopping))))
	mux.Handle("GET /explain", s.trusted(s.p.Control.Handler(stopping)))
	mux.Handle("GET /debug/pprof/", s.trusted(profiles()))
	return s.guarded(mux)
}

// profiles serves go tool pprof. Profiles show functions of this program and no queries,
// but to make one takes CPU time.
func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// guarded rejects requests for foreign host names, which a web page can make a browser
// send by DNS rebinding.
func (s *Server) guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		_, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if s.terms.Load().Listen.Addr().IsLoopback() && err != nil && host != "localhost" {
			http.Error(w, "this is served to this machine only, by address or as localhost", http.StatusMisdirectedRequest)
			return
		}
		if s.draining.Load() {
			w.Header().Set("Connection", "close") // the next connection may reach the next process
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// at gives the connection of a request a kind while next handles it.
func (s *Server) at(kind api.Kind, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		end, ok := s.connections.Begin(r, kind)
		if !ok {
			w.Header().Set("Retry-After", "5")
			api.WriteError(w, http.StatusServiceUnavailable, fmt.Errorf("this client has %d pages open already, the most for one client", streamsPerClient))
			return
		}
		defer end()
		deadline := time.Now().Add(writeLimit)
		if kind == api.Trusted { // a drill takes minutes
			deadline = time.Time{}
		}
		_ = http.NewResponseController(w).SetWriteDeadline(deadline)
		next.ServeHTTP(w, r)
	})
}

var (
	errNoToken    = errors.New("this needs authentication, and neither admin.token, admin.token_file nor admin.client_ca_file is set")
	errNeedsToken = errors.New("the token of admin.token or admin.token_file is needed, as in Authorization: Bearer TOKEN")
)

// trusted rejects requests that have neither the token nor a client certificate.
func (s *Server) trusted(next http.Handler) http.Handler {
	next = s.at(api.Trusted, next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := s.terms.Load()
		switch {
		case now.authenticated(r):
			next.ServeHTTP(w, r)
		case !now.writable():
			api.WriteError(w, http.StatusForbidden, errNoToken)
		default:
			w.Header().Set("WWW-Authenticate", `Bearer realm="dotgate"`)
			api.WriteError(w, http.StatusUnauthorized, errNeedsToken)
		}
	})
}

// writable reports whether any client can authenticate.
func (t *terms) writable() bool { return t.hasToken || t.ClientCAFile != "" }

// authenticated reports whether a request has the token or a client certificate.
func (t *terms) authenticated(r *http.Request) bool {
	if t.ClientCAFile != "" && r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return true
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	given := sha256.Sum256([]byte(strings.TrimSpace(token)))
	return ok && t.hasToken && subtle.ConstantTimeCompare(given[:], t.token[:]) == 1
}

// A tlsListener makes TLS connections while the terms in effect have a certificate.
type tlsListener struct {
	net.Listener
	s *Server
}

func (l *tlsListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if now := l.s.terms.Load(); err == nil && now.tls != nil {
		return tls.Server(conn, now.tls), nil
	}
	return conn, err
}

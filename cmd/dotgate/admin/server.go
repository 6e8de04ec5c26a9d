// Package admin is what operators, orchestrators and Prometheus ask over HTTP:
// is it alive, is it ready, how is everybody, how much of everything.
//
// It tells what the packages that do the work count anyway, and is nowhere in a
// query's way. Whatever shows names or changes anything wants the token, or a
// client certificate; the rest is open to whoever can reach it.
package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/control"
	"dotgate/cmd/dotgate/peers"
	"dotgate/cmd/dotgate/tracing"
	"dotgate/gateway/cache"
	"dotgate/gateway/querylog"
	"dotgate/gateway/redis"
)

const (
	// requestLimit is how long a request may take to arrive.
	requestLimit = 5 * time.Second
	headerMax    = 16 << 10
	// connectionsMax is how many connections may be open at once.
	connectionsMax = 128
)

// Balancer is what a *balancer.Balancer tells.
type Balancer interface {
	Counts() balancer.Counts
	Candidates() []balancer.CandidateStory
}

// Cache is what a *cache.Cache tells.
type Cache interface {
	Usage() cache.Usage
}

// Parts are what a Server asks. All are required.
type Parts struct {
	Control  *control.Server // what it tells and does, this does too
	Members  func() []control.Member
	Gateway  control.Gateway
	Balancer Balancer
	Cache    Cache
	// Recent is how long ago an upstream may have answered last and still count as
	// one that does.
	Recent   func() time.Duration
	Reloads  func() Reloads
	QueryLog func() querylog.Counts
	Tracing  func() tracing.Counts
	Peers    func() peers.Status // of other gateways
	Redis    func() redis.Counts // of the cache that they share
	Version  string
	Log      *slog.Logger
}

// Reloads is how the configuration was reloaded.
type Reloads struct {
	Done, Failed uint64
	Last         time.Time // when one was done last, or the start
	Problem      string    // of the last one, if it failed
}

// A Server answers over HTTP, at what Listen returns.
type Server struct {
	terms atomic.Pointer[terms]
	p     Parts
	watch *watch
	lame  atomic.Bool
}

// Terms are what may change while a Server serves.
type terms struct {
	Options
	token    [sha256.Size]byte // hash of it
	hasToken bool
	tls      *tls.Config // or nil
}

func newTerms(o Options) (*terms, error) {
	var problems []error
	o.Check(func(option, problem string) {
		problems = append(problems, fmt.Errorf("admin.%s %s", option, problem))
	})
	if err := errors.Join(problems...); err != nil {
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

// Prepare gets other options ready, with what the files that they name have by now.
// They take effect with the function that it returns, but for where it listens. On
// an error, nothing has changed.
func (s *Server) Prepare(o Options) (commit func(), err error) {
	next, err := newTerms(o)
	return func() { s.terms.Store(next) }, err
}

// New checks all options and returns a Server. It opens and starts nothing.
func New(o Options, p Parts) (*Server, error) {
	now, err := newTerms(o)
	if err != nil {
		return nil, err
	}
	s := &Server{p: p}
	s.terms.Store(now)
	s.watch = newWatch(s)
	return s, nil
}

// Listen opens a socket to serve at.
func Listen(at Address) (net.Listener, error) {
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		return nil, fmt.Errorf("serve operators on %v (setting admin.listen): %w", at, err)
	}
	return &bounded{Listener: l, places: make(chan struct{}, connectionsMax)}, nil
}

// Lameduck makes it say from now on that the gateway is not ready: it is about
// to stop, and still answers.
func (s *Server) Lameduck() { s.lame.Store(true) }

// Run keeps what windows need, until ctx is done. It blocks.
func (s *Server) Run(ctx context.Context) { s.watch.run(ctx) }

// Serve serves at l until ctx is done, and returns when all is closed. It blocks.
// That it can't go on is no reason to stop answering queries, so it logs that.
func (s *Server) Serve(ctx context.Context, l net.Listener) {
	web := &http.Server{
		Handler:           s.Handler(ctx),
		ReadHeaderTimeout: requestLimit,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    headerMax,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.p.Log.Handler(), slog.LevelDebug),
	}
	if err := control.ServeUntil(ctx, web, &securing{l, s}); err != nil {
		s.p.Log.Warn("operators are not served any more", "error", err)
	}
}

// Handler returns what Serve serves.
func (s *Server) Handler(stopping context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.serveReady)
	mux.HandleFunc("GET /healthz", s.serveHealth)
	mux.Handle("GET /metrics", s.metrics())
	mux.HandleFunc("GET /{$}", s.servePage)
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) { s.serveEvents(stopping, w, r) })
	mux.Handle("/api/", s.trusted(http.StripPrefix("/api", s.p.Control.Handler(stopping))))
	mux.Handle("GET /explain", s.trusted(s.p.Control.Handler(stopping)))
	mux.Handle("GET /debug/pprof/", s.trusted(profiles()))
	return s.guarded(mux)
}

// profiles serves what go tool pprof asks for. It names functions of this program,
// and nobody's queries; but to make one costs something.
func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// guarded turns away what a page of somebody else could make a browser ask: a
// name that is made to lead here (DNS rebinding) is none of ours.
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
		if s.lame.Load() {
			w.Header().Set("Connection", "close") // the next one may find who comes after
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// trusted lets through who has the token or a client certificate.
func (s *Server) trusted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := s.terms.Load()
		switch {
		case now.know(r):
			next.ServeHTTP(w, r)
		case !now.writable():
			writeError(w, http.StatusForbidden, "nobody may: neither admin.token, admin.token_file nor admin.client_ca_file is set")
		default:
			w.Header().Set("WWW-Authenticate", `Bearer realm="dotgate"`)
			writeError(w, http.StatusUnauthorized, "the token of admin.token or admin.token_file is needed, as in Authorization: Bearer TOKEN")
		}
	})
}

// writable reports whether anybody can be known.
func (t *terms) writable() bool { return t.hasToken || t.ClientCAFile != "" }

func (t *terms) know(r *http.Request) bool {
	if t.ClientCAFile != "" && r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return true
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	given := sha256.Sum256([]byte(strings.TrimSpace(token)))
	return ok && t.hasToken && subtle.ConstantTimeCompare(given[:], t.token[:]) == 1
}

func writeJSON(w http.ResponseWriter, code int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.Encode(value)
}

func writeError(w http.ResponseWriter, code int, text string) {
	writeJSON(w, code, map[string]string{"error": text})
}

// A bounded listener has so many connections open at once; others wait.
type bounded struct {
	net.Listener
	places chan struct{}
}

func (b *bounded) Accept() (net.Conn, error) {
	b.places <- struct{}{}
	conn, err := b.Listener.Accept()
	if err != nil {
		<-b.places
		return nil, err
	}
	return &boundedConn{Conn: conn, leave: sync.OnceFunc(func() { <-b.places })}, nil
}

type boundedConn struct {
	net.Conn
	leave func()
}

func (c *boundedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// A securing listener has connections speak TLS if the terms of the moment want it.
type securing struct {
	net.Listener
	s *Server
}

func (l *securing) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if now := l.s.terms.Load(); err == nil && now.tls != nil {
		return tls.Server(conn, now.tls), nil
	}
	return conn, err
}

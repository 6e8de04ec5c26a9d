package control

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/peers"
	"dotgate/gateway"
	"dotgate/gateway/redis"
	"dotgate/health"
	"dotgate/upstreams"
)

const (
	// requestLimit is how long a request may take to arrive, and its size.
	requestLimit = 5 * time.Second
	requestSize  = 4 << 10
	// answerSize is the size of an error, which may have a line for each mistake in
	// a file.
	answerSize = 1 << 20
	// farewell is how long answers may take to leave when the gateway stops.
	farewell = 500 * time.Millisecond
)

// Gateway is what a *gateway.Gateway tells.
type Gateway interface {
	Addrs() []netip.AddrPort
	Counts() gateway.Counts
	Latency() gateway.Latency
}

// Balancer is what a *balancer.Balancer tells.
type Balancer interface {
	Counts() balancer.Counts
}

// ErrUnknown means that there is no upstream of a name.
var ErrUnknown = errors.New("does not exist")

// A Process is what runs the gateway: what an operator may have it do.
type Process interface {
	// Order sets what the operator wants of an upstream. It may refuse.
	Order(upstream string, o health.Order) error
	// Reload reads the configuration again. If it can't be used, nothing changes.
	Reload() (Reloaded, error)
	// Yield makes room for another process, which serves already.
	Yield()
	// Explain asks for a name and tells how that went.
	Explain(ctx context.Context, name, recordType string) (Explanation, error)
	// Stories are those of queries that failed or were sent more than once.
	Stories() *Stories
}

// Reloaded is what a reload changed, by key.
type Reloaded struct {
	Changed []string `json:"changed"` // in effect
	Restart []string `json:"restart"` // in effect after a restart
}

// Upstream is what an *upstreams.Upstream tells and does.
type Upstream interface {
	String() string
	Addresses() []netip.AddrPort
	Counts() upstreams.Counts
	History() upstreams.History
	LastFailure() upstreams.Failure
	// Drill makes it have the fault until ctx is done, and blocks until then.
	Drill(ctx context.Context, d upstreams.Drill) error
}

// Monitor is what a *health.Monitor tells.
type Monitor interface {
	Status() health.Status
	Changes() []health.Change
}

// A Member is an upstream, and what is thought of it.
type Member struct {
	Route string // the name that it is for; empty: all that have no other
	Upstream
	Monitor
}

// Options of a Server. All but Peers and Redis are required.
type Options struct {
	Version  string
	Gateway  Gateway
	Balancer Balancer
	Cache    Cache
	Members  func() []Member // those of now
	Process  Process
	Peers    func() peers.Status // what is known of other gateways, or nil
	Redis    func() redis.Counts // of the cache that they share, or nil
	Log      *slog.Logger
}

// A Server answers operators.
type Server struct {
	o       Options
	started time.Time

	mu    sync.Mutex
	drill *session // under way, or nil
}

// New returns a Server. It starts nothing.
func New(o Options) *Server { return &Server{o: o, started: time.Now()} }

// Serve serves until ctx is done; then it ends a drill that is under way, closes
// l and returns. It blocks. That it can't go on is no reason to stop answering
// queries, so it logs that and returns too.
func (s *Server) Serve(ctx context.Context, l net.Listener) {
	web := &http.Server{
		Handler:           s.Handler(ctx),
		ReadHeaderTimeout: requestLimit,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}
	if err := ServeUntil(ctx, web, l); err != nil {
		s.o.Log.Warn("nobody can ask for status, drill or cache any more", "error", err)
	}
}

// ServeUntil has web serve l until ctx is done, lets what is under way end within a
// moment, closes l and returns nil. The error is why web could not go on. It blocks.
func ServeUntil(ctx context.Context, web *http.Server, l net.Listener) error {
	var closing sync.WaitGroup
	closing.Add(1)
	stop := context.AfterFunc(ctx, func() {
		defer closing.Done()
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
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

// Handler returns what Serve serves, for who has other ways to know who asks.
// Whoever reaches it may do everything. Drills end when stopping is done.
func (s *Server) Handler(stopping context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.Status()) })
	mux.HandleFunc("GET /cache", s.serveCache)
	mux.HandleFunc("DELETE /cache", s.serveCache)
	mux.HandleFunc("POST /drill", func(w http.ResponseWriter, r *http.Request) { s.serveDrill(stopping, w, r) })
	mux.HandleFunc("DELETE /drill", func(w http.ResponseWriter, _ *http.Request) {
		if !s.endDrill() {
			writeError(w, http.StatusNotFound, errNoDrill)
		}
	})
	mux.HandleFunc("POST /upstreams/{name}/{order}", s.serveOrder)
	mux.HandleFunc("GET /explain", s.serveExplain)
	mux.HandleFunc("POST /yield", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, os.Getpid())
		s.o.Process.Yield()
	})
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, _ *http.Request) {
		done, err := s.o.Process.Reload()
		if err != nil {
			writeError(w, http.StatusUnprocessableEntity, err)
			return
		}
		writeJSON(w, http.StatusOK, done)
	})
	return mux
}

// serveOrder sets what the operator wants of an upstream.
func (s *Server) serveOrder(w http.ResponseWriter, r *http.Request) {
	order, err := health.ParseOrder(r.PathValue("order"))
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	switch err := s.o.Process.Order(r.PathValue("name"), order); {
	case errors.Is(err, ErrUnknown):
		writeError(w, http.StatusNotFound, err)
	case err != nil:
		writeError(w, http.StatusConflict, err)
	default:
		writeJSON(w, http.StatusOK, s.Status())
	}
}

var (
	errNoDrill    = errors.New("there is no drill")
	errCallerLeft = errors.New("who asked for it has left")
	errStopping   = errors.New("the gateway stops")
)

// serveDrill answers with one Event a line, the last of which has the report.
func (s *Server) serveDrill(stopping context.Context, w http.ResponseWriter, r *http.Request) {
	var request Request
	body := json.NewDecoder(http.MaxBytesReader(w, r.Body, requestSize))
	body.DisallowUnknownFields()
	if err := body.Decode(&request); err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	defer context.AfterFunc(r.Context(), func() {
		cause := errCallerLeft
		if stopping.Err() != nil {
			cause = errStopping
		}
		cancel(cause)
	})()
	lines := json.NewEncoder(w)
	begun := false
	tell := func(e Event) {
		begun = true
		lines.Encode(e) // if nobody is there to read it, ctx ends
		http.NewResponseController(w).Flush()
	}
	report, err := s.rehearse(ctx, request, tell)
	switch {
	case err == nil:
		tell(Event{Report: &report})
	case begun:
		tell(Event{Error: err.Error()})
	default:
		writeError(w, http.StatusConflict, err)
	}
}

func writeJSON(w http.ResponseWriter, code int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(value)
}

// A failure is the body of a response that is not OK.
type failure struct {
	Error string `json:"error"`
}

func writeError(w http.ResponseWriter, code int, err error) {
	writeJSON(w, code, failure{Error: err.Error()})
}

package api

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
	"dotgate/cmd/dotgate/internal/peers"
	"dotgate/gateway"
	"dotgate/gateway/access"
	"dotgate/gateway/redis"
	"dotgate/health"
	"dotgate/upstreams"
)

const (
	// requestSize bounds the content of a request.
	requestSize = 4 << 10
	// answerSize bounds an error, which may have a line for each mistake in a file.
	answerSize = 1 << 20
	// connectionsMax bounds the open connections.
	connectionsMax = 64
	// eventLimit bounds the time in which a client reads a line of a drill.
	eventLimit = time.Second
)

// A Gateway is a *gateway.Gateway.
type Gateway interface {
	Addrs() []netip.AddrPort
	Counts() gateway.Counts
	Latency() gateway.Latency
	OnLink() []access.Link
}

// A Balancer is a *balancer.Balancer, or several.
type Balancer interface {
	Counts() balancer.Counts
	Candidates() []balancer.CandidateTrace
}

// ErrUnknown means that no upstream has the name.
var ErrUnknown = errors.New("does not exist")

// A Process is the running gateway, for the calls that change something.
type Process interface {
	// SetAdminState sets the AdminState of an upstream. It refuses to leave clients without
	// an upstream.
	SetAdminState(upstream string, a health.AdminState) error
	// Reload loads the configuration again. On an error, nothing changes.
	Reload() (Reloaded, error)
	// Yield ends the service, because another process serves already.
	Yield()
	// Explain sends a query and returns its steps.
	Explain(ctx context.Context, name, recordType string) (Explanation, error)
	// Health must not block, not even during a reload.
	Health() Health
	// RecentQueries are the latest queries that failed or were sent more than once.
	RecentQueries() *RecentQueries
}

// Reloaded has the keys that a reload changed.
type Reloaded struct {
	Changed []string `json:"changed"` // in effect
	Restart []string `json:"restart"` // in effect after a restart
}

// An Upstream is one of package upstreams.
type Upstream interface {
	String() string
	Addresses() []netip.AddrPort
	Counts() upstreams.Counts
	History() upstreams.History
	LastFailure() upstreams.Failure
	// Drill injects the fault until ctx is done. It blocks.
	Drill(ctx context.Context, d upstreams.Drill) error
}

// A Monitor is a *health.Monitor.
type Monitor interface {
	Status() health.Status
	Changes() []health.Change
}

// A Member is an upstream with its monitor.
type Member struct {
	// Routes are the lists that include it, by the first name of each. An empty name is
	// the main list. Nil stands for the main list only.
	Routes []string
	Upstream
	Monitor
}

// Lists returns the lists that include m: at least one.
func (m Member) Lists() []string {
	if m.Routes == nil {
		return []string{""}
	}
	return m.Routes
}

// Options of a Server. All are required.
type Options struct {
	Version  string
	Gateway  Gateway
	Balancer Balancer
	Cache    Cache
	Members  func() []Member // those of now
	Process  Process
	// Outage returns why no upstream is up, the most important cause first. It is empty if
	// one is up.
	Outage  func() string
	Network *upstreams.Network
	// LogDropped returns the number of dropped log lines.
	LogDropped func() uint64
	Peers      func() peers.Status // what is known of other gateways
	Redis      func() redis.Counts // of the cache that they share; without one, Reads is nil
	Log        *slog.Logger
}

// A Server serves the calls of operators.
type Server struct {
	o           Options
	started     time.Time
	connections *Connections

	mu    sync.Mutex
	drill *session // under way, or nil
}

// New returns a Server. It starts no goroutine.
func New(o Options) *Server {
	return &Server{o: o, started: time.Now(), connections: NewConnections(connectionsMax, connectionsMax, connectionsMax)}
}

// at gives the connection of a request a kind while next handles it.
func (s *Server) at(kind Kind, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if end, ok := s.connections.Begin(r, kind); ok {
			defer end()
		}
		next.ServeHTTP(w, r)
	})
}

// Serve serves on l until ctx is done. Then it ends a running drill, closes l and returns.
// It blocks. An error of l is logged and not returned: the gateway answers queries without
// the control socket, too.
func (s *Server) Serve(ctx context.Context, l net.Listener) {
	mux := http.NewServeMux()
	mux.Handle("/", s.at(Asking, s.Handler(ctx)))
	mux.Handle("POST /drill", s.at(Trusted, s.Handler(ctx)))
	mux.Handle("GET /health", s.at(Vital, http.HandlerFunc(s.serveHealth)))
	if err := s.connections.Serve(ctx, s.connections.Listen(l), mux, s.o.Log); err != nil {
		s.o.Log.Warn("the control socket is not served any more", "error", err)
	}
}

// Handler returns the handler of all calls, for servers that authenticate clients in other
// ways. Its clients may do everything. Drills end when stopping is done.
func (s *Server) Handler(stopping context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Status()) })
	mux.HandleFunc("GET /cache", s.serveCache)
	mux.HandleFunc("DELETE /cache", s.serveCache)
	mux.HandleFunc("POST /drill", func(w http.ResponseWriter, r *http.Request) { s.serveDrill(stopping, w, r) })
	mux.HandleFunc("DELETE /drill", func(w http.ResponseWriter, _ *http.Request) {
		if !s.endDrill() {
			WriteError(w, http.StatusNotFound, errNoDrill)
		}
	})
	mux.HandleFunc("POST /upstreams/{name}/{state}", s.serveAdminState)
	mux.HandleFunc("GET /explain", s.serveExplain)
	mux.HandleFunc("POST /yield", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, os.Getpid())
		s.o.Process.Yield()
	})
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, _ *http.Request) {
		done, err := s.o.Process.Reload()
		respond(w, done, http.StatusUnprocessableEntity, err)
	})
	return mux
}

// serveAdminState sets the AdminState of an upstream.
func (s *Server) serveAdminState(w http.ResponseWriter, r *http.Request) {
	state, err := health.ParseAdminState(r.PathValue("state"))
	if err != nil {
		WriteError(w, http.StatusBadRequest, err)
		return
	}
	switch err := s.o.Process.SetAdminState(r.PathValue("name"), state); {
	case errors.Is(err, ErrUnknown):
		WriteError(w, http.StatusNotFound, err)
	case err != nil:
		WriteError(w, http.StatusConflict, err)
	default:
		writeJSON(w, s.Status())
	}
}

var (
	errNoDrill    = errors.New("no drill is running")
	errCallerLeft = errors.New("its client disconnected")
	errStopping   = errors.New("the gateway is stopping")
)

// serveDrill responds with an Event on each line. The last one has the report.
func (s *Server) serveDrill(stopping context.Context, w http.ResponseWriter, r *http.Request) {
	var request Request
	body := json.NewDecoder(http.MaxBytesReader(w, r.Body, requestSize))
	body.DisallowUnknownFields()
	if err := body.Decode(&request); err != nil {
		WriteError(w, http.StatusBadRequest, err)
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
	lines, out := json.NewEncoder(w), http.NewResponseController(w)
	begun := false
	tell := func(e Event) {
		begun = true
		// A client that does not read must not delay the drill, which monitors the other
		// upstreams.
		_ = out.SetWriteDeadline(time.Now().Add(eventLimit))
		if err := errors.Join(lines.Encode(e), out.Flush()); err != nil {
			cancel(errCallerLeft)
		}
	}
	report, err := s.runDrill(ctx, request, tell)
	switch {
	case err == nil:
		tell(Event{Report: &report})
	case begun:
		tell(Event{Error: err.Error()})
	default:
		WriteError(w, http.StatusConflict, err)
	}
}

func writeJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(value)
}

// A failure is the body of a response that is not OK.
type failure struct {
	Error string `json:"error"`
}

// WriteError responds with an error, as JSON.
func WriteError(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(failure{Error: err.Error()})
}

// respond responds with value or, if err is not nil, with err and the code.
func respond(w http.ResponseWriter, value any, code int, err error) {
	if err != nil {
		WriteError(w, code, err)
		return
	}
	writeJSON(w, value)
}

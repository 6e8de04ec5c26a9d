package admin

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"dotgate/cmd/dotgate/internal/api"
)

//go:embed page.html
var page []byte

// policy keeps the page from loading anything from elsewhere, and from being framed.
const policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func (s *Server) servePage(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", policy)
	w.Write(page)
}

// A State has all figures of the page.
type State struct {
	At         time.Time         `json:"at"`
	Version    string            `json:"version"`
	Started    time.Time         `json:"started"`
	Readiness  Readiness         `json:"readiness"`
	Now        Now               `json:"now"`
	Upstreams  []UpstreamCard    `json:"upstreams"`
	Extra      map[string]uint64 `json:"extra"` // upstream queries beyond one per query, by cause
	Queries    uint64            `json:"queries"`
	Asked      uint64            `json:"asked"` // queries that the cache could not answer
	Timeline   []Event           `json:"timeline"`
	Drill      *api.DrillStatus  `json:"drill,omitempty"`
	Objectives struct {
		Availability float64 `json:"availability"`
		Latency      Millis  `json:"latency_ms"`
		LatencyShare float64 `json:"latency_share"`
	} `json:"objectives"`
	Writable bool `json:"writable"` // a client can authenticate, and change something
}

// State returns the current figures of the page.
func (s *Server) State() State {
	now := time.Now()
	status := s.p.Control.Status()
	state := State{
		At: now, Version: status.Version, Started: status.Started, Readiness: s.Readiness(now), Now: s.watch.now(now),
		Upstreams: s.watch.cards(status.Upstreams), Extra: s.extra(), Asked: status.Balancer.Queries,
		Timeline: timeline(status.Upstreams), Drill: status.Drill, Writable: s.terms.Load().writable(),
	}
	state.Queries, _ = api.Queries(s.p.Gateway.Counts())
	o := s.objectives()
	state.Objectives.Availability, state.Objectives.Latency, state.Objectives.LatencyShare = o.Availability, Millis(o.Latency), o.LatencyShare
	return state
}

const (
	// eventInterval is the time between two events of a page.
	eventInterval = time.Second
	// eventLimit bounds the time in which a client reads an event.
	eventLimit = 5 * time.Second
)

// serveEvents sends the State every second, until the client leaves or the
// gateway stops (server-sent events). All clients get the same one.
func (s *Server) serveEvents(stopping context.Context, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(stopping, cancel)()
	text, err := s.events.recent(r.Context())
	for ; err == nil; text, err = s.events.wait(ctx) {
		_ = out.SetWriteDeadline(time.Now().Add(eventLimit))
		if _, err := w.Write(text); err != nil {
			return
		}
		if out.Flush() != nil {
			return
		}
	}
	if ctx.Err() == nil {
		s.p.Log.Warn("cannot make the events of the page", "error", err)
	}
}

// event returns the State as an event.
func (s *Server) event() ([]byte, error) {
	text, err := json.Marshal(s.State())
	return fmt.Appendf(nil, "data: %s\n\n", text), err
}

package admin

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"dotgate/cmd/dotgate/control"
)

//go:embed page.html
var page []byte

// policy lets the page load nothing from elsewhere, nor be framed.
const policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func (s *Server) servePage(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", policy)
	w.Write(page)
}

// A State is all that the page shows.
type State struct {
	At         time.Time            `json:"at"`
	Version    string               `json:"version"`
	Started    time.Time            `json:"started"`
	Readiness  Readiness            `json:"readiness"`
	Now        Now                  `json:"now"`
	Upstreams  []Card               `json:"upstreams"`
	Extra      map[string]uint64    `json:"extra"` // upstream queries beyond one per query, by cause
	Queries    uint64               `json:"queries"`
	Asked      uint64               `json:"asked"` // queries that needed an upstream
	Timeline   []Happening          `json:"timeline"`
	Drill      *control.DrillStatus `json:"drill,omitempty"`
	Objectives struct {
		Availability float64 `json:"availability"`
		Latency      Millis  `json:"latency_ms"`
		LatencyShare float64 `json:"latency_share"`
	} `json:"objectives"`
	Writable bool `json:"writable"` // there is a token that lets one change things
}

// State returns what the page shows now.
func (s *Server) State() State {
	now := time.Now()
	status := s.p.Control.Status()
	state := State{
		At: now, Version: status.Version, Started: status.Started, Readiness: s.Readiness(now), Now: s.watch.now(now),
		Upstreams: s.watch.cards(status.Upstreams), Extra: s.extra(), Asked: status.Balancer["queries"],
		Timeline: timeline(status.Upstreams), Drill: status.Drill, Writable: s.terms.Load().writable(),
	}
	state.Queries, _ = control.Queries(s.p.Gateway.Counts())
	o := s.objectives()
	state.Objectives.Availability, state.Objectives.Latency, state.Objectives.LatencyShare = o.Availability, Millis(o.Latency), o.LatencyShare
	return state
}

// tellEvery is how often the page gets news.
const tellEvery = time.Second

// serveEvents sends the State every second, until the client leaves or the
// gateway stops (server-sent events).
func (s *Server) serveEvents(stopping context.Context, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		text, err := json.Marshal(s.State())
		if err != nil {
			s.p.Log.Warn("telling the page failed", "error", err)
			return
		}
		_ = out.SetWriteDeadline(time.Now().Add(requestLimit))
		if _, err := fmt.Fprintf(w, "data: %s\n\n", text); err != nil {
			return
		}
		if out.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-stopping.Done():
			return
		case <-tick.C:
		}
	}
}

package admin

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"dotgate/cmd/dotgate/control"
	"dotgate/health"
)

// certificateSoon is how long before its end a certificate is worth a word.
// Those of public resolvers are renewed weeks before.
const certificateSoon = 7 * 24 * time.Hour

// A Readiness is whether clients should come, and what is not as it should be.
type Readiness struct {
	Ready bool `json:"ready"`
	// Why it is, or is not, in one line.
	Why      string   `json:"why"`
	Degraded []string `json:"degraded"` // what is not well, a line each
	// Redundancy is how many upstreams are up, those of routes aside.
	Redundancy int `json:"redundancy"`
	// Answering is how many of those answer, as far as is known: one that has owed a
	// sign of life for twice its patience owes the answer to a probe, too.
	Answering int `json:"answering"`
	// Routes has the redundancy of each route, if there are any.
	Routes map[string]int `json:"routes,omitempty"`
	// Stopping is whether the gateway is about to stop.
	Stopping bool `json:"stopping"`
}

// String returns it as one line.
func (r Readiness) String() string {
	if r.Ready {
		return "ready: " + r.Why
	}
	return "not ready: " + r.Why
}

// Readiness goes by evidence: somebody has answered lately, or the cache has
// something to give. Routes don't count: they are for few names.
func (s *Server) Readiness(now time.Time) Readiness {
	r := Readiness{Degraded: []string{}, Stopping: s.lame.Load()}
	recent, total := 0, 0
	var ending []string
	for _, m := range s.p.Members() {
		status := m.Status()
		up := 0
		if status.State != health.Down {
			up = 1
		}
		if m.Route != "" {
			if r.Routes == nil {
				r.Routes = make(map[string]int)
			}
			r.Routes[m.Route] += up
		} else {
			total++
			r.Redundancy += up
			if up > 0 && status.Silent <= 2*status.Patience {
				r.Answering++
			}
			if up > 0 && !status.Answered.IsZero() && now.Sub(status.Answered) <= s.p.Recent() {
				recent++
			}
		}
		r.Degraded = append(r.Degraded, degraded(m, status, now)...)
		if end := m.History().NotAfter; !end.IsZero() && end.Sub(now) < certificateSoon {
			ending = append(ending, fmt.Sprintf("%v: its certificate ends at %s", m, end.UTC().Format(time.RFC3339)))
		}
	}
	for _, route := range slices.Sorted(maps.Keys(r.Routes)) {
		if r.Routes[route] == 0 {
			r.Degraded = append(r.Degraded, fmt.Sprintf("no upstream is up for the route %s", route))
		}
	}
	r.Degraded = append(r.Degraded, ending...)
	answers := s.p.Cache.Usage().Answers
	switch {
	case r.Stopping:
		r.Why = "the gateway is about to stop"
	case recent > 0:
		r.Ready, r.Why = true, fmt.Sprintf("%d of %d upstreams answered lately", recent, total)
	case answers > 0:
		r.Ready, r.Why = true, fmt.Sprintf("no upstream answered lately, but the cache has %d answers", answers)
	default:
		r.Why = "no upstream answered lately, and the cache is empty"
	}
	return r
}

// degraded returns a line if the upstream is not up of itself.
func degraded(m control.Member, status health.Status, now time.Time) []string {
	if status.State == health.Up && status.Order == health.Auto {
		return nil
	}
	since := ""
	if !status.Since.IsZero() {
		since = fmt.Sprintf(" for %v", now.Sub(status.Since).Round(time.Second))
	}
	return []string{fmt.Sprintf("%v is %v%s: %s", m, status.State, since, status.Reason)}
}

func (s *Server) serveReady(w http.ResponseWriter, _ *http.Request) {
	r := s.Readiness(time.Now())
	if !r.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintln(w, r)
	for _, line := range r.Degraded {
		fmt.Fprintf(w, "degraded: %s\n", line)
	}
}

func (s *Server) serveHealth(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, struct {
		Readiness
		Upstreams []control.UpstreamStatus `json:"upstreams"`
	}{s.Readiness(time.Now()), s.p.Control.Status().Upstreams})
}

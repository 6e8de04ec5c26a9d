package admin

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/health"
)

// certificateSoon is the remaining lifetime below which a certificate is reported. Public
// resolvers renew theirs weeks before the end.
const certificateSoon = 7 * 24 * time.Hour

// A Readiness reports whether clients should use this gateway, and what is degraded.
type Readiness = api.Readiness

// Readiness is based on evidence: an upstream has answered lately, or the cache has
// answers. Upstreams of routes do not count, because they serve few names.
func (s *Server) Readiness(now time.Time) Readiness {
	r := Readiness{Degraded: []string{}, Stopping: s.draining.Load()}
	recent, total := 0, 0
	var ending []string
	for _, m := range s.p.Members() {
		status := m.Status()
		if countMember(&r, m, status) {
			total++
			if status.State.IsUp() && !status.Answered.IsZero() && now.Sub(status.Answered) <= s.p.Recent() {
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
	r.Degraded = append(append(r.Degraded, s.blocked()...), ending...)
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
	if outage := s.p.Outage(); outage != "" && !r.Stopping {
		r.Why += "; no upstream is up: " + outage
	}
	return r
}

// blocked returns a line if the network blocks a port.
func (s *Server) blocked() []string {
	if text := s.p.Network.String(); text != "" {
		return []string{text}
	}
	return nil
}

// countMember counts an upstream for the main list or the routes that it is in. It reports
// whether it is in the main list.
func countMember(r *Readiness, m api.Member, status health.Status) (main bool) {
	up := 0
	if status.State.IsUp() {
		up = 1
	}
	for _, route := range m.Lists() {
		if route == "" {
			main = true
			r.Redundancy += up
			if up > 0 && status.Silent <= 2*status.Patience {
				r.Answering++
			}
			continue
		}
		if r.Routes == nil {
			r.Routes = make(map[string]int)
		}
		r.Routes[route] += up
	}
	return main
}

// degraded returns a line if the upstream is not up, is set by hand, or is not asked over the
// transport that it should be.
func degraded(m api.Member, status health.Status, now time.Time) []string {
	if status.State == health.Up && status.AdminState == health.Auto {
		if c := m.Upstream.Counts(); c.Instead != "" {
			return []string{fmt.Sprintf("%v is asked over %s: no connection over %s can be made", m, c.Transport, c.Instead)}
		}
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

func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	text, err := s.health.wait(r.Context())
	if err != nil {
		api.WriteError(w, http.StatusServiceUnavailable, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(text)
}

func (s *Server) healthText() ([]byte, error) {
	text, err := json.MarshalIndent(struct {
		Readiness
		Upstreams []api.UpstreamStatus `json:"upstreams"`
	}{s.Readiness(time.Now()), s.p.Control.Status().Upstreams}, "", "  ")
	return append(text, '\n'), err
}

package api

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"dotgate/balancer"
	"dotgate/upstreams"
)

// An Explanation has the steps of one query, with reasons.
type Explanation struct {
	Query  string    `json:"query"`
	Began  time.Time `json:"began"`
	Took   Millis    `json:"took_ms"`
	Cache  string    `json:"cache,omitempty"` // state of the cache: nothing, fresh or stale
	Route  string    `json:"route,omitempty"` // of the configuration; empty for the main list
	Policy string    `json:"policy,omitempty"`
	// Candidates are in the order in which they are asked.
	Candidates []CandidateStatus `json:"candidates"`
	Attempts   []AttemptStatus   `json:"attempts"`
	Steps      []StepStatus      `json:"steps,omitempty"`  // of the attempts
	Outcome    string            `json:"outcome"`          // a response code, or "failed"
	Error      string            `json:"error,omitempty"`  // why the query failed
	EDE        string            `json:"ede,omitempty"`    // the extended error that clients get
	Detail     string            `json:"detail,omitempty"` // text of it for trusted clients
	Answer     string            `json:"answer,omitempty"`
}

// A CandidateStatus describes an upstream of the list.
type CandidateStatus struct {
	Name        string  `json:"name"`
	State       string  `json:"state"`
	Tier        int     `json:"tier"`
	Weight      int     `json:"weight"`
	Usual       Millis  `json:"usual_ms"` // 0 if unknown
	Patience    Millis  `json:"patience_ms"`
	Losses      float64 `json:"losses"` // share of its recent attempts that failed
	Outstanding int     `json:"outstanding"`
	Cost        Millis  `json:"cost_ms"` // the score that the policy latency compares
	Asked       bool    `json:"asked"`
	Why         string  `json:"why"` // reason why it was asked, or not
}

// An AttemptStatus describes an attempt at one upstream.
type AttemptStatus struct {
	Name    string `json:"name"`
	Reason  string `json:"reason"`   // as balancer.Reason
	After   Millis `json:"after_ms"` // since the query began
	Took    Millis `json:"took_ms,omitempty"`
	Outcome string `json:"outcome"` // a response code, "failed", or "open" if it had not ended
	Error   string `json:"error,omitempty"`
}

// A StepStatus is a step of an attempt.
type StepStatus struct {
	After    Millis `json:"after_ms"` // since the query began
	Upstream string `json:"upstream"`
	What     string `json:"what"`
}

// Explain returns a trace in the form in which it is shown.
func Explain(s balancer.Trace, route string, steps []upstreams.Step) Explanation {
	e := Explanation{Query: s.Query.String(), Began: s.Began, Took: Millis(s.Took), Route: route, Outcome: s.RCode.String()}
	if s.Err != nil {
		e.Outcome, e.Error = "failed", s.Err.Error()
	}
	if failed, ok := errors.AsType[*balancer.Error](s.Err); ok {
		e.EDE = fmt.Sprintf("%d (%s)", failed.EDE().Code, failed.EDE().Text)
		e.Detail = failed.Detail()
	}
	for _, c := range s.Candidates {
		e.Candidates = append(e.Candidates, CandidateStatus{
			Name: c.Name, State: c.State.String(), Tier: c.Tier, Weight: c.Weight, Usual: Millis(c.Usual), Patience: Millis(c.Patience),
			Losses: c.Losses, Outstanding: c.Outstanding, Cost: Millis(c.Cost), Asked: c.Asked, Why: why(s, c),
		})
	}
	for _, a := range s.Attempts {
		told := AttemptStatus{Name: a.Name, Reason: a.Reason.String(), After: Millis(a.After), Took: Millis(a.Took), Outcome: a.RCode.String()}
		switch {
		case !a.Ended:
			told.Outcome = "open"
		case a.Err != nil:
			told.Outcome, told.Error = "failed", a.Err.Error()
		}
		e.Attempts = append(e.Attempts, told)
	}
	for _, step := range steps {
		e.Steps = append(e.Steps, StepStatus{After: Millis(step.At.Sub(s.Began)), Upstream: step.Upstream, What: step.What})
	}
	return e
}

// why returns why a candidate was asked, or was not.
func why(s balancer.Trace, c balancer.CandidateTrace) string {
	var reasons []string
	for _, a := range s.Attempts {
		if a.Name == c.Name {
			reasons = append(reasons, a.Reason.String())
		}
	}
	better := func(o balancer.CandidateTrace) bool { return o.State.IsUp() && o.Tier < c.Tier }
	switch {
	case c.Outage != nil && len(reasons) > 0:
		return strings.Join(reasons, ", ") + "; " + c.Outage.Error()
	case len(reasons) > 0:
		return strings.Join(reasons, ", ")
	case c.Outage != nil:
		return c.Outage.Error()
	case !c.State.IsUp():
		return c.State.String()
	case c.State == balancer.Suspect:
		return "suspect: upstreams that are up come first"
	case c.RateWait > 0:
		return "at its limit of queries a second"
	case slices.ContainsFunc(s.Candidates, better):
		return "an upstream of a lower tier is up"
	}
	return "an upstream with a better score was asked"
}

// recentMax is the number of queries that RecentQueries keeps.
const recentMax = 1000

// RecentQueries keeps the latest traces of queries that failed or were sent more than
// once. The zero RecentQueries has none.
type RecentQueries struct {
	mu   sync.Mutex
	kept []routedTrace // a ring, once it is full
	next int
}

type routedTrace struct {
	route string
	balancer.Trace
}

// Keep adds a query of a route, which is empty for the main list. It replaces the oldest
// one of recentMax.
func (k *RecentQueries) Keep(route string, trace balancer.Trace) {
	s := routedTrace{route, trace}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.kept) < recentMax {
		k.kept = append(k.kept, s)
		return
	}
	k.kept[k.next] = s
	k.next = (k.next + 1) % recentMax
}

// Latest returns all of them, the newest first.
func (k *RecentQueries) Latest() []Explanation {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make([]Explanation, 0, len(k.kept))
	for i := range k.kept {
		s := k.kept[(k.next+len(k.kept)-1-i)%len(k.kept)]
		all = append(all, Explain(s.Trace, s.route, nil))
	}
	return all
}

// serveExplain explains the query of the request or, without a name, the latest ones.
func (s *Server) serveExplain(w http.ResponseWriter, r *http.Request) {
	name, recordType := r.FormValue("name"), r.FormValue("type")
	if name == "" {
		writeJSON(w, s.o.Process.RecentQueries().Latest())
		return
	}
	if recordType == "" {
		recordType = "A"
	}
	e, err := s.o.Process.Explain(r.Context(), name, recordType)
	respond(w, e, http.StatusBadRequest, err)
}

package control

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

// An Explanation is how one query went, and why.
type Explanation struct {
	Query  string    `json:"query"`
	Began  time.Time `json:"began"`
	Took   Millis    `json:"took_ms"`
	Cache  string    `json:"cache,omitempty"` // what it had: nothing, fresh or stale
	Route  string    `json:"route,omitempty"` // of the configuration; empty: none, as most names have
	Policy string    `json:"policy,omitempty"`
	// Candidates are in the order in which they would have been asked.
	Candidates []CandidateStatus `json:"candidates"`
	Attempts   []AttemptStatus   `json:"attempts"`
	Steps      []StepStatus      `json:"steps,omitempty"`  // what the attempts went through
	Outcome    string            `json:"outcome"`          // a response code, or "failed"
	Error      string            `json:"error,omitempty"`  // why it failed
	EDE        string            `json:"ede,omitempty"`    // what the client is told of it
	Detail     string            `json:"detail,omitempty"` // what those clients are told who are trusted
	Answer     string            `json:"answer,omitempty"`
}

// A CandidateStatus is about an upstream that could be asked.
type CandidateStatus struct {
	Name        string  `json:"name"`
	State       string  `json:"state"`
	Tier        int     `json:"tier"`
	Weight      int     `json:"weight"`
	Usual       Millis  `json:"usual_ms"` // 0 if unknown
	Patience    Millis  `json:"patience_ms"`
	Losses      float64 `json:"losses"` // the share of its attempts lately that brought nothing
	Outstanding int     `json:"outstanding"`
	Cost        Millis  `json:"cost_ms"` // what the policy latency compares
	Asked       bool    `json:"asked"`
	Why         string  `json:"why"` // it was asked, or not
}

// An AttemptStatus is about an upstream that was asked.
type AttemptStatus struct {
	Name    string `json:"name"`
	Reason  string `json:"reason"`   // first, hedge, retry or second opinion
	After   Millis `json:"after_ms"` // since the query began
	Took    Millis `json:"took_ms,omitempty"`
	Outcome string `json:"outcome"` // a response code, "failed", or "open" if it had not ended
	Error   string `json:"error,omitempty"`
}

// A StepStatus is what an attempt went through.
type StepStatus struct {
	After    Millis `json:"after_ms"` // since the query began
	Upstream string `json:"upstream"`
	What     string `json:"what"`
}

// Explain returns a story in the form in which it is told.
func Explain(s balancer.Story, route string, steps []upstreams.Step) Explanation {
	e := Explanation{Query: s.Query.String(), Began: s.Began, Took: Millis(s.Took), Route: route, Outcome: s.RCode.String()}
	if s.Err != nil {
		e.Outcome, e.Error = "failed", s.Err.Error()
	}
	if failed, ok := errors.AsType[*balancer.Error](s.Err); ok {
		e.EDE = fmt.Sprintf("%d (%s)", failed.EDE().Code, failed.EDE().Text)
		e.Detail = failed.Detail()
	}
	for _, c := range s.Candidates {
		state := "up"
		if c.Suspect {
			state = "suspect"
		} else if !c.Up {
			state = "down"
		}
		e.Candidates = append(e.Candidates, CandidateStatus{
			Name: c.Name, State: state, Tier: c.Tier, Weight: c.Weight, Usual: Millis(c.Usual), Patience: Millis(c.Patience),
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

// why says why a candidate was asked, or was not.
func why(s balancer.Story, c balancer.CandidateStory) string {
	var reasons []string
	for _, a := range s.Attempts {
		if a.Name == c.Name {
			reasons = append(reasons, a.Reason.String())
		}
	}
	better := func(o balancer.CandidateStory) bool { return o.Up && o.Tier < c.Tier }
	switch {
	case c.Outage != nil && len(reasons) > 0:
		return strings.Join(reasons, ", ") + "; " + c.Outage.Error()
	case len(reasons) > 0:
		return strings.Join(reasons, ", ")
	case c.Outage != nil:
		return c.Outage.Error()
	case !c.Up:
		return "down"
	case c.Suspect:
		return "something seems wrong with it; those that are well come first"
	case slices.ContainsFunc(s.Candidates, better):
		return "one of a lower tier is up"
	}
	return "others come first, and did"
}

// storiesMax is how many stories are kept.
const storiesMax = 1000

// Stories keeps the latest stories of queries that failed or were sent more than
// once. The zero Stories has none.
type Stories struct {
	mu   sync.Mutex
	kept []routedStory // a ring, once it is full
	next int
}

type routedStory struct {
	route string
	balancer.Story
}

// Keep keeps a story of a route, empty for none, in place of the oldest if there
// are enough.
func (k *Stories) Keep(route string, story balancer.Story) {
	s := routedStory{route, story}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.kept) < storiesMax {
		k.kept = append(k.kept, s)
		return
	}
	k.kept[k.next] = s
	k.next = (k.next + 1) % storiesMax
}

// Latest returns what is kept, the newest first.
func (k *Stories) Latest() []Explanation {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make([]Explanation, 0, len(k.kept))
	for i := range k.kept {
		s := k.kept[(k.next+len(k.kept)-1-i)%len(k.kept)]
		all = append(all, Explain(s.Story, s.route, nil))
	}
	return all
}

// serveExplain explains the query that is asked for, or without a name those
// that are kept.
func (s *Server) serveExplain(w http.ResponseWriter, r *http.Request) {
	name, recordType := r.FormValue("name"), r.FormValue("type")
	if name == "" {
		writeJSON(w, http.StatusOK, s.o.Process.Stories().Latest())
		return
	}
	if recordType == "" {
		recordType = "A"
	}
	e, err := s.o.Process.Explain(r.Context(), name, recordType)
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	writeJSON(w, http.StatusOK, e)
}

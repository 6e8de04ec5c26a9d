package main

import (
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"
)

// results collects the results of all queries.
type results struct {
	mu       sync.Mutex // guards all fields below
	queries  []*query
	problems map[string]int
	marked   time.Time
}

// A report has the totals. Times are in ms.
type report struct {
	Queries int `json:"queries"`
	// Failed counts queries without an answer to the first attempt, and Lost those without
	// an answer to both. FailedUDP counts those of Failed over UDP.
	Failed    int `json:"failed"`
	FailedUDP int `json:"failed_udp"`
	Lost      int `json:"lost"`
	// LostHot counts those of Lost for hot names, and Unreplied those of Lost without any
	// reply, not even SERVFAIL.
	LostHot   int `json:"lost_hot"`
	Unreplied int `json:"unreplied"`
	Stale     int `json:"stale"` // stale answers
	// Silent is the longest time between two answers.
	Silent int64 `json:"silent"`
	// From and To are the nodes that answered before the mark and at the end.
	From string `json:"from"`
	To   string `json:"to"`
	// Moved is the time from the mark to the first answer of To, and Gap that from the last
	// answer of From before it.
	Moved int64 `json:"moved"`
	Gap   int64 `json:"gap"`
}

func (t *results) mark(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.marked = now
}

func (t *results) add(q *query) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queries = append(t.queries, q)
	if t.problems == nil {
		t.problems = make(map[string]int)
	}
	for i, try := range q.tries {
		if try.problem != "" {
			after := "before the mark"
			if !t.marked.IsZero() && q.sent.After(t.marked.Add(-patience)) {
				after = fmt.Sprintf("%.1f s after the mark", q.sent.Sub(t.marked).Seconds())
			}
			t.problems[fmt.Sprintf("%s: packet %d over %s, %s: %s", after, i+1, q.network, class(q.hot), try.problem)]++
		}
	}
}

func class(hot bool) string {
	if hot {
		return "hot name"
	}
	return "new name"
}

// report returns the totals. All queries must have ended.
func (t *results) report() report {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := report{Queries: len(t.queries)}
	var answers []try
	for _, q := range t.queries {
		first, last := q.tries[0], q.tries[len(q.tries)-1]
		if first.problem != "" {
			r.Failed++
			if q.network == "udp" {
				r.FailedUDP++
			}
		}
		if last.problem != "" {
			r.Lost++
			if q.hot {
				r.LostHot++
			}
			if !slices.ContainsFunc(q.tries, func(t try) bool { return t.replied }) {
				r.Unreplied++
			}
			continue
		}
		if last.stale {
			r.Stale++
		}
		answers = append(answers, last)
	}
	slices.SortFunc(answers, func(a, b try) int { return a.ended.Compare(b.ended) })
	r.follow(answers, t.marked)
	return r
}

// follow sets the fields about the move of the address. Answers must be in order.
func (r *report) follow(answers []try, marked time.Time) {
	if len(answers) == 0 {
		return
	}
	var before string
	for i, a := range answers {
		if i > 0 {
			r.Silent = max(r.Silent, a.ended.Sub(answers[i-1].ended).Milliseconds())
		}
		if a.ended.Before(marked) {
			before = a.node
		}
	}
	after := answers[len(answers)-1].node
	r.From, r.To = nameOf(before), nameOf(after)
	var last time.Time
	for _, a := range answers {
		if a.ended.Before(marked) {
			last = a.ended
			continue
		}
		if a.node == before {
			last = a.ended
			continue
		}
		if a.node == after && after != before {
			r.Moved, r.Gap = a.ended.Sub(marked).Milliseconds(), a.ended.Sub(last).Milliseconds()
			break
		}
	}
}

// nameOf decodes the NSID of a node (RFC 5001).
func nameOf(nsid string) string {
	name, err := hex.DecodeString(nsid)
	if err != nil {
		return nsid
	}
	return string(name)
}

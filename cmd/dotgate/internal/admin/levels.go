package admin

import (
	"time"

	"dotgate/upstreams"
)

// levels are the totals that the service level of an upstream is made of.
type levels struct {
	asked    uint64 // attempts that got an answer or failed
	answered uint64
	quick    uint64 // of these: within Objectives.Latency
}

func levelsOf(h upstreams.History, o Objectives) levels {
	answered, failed := h.Attempts()
	return levels{asked: answered + failed, answered: answered, quick: min(h.Answered.Within(o.Latency), answered)}
}

func (l levels) since(earlier levels) levels {
	return levels{l.asked - earlier.asked, l.answered - earlier.answered, l.quick - earlier.quick}
}

// availability returns the share of the attempts that got an answer; 1 without attempts.
func (l levels) availability() float64 { return share(l.answered, l.asked) }

// punctuality returns the share of the answers within Objectives.Latency.
func (l levels) punctuality() float64 { return share(l.quick, l.answered) }

// budget returns the share of the error budget that is left, for an objective in
// percent. Below 0 the objective is missed.
func budget(achieved, objective float64) float64 {
	return 1 - (1-achieved)/(1-objective/100)
}

func share(part, of uint64) float64 {
	if of == 0 {
		return 1
	}
	return float64(part) / float64(of)
}

// spans are the windows of service levels: their lengths and the intervals of samples.
var spans = [...]struct {
	name       string
	long, step time.Duration
}{
	{"5m", 5 * time.Minute, 10 * time.Second},
	{"1h", time.Hour, time.Minute},
	{"30d", 30 * 24 * time.Hour, time.Hour},
}

// A record keeps the levels of one upstream for all spans. It begins with the process.
type record struct {
	kept [len(spans)][]mark
}

type mark struct {
	at time.Time
	levels
}

// add samples the current levels.
func (r *record) add(now time.Time, l levels) {
	for i, span := range spans {
		kept := r.kept[i]
		if n := len(kept); n > 0 && now.Sub(kept[n-1].at) < span.step {
			continue
		}
		kept = append(kept, mark{now, l})
		for len(kept) > 1 && now.Sub(kept[1].at) >= span.long {
			kept = kept[1:]
		}
		r.kept[i] = kept
	}
}

// in returns the levels of the span that ends now.
func (r *record) in(span int, now levels) levels {
	if kept := r.kept[span]; len(kept) > 0 {
		return now.since(kept[0].levels)
	}
	return now
}

package admin

import (
	"time"

	"dotgate/upstreams"
)

// Levels are what an upstream's service level is made of, as totals.
type levels struct {
	asked    uint64 // attempts that say something about it
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

// availability returns the share that was answered; nothing asked, nothing lost.
func (l levels) availability() float64 { return share(l.answered, l.asked) }

// punctuality returns the share of the answers that were quick.
func (l levels) punctuality() float64 { return share(l.quick, l.answered) }

// budget returns how much is left of what an objective, in percent, allows to go
// wrong: 1 is all, 0 nothing, and less that it was missed.
func budget(achieved, objective float64) float64 {
	return 1 - (1-achieved)/(1-objective/100)
}

func share(part, of uint64) float64 {
	if of == 0 {
		return 1
	}
	return float64(part) / float64(of)
}

// spans are the windows that service levels are told for: how long, and in what
// steps it moves on.
var spans = [...]struct {
	name       string
	long, step time.Duration
}{
	{"5m", 5 * time.Minute, 10 * time.Second},
	{"1h", time.Hour, time.Minute},
	{"30d", 30 * 24 * time.Hour, time.Hour},
}

// A record keeps the levels of one upstream for all spans. What was before the
// process started, it does not know.
type record struct {
	kept [len(spans)][]mark
}

type mark struct {
	at time.Time
	levels
}

// add takes note of the levels of now.
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

// in returns the levels of a span that ends with what is now.
func (r *record) in(span int, now levels) levels {
	if kept := r.kept[span]; len(kept) > 0 {
		return now.since(kept[0].levels)
	}
	return now
}

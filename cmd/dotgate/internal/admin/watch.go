package admin

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/gateway"
)

const (
	// lookEvery is the interval of samples.
	lookEvery = 2 * time.Second
	// lately is the window of the page's current figures.
	lately = time.Minute
	// sparks is the number of points of an upstream's latency line: five minutes.
	sparks = int(5 * time.Minute / lookEvery)
)

// A watch keeps samples of counters, from which windows and lines are made.
type watch struct {
	s *Server

	mu      sync.Mutex // guards the rest; not held while counters are read
	looks   []look     // of the last minute
	members map[string]*watched
}

// A look is a sample of the counters of clients.
type look struct {
	at      time.Time
	clients gateway.Counts
	latency gateway.Latency
}

// A watched is one upstream over time.
type watched struct {
	record
	last  levels
	sent  uint64   // at the last look
	usual []Millis // for each look
	asked []uint64 // queries sent since the look before, for each look
}

// Millis is a duration that is a number of milliseconds in JSON.
type Millis = api.Millis

func (s *Server) objectives() Objectives { return s.terms.Load().Objectives }

func newWatch(s *Server) *watch { return &watch{s: s, members: make(map[string]*watched)} }

func (w *watch) run(ctx context.Context) {
	for tick := time.Tick(lookEvery); ; {
		w.look(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
	}
}

func (w *watch) look(now time.Time) {
	l := look{now, w.s.p.Gateway.Counts(), w.s.p.Gateway.Latency()}
	samples := make(map[string]sample)
	for _, m := range w.s.p.Members() {
		samples[m.String()] = sample{levelsOf(m.History(), w.s.objectives()), Millis(m.Status().Usual), m.Counts().Sent}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks = append(w.looks, l)
	for len(w.looks) > 1 && now.Sub(w.looks[1].at) >= lately {
		w.looks = slices.Delete(w.looks, 0, 1)
	}
	members := make(map[string]*watched)
	for name, s := range samples {
		members[name] = w.members[name].with(now, s)
	}
	w.members = members
}

// A sample is one of the counters of an upstream.
type sample struct {
	levels levels
	usual  Millis
	sent   uint64
}

// with returns one with a further sample. It is a new one if one is nil, or of another
// upstream that had the same name.
func (one *watched) with(now time.Time, s sample) *watched {
	if one == nil || s.levels.asked < one.last.asked {
		one = &watched{sent: s.sent}
	}
	one.add(now, s.levels)
	one.last = s.levels
	one.usual = append(one.usual, s.usual)
	one.asked = append(one.asked, s.sent-one.sent)
	one.sent = s.sent
	if n := len(one.usual) - sparks; n > 0 {
		one.usual, one.asked = slices.Delete(one.usual, 0, n), slices.Delete(one.asked, 0, n)
	}
	return one
}

// A Level is the service level of an upstream in one window.
type Level struct {
	Window        string  `json:"window"`
	Asked         uint64  `json:"asked"`
	Availability  float64 `json:"availability"` // share of the answered queries
	Latency       float64 `json:"latency"`
	Budget        float64 `json:"budget"` // share of the error budget that is left; below 0 the objective is missed
	LatencyBudget float64 `json:"latency_budget"`
}

// levels returns the service levels of an upstream, for all windows.
func (w *watch) levels(m api.Member) []Level {
	now := levelsOf(m.History(), w.s.objectives())
	w.mu.Lock()
	defer w.mu.Unlock()
	one := w.members[m.String()]
	if one == nil {
		one = new(watched)
	}
	var all []Level
	for i, span := range spans {
		l := one.in(i, now)
		all = append(all, Level{
			Window: span.name, Asked: l.asked, Availability: l.availability(), Latency: l.punctuality(),
			Budget:        budget(l.availability(), w.s.objectives().Availability),
			LatencyBudget: budget(l.punctuality(), w.s.objectives().LatencyShare),
		})
	}
	return all
}

// Now has the figures of clients for the last minute.
type Now struct {
	Seconds float64 `json:"seconds"` // length of the window
	QPS     float64 `json:"qps"`
	Queries uint64  `json:"queries"`
	Lost    uint64  `json:"lost"`
	Success float64 `json:"success"`  // share of the queries that the gateway did not fail
	HitRate float64 `json:"hit_rate"` // share of the queries that the cache answered
	P50     Millis  `json:"p50_ms"`   // of queries that waited for an upstream
	P99     Millis  `json:"p99_ms"`
}

// now returns the figures of the last minute.
func (w *watch) now(now time.Time) Now {
	c, l := w.s.p.Gateway.Counts(), w.s.p.Gateway.Latency()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.looks) == 0 {
		return Now{Success: 1}
	}
	then := w.looks[0]
	waited := l.Since(then.latency)
	queries, lost := api.Queries(c)
	queriesThen, lostThen := api.Queries(then.clients)
	queries, lost = queries-queriesThen, lost-lostThen
	hits := c.Cache.Hits.Total() + c.Cache.Stale.Total() - then.clients.Cache.Hits.Total() - then.clients.Cache.Stale.Total()
	n := Now{
		Seconds: now.Sub(then.at).Seconds(), Queries: queries, Lost: lost, Success: share(queries-min(lost, queries), queries),
		P50: Millis(waited.Quantile(0.5)), P99: Millis(waited.Quantile(0.99)),
	}
	if queries > 0 {
		n.HitRate = share(min(hits, queries), queries)
		n.QPS = float64(queries) / max(n.Seconds, 0.001)
	}
	return n
}

// An UpstreamCard is what the page shows about one upstream.
type UpstreamCard struct {
	api.UpstreamStatus
	Share  float64  `json:"share"` // of the queries that were sent to all upstreams in the last minute
	Usuals []Millis `json:"usuals_ms"`
	Levels []Level  `json:"levels"`
}

// cards returns a card for each upstream.
func (w *watch) cards(status []api.UpstreamStatus) []UpstreamCard {
	members := w.s.p.Members()
	var cards []UpstreamCard
	total := uint64(0)
	var sent []uint64
	for _, u := range status {
		card := UpstreamCard{UpstreamStatus: u}
		if i := slices.IndexFunc(members, func(m api.Member) bool { return m.String() == u.Name }); i >= 0 {
			card.Levels = w.levels(members[i])
		}
		w.mu.Lock()
		n := uint64(0)
		if one := w.members[u.Name]; one != nil {
			card.Usuals = slices.Clone(one.usual)
			for _, asked := range one.asked[max(0, len(one.asked)-int(lately/lookEvery)):] {
				n += asked
			}
		}
		w.mu.Unlock()
		total += n
		sent = append(sent, n)
		cards = append(cards, card)
	}
	for i := range cards {
		if total > 0 {
			cards[i].Share = share(sent[i], total)
		}
	}
	return cards
}

// An Event is a change of one upstream's state.
type Event struct {
	Upstream string `json:"upstream"`
	api.ChangeStatus
}

// timeline returns the latest changes of all upstreams, the newest first.
func timeline(status []api.UpstreamStatus) []Event {
	all := []Event{}
	for _, u := range status {
		for _, c := range u.Changes {
			all = append(all, Event{u.Name, c})
		}
	}
	slices.SortStableFunc(all, func(a, b Event) int { return cmp.Compare(b.At.UnixNano(), a.At.UnixNano()) })
	return all[:min(len(all), 50)]
}

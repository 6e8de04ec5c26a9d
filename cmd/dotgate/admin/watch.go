package admin

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"dotgate/cmd/dotgate/control"
	"dotgate/gateway"
)

const (
	// lookEvery is how often everything is looked at.
	lookEvery = 2 * time.Second
	// lately is how far back what the page shows of now goes.
	lately = time.Minute
	// sparks is how many points the line of an upstream's latency has: five
	// minutes of them.
	sparks = int(5 * time.Minute / lookEvery)
)

// A watch keeps what was, so that windows and lines can be told.
type watch struct {
	s *Server

	mu      sync.Mutex // guards all below; not held while anybody is asked
	looks   []look     // the last minute of them
	members map[string]*watched
}

// A look is what clients had seen at one moment.
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
	usual []Millis // one for each look
	asked []uint64 // queries sent between looks
}

// Millis is a duration that is a number of milliseconds in JSON.
type Millis = control.Millis

func (s *Server) objectives() Objectives { return s.terms.Load().Objectives }

func newWatch(s *Server) *watch { return &watch{s: s, members: make(map[string]*watched)} }

func (w *watch) run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		w.look(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (w *watch) look(now time.Time) {
	l := look{now, w.s.p.Gateway.Counts(), w.s.p.Gateway.Latency()}
	members := w.s.p.Members()
	w.mu.Lock()
	w.looks = append(w.looks, l)
	for len(w.looks) > 1 && now.Sub(w.looks[1].at) >= lately {
		w.looks = slices.Delete(w.looks, 0, 1)
	}
	gone := make(map[string]bool)
	for name := range w.members {
		gone[name] = true
	}
	w.mu.Unlock()
	for _, m := range members {
		delete(gone, m.String())
		w.lookAt(now, m)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for name := range gone {
		delete(w.members, name)
	}
}

func (w *watch) lookAt(now time.Time, m control.Member) {
	l, status, sent := levelsOf(m.History(), w.s.objectives()), m.Status(), m.Counts().Sent
	w.mu.Lock()
	defer w.mu.Unlock()
	one := w.members[m.String()]
	if one == nil || l.asked < one.last.asked { // it is new, or another of the same name
		one = &watched{sent: sent}
		w.members[m.String()] = one
	}
	one.add(now, l)
	one.last = l
	one.usual = append(one.usual, Millis(status.Usual))
	one.asked = append(one.asked, sent-one.sent)
	one.sent = sent
	if n := len(one.usual) - sparks; n > 0 {
		one.usual, one.asked = slices.Delete(one.usual, 0, n), slices.Delete(one.asked, 0, n)
	}
}

// A Level is the service level of an upstream in one window.
type Level struct {
	Window        string  `json:"window"`
	Asked         uint64  `json:"asked"`
	Availability  float64 `json:"availability"` // shares
	Latency       float64 `json:"latency"`
	Budget        float64 `json:"budget"` // left; 1 is all, below 0 is missed
	LatencyBudget float64 `json:"latency_budget"`
}

// levels returns the service levels of an upstream, for all windows.
func (w *watch) levels(m control.Member) []Level {
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

// Now is how clients fare.
type Now struct {
	Seconds float64 `json:"seconds"` // that this is about
	QPS     float64 `json:"qps"`
	Queries uint64  `json:"queries"`
	Lost    uint64  `json:"lost"`
	Success float64 `json:"success"`  // the share that was not lost
	HitRate float64 `json:"hit_rate"` // the share of the queries that the cache answered
	P50     Millis  `json:"p50_ms"`   // of those that waited
	P99     Millis  `json:"p99_ms"`
}

// now tells of the last minute.
func (w *watch) now(now time.Time) Now {
	c, l := w.s.p.Gateway.Counts(), w.s.p.Gateway.Latency()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.looks) == 0 {
		return Now{Success: 1}
	}
	then := w.looks[0]
	waited := l.Since(then.latency)
	queries, lost := control.Queries(c)
	queriesThen, lostThen := control.Queries(then.clients)
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

// A Card is what the page shows of one upstream.
type Card struct {
	control.UpstreamStatus
	Share  float64  `json:"share"` // of the queries that were sent lately
	Usuals []Millis `json:"usuals_ms"`
	Levels []Level  `json:"levels"`
}

// cards returns one for each upstream.
func (w *watch) cards(status []control.UpstreamStatus) []Card {
	members := w.s.p.Members()
	var cards []Card
	total := uint64(0)
	var sent []uint64
	for _, u := range status {
		card := Card{UpstreamStatus: u}
		if i := slices.IndexFunc(members, func(m control.Member) bool { return m.String() == u.Name }); i >= 0 {
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

// A Happening is a change of one upstream's state.
type Happening struct {
	Upstream string `json:"upstream"`
	control.ChangeStatus
}

// timeline returns the latest changes of all, the newest first.
func timeline(status []control.UpstreamStatus) []Happening {
	all := []Happening{}
	for _, u := range status {
		for _, c := range u.Changes {
			all = append(all, Happening{u.Name, c})
		}
	}
	slices.SortStableFunc(all, func(a, b Happening) int { return cmp.Compare(b.At.UnixNano(), a.At.UnixNano()) })
	return all[:min(len(all), 50)]
}

package gateway

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

const (
	// loopInterval is how often each candidate is probed.
	loopInterval = time.Minute
	// loopTimeout is how long a probe may take to come back.
	loopTimeout = 2 * time.Second
	// loopZone has the names that probes ask for, which clients do not. They reveal nothing
	// to servers that see them.
	loopZone = "arpa."
)

// loops detects forwarding loops: queries that come back because an upstream, or one of its
// own upstreams, forwards to this gateway.
//
// IDs, options and spellings are each hop's own, so a forwarded query carries nothing that
// says where it has been. Only the name passes through every server unchanged. So each
// candidate is asked for a random name, below a zone that it is asked for: a server of a
// company's own network answers for its own zones, and may forward all other names to us. If
// a client asks for that name, there is a loop, and that client's address is where queries
// come back from. Queries from there are refused while the candidate is asked the same.
type loops struct {
	log *slog.Logger
	// probes has the candidate that was asked for each name, by its first label. Nil while no
	// probe is in progress.
	probes atomic.Pointer[map[string]loopProbe]
	known  atomic.Pointer[[]loop] // found ones, each of another upstream; nil: none

	mu     sync.Mutex // guards logged and changes of known
	logged bool       // a refusal was logged
}

// A loopProbe is a candidate that was asked for a random name.
type loopProbe struct {
	upstream  string
	candidate LoopCandidate
}

// A loop is a forwarding loop that was found.
type loop struct {
	loopProbe
	from  netip.Addr // the address that queries come back from
	found time.Time
}

// A LoopCandidate is an upstream that may forward queries back to the gateway.
type LoopCandidate interface {
	// Exchange asks it. It returns when ctx is done.
	Exchange(ctx context.Context, q wire.Query) (wire.Answer, error)
	// Zones returns names that it is asked for, with the names below them, in presentation format;
	// "." if it is asked for all names without a route.
	Zones() []string
	// Track sets whether it remembers its queries in progress.
	Track(on bool)
	// Asked reports whether q is in progress there. It is false without Track.
	Asked(q wire.Query) bool
}

// WatchLoops probes the candidates every minute, and has queries refused that come back. It
// blocks until ctx is done. Candidates are upstreams by name, as of now; public resolvers are
// none, for they do not know this gateway.
func (g *Gateway) WatchLoops(ctx context.Context, candidates func() map[string]LoopCandidate) error {
	tick := time.NewTicker(loopInterval)
	defer tick.Stop()
	for {
		began := time.Now()
		if all := candidates(); len(all) > 0 {
			g.loops.probe(ctx, all)
		}
		g.loops.expire(began)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// probe asks all candidates at once, each for names of its own.
func (ls *loops) probe(ctx context.Context, candidates map[string]LoopCandidate) {
	ctx, cancel := context.WithTimeout(ctx, loopTimeout)
	defer cancel()
	names := make(map[string]loopProbe)
	queries := make(map[string]wire.Query)
	for upstream, candidate := range candidates {
		for _, zone := range candidate.Zones() {
			if zone == "." {
				zone = loopZone
			}
			label := strings.ToLower(rand.Text())
			q, err := wire.NewQuery(label+"."+zone, "TXT")
			if err != nil {
				continue // a label below it would be too long
			}
			names[label], queries[label] = loopProbe{upstream, candidate}, q
		}
	}
	ls.probes.Store(&names)
	defer ls.probes.Store(nil)
	var asking sync.WaitGroup
	for label, q := range queries {
		asking.Go(func() {
			// The answer does not matter.
			_, _ = names[label].candidate.Exchange(ctx, q)
		})
	}
	asking.Wait()
}

// isLoop reports whether q is a query of this gateway that has come back. While there is no
// loop, it only loads two pointers.
func (g *Gateway) isLoop(q wire.Query, from netip.Addr) bool {
	ls := &g.loops
	if probes := ls.probes.Load(); probes != nil {
		var buf [wire.MaxKey]byte
		if name := q.AppendName(buf[:0]); len(name) > 1 {
			if s, ours := (*probes)[string(name[1:1+int(name[0])])]; ours {
				ls.found(loop{s, from, time.Now()})
				return true
			}
		}
	}
	known := ls.known.Load()
	if known == nil {
		return false
	}
	for _, l := range *known {
		if l.from == from && l.candidate.Asked(q) {
			if ls.setLogged(true) {
				ls.log.Warn("refused a query because of a forwarding loop, and all further ones", "query", q, "from", from, "upstream", l.upstream)
			}
			return true
		}
	}
	return false
}

// found adds a loop, in place of another one through the same upstream.
func (ls *loops) found(l loop) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	same := func(o loop) bool { return o.upstream == l.upstream && o.candidate == l.candidate }
	next, news := []loop{l}, true
	if known := ls.known.Load(); known != nil {
		news = !slices.ContainsFunc(*known, same)
		next = append(slices.DeleteFunc(slices.Clone(*known), same), l)
	}
	l.candidate.Track(true)
	ls.known.Store(&next)
	if news {
		ls.log.Error("forwarding loop: this upstream, or one of its own upstreams, forwards to this gateway; remove it here or there",
			"upstream", l.upstream, "from", l.from)
	}
}

// expire removes loops that were not found again since then.
func (ls *loops) expire(since time.Time) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	known := ls.known.Load()
	if known == nil {
		return
	}
	var rest []loop
	for _, l := range *known {
		if !l.found.Before(since) {
			rest = append(rest, l)
			continue
		}
		l.candidate.Track(false)
		ls.log.Info("the forwarding loop has ended", "upstream", l.upstream)
	}
	if len(rest) > 0 {
		ls.known.Store(&rest)
		return
	}
	ls.known.Store(nil)
	ls.logged = false
}

// setLogged sets whether a refusal was logged, and reports whether that is a change.
func (ls *loops) setLogged(logged bool) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	news := ls.logged != logged
	ls.logged = logged
	return news
}

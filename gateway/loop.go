package gateway

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/gateway/wire"
)

const (
	// loopInterval is how often it is found out whether queries come back.
	loopInterval = time.Minute
	// loopPatience is how long one that does may take.
	loopPatience = 2 * time.Second
	// loopZone is where the names are that nobody else asks for. It has nothing to
	// tell to whoever sees them.
	loopZone = "arpa."
)

// loops knows whether our queries come back to us: because an upstream of ours, or
// one of its own, has us for an upstream.
//
// A query that was forwarded has nothing left that says where it has been: IDs,
// options and spellings are each hop's own. All that goes through every server
// unchanged is the name. So each upstream that may be in a loop is asked for a name
// that nobody else can know. If it is asked of us, whoever asks brings our queries
// back; what comes from there while we wait for the same answer ourselves is refused.
type loops struct {
	log *slog.Logger
	// names has the upstream that was asked for each name, by its first label.
	// Nil while there is nothing to find out.
	names atomic.Pointer[map[string]string]
	known atomic.Pointer[loop] // or nil

	mu   sync.Mutex // guards told
	told bool       // that a query was refused
}

// A loop is one that was found.
type loop struct {
	upstream string
	from     netip.Addr // where our queries come back from
	found    time.Time
}

// A Suspect is an upstream that may bring our queries back.
type Suspect interface {
	// Exchange asks it. It returns when ctx is done.
	Exchange(ctx context.Context, q wire.Query) (wire.Answer, error)
}

// WatchLoops finds out, now and then, whether queries to the suspects come back,
// and has those refused that do. It blocks until ctx is done. Suspects are upstreams
// by name, those of the moment; those that only forward to the public can't know us.
func (g *Gateway) WatchLoops(ctx context.Context, suspects func() map[string]Suspect) error {
	tick := time.NewTicker(loopInterval)
	defer tick.Stop()
	for {
		began := time.Now()
		if who := suspects(); len(who) > 0 {
			g.loops.look(ctx, who)
		}
		if l := g.loops.known.Load(); l != nil && l.found.Before(began) {
			g.loops.log.Info("queries don't come back any more", "upstream", l.upstream)
			g.loops.known.Store(nil)
			g.loops.tell(false)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// look asks all suspects at once, each for a name of its own.
func (ls *loops) look(ctx context.Context, suspects map[string]Suspect) {
	ctx, cancel := context.WithTimeout(ctx, loopPatience)
	defer cancel()
	names := make(map[string]string)
	queries := make(map[string]wire.Query)
	for upstream := range suspects {
		label := strings.ToLower(rand.Text())
		q, err := wire.NewQuery(label+"."+loopZone, "TXT")
		if err != nil {
			panic("BUG: " + err.Error())
		}
		names[label], queries[upstream] = upstream, q
	}
	ls.names.Store(&names)
	defer ls.names.Store(nil)
	var asking sync.WaitGroup
	for upstream, q := range queries {
		asking.Go(func() {
			// What is answered is of no matter.
			_, _ = suspects[upstream].Exchange(ctx, q)
		})
	}
	asking.Wait()
}

// returned reports whether q is one of ours that has come back. It costs next to
// nothing while there is no loop.
func (g *Gateway) returned(q wire.Query, from netip.Addr) bool {
	ls := &g.loops
	if names := ls.names.Load(); names != nil {
		var room [wire.MaxKey]byte
		if name := q.AppendName(room[:0]); len(name) > 1 {
			if upstream, ours := (*names)[string(name[1:1+int(name[0])])]; ours {
				ls.found(loop{upstream, from, time.Now()})
				return true
			}
		}
	}
	l := ls.known.Load()
	if l == nil || l.from != from || !g.flights.underWay(q) {
		return false
	}
	if ls.tell(true) {
		ls.log.Warn("refused a query that came back to us, and all further ones", "query", q, "from", from, "upstream", l.upstream)
	}
	return true
}

func (ls *loops) found(l loop) {
	if before := ls.known.Swap(&l); before == nil {
		ls.log.Error("our queries come back to us: this upstream, or one of its own, has us for an upstream; take it out here or there",
			"upstream", l.upstream, "from", l.from)
	}
}

// tell sets whether a refusal was told, and reports whether that is news.
func (ls *loops) tell(told bool) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	news := ls.told != told
	ls.told = told
	return news
}

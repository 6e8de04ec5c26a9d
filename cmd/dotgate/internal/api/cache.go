package api

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
)

// A Cache is a *cache.Cache.
type Cache interface {
	Usage() cache.Usage
	Show(name string) ([]cache.EntryInfo, error)
	Flush(name string) (int, error)
	FlushSubtree(name string) (int, error)
}

// A CachedAnswer is a cache entry.
type CachedAnswer struct {
	Question string `json:"question"` // "example.com. A"
	DO       bool   `json:"do"`       // flags of the queries that it answers
	CD       bool   `json:"cd"`
	RCode    string `json:"rcode"`
	Kind     string `json:"kind"`  // positive, no data, no name or failure
	State    string `json:"state"` // fresh, stale (served while no upstream answers) or expired (not served)
	Age      Millis `json:"age_ms"`
	Left     Millis `json:"left_ms"` // time until it is stale; below 0 after that
	// Hits is the number of clients that got it. It is not counted beyond HitsMax.
	Hits          int `json:"hits"`
	HitsMax       int `json:"hits_max"`
	wire.Printout     // the reply that a client gets now
}

// Flushed is the result of a flush.
type Flushed struct {
	Answers int `json:"flushed"`
}

var errNoCache = errors.New("cache.size is off: the gateway has no cache")

// serveCache shows (GET) or flushes (DELETE) the entries for a name or, with subtree, for
// all names below it as well.
func (s *Server) serveCache(w http.ResponseWriter, r *http.Request) {
	if s.o.Cache.Usage().Size == 0 {
		WriteError(w, http.StatusConflict, errNoCache)
		return
	}
	name, subtree := r.URL.Query().Get("name"), r.URL.Query().Get("subtree")
	var done any
	var err error
	switch {
	case r.Method == http.MethodGet:
		done, err = s.showCache(name)
	case subtree == "true":
		done, err = s.flushCache(name, true, s.o.Cache.FlushSubtree)
	case subtree == "":
		done, err = s.flushCache(name, false, s.o.Cache.Flush)
	default:
		err = fmt.Errorf("subtree is %q, which is neither true nor missing", subtree)
	}
	respond(w, done, http.StatusBadRequest, err)
}

func (s *Server) showCache(name string) ([]CachedAnswer, error) {
	entries, err := s.o.Cache.Show(name)
	answers := []CachedAnswer{} // rather than null
	for _, e := range entries {
		answers = append(answers, cachedAnswer(e))
	}
	return answers, err
}

func (s *Server) flushCache(name string, subtree bool, flush func(string) (int, error)) (Flushed, error) {
	n, err := flush(name)
	if err == nil {
		s.o.Log.Info("flushed answers", "name", name, "subtree", subtree, "answers", n)
	}
	return Flushed{n}, err
}

func cachedAnswer(e cache.EntryInfo) CachedAnswer {
	state := "expired"
	switch {
	case e.Left > 0:
		state = "fresh"
	case e.Usable:
		state = "stale"
	}
	return CachedAnswer{
		Question: e.Question, DO: e.DO, CD: e.CD, RCode: e.RCode.String(), Kind: e.Kind.String(), State: state,
		Age: Millis(e.Age.Round(time.Millisecond)), Left: Millis(e.Left.Round(time.Millisecond)), Hits: e.Hits, HitsMax: cache.MaxHits, Printout: e.Printout,
	}
}

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"dotgate/gateway/cache"
)

// Cache is what a *cache.Cache tells and does.
type Cache interface {
	Usage() cache.Usage
	Show(name string) ([]cache.Entry, error)
	Flush(name string) (int, error)
	FlushSubtree(name string) (int, error)
}

// A CachedAnswer is what the cache has for one question.
type CachedAnswer struct {
	Question string `json:"question"` // "example.com. A"
	DO       bool   `json:"do"`       // clients that set these flags get it, and no others
	CD       bool   `json:"cd"`
	RCode    string `json:"rcode"`
	Kind     string `json:"kind"`  // positive, no data, no name or failure
	State    string `json:"state"` // fresh, stale (given while no upstream answers) or expired (of no use)
	Age      Millis `json:"age_ms"`
	Left     Millis `json:"left_ms"` // until its end; below 0 if that has passed
	// Hits is how many clients got it since it came. It stays at HitsMax when
	// there are more.
	Hits    int `json:"hits"`
	HitsMax int `json:"hits_max"`
	// What a client gets now: lines in the format of zone files.
	Answer     []string `json:"answer,omitempty"`
	Authority  []string `json:"authority,omitempty"`
	Additional []string `json:"additional,omitempty"`
	Errors     []string `json:"extended_errors,omitempty"`
}

// Flushed is what a flush did.
type Flushed struct {
	Answers int `json:"flushed"`
}

var errNoCache = errors.New("cache.size is off: the gateway has no cache")

// serveCache shows (GET) or flushes (DELETE) what the cache has for a name or,
// with subtree, for all below it too.
func (s *Server) serveCache(w http.ResponseWriter, r *http.Request) {
	if s.o.Cache.Usage().Size == 0 {
		writeError(w, http.StatusConflict, errNoCache)
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
	if err != nil {
		writeError(w, http.StatusBadRequest, err)
		return
	}
	writeJSON(w, http.StatusOK, done)
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

func cachedAnswer(e cache.Entry) CachedAnswer {
	state := "expired"
	switch {
	case e.Left > 0:
		state = "fresh"
	case e.Usable:
		state = "stale"
	}
	return CachedAnswer{
		Question: e.Question, DO: e.DO, CD: e.CD, RCode: e.RCode.String(), Kind: e.Kind.String(), State: state,
		Age: Millis(e.Age.Round(time.Millisecond)), Left: Millis(e.Left.Round(time.Millisecond)), Hits: e.Hits, HitsMax: cache.MaxHits,
		Answer: e.Answer, Authority: e.Authority, Additional: e.Additional, Errors: e.Errors,
	}
}

// Cached asks what the cache has for a name, given in presentation format, for
// each type and flags.
func (c *Client) Cached(ctx context.Context, name string) (answers []CachedAnswer, err error) {
	err = c.aboutCache(ctx, http.MethodGet, name, false, &answers)
	return answers, err
}

// Flush has the cache forget what it has for a name or, with subtree, for all
// below it too. It returns how many answers that were.
func (c *Client) Flush(ctx context.Context, name string, subtree bool) (int, error) {
	var f Flushed
	err := c.aboutCache(ctx, http.MethodDelete, name, subtree, &f)
	return f.Answers, err
}

func (c *Client) aboutCache(ctx context.Context, method, name string, subtree bool, done any) error {
	about := url.Values{"name": {name}}
	if subtree {
		about.Set("subtree", "true")
	}
	body, err := c.do(ctx, method, "/cache?"+about.Encode(), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(done); err != nil {
		return fmt.Errorf("read what the gateway says of its cache: %w", err)
	}
	return nil
}

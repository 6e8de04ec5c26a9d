package dottest

import (
	"crypto/tls"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
)

// Stats are the counts of a server since it was started.
type Stats struct {
	Accepted   int // connections
	TurnedAway int // of these, closed as soon as they were accepted
	Open       int // connections that have not been closed, now
	MaxOpen    int // the most that have been open at once

	Handshakes int // completed
	Resumed    int // of these, with a session ticket
	Failed     int // handshakes that began and did not complete
	// ServerNames and Protocols count handshakes by the server name (SNI) and
	// the protocols (ALPN, with commas) that the client sent; "" is none.
	ServerNames, Protocols map[string]int
	// Versions counts completed handshakes by version, such as "TLS 1.3".
	Versions           map[string]int
	ClientCertificates int // completed handshakes with one

	Queries int
	Answers int // queries whose answer, right or wrong, was passed to TLS
	// MaxOutstanding is the most queries that had no answer yet, at once, on
	// one connection.
	MaxOutstanding int
	// DuplicateIDs counts queries with the ID of one still outstanding on the
	// same connection.
	DuplicateIDs int
	// Unpadded counts queries whose length is no multiple of 128 (RFC 8467).
	Unpadded int
	// Names counts queries by name, in lower case with the final dot, if
	// Options.CountNames is set.
	Names map[string]int
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	open := s.open
	s.mu.Unlock()
	t := s.tally
	t.mu.Lock()
	defer t.mu.Unlock()
	return Stats{
		Accepted:           int(t.accepted.Load()),
		TurnedAway:         int(t.turnedAway.Load()),
		Open:               open,
		MaxOpen:            int(t.maxOpen.Load()),
		Handshakes:         int(t.handshakes.Load()),
		Resumed:            int(t.resumed.Load()),
		Failed:             int(t.failed.Load()),
		ServerNames:        maps.Clone(t.serverNames),
		Protocols:          maps.Clone(t.protocols),
		Versions:           maps.Clone(t.versions),
		ClientCertificates: int(t.clientCertificates.Load()),
		Queries:            int(t.queries.Load()),
		Answers:            int(t.answers.Load()),
		MaxOutstanding:     int(t.maxOutstanding.Load()),
		DuplicateIDs:       int(t.duplicateIDs.Load()),
		Unpadded:           int(t.unpadded.Load()),
		Names:              maps.Clone(t.names),
	}
}

type tally struct {
	accepted, turnedAway, maxOpen          atomic.Int64
	handshakes, resumed, failed            atomic.Int64
	clientCertificates                     atomic.Int64
	queries, answers                       atomic.Int64
	maxOutstanding, duplicateIDs, unpadded atomic.Int64

	mu                               sync.Mutex // guards the fields below
	serverNames, protocols, versions map[string]int
	names                            map[string]int // or nil
}

func newTally(countNames bool) *tally {
	t := &tally{serverNames: map[string]int{}, protocols: map[string]int{}, versions: map[string]int{}}
	if countNames {
		t.names = map[string]int{}
	}
	return t
}

func (t *tally) sawHello(hello *tls.ClientHelloInfo) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.serverNames[hello.ServerName]++
	t.protocols[strings.Join(hello.SupportedProtos, ",")]++
}

func (t *tally) sawHandshake(state tls.ConnectionState) {
	t.handshakes.Add(1)
	if state.DidResume {
		t.resumed.Add(1)
	}
	if len(state.PeerCertificates) > 0 {
		t.clientCertificates.Add(1)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.versions[tls.VersionName(state.Version)]++
}

func (t *tally) sawQuery(query []byte) {
	t.queries.Add(1)
	if len(query)%128 != 0 {
		t.unpadded.Add(1)
	}
	if t.names == nil {
		return
	}
	name := nameIn(query)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.names[name]++
}

// nameIn returns the name that query asks for, for people.
func nameIn(query []byte) string {
	q, ok := parseQuestion(query)
	if !ok {
		return ""
	}
	return string(appendName(nil, query[headerLen:q.end-5]))
}

// atLeast raises a maximum.
func atLeast(max *atomic.Int64, n int) {
	for old := max.Load(); int64(n) > old; old = max.Load() {
		if max.CompareAndSwap(old, int64(n)) {
			return
		}
	}
}

package access

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Refused clients are logged RefusedDelay after the first of them, and then at most once in
	// RefusedInterval.
	RefusedInterval = time.Minute
	RefusedDelay    = time.Second
	// refusedPrefixes is how many prefixes one report lists. Others are only counted: over UDP,
	// addresses can be forged.
	refusedPrefixes = 16
)

// A ClientClass is the kind of address of a client that is not allowed.
type ClientClass uint8

const (
	ThisHost ClientClass = iota // an address of this machine
	Linked                      // in a prefix of one of its interfaces
	Private                     // RFC 1918, RFC 4193, link-local
	Shared                      // 100.64.0.0/10 (RFC 6598)
	Public

	ClientClasses int = iota
)

var clientClassNames = [ClientClasses]string{ThisHost: "this_host", Linked: OnLinkWord, Private: "private", Shared: "shared", Public: "public"}

// String returns the class as a metric's label.
func (c ClientClass) String() string { return clientClassNames[c] }

// Class returns the class of a client's address.
func (n *Network) Class(addr netip.Addr) ClientClass {
	switch {
	case n.own.Contains(addr):
		return ThisHost
	case slices.ContainsFunc(n.links, func(l Link) bool { return l.Prefix.Contains(addr) }):
		return Linked
	case sharedRange.Contains(addr):
		return Shared
	case slices.ContainsFunc(privatePrefixes, func(p netip.Prefix) bool { return p.Contains(addr) }):
		return Private
	}
	return Public
}

// Refused counts the queries of clients that are not allowed.
type Refused struct {
	wake  chan struct{} // capacity 1: there is something to report
	total [ClientClasses]atomic.Uint64

	mu     sync.Mutex              // guards the rest
	recent map[netip.Prefix]uint64 // since the last report
	others uint64                  // of further prefixes
}

// Wake returns the channel on which there is a value when a Report has something to log.
func (r *Refused) Wake() <-chan struct{} { return r.wake }

// Total returns how many queries of clients of a class were refused.
func (r *Refused) Total(class ClientClass) uint64 { return r.total[class].Load() }

// NewRefused returns a Refused without counts.
func NewRefused() *Refused {
	return &Refused{wake: make(chan struct{}, 1), recent: make(map[netip.Prefix]uint64)}
}

// Note counts one query. It does not block, since read loops call it: while another goroutine is
// in here, the query is counted by class only.
func (r *Refused) Note(addr netip.Addr, class ClientClass) {
	r.total[class].Add(1)
	if !r.mu.TryLock() {
		return
	}
	defer r.mu.Unlock()
	prefix := prefixOf(addr, publicBits4, publicBits6) // as an operator would allow it: a network of usual size
	switch _, known := r.recent[prefix]; {
	case known || len(r.recent) < refusedPrefixes:
		r.recent[prefix]++
	default:
		r.others++
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Report logs the clients that were refused since the last report, and reports whether there were
// any. Public clients are logged as information; others are most likely a mistake in the
// configuration, and logged as a warning.
func (r *Refused) Report(log *slog.Logger, n *Network) bool {
	r.mu.Lock()
	recent, others := r.recent, r.others
	r.recent, r.others = make(map[netip.Prefix]uint64), 0
	r.mu.Unlock()
	if len(recent) == 0 {
		return false
	}
	total, level := others, slog.LevelInfo
	for prefix, queries := range recent {
		total += queries
		if n.Class(prefix.Addr()) != Public {
			level = slog.LevelWarn
		}
	}
	prefixes := slices.SortedFunc(maps.Keys(recent), func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(recent[b], recent[a]), a.Addr().Compare(b.Addr()))
	})
	var texts []string
	for _, prefix := range prefixes {
		texts = append(texts, fmt.Sprintf("%v (%s, %d)", prefix, n.describe(prefix.Addr()), recent[prefix]))
	}
	if others > 0 {
		texts = append(texts, fmt.Sprintf("others (%d)", others))
	}
	log.Log(context.Background(), level, "refused clients that are not in gateway.allow; add their prefix to it if they should be served",
		"queries", total, "clients", strings.Join(texts, ", "))
	return true
}

// describe returns the class of an address, and why it is not on_link if it is within a prefix of
// an interface.
func (n *Network) describe(addr netip.Addr) string {
	for _, l := range n.links {
		if l.Excluded != "" && l.Prefix.Contains(addr) {
			return fmt.Sprintf("%v of %s is not %s: %s", l.Prefix, l.Interface, OnLinkWord, l.Excluded)
		}
	}
	return n.Class(addr).String()
}

package peers

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// A Reason is why something of another node was not taken.
type Reason uint8

const (
	malformed          Reason = iota // it can't be read
	flood                            // too much at once
	stranger                         // of who is no node, or has no key of ours
	wrongKey                         // a node has other keys
	otherVersion                     // a node is of a version that we can't talk to
	otherConfiguration               // a node has other upstreams or routes

	reasons int = iota
)

var reasonNames = [reasons]string{
	malformed: "malformed", flood: "flood", stranger: "stranger", wrongKey: "key",
	otherVersion: "version", otherConfiguration: "configuration",
}

func (r Reason) String() string {
	if int(r) < reasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// Reasons returns all that Counts.Rejected may have.
func Reasons() []string { return reasonNames[:] }

type counts struct {
	sent, received, heeded atomic.Uint64
	taken, used, given     atomic.Uint64
	rejected               [reasons]atomic.Uint64
}

func (c *counts) reject(r Reason) { c.rejected[r].Add(1) }

// Counts are totals since New.
type Counts struct {
	Sent     uint64 // messages to others
	Received uint64 // messages of others that could be read
	Heeded   uint64 // things in them that had an upstream probed
	// Taken are answers that came from other caches, and Used those of them that
	// were valid and news; Given are those that went to others.
	Taken, Used, Given uint64
	Rejected           map[string]uint64 // what was not taken, by reason
}

// A Peer is another node at one moment.
type Peer struct {
	Name    string // as the configuration has it, or else its host's; no two have one
	Host    string // how it calls itself; empty if it was never there
	Address netip.AddrPort
	Version string
	Up      bool
	Since   time.Time // when it came or went; zero if it was never there
	Problem string    // why it is not there, as far as known
	Failing []string  // upstreams that it says are failing
	// Usual is how long it says that answers of upstreams take.
	Usual map[string]time.Duration
}

// A Status is what a Node knows at one moment.
type Status struct {
	Peers  []Peer
	Counts Counts
}

// Status returns what n knows.
func (n *Node) Status() Status {
	s := Status{Counts: n.counts.now()}
	n.mu.Lock()
	defer n.mu.Unlock()
	shown := make(map[string]bool)
	for _, t := range n.targets {
		if t.self {
			continue
		}
		p := Peer{Name: t.text}
		if m := n.latestAt(t.addrs); m != nil {
			p = m.peer(t.text)
			shown[m.name] = true
		}
		if t.problem != nil && !p.Up {
			p.Problem = t.problem.Error()
		}
		s.Peers = append(s.Peers, p)
	}
	for name, m := range n.members {
		if !shown[name] && m.up {
			s.Peers = append(s.Peers, m.peer(m.host()))
		}
	}
	names := make(map[string]bool)
	for i := range s.Peers {
		p := &s.Peers[i]
		for names[p.Name] { // what it calls itself says little then
			p.Name += "@" + p.Address.String()
		}
		names[p.Name] = true
	}
	slices.SortStableFunc(s.Peers, func(a, b Peer) int { return cmp.Compare(a.Name, b.Name) })
	return s
}

// latestAt returns the member that is at one of the addresses, or was last, or nil.
// The caller holds mu.
func (n *Node) latestAt(addrs []netip.AddrPort) (latest *member) {
	for _, m := range n.members {
		if slices.Contains(addrs, m.addr) && m.seen && (latest == nil || m.up || m.since.After(latest.since) && !latest.up) {
			latest = m
		}
	}
	return latest
}

func (m *member) peer(name string) Peer {
	p := Peer{Name: name, Host: m.host(), Address: m.addr, Version: m.version, Up: m.up, Since: m.since, Usual: make(map[string]time.Duration)}
	for upstream, v := range m.views {
		if v.failing {
			p.Failing = append(p.Failing, upstream)
		}
		if v.usual > 0 {
			p.Usual[upstream] = v.usual
		}
	}
	slices.Sort(p.Failing)
	return p
}

func (c *counts) now() Counts {
	all := Counts{
		Sent: c.sent.Load(), Received: c.received.Load(), Heeded: c.heeded.Load(),
		Taken: c.taken.Load(), Used: c.used.Load(), Given: c.given.Load(), Rejected: make(map[string]uint64),
	}
	for r := range c.rejected {
		all.Rejected[Reason(r).String()] = c.rejected[r].Load()
	}
	return all
}

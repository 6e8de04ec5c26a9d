package peers

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"dotgate/gateway/latency"
)

// A Reason tells why a message or connection was rejected.
type Reason uint8

const (
	malformed          Reason = iota // cannot be parsed
	flood                            // above a rate or limit
	unknownSender                    // from an address of no node, or without one of the keys
	wrongKey                         // from a node with other keys
	otherVersion                     // from a node with an incompatible version
	otherConfiguration               // from a node with other upstreams or routes

	reasons int = iota
)

var reasonNames = [reasons]string{
	malformed: "malformed", flood: "flood", unknownSender: "unknown", wrongKey: "key",
	otherVersion: "version", otherConfiguration: "configuration",
}

func (r Reason) String() string {
	if int(r) < reasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// Reasons returns all keys of Counts.Rejected.
func Reasons() []string { return reasonNames[:] }

type counts struct {
	sent, received, applied    atomic.Uint64
	downloaded, used, uploaded atomic.Uint64
	rejected                   [reasons]atomic.Uint64
}

func (c *counts) reject(r Reason) { c.rejected[r].Add(1) }

// Counts are totals since New.
type Counts struct {
	Sent     uint64 // messages to other nodes
	Received uint64 // valid messages of other nodes
	Applied  uint64 // reports in them that caused a probe
	// Downloaded counts answers received from caches of other nodes, Used those of them
	// that were valid and new, and Uploaded answers sent to other nodes.
	Downloaded, Used, Uploaded uint64
	Rejected                   map[string]uint64 // messages and connections, by reason
}

// A Peer is another node at one moment.
type Peer struct {
	Name    string         `json:"name"`           // as configured, or else its host's; unique
	Host    string         `json:"host,omitempty"` // its own host name; empty if it was never up
	Address netip.AddrPort `json:"address,omitzero"`
	Version string         `json:"version,omitempty"`
	Up      bool           `json:"up"`
	Since   time.Time      `json:"since,omitzero"`    // of the last change of Up; zero if it was never up
	Problem string         `json:"problem,omitempty"` // why it is unreachable; empty if unknown
	Failing []string       `json:"failing,omitempty"` // upstreams that it reports as failing
	// Usual has the answer times that it reports, by upstream.
	Usual map[string]latency.Millis `json:"usual_ms,omitempty"`
}

// A Status describes a Node at one moment.
type Status struct {
	Peers  []Peer
	Counts Counts
}

// Status returns the current status.
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
		for names[p.Name] { // two hosts of the same name
			p.Name += "@" + p.Address.String()
		}
		names[p.Name] = true
	}
	slices.SortStableFunc(s.Peers, func(a, b Peer) int { return cmp.Compare(a.Name, b.Name) })
	return s
}

// latestAt returns the member that is up at one of the addresses, else the last one that
// was, else nil. The caller holds n.mu.
func (n *Node) latestAt(addrs []netip.AddrPort) (latest *member) {
	for _, m := range n.members {
		if slices.Contains(addrs, m.addr) && m.seen && (latest == nil || m.up || m.since.After(latest.since) && !latest.up) {
			latest = m
		}
	}
	return latest
}

func (m *member) peer(name string) Peer {
	p := Peer{Name: name, Host: m.host(), Address: m.addr, Version: m.version, Up: m.up, Since: m.since, Usual: make(map[string]latency.Millis)}
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
		Sent: c.sent.Load(), Received: c.received.Load(), Applied: c.applied.Load(),
		Downloaded: c.downloaded.Load(), Used: c.used.Load(), Uploaded: c.uploaded.Load(), Rejected: make(map[string]uint64),
	}
	for r := range c.rejected {
		all.Rejected[Reason(r).String()] = c.rejected[r].Load()
	}
	return all
}

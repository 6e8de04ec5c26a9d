package peers

import (
	"cmp"
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"

	"dotgate/gateway/latency"
	"dotgate/gateway/statelog"
)

const (
	// messageRate and messageBurst limit the messages of other nodes, in messages a
	// second.
	messageRate, messageBurst = 50, 100
	// maxMessage is the longest message that is read, in octets. A message that has to
	// fit into one packet has at most statesPerPacket upstreams.
	maxMessage, statesPerPacket = 64 << 10, 8
	// A change is announced again every repeatAfter until repeatFor has passed, because
	// packets get lost.
	repeatAfter, repeatFor = 40 * time.Millisecond, 150 * time.Millisecond
	// probePause is the least time between two probes that one node can cause by
	// announcing that an upstream is back.
	probePause = 5 * time.Second
)

// A message tells other nodes the states of upstreams. It is JSON, so that fields can
// be added and removed.
type message struct {
	From string `json:"from"` // the name of the node
	// Sequence orders the messages of a node, which may overtake each other: packets,
	// and exchanges of all states over connections.
	Sequence uint64  `json:"sequence"`
	States   []state `json:"states"`
}

// A state is one node's own view of an upstream.
type state struct {
	Upstream string         `json:"upstream"` // its name
	Failing  bool           `json:"failing"`
	Usual    latency.Millis `json:"usual_ms"` // how long its answers take; 0 if unknown
}

// An announcement is the state of an own upstream that was last sent to the other
// nodes.
type announcement struct {
	failing bool
	at      time.Time // of the last change
}

// announceChanges sends each change to the other nodes until ctx is done.
func (n *Node) announceChanges(ctx context.Context) {
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	var until time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.p.Changed:
			until = time.Now().Add(repeatFor)
		case <-again.C:
		}
		n.announce()
		if time.Now().Before(until) {
			again.Reset(repeatAfter)
		}
	}
}

// announce sends the states that changed within repeatFor to all other nodes.
func (n *Node) announce() {
	var news []state
	now := time.Now()
	for _, u := range n.p.Upstreams() {
		s := stateOf(u)
		n.mu.Lock()
		before := n.announced[s.Upstream]
		if before.failing != s.Failing {
			before = announcement{s.Failing, now}
			n.announced[s.Upstream] = before
		}
		n.mu.Unlock()
		if now.Sub(before.at) < repeatFor {
			news = append(news, s)
		}
	}
	for part := range slices.Chunk(news, statesPerPacket) {
		n.send(part)
	}
}

func stateOf(u Upstream) state {
	s := u.Status()
	return state{Upstream: u.String(), Failing: s.Failing, Usual: latency.Millis(s.Usual)}
}

// send sends states to each other member in one packet. It does not wait for replies.
func (n *Node) send(states []state) {
	n.mu.Lock()
	engine := n.engine
	n.mu.Unlock()
	if engine == nil {
		return
	}
	text, err := json.Marshal(message{n.name, n.sequence.Add(1), states})
	if err != nil {
		return // cannot happen: every field can be encoded
	}
	for _, m := range n.up() {
		if err := engine.SendBestEffort(m.node(), text); err != nil {
			n.p.Log.Debug("cannot send to a peer", "peer", m.host(), "error", err)
			continue
		}
		n.counts.sent.Add(1)
	}
}

// handle reads a message of another node. It does not block. A message never changes
// the state of an upstream: it can only cause a probe.
func (n *Node) handle(text []byte) {
	if !n.messages.Allow() {
		n.counts.reject(flood)
		return
	}
	var w message
	if len(text) > maxMessage || json.Unmarshal(text, &w) != nil {
		n.counts.reject(malformed)
		return
	}
	upstreams := n.p.Upstreams()
	n.mu.Lock()
	m := n.members[w.From]
	known := m != nil && m.up
	n.mu.Unlock()
	if !known || w.From == n.name {
		n.counts.reject(unknownSender)
		return
	}
	n.counts.received.Add(1)
	for _, s := range w.States {
		// Other nodes may have upstreams that this one does not have.
		if i := slices.IndexFunc(upstreams, func(u Upstream) bool { return u.String() == s.Upstream }); i >= 0 {
			n.apply(m, upstreams[i], s, w.Sequence)
		}
	}
}

// apply causes a probe of u if the view of node m has changed. A state that is older than
// the view changes nothing.
func (n *Node) apply(m *member, u Upstream, s state, sequence uint64) {
	failing := u.Status().Failing
	n.mu.Lock()
	before := m.views[s.Upstream]
	if sequence < before.sequence {
		n.mu.Unlock()
		return
	}
	now := view{failing: s.Failing, sequence: sequence, rechecked: before.rechecked, log: cmp.Or(before.log, new(statelog.State))}
	if s.Usual > 0 && s.Usual < latency.Millis(time.Minute) {
		now.usual = s.Usual
	}
	back := before.failing && !s.Failing && failing && time.Since(before.rechecked) >= probePause
	if back {
		now.rechecked = time.Now()
	}
	m.views[s.Upstream] = now
	n.mu.Unlock()
	switch {
	case s.Failing && !before.failing:
		if u.PeerReport(m.host()) {
			n.counts.applied.Add(1)
			now.log.Fail(func(skipped int) {
				n.p.Log.Info("a peer reported an upstream as failing: probing it", "peer", m.host(), "upstream", s.Upstream, "reports_not_logged", skipped)
			})
		}
	case back:
		n.counts.applied.Add(1)
		u.ProbeNow()
	}
	if !s.Failing {
		now.log.Work(func() {})
	}
}

// A delegate is a Node as memberlist sees it. Memberlist calls it while holding its own
// locks.
type delegate Node

var (
	_ memberlist.Delegate      = (*delegate)(nil)
	_ memberlist.EventDelegate = (*delegate)(nil)
	_ memberlist.AliveDelegate = (*delegate)(nil)
)

// NodeMeta returns the version, which operators see.
func (d *delegate) NodeMeta(limit int) []byte {
	return []byte(d.p.Version[:min(len(d.p.Version), limit)])
}

func (d *delegate) NotifyMsg(text []byte) { (*Node)(d).handle(text) }

func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState returns the states of all upstreams, for nodes that have just joined and
// in case packets got lost.
func (d *delegate) LocalState(bool) []byte {
	w := message{From: d.name, Sequence: d.sequence.Add(1)}
	for _, u := range d.p.Upstreams() {
		w.States = append(w.States, stateOf(u))
	}
	text, err := json.Marshal(w)
	if err != nil {
		return nil
	}
	return text
}

func (d *delegate) MergeRemoteState(text []byte, _ bool) { (*Node)(d).handle(text) }

// NotifyAlive rejects nodes of another version and nodes beyond maxNodes. A node at this
// node's own address is the previous process, which other nodes still list.
func (d *delegate) NotifyAlive(other *memberlist.Node) error {
	if other.DMin > version || other.DMax < version {
		d.counts.reject(otherVersion)
		return errVersion
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.members[other.Name] != nil || other.Name == d.name:
		return nil
	case addrOf(other) == d.transport.addr:
		return errPredecessor
	}
	for name, m := range d.members {
		if len(d.members) >= maxNodes && !m.up && time.Since(m.since) > time.Minute {
			delete(d.members, name)
		}
	}
	if len(d.members) >= maxNodes || len(other.Name) > 200 {
		d.counts.reject(flood)
		return errMany
	}
	// A node counts towards maxNodes even before it has joined.
	d.members[other.Name] = newMember(other)
	return nil
}

func newMember(other *memberlist.Node) *member {
	return &member{name: other.Name, addr: addrOf(other), since: time.Now(), views: make(map[string]view), presence: new(statelog.State)}
}

func (d *delegate) NotifyJoin(other *memberlist.Node) {
	if other.Name == d.name {
		return
	}
	d.mu.Lock()
	m := d.members[other.Name]
	if m == nil {
		m = newMember(other)
		d.members[other.Name] = m
	}
	known := m.seen
	m.addr, m.version, m.seen, m.up, m.since = addrOf(other), printable(other.Meta), true, true, time.Now()
	clear(m.views)
	// Successive processes at one address are one node for operators.
	replaced := false
	for name, predecessor := range d.members {
		if predecessor != m && predecessor.addr == m.addr {
			delete(d.members, name)
			if predecessor.seen {
				known, replaced, m.presence = true, predecessor.up, predecessor.presence
			}
		}
	}
	at, version, presence := m.addr, m.version, m.presence
	d.mu.Unlock()
	joined := func() { d.p.Log.Info("a peer joined", "peer", m.host(), "at", at, "version", version) }
	if replaced {
		presence.Fail(func(skipped int) {
			d.p.Log.Info("a peer was replaced by a new process", "peer", m.host(), "changes_not_logged", skipped)
		})
	}
	if known {
		presence.Work(joined)
	} else {
		joined()
	}
	select {
	case d.joined <- struct{}{}:
	default:
	}
}

func (d *delegate) NotifyLeave(other *memberlist.Node) {
	d.mu.Lock()
	m := d.members[other.Name]
	if m == nil {
		d.mu.Unlock()
		return
	}
	m.up, m.since = false, time.Now()
	at, presence := m.addr, m.presence
	d.mu.Unlock()
	left := other.State == memberlist.StateLeft
	presence.Fail(func(skipped int) {
		if left {
			d.p.Log.Info("a peer left", "peer", m.host(), "changes_not_logged", skipped)
		} else {
			d.p.Log.Warn("a peer is unreachable", "peer", m.host(), "at", at, "changes_not_logged", skipped)
		}
	})
}

func (d *delegate) NotifyUpdate(*memberlist.Node) {}

// node returns m in memberlist's form: a fresh value, because memberlist changes its
// own nodes while they are read.
func (m *member) node() *memberlist.Node {
	return &memberlist.Node{Name: m.name, Addr: m.addr.Addr().AsSlice(), Port: m.addr.Port()}
}

func addrOf(n *memberlist.Node) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(addr.Unmap(), n.Port)
}

// printable returns text, or nothing if it is unfit for an operator's terminal.
func printable(text []byte) string {
	if len(text) > 64 || slices.ContainsFunc(text, func(c byte) bool { return c < ' ' || c > '~' }) {
		return ""
	}
	return string(text)
}

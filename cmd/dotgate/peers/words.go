package peers

import (
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// wordRate and wordBurst are how many messages of others are heard in a second.
	wordRate, wordBurst = 50, 100
	// maxWord is the longest message that is read, and perPacket how many upstreams
	// go into one that has to fit into a packet.
	maxWord, perPacket = 64 << 10, 8
	// repeats are when a change is told again, for packets get lost.
	repeatAfter, repeatFor = 40 * time.Millisecond, 150 * time.Millisecond
	// recheckPause is how soon another word that an upstream is back has it probed.
	recheckPause = 5 * time.Second
)

// A word is a message to other nodes: JSON, so that fields may come and go.
type word struct {
	From   string  `json:"from"` // the name of the node
	States []state `json:"states"`
}

// A state is what a node has seen itself of an upstream.
type state struct {
	Upstream string  `json:"upstream"` // its name
	Failing  bool    `json:"failing"`
	Usual    float64 `json:"usual_ms"` // how long its answers take; 0 if unknown
}

// told is what the others know of an upstream of ours.
type told struct {
	failing bool
	at      time.Time // when that changed
}

// tellChanges tells the others of each change, until ctx is done.
func (n *Node) tellChanges(ctx context.Context) {
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
		n.tell()
		if time.Now().Before(until) {
			again.Reset(repeatAfter)
		}
	}
}

// tell tells what has changed lately to all.
func (n *Node) tell() {
	var news []state
	now := time.Now()
	for _, u := range n.p.Upstreams() {
		s := stateOf(u)
		n.mu.Lock()
		before := n.told[s.Upstream]
		if before.failing != s.Failing {
			before = told{s.Failing, now}
			n.told[s.Upstream] = before
		}
		n.mu.Unlock()
		if now.Sub(before.at) < repeatFor {
			news = append(news, s)
		}
	}
	for part := range slices.Chunk(news, perPacket) {
		n.send(part)
	}
}

func stateOf(u Upstream) state {
	s := u.Status()
	return state{Upstream: u.String(), Failing: s.Failing, Usual: float64(s.Usual.Microseconds()) / 1000}
}

// send sends states to all other members, a packet each. It doesn't wait for them.
func (n *Node) send(states []state) {
	n.mu.Lock()
	engine := n.engine
	n.mu.Unlock()
	if engine == nil {
		return
	}
	text, err := json.Marshal(word{n.name, states})
	if err != nil {
		return // there is nothing in it that could fail
	}
	for _, m := range n.up() {
		if err := engine.SendBestEffort(m.node(), text); err != nil {
			n.p.Log.Debug("telling another gateway", "peer", m.host(), "error", err)
			continue
		}
		n.counts.sent.Add(1)
	}
}

// hear takes in what another node says. It neither blocks nor believes.
func (n *Node) hear(text []byte) {
	if !n.words.Allow() {
		n.counts.reject(flood)
		return
	}
	var w word
	if len(text) > maxWord || json.Unmarshal(text, &w) != nil {
		n.counts.reject(malformed)
		return
	}
	upstreams := n.p.Upstreams()
	n.mu.Lock()
	m := n.members[w.From]
	known := m != nil && m.up
	n.mu.Unlock()
	if !known || w.From == n.name {
		n.counts.reject(stranger)
		return
	}
	n.counts.received.Add(1)
	for _, s := range w.States {
		// Others may have upstreams that we don't have.
		if i := slices.IndexFunc(upstreams, func(u Upstream) bool { return u.String() == s.Upstream }); i >= 0 {
			n.heed(m, upstreams[i], s)
		}
	}
}

// heed has an upstream probed if a node's view of it has changed.
func (n *Node) heed(m *member, u Upstream, s state) {
	n.mu.Lock()
	before := m.views[s.Upstream]
	now := view{s.Failing, 0, before.rechecked}
	if s.Usual > 0 && s.Usual < 60_000 {
		now.usual = time.Duration(s.Usual * float64(time.Millisecond))
	}
	back := before.failing && !s.Failing && time.Since(before.rechecked) >= recheckPause
	if back {
		now.rechecked = time.Now()
	}
	m.views[s.Upstream] = now
	n.mu.Unlock()
	switch {
	case s.Failing && !before.failing:
		if u.Doubt(m.host()) {
			n.counts.heeded.Add(1)
			n.p.Log.Info("another gateway finds an upstream failing, which is probed", "peer", m.host(), "upstream", s.Upstream)
		}
	case back && u.Status().Failing:
		n.counts.heeded.Add(1)
		u.Recheck()
	}
}

// A delegate is a Node as the engine sees it. The engine calls it with its locks
// held.
type delegate Node

var (
	_ memberlist.Delegate      = (*delegate)(nil)
	_ memberlist.EventDelegate = (*delegate)(nil)
	_ memberlist.AliveDelegate = (*delegate)(nil)
)

// NodeMeta is the version, for operators.
func (d *delegate) NodeMeta(limit int) []byte {
	return []byte(d.p.Version[:min(len(d.p.Version), limit)])
}

func (d *delegate) NotifyMsg(text []byte) { (*Node)(d).hear(text) }

func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState is everything, for who has just come and in case packets got lost.
func (d *delegate) LocalState(bool) []byte {
	w := word{From: d.name}
	for _, u := range d.p.Upstreams() {
		w.States = append(w.States, stateOf(u))
	}
	text, err := json.Marshal(w)
	if err != nil {
		return nil
	}
	return text
}

func (d *delegate) MergeRemoteState(text []byte, _ bool) { (*Node)(d).hear(text) }

// NotifyAlive turns away nodes of another version, and such as are too many. A node at
// our own address is the process before this one, which others think is there still.
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
		return errFormer
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
	// It takes a place even before it has joined.
	d.members[other.Name] = &member{name: other.Name, addr: addrOf(other), since: time.Now(), views: make(map[string]view)}
	return nil
}

func (d *delegate) NotifyJoin(other *memberlist.Node) {
	if other.Name == d.name {
		return
	}
	d.mu.Lock()
	m := d.members[other.Name]
	if m == nil {
		m = &member{name: other.Name, views: make(map[string]view)}
		d.members[other.Name] = m
	}
	m.addr, m.version, m.seen, m.up, m.since = addrOf(other), printable(other.Meta), true, true, time.Now()
	clear(m.views)
	// One process after another at one address is one node for people.
	for name, former := range d.members {
		if former != m && former.addr == m.addr {
			delete(d.members, name)
		}
	}
	d.mu.Unlock()
	d.p.Log.Info("another gateway is there", "peer", m.host(), "at", m.addr, "version", m.version)
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
	d.mu.Unlock()
	if other.State == memberlist.StateLeft {
		d.p.Log.Info("another gateway has left", "peer", m.host())
	} else {
		d.p.Log.Warn("another gateway is gone", "peer", m.host(), "at", m.addr)
	}
}

func (d *delegate) NotifyUpdate(*memberlist.Node) {}

// node returns m as the engine wants it. The engine's own nodes change under the hands
// of those who read them.
func (m *member) node() *memberlist.Node {
	return &memberlist.Node{Name: m.name, Addr: m.addr.Addr().AsSlice(), Port: m.addr.Port()}
}

func addrOf(n *memberlist.Node) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(addr.Unmap(), n.Port)
}

// printable is what of another's text an operator's terminal may see.
func printable(text []byte) string {
	if len(text) > 64 || slices.ContainsFunc(text, func(c byte) bool { return c < ' ' || c > '~' }) {
		return ""
	}
	return string(text)
}

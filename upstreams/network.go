package upstreams

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// blockWindow is how far apart the failures of two upstreams may be to have one cause: the
// network between, rather than either of them.
const blockWindow = time.Second

// A Network is what several upstreams have learnt together about the network that they are
// reached through: which ports it blocks. Its methods may be called by any number of
// goroutines.
//
// The same failure of one transport at two upstreams within a second, while another
// transport works, is decided once, for all: their queries move to another transport, and
// new connections are not tried there first. That ends when a connection there brings an
// answer to any of them, or with a change of the network. Then all of them try it.
type Network struct {
	log *slog.Logger

	mu    sync.Mutex // guards the fields below and all ports; no call is made while it is held
	ports map[portKey]*port
}

// NewNetwork returns a Network of which nothing is known.
func NewNetwork(log *slog.Logger) *Network {
	return &Network{log: log, ports: make(map[portKey]*port)}
}

// A networkUser is an upstream to its Network.
type networkUser interface {
	// portChanged says that a port is blocked now, or is not any more. It must not block.
	portChanged()
}

// A portKey is a port, and what is spoken there. Addresses on this machine and in private
// networks are apart from all others: there is no provider's network between.
type portKey struct {
	transport string
	number    uint16
	private   bool
}

func (k portKey) String() string { return fmt.Sprintf("%s/%d", networkOf(k.transport), k.number) }

func networkOf(transport string) string {
	if overUDP(transport) {
		return "udp"
	}
	return "tcp"
}

// A portState is what is known of a port.
type portState uint8

const (
	portOpen    portState = iota // connections can be made there, as far as is known
	portDoubted                  // they failed at one upstream, or at several at other times
	portBlocked                  // they fail at several upstreams, in the same way
	portChanged                  // they did, and the network has changed since
)

// A port is one port of all upstreams. Its fields are guarded by mu of the Network.
type port struct {
	network *Network
	key     portKey
	blocked atomic.Pointer[time.Time] // since when, in state portBlocked; else nil

	state   portState
	since   time.Time // of portBlocked and portChanged
	logged  bool      // that it is blocked
	failure portFailure
	instead string // transport
	losses  map[networkUser]portLoss
	users   map[networkUser]bool
}

// A portFailure is how connections to a port fail.
type portFailure uint8

const (
	noConnectionMade portFailure = iota
	wasReset
	foreignCertificate
	noHandshake
	noAnswers
	httpError
	otherFailure
)

func (f portFailure) String() string {
	return [...]string{"no SYN-ACK", "reset", "a foreign certificate", "no handshake", "no answer to a query", "an HTTP error", "other failures"}[f]
}

// like reports whether f and g can have the same cause. Packets that are dropped leave
// connections without an answer, and others unmade.
func (f portFailure) like(g portFailure) bool {
	dropped := []portFailure{noConnectionMade, noHandshake, noAnswers}
	return f == g || slices.Contains(dropped, f) && slices.Contains(dropped, g)
}

// A portLoss is a failure at one upstream. An unsure one is that of a connection which
// another transport was faster than, or which has brought no answer any more.
type portLoss struct {
	port    *port
	failure portFailure
	sure    bool
	at      time.Time // when the connection was tried
}

// A portEvent is something that was seen at a port.
type portEvent uint8

const (
	portLost       portEvent = iota // another transport is used, as this one failed
	portStillLost                   // it was tried again, in vain
	portAnswered                    // a connection there has brought an answer
	networkChanged                  // routes, addresses or links are others
)

// isNear reports whether a is an address of this machine or of a private network.
func isNear(a netip.Addr) bool { return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() }

// join returns the port of a transport at an address, with u among its users.
func (n *Network) join(u networkUser, transport string, addr netip.AddrPort) *port {
	key := portKey{transport, addr.Port(), isNear(addr.Addr())}
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.ports[key]
	if p == nil {
		p = &port{network: n, key: key, losses: make(map[networkUser]portLoss), users: make(map[networkUser]bool)}
		n.ports[key] = p
	}
	p.users[u] = true
	return p
}

// leave ends what u has to do with all ports.
func (n *Network) leave(u networkUser) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for key, p := range n.ports {
		delete(p.users, u)
		delete(p.losses, u)
		if len(p.users) == 0 {
			delete(n.ports, key)
		}
	}
}

// Changed says that routes, addresses or links of this machine have changed.
func (n *Network) Changed() {
	n.mu.Lock()
	all := slices.Collect(maps.Values(n.ports))
	n.mu.Unlock()
	for _, p := range all {
		p.saw(networkChanged, nil, portLoss{}, "")
	}
}

// saw records an event at one of the users of p. Others are told of a new state. It must not
// be called with a mutex that portChanged needs.
func (p *port) saw(e portEvent, by networkUser, loss portLoss, instead string) {
	if p == nil {
		return
	}
	p.network.mu.Lock()
	before, logged := p.state, p.logged
	p.transition(e, by, loss, instead)
	changed := (p.state == portBlocked) != (before == portBlocked)
	newly, over := p.logged && !logged, logged && !p.logged
	reason, using, since := p.reason(), transportName(p.instead), p.since
	users := slices.Collect(maps.Keys(p.users))
	p.network.mu.Unlock()
	switch {
	case newly:
		p.network.log.Warn(p.key.String()+" is blocked on this network", "reason", reason, "using", using, "since", since.Format(time.TimeOnly))
	case over:
		p.network.log.Info(p.key.String()+" is not blocked on this network any more", "duration", time.Since(since).Round(time.Millisecond))
	}
	if changed {
		for _, u := range users {
			u.portChanged()
		}
	}
}

// transition is all that changes the state. The caller holds mu.
//
//	open ── lost ──▶ doubted ── lost at another one ──▶ blocked ◀── lost ──── changed
//	  ▲                 │                                 │ └─ the network changed ─▲ │
//	  └──── answered ───┴──────────── answered ───────────┴────────── answered ───────┘
func (p *port) transition(e portEvent, by networkUser, loss portLoss, instead string) {
	switch {
	case e == networkChanged:
		if p.state == portBlocked {
			p.state = portChanged
		}
		clear(p.losses)
		p.blocked.Store(nil)
	case e == portAnswered:
		delete(p.losses, by)
		if p.state != portDoubted || len(p.losses) == 0 {
			p.state, p.logged = portOpen, false
			clear(p.losses)
			p.blocked.Store(nil)
		}
	case e == portStillLost && p.state != portBlocked && p.state != portChanged, !p.users[by]:
	default:
		p.losses[by] = loss
		p.instead = cmp.Or(instead, p.instead)
		p.lostLocked(by, loss)
	}
}

func (p *port) lostLocked(by networkUser, loss portLoss) {
	same := p.state == portBlocked
	first := loss.at
	for other, earlier := range p.losses {
		if other != by && earlier.failure.like(loss.failure) && loss.at.Sub(earlier.at).Abs() <= blockWindow {
			same = true
			if earlier.at.Before(first) {
				first = earlier.at
			}
		}
	}
	if !same {
		if p.state == portOpen {
			p.state = portDoubted
		}
		return
	}
	if p.state == portOpen || p.state == portDoubted {
		p.since, p.logged = first, false
	}
	if p.state != portBlocked {
		p.state, p.failure = portBlocked, loss.failure
		p.blocked.Store(new(time.Now()))
	}
	if loss.sure {
		p.failure, p.logged = loss.failure, true
	}
}

// reason says how p is blocked, and at how many upstreams, for a sentence. The caller holds mu.
func (p *port) reason() string {
	failure := p.failure.String()
	if p.failure == noConnectionMade && overUDP(p.key.transport) {
		failure = "no reply"
	}
	return fmt.Sprintf("%s at %d of %d upstreams", failure, len(p.losses), len(p.users))
}

// String says what is blocked, and what is used instead, or nothing.
func (n *Network) String() string { return n.text("; using ") }

// Blocked returns how many ports are blocked.
func (n *Network) Blocked() (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.ports {
		if p.state == portBlocked {
			count++
		}
	}
	return count
}

// text is String, with the transport that is used instead behind a word, if there is one.
func (n *Network) text(using string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var texts []string
	for key, p := range n.ports {
		if p.state != portBlocked {
			continue
		}
		text := fmt.Sprintf("%v is blocked on this network since %s (%s)", key, p.since.Format("15:04"), p.reason())
		if using != "" {
			text += using + transportName(p.instead)
		}
		texts = append(texts, text)
	}
	slices.Sort(texts)
	return strings.Join(texts, "; ")
}

// A blockedError is why no connection could be made on a network that blocks a port.
type blockedError struct {
	network string
	err     error
}

func (e *blockedError) Error() string { return e.network + "; " + e.err.Error() }
func (e *blockedError) Unwrap() error { return e.err }

// explain returns the error of a dial, with what the network blocks.
func (n *Network) explain(err error) error {
	if text := n.text(""); text != "" {
		return &blockedError{text, err}
	}
	return err
}

// transportName is a transport as people write it.
func transportName(transport string) string {
	return strings.NewReplacer("dot", "DoT", "doh", "DoH", "doq", "DoQ").Replace(transport)
}

// blockedAt returns when p was found to be blocked, or nil if it is not. A nil p is not.
func (p *port) blockedAt() *time.Time {
	if p == nil {
		return nil
	}
	return p.blocked.Load()
}

// lossOf returns how an attempt has failed. A cancelled one was too slow.
func lossOf(a dialAttempt, cancelled bool) portLoss {
	loss := portLoss{port: a.to.port, failure: otherFailure, sure: !cancelled, at: a.began}
	var test *testError
	outcome := OutcomeOf(a.err)
	switch {
	case errors.As(a.err, &test):
		loss.failure = noAnswers
	case cancelled && a.link.tcpTook > 0, outcome == TLSTimedOut:
		loss.failure = noHandshake
	case cancelled, outcome == DialTimedOut:
		loss.failure = noConnectionMade
	case outcome == DialRefused, errors.Is(a.err, syscall.ECONNRESET):
		loss.failure = wasReset
	case outcome == TLSCertificate:
		loss.failure = foreignCertificate
	case outcome.ofHTTP():
		loss.failure = httpError
	}
	return loss
}

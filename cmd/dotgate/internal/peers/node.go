// Package peers lets the gateways of a pair, or of a few more, help each other.
//
// Nodes announce which upstreams they find failing, and a node that starts downloads the
// cached answers of another one. All of this is soft state: a node serves alone as well
// as it can, no client waits for another node, and a report about an upstream only
// causes a probe of it. Membership and failure detection are memberlist's, the library
// that Consul and Alertmanager use.
//
// Limits: maxNodes nodes, maxConnections connections, messages of maxMessage octets, and
// rates for each sender. Packets are encrypted and connections are TLS 1.3, both with
// keys derived from one shared secret.
package peers

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/time/rate"

	"dotgate/configs/bounds"
	"dotgate/gateway/cache"
	"dotgate/gateway/latency"
	"dotgate/gateway/statelog"
	"dotgate/gateway/wire"
	"dotgate/health"
)

const (
	// maxNodes bounds the number of nodes, whatever other nodes announce.
	maxNodes = 32
	// version is that of the messages between nodes.
	version = 1
	// searchInterval is the time between two attempts to reach a missing node, and
	// lookupInterval between two look-ups of the nodes' names once all are members.
	searchInterval, lookupInterval = time.Second, 15 * time.Second
	// lookupLimit bounds one look-up of a node's name.
	lookupLimit = 2 * time.Second
	// leaveTimeout bounds the announcement that this node leaves.
	leaveTimeout = 300 * time.Millisecond
)

// An Upstream is a *health.Monitor. PeerReport records that another node finds it failing,
// and returns whether that causes a probe.
type Upstream interface {
	String() string
	Status() health.Status
	PeerReport(from string) (probes bool)
	ProbeNow()
}

// A Cache is a *cache.Cache.
type Cache interface {
	WriteHot(w io.Writer) (answers int, err error)
	ReadHot(r io.Reader, asked time.Time, admit func(wire.Query, wire.Answer) bool) (cache.TransferCount, error)
	Usage() cache.Usage
}

// Parts are the other components that a Node uses. All are required.
type Parts struct {
	// Upstreams returns the current upstreams. Changed receives a value when the state
	// of one may have changed.
	Upstreams func() []Upstream
	Changed   <-chan struct{}
	Cache     Cache
	// Admit reports whether an answer may be cached. It applies the checks that answers
	// of upstreams pass.
	Admit func(wire.Query, wire.Answer) bool
	// Digest covers the configuration that answers depend on. Nodes exchange answers
	// only if their digests are equal.
	Digest  func() [32]byte
	Version string
	Log     *slog.Logger
}

// A Node is this gateway as a peer of others. Its methods are called in this order: New,
// Listen, Run.
type Node struct {
	o         Options
	p         Parts
	name      string // unique for each process
	transport *transport
	counts    counts
	started   time.Time
	sequence  atomic.Uint64 // of the latest message
	messages  *rate.Limiter
	uploads   chan struct{} // a slot for each upload
	joined    chan struct{} // of size 1: a member has joined

	mu        sync.Mutex             // guards the rest; never held while engine is called
	engine    *memberlist.Memberlist // nil until a node is found
	members   map[string]*member     // the other nodes by name
	targets   []*target
	announced map[string]announcement // by name of the upstream
}

// A member is another node that is up, or was lately.
type member struct {
	name    string
	addr    netip.AddrPort
	version string
	seen    bool // was up once
	up      bool
	since   time.Time
	views   map[string]view // its views of our upstreams, by name
	// presence limits how often it is logged that the node comes and goes. Successive
	// processes at one address share it.
	presence *statelog.State
}

// host returns the host part of the member's name, for operators.
func (m *member) host() string { return hostOf(m.name) }

func hostOf(name string) string {
	if i := strings.LastIndexByte(name, '~'); i > 0 {
		return name[:i]
	}
	return name
}

// A view is another node's report about an upstream.
type view struct {
	failing   bool
	usual     latency.Millis
	sequence  uint64          // of the message that it is from
	rechecked time.Time       // of the last probe caused by a report that the upstream is back
	log       *statelog.State // limits how often these reports are logged
}

// A target is a node of the configuration.
type target struct {
	text    string
	host    string
	port    uint16
	addrs   []netip.AddrPort // as of the last successful look-up
	self    bool
	problem error          // why it is unreachable; nil if it is up or was not tried
	missing statelog.State // limits how often it is logged that it is unreachable
}

// New checks all options and returns a Node. It opens nothing and starts nothing.
func New(o Options, p Parts) (*Node, error) {
	if err := bounds.Err("peers.", o.Check); err != nil {
		return nil, err
	}
	keys, err := o.keys()
	if err != nil {
		return nil, fmt.Errorf("peers.key_file: %w", err)
	}
	identity, err := newIdentity(keys)
	if err != nil {
		return nil, fmt.Errorf("peers.key: %w", err)
	}
	n := &Node{
		o: o, p: p, name: ownName(), messages: rate.NewLimiter(messageRate, messageBurst),
		uploads: make(chan struct{}, maxUploads), joined: make(chan struct{}, 1),
		members: make(map[string]*member), announced: make(map[string]announcement),
	}
	for _, text := range o.Nodes {
		host, port, err := splitNode(text, o.Listen.Port())
		if err != nil {
			return nil, fmt.Errorf("peers.nodes: %w", err)
		}
		n.targets = append(n.targets, &target{text: text, host: host, port: port})
	}
	n.transport = newTransport(identity, &n.counts, p.Log)
	n.transport.known, n.transport.serve = n.isNode, n.upload
	return n, nil
}

// ownName returns a name that is unique for each process, so that a process started
// after a crash is a new node.
func ownName() string {
	host, err := os.Hostname()
	if err != nil || host == "" || len(host) > 100 {
		host = "dotgate"
	}
	var b [4]byte
	rand.Read(b[:]) // never fails
	return host + "~" + hex.EncodeToString(b[:])
}

// Listen opens the sockets.
func (n *Node) Listen() (err error) {
	n.transport.udp, n.transport.tcp, err = listen(n.o.Listen)
	return err
}

// Close closes what Listen opened, if Run will not be called.
func (n *Node) Close() { n.transport.Shutdown() }

// Run finds the other nodes and exchanges messages with them until ctx is done. It
// blocks.
func (n *Node) Run(ctx context.Context) {
	n.started = time.Now()
	defer context.AfterFunc(ctx, n.transport.abortDials)()
	var running sync.WaitGroup
	running.Go(func() { n.announceChanges(ctx) })
	running.Go(func() { n.warmUp(ctx) })
	n.search(ctx)
	running.Wait()
	n.mu.Lock()
	engine := n.engine
	n.mu.Unlock()
	if engine == nil {
		n.transport.Shutdown()
		return
	}
	if err := engine.Leave(leaveTimeout); err != nil {
		n.p.Log.Debug("cannot announce to peers that this node leaves", "error", err)
	}
	_ = engine.Shutdown() // never fails
}

// search joins missing nodes until ctx is done.
func (n *Node) search(ctx context.Context) {
	for ctx.Err() == nil {
		pause := lookupInterval
		for _, t := range n.targets {
			if n.find(ctx, t) {
				pause = searchInterval
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// find joins t unless it is a member already. It reports whether t is missing after
// that.
func (n *Node) find(ctx context.Context, t *target) (missing bool) {
	addrs, err := lookUp(ctx, t)
	n.mu.Lock()
	if err == nil {
		t.addrs = addrs
	}
	t.self = err == nil && n.isOwn(addrs)
	there := t.self || n.memberAt(t.addrs) != nil
	engine := n.engine
	n.mu.Unlock()
	if err == nil && !there {
		if engine == nil {
			engine, err = n.start(addrs)
		}
		if err == nil {
			err = n.join(engine, addrs)
		}
	}
	if ctx.Err() != nil {
		return true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	t.problem = err
	switch {
	case there || err == nil:
		t.problem = nil
		t.missing.Work(func() {})
	default:
		t.missing.Fail(func(skipped int) {
			n.p.Log.Warn("cannot reach a peer (peers.nodes): trying once a second", "peer", t.text, "error", err, "failures_not_logged", skipped)
		})
	}
	return err != nil && !there
}

// join makes engine contact the node at addrs.
func (n *Node) join(engine *memberlist.Memberlist, addrs []netip.AddrPort) error {
	var texts []string
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	if _, err := engine.Join(texts); err != nil {
		return errors.New(oneLine(err.Error()))
	}
	return nil
}

// oneLine joins memberlist's error lists, which have a heading and a line for each
// error, into one line.
func oneLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n\t* ")
	return strings.Join(lines[min(1, len(lines)-1):], "; ")
}

// lookUp returns the addresses of t.
func lookUp(ctx context.Context, t *target) (addrs []netip.AddrPort, err error) {
	if ip, err := netip.ParseAddr(t.host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(ip, t.port)}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", t.host)
	for _, ip := range found[:min(len(found), maxNodes)] {
		addrs = append(addrs, netip.AddrPortFrom(ip.Unmap(), t.port))
	}
	return addrs, err
}

// isOwn reports whether this node listens on one of the addresses.
func (n *Node) isOwn(addrs []netip.AddrPort) bool {
	if !n.o.Listen.Addr().IsUnspecified() {
		return slices.Contains(addrs, n.o.Listen)
	}
	local, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(addrs, func(a netip.AddrPort) bool {
		return a.Port() == n.o.Listen.Port() && slices.ContainsFunc(local, func(l net.Addr) bool {
			prefix, err := netip.ParsePrefix(l.String())
			return err == nil && prefix.Addr().Unmap() == a.Addr()
		})
	})
}

// memberAt returns the member that is up at one of the addresses, or nil. The caller
// holds n.mu.
func (n *Node) memberAt(addrs []netip.AddrPort) *member {
	for _, m := range n.members {
		if m.up && slices.Contains(addrs, m.addr) {
			return m
		}
	}
	return nil
}

// isNode reports whether another node has the address.
func (n *Node) isNode(addr netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.members {
		if m.addr.Addr() == addr {
			return true
		}
	}
	return slices.ContainsFunc(n.targets, func(t *target) bool {
		return slices.ContainsFunc(t.addrs, func(a netip.AddrPort) bool { return a.Addr() == addr })
	})
}

// start starts memberlist. The advertised address is peers.listen or, if that is a
// wildcard, the source address of packets to the first of the other nodes.
func (n *Node) start(others []netip.AddrPort) (*memberlist.Memberlist, error) {
	own := n.o.Listen
	if own.Addr().IsUnspecified() {
		probe, err := net.Dial("udp", others[0].String()) // sends nothing
		if err != nil {
			return nil, err
		}
		probe.Close()
		own = netip.AddrPortFrom(probe.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), own.Port())
	}
	n.mu.Lock()
	n.transport.addr = own
	n.mu.Unlock()
	c := memberlist.DefaultLANConfig()
	c.Name, c.Transport, c.Keyring = n.name, n.transport, n.transport.identity.ring
	c.BindPort, c.AdvertisePort = int(own.Port()), int(own.Port())
	c.DelegateProtocolVersion, c.DelegateProtocolMin, c.DelegateProtocolMax = version, version, version
	c.Delegate, c.Events, c.Alive = (*delegate)(n), (*delegate)(n), (*delegate)(n)
	c.EnableCompression = false // messages are small
	c.TCPTimeout = 2 * time.Second
	c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult = 500*time.Millisecond, 200*time.Millisecond, 3
	c.GossipInterval, c.PushPullInterval = 100*time.Millisecond, 10*time.Second
	c.HandoffQueueDepth = 256
	c.Logger = log.New(engineLog{n.p.Log}, "", 0)
	c.LogOutput = nil
	n.transport.run()
	engine, err := memberlist.Create(c)
	if err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	n.mu.Lock()
	n.engine = engine
	n.mu.Unlock()
	return engine, nil
}

// engineLog receives memberlist's log at level debug: it has a line for each wrong
// packet, which any host can cause.
type engineLog struct{ log *slog.Logger }

func (l engineLog) Write(text []byte) (int, error) {
	l.log.Debug("memberlist", "says", strings.TrimSpace(string(text)))
	return len(text), nil
}

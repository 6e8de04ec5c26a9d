// Package peers has the gateways of a pair, or of a few more, help each other.
//
// Nodes tell each other which upstreams they find failing, and one that starts gets
// the answers that another has in its cache. All of that is soft: a node serves as
// well as it can by itself, waits for no other on behalf of a client, and takes
// nobody's word for what it can find out. Who the others are, and whether they are
// there, is memberlist's to know, the engine below Consul and Alertmanager.
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
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/time/rate"

	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
	"dotgate/health"
)

const (
	// maxNodes bounds how many nodes there are, whatever others say.
	maxNodes = 32
	// version is that of what nodes say to each other.
	version = 1
	// seek is how often a node that is missing is looked for, and settled how often
	// its address is looked up again when all are there.
	seek, settled = time.Second, 15 * time.Second
	// lookupLimit is how long a look-up of a name may take.
	lookupLimit = 2 * time.Second
	// farewell is how long it may take to tell that this node leaves.
	farewell = 300 * time.Millisecond
)

// An Upstream is what a *health.Monitor knows, and what it does with another node's
// word.
type Upstream interface {
	String() string
	Status() health.Status
	Doubt(from string) (heeded bool)
	Recheck()
}

// A Cache is a *cache.Cache.
type Cache interface {
	WriteHot(w io.Writer) (answers int, err error)
	ReadHot(r io.Reader, asked time.Time, admit func(wire.Query, wire.Answer) bool) (cache.Shared, error)
	Usage() cache.Usage
}

// Parts are what a Node has to do with. All are required.
type Parts struct {
	// Upstreams are those of now, and Changed gets a word when what they know may
	// have changed.
	Upstreams func() []Upstream
	Changed   <-chan struct{}
	Cache     Cache
	// Admit reports whether an answer may be kept: what an answer of an upstream
	// has to go through.
	Admit func(wire.Query, wire.Answer) bool
	// Digest is of all that answers depend on: nodes have the same or keep their
	// answers for themselves.
	Digest  func() [32]byte
	Version string
	Log     *slog.Logger
}

// A Node is this gateway among others. It goes one way: New, Listen, Run.
type Node struct {
	o         Options
	p         Parts
	name      string // unlike that of any other process
	transport *transport
	counts    counts
	started   time.Time
	words     *rate.Limiter
	giving    chan struct{} // a place for each transfer
	joined    chan struct{} // one place: there is another member

	mu      sync.Mutex             // guards the rest; never held while the engine is called
	engine  *memberlist.Memberlist // nil until a node is found
	members map[string]*member     // the others, by their names
	targets []*target
	told    map[string]told // of our upstreams, by name
}

// A member is another node that is there, or was lately.
type member struct {
	name    string
	addr    netip.AddrPort
	version string
	seen    bool // it was up once
	up      bool
	since   time.Time
	views   map[string]view // what it says of our upstreams, by name
}

// host returns what people call it.
func (m *member) host() string { return hostOf(m.name) }

func hostOf(name string) string {
	if i := strings.LastIndexByte(name, '~'); i > 0 {
		return name[:i]
	}
	return name
}

// A view is what another node says of an upstream.
type view struct {
	failing   bool
	usual     time.Duration
	rechecked time.Time // when we last probed because it says that all is well again
}

// A target is a node of the configuration.
type target struct {
	text    string
	host    string
	port    uint16
	addrs   []netip.AddrPort // as far as they are known
	self    bool
	problem error // why it is not there; nil if it is, or nothing was tried
	warned  bool
}

// New checks all options and returns a Node. It opens nothing and starts nothing.
func New(o Options, p Parts) (*Node, error) {
	var problems []error
	o.Check(func(option, problem string) {
		problems = append(problems, fmt.Errorf("peers.%s %s", option, problem))
	})
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
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
		o: o, p: p, name: ownName(), words: rate.NewLimiter(wordRate, wordBurst),
		giving: make(chan struct{}, maxGiving), joined: make(chan struct{}, 1),
		members: make(map[string]*member), told: make(map[string]told),
	}
	for _, text := range o.Nodes {
		host, port, err := splitNode(text, o.Listen.Port())
		if err != nil {
			return nil, fmt.Errorf("peers.nodes: %w", err)
		}
		n.targets = append(n.targets, &target{text: text, host: host, port: port})
	}
	n.transport = newTransport(identity, &n.counts, p.Log)
	n.transport.known, n.transport.serve = n.isNode, n.give
	return n, nil
}

// ownName tells processes apart: one that is back after a crash is another one.
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

// Run looks for the other nodes, and talks with them until ctx is done. It blocks.
func (n *Node) Run(ctx context.Context) {
	n.started = time.Now()
	defer context.AfterFunc(ctx, n.transport.hangUp)()
	var running sync.WaitGroup
	running.Go(func() { n.tellChanges(ctx) })
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
	if err := engine.Leave(farewell); err != nil {
		n.p.Log.Debug("leaving the other gateways", "error", err)
	}
	_ = engine.Shutdown() // never fails
}

// search joins the nodes that are missing, until ctx is done.
func (n *Node) search(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		missing := false
		for _, t := range n.targets {
			missing = n.find(ctx, t) || missing
		}
		if missing {
			timer.Reset(seek)
		} else {
			timer.Reset(settled)
		}
	}
}

// find joins t unless it is there, and reports whether it is missing then.
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
		t.problem, t.warned = nil, false
	case !t.warned:
		t.warned = true
		n.p.Log.Warn("another gateway can't be reached; it is looked for once a second (peers.nodes)", "peer", t.text, "error", err)
	}
	return err != nil && !there
}

// join has the engine meet the node at these addresses.
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

// oneLine makes one of the engine's lists of errors, which have a heading and a line
// for each.
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

// isOwn reports whether one of the addresses is where this node listens.
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
// holds mu.
func (n *Node) memberAt(addrs []netip.AddrPort) *member {
	for _, m := range n.members {
		if m.up && slices.Contains(addrs, m.addr) {
			return m
		}
	}
	return nil
}

// isNode reports whether an address is of another node.
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

// start starts the engine. The others are told the address that packets to the
// first of them have, unless there is but one.
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
	c.EnableCompression = false // what little there is need not be unpacked
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

// engineLog takes what the engine logs: it is about each packet that is wrong, which
// anybody can send.
type engineLog struct{ log *slog.Logger }

func (l engineLog) Write(text []byte) (int, error) {
	l.log.Debug("memberlist", "says", strings.TrimSpace(string(text)))
	return len(text), nil
}

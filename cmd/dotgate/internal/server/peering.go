package server

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"time"

	"dotgate/cmd/dotgate/internal/peers"
	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/configs/files"
)

// relisten is how often a node whose port is taken tries again.
const relisten = time.Second

// A peering is the other gateways, if the configuration has any.
type peering struct {
	parts   peers.Parts
	renewed chan struct{} // one place: there are other options

	mu        sync.Mutex // guards the rest
	options   peers.Options
	files     [sha256.Size]byte // what their files have in them
	node      *peers.Node       // nil without peers
	listening bool
	warned    string // why the sockets could not be opened, as it was logged last
}

func newPeering(config *settings.Config, parts peers.Parts) (*peering, error) {
	p := &peering{parts: parts, renewed: make(chan struct{}, 1), options: config.Peers, files: files.Digest(config.Peers.KeyFile)}
	return p, p.make()
}

// make makes the node, unless it would have no peering.
func (p *peering) make() (err error) {
	p.node, p.listening = nil, false
	if len(p.options.Nodes) > 0 {
		p.node, err = peers.New(p.options, p.parts)
	}
	return err
}

// listen opens the sockets of the node, once.
func (p *peering) listen() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.node == nil || p.listening {
		return nil
	}
	if err := p.node.Listen(); err != nil {
		return err
	}
	p.listening, p.warned = true, ""
	return nil
}

// warn logs that the sockets could not be opened, once for each reason.
func (p *peering) warn(err error) {
	p.mu.Lock()
	again := p.warned == err.Error()
	p.warned = err.Error()
	p.mu.Unlock()
	if !again {
		p.parts.Log.Warn("serving without the other gateways until their socket can be opened; that is tried every second", "error", err)
	}
}

// close closes them if nothing has run. A nil peering has none.
func (p *peering) close() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listening {
		p.node.Close()
	}
}

// renew has a node with these options run in place of the one that does, unless
// they are the same.
func (p *peering) renew(o peers.Options) {
	p.mu.Lock()
	defer p.mu.Unlock()
	files := files.Digest(o.KeyFile)
	if reflect.DeepEqual(o, p.options) && files == p.files {
		return
	}
	p.options, p.files = o, files
	select {
	case p.renewed <- struct{}{}:
	default: // the latest are taken
	}
}

// run runs the node, and after a renewal the next one, until ctx is done. It blocks.
func (p *peering) run(ctx context.Context) {
	for ctx.Err() == nil {
		p.mu.Lock()
		node, listening := p.node, p.listening
		p.listening = false
		p.mu.Unlock()
		running, stop := context.WithCancel(ctx)
		var ended sync.WaitGroup
		if listening {
			ended.Go(func() { node.Run(running) })
		}
		var again <-chan time.Time
		if node != nil && !listening {
			again = time.After(relisten)
		}
		renewed := false
		select {
		case <-ctx.Done():
		case <-p.renewed:
			renewed = true
		case <-again:
		}
		stop()
		ended.Wait()
		if ctx.Err() == nil {
			p.reopen(renewed)
		}
	}
}

// reopen makes a node with the options of now, if they are others, and opens its
// sockets.
func (p *peering) reopen(renewed bool) {
	if renewed {
		p.mu.Lock()
		err := p.make()
		p.mu.Unlock()
		if err != nil {
			p.parts.Log.Error("serving without the other gateways", "error", err)
			return
		}
	}
	if err := p.listen(); err != nil && (renewed || !errors.Is(err, syscall.EADDRINUSE)) {
		p.warn(err)
	}
}

// Status returns what is known of the other gateways.
func (p *peering) Status() peers.Status {
	p.mu.Lock()
	node := p.node
	p.mu.Unlock()
	if node == nil {
		return peers.Status{}
	}
	return node.Status()
}

// digestOf returns the digest of all settings that answers depend on: which upstreams are
// asked for which names, and how their answers are changed.
func digestOf(config *settings.Config) [sha256.Size]byte {
	h := sha256.New()
	upstreams := func(all []settings.Upstream) string {
		all = slices.SortedFunc(slices.Values(all), func(a, b settings.Upstream) int { return cmp.Compare(a.Name, b.Name) })
		var text []byte
		for _, u := range all {
			text = fmt.Appendf(text, "%q %q %q %v %v %q %d %d %q %q %q\n", u.Name, u.Protocol, u.Transports, u.Addresses, u.DoHAddresses, u.Host, u.Port, u.DoHPort, u.ServerName, u.DoHName, u.DoHPath)
		}
		return string(text)
	}
	io.WriteString(h, upstreams(config.Upstreams))
	h.Write(routesDigest(config, upstreams))
	g := config.Gateway
	fmt.Fprintf(h, "%q %v %q %q\n", g.ECS, g.BlockPrivate, g.AllowPrivate, g.ForwardLocal)
	return [sha256.Size]byte(h.Sum(nil))
}

// routesDigest is of the routes of a configuration, by name: however they are
// written.
func routesDigest(config *settings.Config, upstreams func([]settings.Upstream) string) []byte {
	lists := make([]string, len(config.Routes))
	for i, r := range config.Routes {
		lists[i] = upstreams(r.Upstreams)
	}
	digest := config.RouteNames().Digest(lists)
	return digest[:]
}

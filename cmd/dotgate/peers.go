package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"time"

	"dotgate/cmd/dotgate/peers"
	"dotgate/configs"
	"dotgate/gateway/redis"
)

// relisten is how often a node whose port is taken tries again.
const relisten = time.Second

// A company is the other gateways, if the configuration has any.
type company struct {
	parts   peers.Parts
	renewed chan struct{} // one place: there are other options

	mu        sync.Mutex // guards the rest
	options   peers.Options
	files     [sha256.Size]byte // what their files have in them
	node      *peers.Node       // nil if there is nobody
	listening bool
}

func newCompany(config *configs.Config, parts peers.Parts) (*company, error) {
	c := &company{parts: parts, renewed: make(chan struct{}, 1), options: config.Peers, files: digest(config.Peers.KeyFile)}
	return c, c.make()
}

// make makes the node, unless it would have no company.
func (c *company) make() (err error) {
	c.node, c.listening = nil, false
	if len(c.options.Nodes) > 0 {
		c.node, err = peers.New(c.options, c.parts)
	}
	return err
}

// listen opens the sockets of the node, once.
func (c *company) listen() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.node == nil || c.listening {
		return nil
	}
	if err := c.node.Listen(); err != nil {
		return err
	}
	c.listening = true
	return nil
}

// close closes them if nothing has run. A nil company has none.
func (c *company) close() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listening {
		c.node.Close()
	}
}

// renew has a node with these options run in place of the one that does, unless
// they are the same.
func (c *company) renew(o peers.Options) {
	c.mu.Lock()
	defer c.mu.Unlock()
	files := digest(o.KeyFile)
	if reflect.DeepEqual(o, c.options) && files == c.files {
		return
	}
	c.options, c.files = o, files
	select {
	case c.renewed <- struct{}{}:
	default: // the latest are taken
	}
}

// run runs the node, and after a renewal the next one, until ctx is done. It blocks.
func (c *company) run(ctx context.Context) {
	for ctx.Err() == nil {
		c.mu.Lock()
		node, listening := c.node, c.listening
		c.listening = false
		c.mu.Unlock()
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
		case <-c.renewed:
			renewed = true
		case <-again:
		}
		stop()
		ended.Wait()
		if ctx.Err() == nil {
			c.reopen(renewed)
		}
	}
}

// reopen makes a node with the options of now, if they are others, and opens its
// sockets.
func (c *company) reopen(renewed bool) {
	if renewed {
		c.mu.Lock()
		err := c.make()
		c.mu.Unlock()
		if err != nil {
			c.parts.Log.Error("serving without the other gateways", "error", err)
			return
		}
	}
	if err := c.listen(); err != nil && (renewed || !errors.Is(err, syscall.EADDRINUSE)) {
		c.parts.Log.Error("serving without the other gateways, until that is possible", "error", err)
	}
}

// Status returns what is known of the other gateways.
func (c *company) Status() peers.Status {
	c.mu.Lock()
	node := c.node
	c.mu.Unlock()
	if node == nil {
		return peers.Status{}
	}
	return node.Status()
}

// shareCache returns the cache that gateways share, or nil if there is none.
func (p *process) shareCache(o redis.Options) (*redis.Cache, error) {
	if len(o.URL) == 0 {
		return nil, nil
	}
	o.Log = p.log
	return redis.New(o, p.answersDigest)
}

// answersDigest is that of the configuration in effect.
func (p *process) answersDigest() [sha256.Size]byte { return *p.answersAs.Load() }

// digestOf is of all in a configuration that answers depend on: whom is asked for
// what, and what is done to what they say.
func digestOf(config *configs.Config) [sha256.Size]byte {
	h := sha256.New()
	add := func(route string, all []configs.Upstream) {
		all = slices.SortedFunc(slices.Values(all), func(a, b configs.Upstream) int { return cmp.Compare(a.Name, b.Name) })
		for _, u := range all {
			fmt.Fprintf(h, "%q %q %q %v %q %d %q\n", route, u.Name, u.Protocol, u.Addresses, u.Host, u.Port, u.ServerName)
		}
	}
	add("", config.Upstreams)
	routes := slices.SortedFunc(slices.Values(config.Routes), func(a, b configs.Route) int { return cmp.Compare(a.Name, b.Name) })
	for _, r := range routes {
		add(r.Name, r.Upstreams)
	}
	g := config.Gateway
	fmt.Fprintf(h, "%q %v %q %q\n", g.ECS, g.BlockPrivate, g.AllowPrivate, g.ForwardLocal)
	return [sha256.Size]byte(h.Sum(nil))
}

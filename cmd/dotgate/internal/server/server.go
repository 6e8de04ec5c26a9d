// Package server is the running gateway: it builds the parts from a configuration, runs
// them, reloads, takes over from another process, and does what operators ask.
//
//	build.go          the parts that answer queries
//	pools.go pool.go  upstreams, and the lists of them
//	configuration.go  the configuration in effect, and its files
//	reload.go         the change from one configuration to the next
//	listeners.go      the control socket and the admin address
//	takeover.go       from another process, without losing a query
//	run.go            until the process is told to stop
//	systemd.go        sockets and readiness of a service manager
//	memory.go         memory limits, and the size of the cache within them
package server

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"dotgate/cmd/dotgate/internal/admin"
	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/cmd/dotgate/internal/signals"
	"dotgate/configs"
	"dotgate/health"
)

// Options of the running gateway.
type Options struct {
	From     configs.Sources // of the configuration
	Takeover bool            // take over from the gateway that runs here
	Version  string
	Built    time.Time // the program was not built before: its clock can't be earlier
}

// A server is the running gateway. It is the api.Process.
type server struct {
	log *logOutput
	*configuration
	*parts
	*listeners
	api    *api.Server
	admin  *admin.Server
	handed bool   // the gateway's sockets are a service manager's
	stop   func() // ends the service
	// reloads is replaced by reloads only, which hold loading.
	reloads atomic.Pointer[admin.Reloads]
}

// newServer makes a server. It opens no socket and starts no goroutine. With predecessor,
// another process still has the sockets.
func newServer(o Options, c *configuration, predecessor bool, log *logOutput) (*server, error) {
	c.logNotes()
	p, err := newParts(c.config, o, predecessor, log.Logger)
	if err != nil {
		return nil, err
	}
	s := &server{log: log, configuration: c, parts: p}
	s.reloads.Store(&admin.Reloads{Last: time.Now()})
	options := api.Options{
		Version: o.Version, Gateway: p.gateway, Balancer: p.pools, Cache: p.answers, Members: p.pools.Members, Process: s,
		Log: log.Logger, Outage: p.pools.Outage, Network: p.pools.network, LogDropped: log.stderr.Dropped, Peers: p.peering.Status, Redis: p.shared.Counts,
	}
	s.api = api.New(options)
	s.admin, err = admin.New(c.config.Admin, admin.Parts{
		Options: options, Control: s.api, Recent: func() time.Duration { return p.probing.Load().Recent() },
		Reloads: func() admin.Reloads { return *s.reloads.Load() }, QueryLog: p.queries.Counts, Tracing: p.tracer.Counts,
	})
	if err != nil {
		p.close()
		return nil, err
	}
	s.listeners = newListeners(s.serveControl, s.serveAdmin, predecessor, log.Logger)
	return s, nil
}

// close releases everything of a server that does not run.
func (s *server) close() {
	s.listeners.close()
	s.parts.close()
}

// serveControl serves commands on l until ctx is done. The name of a file that can be
// read only once, such as the FIFO of -c <(command), is not published: another gateway's
// may have the same.
func (s *server) serveControl(ctx context.Context, l net.Listener) {
	socket, is := l.(*api.Listener)
	if info, err := os.Stat(s.source.File); is && err == nil && info.Mode().IsRegular() {
		socket.Publish(api.Published(s.source.File), s.log.Logger)
	}
	s.api.Serve(ctx, l)
}

// serveAdmin serves HTTP on l until ctx is done.
func (s *server) serveAdmin(ctx context.Context, l net.Listener) {
	var sampling sync.WaitGroup
	sampling.Go(func() { s.admin.Run(ctx) })
	s.admin.Serve(ctx, l)
	sampling.Wait()
}

// openListeners opens the control socket, the admin address, and the sockets for peers,
// unless they are open. An address of admin.listen or peers.listen that no interface has
// is tried again later. The error says why the gateway should not run without one.
func (s *server) openListeners(config *settings.Config) error {
	if err := s.openControl(config); err != nil {
		return err
	}
	if err := s.peering.listen(); isAbsent(err) {
		s.peering.warn(err)
	} else if err != nil {
		return err
	}
	return s.openAdmin(config)
}

// openAbsentAdmin opens the admin address that was absent. No reload may move it meanwhile.
func (s *server) openAbsentAdmin() {
	s.loading.Lock()
	defer s.loading.Unlock()
	s.openAbsent(s.config)
}

// handleSignals reloads on SIGHUP and logs the status on SIGUSR1, until ctx is done. It
// blocks.
func (s *server) handleSignals(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals.Reload():
			_, _ = s.Reload() // which logs the result
		case <-signals.Status():
			s.logStatus()
		}
	}
}

// logStatus logs what `dotgate status --json` prints.
func (s *server) logStatus() {
	text, err := json.Marshal(s.api.Status())
	if err != nil {
		s.log.Error("BUG: cannot write the status as JSON", "error", err)
		return
	}
	s.log.Info("status", "status", json.RawMessage(text))
}

// SetAdminState sets the AdminState of an upstream.
func (s *server) SetAdminState(upstream string, a health.AdminState) error {
	s.loading.Lock()
	defer s.loading.Unlock()
	return s.pools.SetAdminState(upstream, a)
}

// Health returns what a health check needs to know.
func (s *server) Health() api.Health {
	probe := s.probing.Load()
	file := s.source.File
	if abs, err := filepath.Abs(file); err == nil && file != "" {
		file = abs
	}
	return api.Health{
		Listening: s.gateway.Addrs(), File: file, Readiness: s.admin.Readiness(time.Now()),
		Name: probe.ProbeName, Type: probe.ProbeType, Token: s.gateway.CheckToken(),
	}
}

package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/admin"
	"dotgate/cmd/dotgate/control"
	"dotgate/cmd/dotgate/tracing"
	"dotgate/configs"
	"dotgate/gateway"
	"dotgate/gateway/cache"
	"dotgate/gateway/querylog"
	"dotgate/gateway/redis"
	"dotgate/health"
)

// settle is how long files must be quiet before they are read: editors and
// orchestrators write in several steps.
const settle = 200 * time.Millisecond

// A process is a gateway at work: it does what operators ask, and takes over
// other configurations.
type process struct {
	*fleets
	sources  *sources
	stories  *control.Stories
	answers  *cache.Cache
	queries  *querylog.Log
	tracer   *tracing.Tracer
	gateway  *gateway.Gateway
	log      *slog.Logger
	voice    *voice
	operator *control.Server
	web      *admin.Server
	shared   *redis.Cache // or nil
	company  *company
	control  door
	http     door
	handed   bool         // the gateway's sockets are a service manager's
	recent   atomic.Int64 // see setRecent
	patient  bool         // somebody else may still have what is to be ours
	stop     func()       // ends the serving
	// answersAs is the digest of what answers depend on.
	answersAs atomic.Pointer[[sha256.Size]byte]

	loading sync.Mutex // one at a time; guards config
	config  *configs.Config
	seen    contents          // of its files when they were read last
	applied contents          // of those that are in effect
	watcher *fsnotify.Watcher // or nil

	mu      sync.Mutex // guards all below
	reloads admin.Reloads
}

// Order sets what the operator wants of an upstream.
func (p *process) Order(upstream string, o health.Order) error {
	p.loading.Lock()
	defer p.loading.Unlock()
	return p.fleets.Order(upstream, o)
}

// Reloads returns how the configuration was reloaded.
func (p *process) Reloads() admin.Reloads {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reloads
}

// Reload reads the configuration again, and has all of it in effect that does
// not need another process. If it can't be used, nothing changes.
func (p *process) Reload() (control.Reloaded, error) {
	p.loading.Lock()
	defer p.loading.Unlock()
	p.seen = p.contents()
	done, err := p.reload()
	if err == nil {
		p.seen = p.contents() // it may name others
		for _, name := range p.files() {
			if before, known := p.applied[name]; known && before != p.seen[name] && name != p.sources.path() {
				done.Changed = append(done.Changed, "what is in "+name)
			}
		}
		p.applied = p.seen
		p.watchDirectories()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.reloads.Failed++
		p.reloads.Problem = err.Error()
		p.log.Error("the configuration is not reloaded, the old one stays in effect", "error", err)
		return done, err
	}
	p.reloads.Done++
	p.reloads.Last, p.reloads.Problem = time.Now(), ""
	p.log.Info("the configuration is reloaded", "changed", strings.Join(done.Changed, ", "), "asking", p.fleets.String())
	if len(done.Restart) > 0 {
		p.log.Warn("some of what changed takes a restart", "keys", strings.Join(done.Restart, ", "))
	}
	return done, nil
}

func (p *process) reload() (done control.Reloaded, err error) {
	next, err := p.sources.load()
	if err != nil {
		return done, err
	}
	for _, key := range p.config.Differences(next) {
		if p.needsRestart(key, next) {
			done.Restart = append(done.Restart, key)
		} else {
			done.Changed = append(done.Changed, key)
		}
	}
	// What takes a restart is compared with what is in effect, until then.
	next.Keep(p.config, done.Restart)
	prepared, err := p.prepare(next)
	if err != nil {
		return done, err
	}
	prepared.Commit()
	p.forget(p.config.Rerouted(next))
	p.voice.follow(next.Log)
	p.setRecent(next.Health)
	p.config = next
	p.answersAs.Store(new(digestOf(next)))
	return done, nil
}

// forget has nobody get the answers of those who are not asked for these names any
// more.
func (p *process) forget(rerouted []string) {
	for _, name := range rerouted {
		if n, err := p.answers.FlushSubtree(name); err == nil && n > 0 { // the name was checked
			p.log.Info("answers from before the route has changed are forgotten", "route", name, "answers", n)
		}
	}
}

// setRecent sets how long ago an upstream may have answered last and still count as
// one that does: it is probed by then.
func (p *process) setRecent(o health.Options) {
	p.recent.Store(int64(2*o.Interval + o.ProbeTimeout))
}

// needsRestart reports whether a key is of what a process can't change: sockets
// that are somebody else's, or in the way of those that would take their place, and
// the connections to the shared cache.
func (p *process) needsRestart(key string, next *configs.Config) bool {
	switch key {
	case "gateway.listen":
		return p.handed
	case "admin.listen":
		now, next := p.config.Admin.Listen, next.Admin.Listen
		return now.Port() == next.Port() && (now.Addr().IsUnspecified() || next.Addr().IsUnspecified())
	}
	return strings.HasPrefix(key, "cache.redis.")
}

// A change is part of another configuration: ready, but not in effect. One of its
// methods has to be called, once; neither can fail.
type change interface {
	Commit()
	Abandon()
}

// changes are made together, in order, or not at all.
type changes []change

func (all changes) Commit() {
	for _, c := range all {
		c.Commit()
	}
}

func (all changes) Abandon() {
	for _, c := range all {
		c.Abandon()
	}
}

// A commit is a change that nothing has to be given back for.
type commit func()

func (c commit) Commit()  { c() }
func (c commit) Abandon() {}

// prepare gets all that is to change ready. On an error, nothing has changed, and
// all is given back.
func (p *process) prepare(next *configs.Config) (all changes, err error) {
	defer func() {
		if err != nil {
			all.Abandon()
		}
	}()
	upstreams, err := p.fleets.prepare(next)
	if err != nil {
		return all, err
	}
	all = append(all, upstreams)
	keep := next.Cache
	keep.Size = cache.Size(p.answers.Usage().Size)
	if next.Cache.Size != p.config.Cache.Size {
		keep.Size = affordable(next.Cache.Size, p.log)
	}
	answers, err := p.answers.Prepare(keep, roomForBoth(os.DirFS("/"), p.answers.Usage(), keep.Size, p.log))
	if err != nil {
		return all, err
	}
	all = append(all, answers)
	queries, err := p.queries.Prepare(next.QueryLog)
	if err != nil {
		return all, err
	}
	all = append(all, commit(queries))
	traces, err := p.tracer.Prepare(next.Tracing)
	if err != nil {
		return all, err
	}
	all = append(all, commit(traces))
	clients, err := p.gateway.Prepare(p.shared.Before(upstreams.resolver), p.gatewayOptions(next))
	if err != nil {
		return all, err
	}
	all = append(all, clients)
	operators, err := p.web.Prepare(next.Admin)
	if err != nil {
		return all, err
	}
	all = append(all, commit(operators))
	all = append(all, commit(func() { p.company.renew(next.Peers) }))
	doors, err := p.prepareDoors(next)
	return append(all, doors), err
}

// gatewayOptions returns those of the gateway, to which others add: names of routes
// are asked for, and may have private addresses.
func (p *process) gatewayOptions(config *configs.Config) gateway.Options {
	o := config.Gateway
	o.Log, o.Cache = p.log, p.answers
	if config.QueryLog.Output != "" {
		o.QueryLog = p.queries
	}
	if config.Tracing.Endpoint != "" {
		o.Tracer = p.tracer
	}
	o.ForwardLocal, o.AllowPrivate = slices.Clip(o.ForwardLocal), slices.Clip(o.AllowPrivate)
	for _, r := range config.Routes {
		o.ForwardLocal = append(o.ForwardLocal, r.Name)
		o.AllowPrivate = append(o.AllowPrivate, r.Name)
	}
	return o
}

// files are those whose contents are part of the configuration.
func (p *process) files() []string {
	c := p.config
	files := []string{p.sources.path(), c.Admin.TokenFile, c.Admin.CertFile, c.Admin.KeyFile, c.Admin.ClientCAFile, c.QueryLog.KeyFile, c.Tracing.KeyFile, c.Tracing.HeadersFile, c.Peers.KeyFile}
	all := slices.Clone(c.Upstreams)
	for _, r := range c.Routes {
		all = append(all, r.Upstreams...)
	}
	for _, u := range all {
		files = append(files, u.CAFile, u.CertFile, u.KeyFile)
	}
	slices.Sort(files)
	return slices.DeleteFunc(slices.Compact(files), func(name string) bool { return name == "" })
}

// Contents are digests of files, by name.
type contents map[string][sha256.Size]byte

func (p *process) contents() contents {
	all := make(contents)
	for _, name := range p.files() {
		all[name] = digest(name)
	}
	return all
}

// watchFiles reloads when one of the files changes, until ctx is done. It blocks.
//
// Directories are watched, not files: who replaces a file by rename, or a symlink
// beside it as Kubernetes does with a ConfigMap, leaves the old file alone.
func (p *process) watchFiles(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		p.log.Warn("files of the configuration are not watched (reload.watch)", "error", err)
		return nil
	}
	defer watcher.Close()
	p.loading.Lock()
	p.watcher = watcher
	p.watchDirectories()
	p.loading.Unlock()
	quiet := time.NewTimer(time.Hour)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-watcher.Events:
			quiet.Reset(settle)
		case err := <-watcher.Errors:
			p.log.Debug("watching files", "error", err)
			quiet.Reset(settle) // something was missed
		case <-quiet.C:
			p.loading.Lock()
			changed := p.config.Reload.Watch && !maps.Equal(p.contents(), p.seen)
			p.loading.Unlock()
			if changed {
				p.log.Info("a file of the configuration has changed")
				_, _ = p.Reload() // which tells
			}
		}
	}
}

// watchDirectories watches where the files are. The caller holds loading.
func (p *process) watchDirectories() {
	if p.watcher == nil || !p.config.Reload.Watch {
		return
	}
	for _, name := range p.files() {
		for _, dir := range directoriesOf(name) {
			if err := p.watcher.Add(dir); err != nil && !errors.Is(err, fsnotify.ErrClosed) {
				p.log.Warn("a file of the configuration is not watched (reload.watch)", "file", name, "error", err)
			}
		}
	}
}

// linksMax is how many symlinks there may be on the way to a file; the system has
// the same limit.
const linksMax = 40

// directoriesOf returns where a file is: its directory and, if it is a symlink, that
// of what it leads to, and so on.
func directoriesOf(name string) (all []string) {
	for range linksMax {
		all = append(all, filepath.Dir(name))
		target, err := os.Readlink(name)
		if err != nil { // it is none, or not there
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(name), target)
		}
		name = target
	}
	return all
}

// heed does what signals ask for, until ctx is done: SIGHUP reloads, SIGUSR1
// logs the status. It blocks.
func (p *process) heed(ctx context.Context, signals <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-signals:
			if s == syscall.SIGHUP {
				_, _ = p.Reload() // which tells
			} else {
				p.logStatus()
			}
		}
	}
}

// logStatus logs what `dotgate status --json` prints.
func (p *process) logStatus() {
	text, err := json.Marshal(p.operator.Status())
	if err != nil {
		p.log.Error("BUG: the status can't be told", "error", err)
		return
	}
	p.log.Info("status", "status", json.RawMessage(text))
}

// signals returns where SIGHUP and SIGUSR1 arrive. From then on, they don't end
// the process.
func signals() (arrived chan os.Signal, stop func()) {
	arrived = make(chan os.Signal, 1)
	signal.Notify(arrived, syscall.SIGHUP, syscall.SIGUSR1)
	return arrived, func() { signal.Stop(arrived) }
}

func reloadCommand(s *sources) *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Have the running gateway read its configuration again",
		Long: `reload has the running gateway read its file again (as SIGHUP does, and a change of
the file itself). What can't be used is reported and changes nothing. Upstreams
that stay as they were keep their connections and what is known of them, addresses
that stay their sockets, and the cache its answers.`,
		Args: noArguments,
		RunE: s.with(func(ctx context.Context, config *configs.Config, out io.Writer) error {
			client, err := newClient(config.Control)
			if err != nil {
				return err
			}
			done, err := client.Reload(ctx)
			if err != nil {
				return errors.New("reload: " + err.Error())
			}
			switch {
			case len(done.Changed) == 0 && len(done.Restart) == 0:
				fmt.Fprintln(out, "nothing has changed")
			case len(done.Changed) > 0:
				fmt.Fprintln(out, "in effect:", strings.Join(done.Changed, ", "))
			}
			if len(done.Restart) > 0 {
				fmt.Fprintln(out, "in effect after a restart:", strings.Join(done.Restart, ", "))
			}
			return nil
		}),
	}
}

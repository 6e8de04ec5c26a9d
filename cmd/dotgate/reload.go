package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/cobra"

	"dotgate/cmd/dotgate/admin"
	"dotgate/cmd/dotgate/control"
	"dotgate/configs"
	"dotgate/gateway/cache"
)

// settle is how long files must be quiet before they are read: editors and
// orchestrators write in several steps.
const settle = 200 * time.Millisecond

// A process is a gateway at work: it does what operators ask, and takes over
// other configurations.
type process struct {
	*fleet
	sources  *sources
	stories  *control.Stories
	answers  *cache.Cache
	log      *slog.Logger
	level    *slog.LevelVar
	operator *control.Server
	socket   *control.Listener // or nil
	web      *admin.Server     // or nil
	stop     func()            // ends the serving

	loading sync.Mutex // one at a time; guards config
	config  *configs.Config
	seen    [32]byte          // what its files had in them when they were read last
	watcher *fsnotify.Watcher // or nil

	mu      sync.Mutex // guards all below
	reloads admin.Reloads
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
	p.seen = p.digest()
	done, err := p.reload()
	if err == nil {
		p.seen = p.digest() // it may name others
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
	p.log.Info("the configuration is reloaded", "changed", strings.Join(done.Changed, ", "), "asking", p.fleet)
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
		if needsRestart(key) {
			done.Restart = append(done.Restart, key)
		} else {
			done.Changed = append(done.Changed, key)
		}
	}
	if p.web != nil {
		if err := p.web.Renew(next.Admin); err != nil {
			return done, err
		}
	}
	if err := p.apply(next); err != nil {
		return done, err
	}
	p.level.Set(next.Log.Level)
	// What takes a restart is compared with what is in effect, until then.
	next.Keep(p.config, done.Restart)
	p.config = next
	return done, nil
}

// needsRestart reports whether a key is of what a process is born with: sockets,
// memory, limits.
func needsRestart(key string) bool {
	section, _, _ := strings.Cut(key, ".")
	switch section {
	case "gateway", "cache", "routes", "control", "reload", "query_log":
		return true
	}
	return key == "admin.listen" || key == "log.format"
}

// files are those whose contents are part of the configuration.
func (p *process) files() []string {
	files := []string{p.sources.path(), p.config.Admin.TokenFile, p.config.Admin.CertFile, p.config.Admin.KeyFile, p.config.Admin.ClientCAFile}
	for _, u := range p.config.Upstreams {
		files = append(files, u.CAFile, u.CertFile, u.KeyFile)
	}
	slices.Sort(files)
	return slices.DeleteFunc(slices.Compact(files), func(name string) bool { return name == "" })
}

func (p *process) digest() [32]byte { return digest(p.files()...) }

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
	p.seen, p.watcher = p.digest(), watcher
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
			changed := p.digest() != p.seen
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
	if p.watcher == nil {
		return
	}
	for _, name := range p.files() {
		if err := p.watcher.Add(filepath.Dir(name)); err != nil && !errors.Is(err, fsnotify.ErrClosed) {
			p.log.Warn("a file of the configuration is not watched (reload.watch)", "file", name, "error", err)
		}
	}
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
				p.log.Info("status", "status", p.operator.Status())
			}
		}
	}
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
that stay as they were keep their connections and what is known of them.`,
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

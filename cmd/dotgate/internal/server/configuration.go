package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/configs"
	"dotgate/configs/files"
)

// Contents are digests of files, by name.
type contents map[string][sha256.Size]byte

// A source is where the configuration comes from, at the start and with each reload.
type source configs.Sources

// loadAndDigest loads the configuration, and returns the digests of exactly the bytes
// that were its file and files of names.
func (s *source) loadAndDigest() (*settings.Config, contents, error) {
	read := make(contents)
	from := configs.Sources(*s)
	readFile := from.Read
	if readFile == nil {
		readFile = files.Read
	}
	from.Read = func(path string, limit int) ([]byte, error) {
		data, err := readFile(path, limit)
		read[path] = digestOfFile(path, data)
		return data, err
	}
	config, err := settings.Load(from)
	return config, read, err
}

// digests returns the digests of files as they are now.
func digests(names []string) contents {
	all := make(contents)
	for _, name := range names {
		var data []byte
		if !isSpecial(name) {
			data, _ = files.Read(name, files.NamesMax) // a file that can't be read counts as empty
		}
		all[name] = digestOfFile(name, data)
	}
	return all
}

// digestOfFile returns the digest of what was read of a file. What is no regular file,
// such as the FIFO of -c <(command), can be read only once, so it never differs.
func digestOfFile(name string, data []byte) [sha256.Size]byte {
	if isSpecial(name) {
		return [sha256.Size]byte{}
	}
	return sha256.Sum256(data)
}

// isSpecial reports whether there is something under a name that is no regular file.
func isSpecial(name string) bool {
	info, err := os.Stat(name)
	return err == nil && !info.Mode().IsRegular()
}

// merged returns the digests of the named files, each from the first of all that has it.
func merged(names []string, all ...contents) contents {
	m := make(contents)
	for _, name := range names {
		for _, c := range all {
			if digest, known := c[name]; known {
				m[name] = digest
				break
			}
		}
	}
	return m
}

// files returns the names of all files that config is made of, its own first if there
// is one.
func (s *source) files(config *settings.Config) []string {
	if s.File != "" {
		return append([]string{s.File}, s.namedFiles(config)...)
	}
	return s.namedFiles(config)
}

// namedFiles returns the names of the files that config names and whose contents are
// part of it.
func (s *source) namedFiles(c *settings.Config) []string {
	named := []string{c.Admin.TokenFile, c.Admin.CertFile, c.Admin.KeyFile, c.Admin.ClientCAFile, c.QueryLog.KeyFile, c.Tracing.KeyFile, c.Tracing.HeadersFile, c.Peers.KeyFile}
	all := slices.Clone(c.Upstreams)
	for _, r := range c.Routes {
		all = append(all, r.Upstreams...)
		named = append(named, r.NamesFile)
	}
	for _, u := range all {
		named = append(named, u.CAFile, u.CertFile, u.KeyFile)
	}
	slices.Sort(named)
	return slices.DeleteFunc(slices.Compact(named), func(name string) bool { return name == "" || name == s.File })
}

// A configuration is the one in effect, with the state of its files.
type configuration struct {
	source *source
	log    *slog.Logger

	loading sync.Mutex // held during a reload; guards the rest
	config  *settings.Config
	refused []string          // the files that a configuration named which was read since, and not used
	seen    contents          // of files(), from before they were read last
	applied contents          // of the files that are in effect
	watcher *fsnotify.Watcher // or nil
	look    chan struct{}     // one place: compare the files with seen
	// unwatched are the directories that could not be watched when that was last tried.
	unwatched map[string]bool
}

// newConfiguration returns a configuration that was loaded from s, with the digests of
// the files that were read.
func newConfiguration(s *source, config *settings.Config, read contents, log *slog.Logger) *configuration {
	seen := merged(s.files(config), read, digests(s.namedFiles(config)))
	return &configuration{source: s, log: log, config: config, seen: seen, applied: seen, look: make(chan struct{}, 1)}
}

// current returns the configuration in effect. It waits for a reload.
func (c *configuration) current() *settings.Config {
	c.loading.Lock()
	defer c.loading.Unlock()
	return c.config
}

// use makes next the configuration in effect. It returns which of the named files have
// changed. The caller holds loading.
func (c *configuration) use(next *settings.Config) (changed []string) {
	c.config, c.refused = next, nil
	c.seen = merged(c.files(), c.seen)
	for name, digest := range c.seen {
		if old, known := c.applied[name]; known && old != digest && name != c.source.File {
			changed = append(changed, "the content of "+name)
		}
	}
	c.applied = c.seen
	return changed
}

// logNotes logs facts that an operator may not expect of the configuration.
func (c *configuration) logNotes() {
	for _, note := range c.config.Notes() {
		c.log.Info("note on the configuration", "note", note)
	}
	for _, note := range missingDirectories(c.config) {
		c.log.Warn("note on the configuration", "note", note)
	}
}

// files returns the names of all files that are watched: those of the configuration that
// is in effect, and those of one that was read since and can't be used, as what is wrong
// with it may be in one of them.
func (c *configuration) files() []string {
	all := append(c.source.files(c.config), c.refused...)
	slices.Sort(all)
	return slices.Compact(all)
}

// loadNext loads the configuration. Digests are taken before the files are read for use:
// a file that is written in between, or at any time later, differs from them. Which files
// a configuration names is known only once it was read: one that can't be used and names
// others than before is read twice.
func (c *configuration) loadNext() (next *settings.Config, err error) {
	for range 2 {
		before := digests(c.files())
		var read contents
		next, read, err = c.source.loadAndDigest()
		named := next
		if err == nil {
			err = c.config.Lost(next)
		} else {
			named, _ = settings.LoadPartly(configs.Sources(*c.source))
		}
		c.refused = c.source.namedFiles(named)
		c.seen = merged(c.files(), read, before, digests(c.refused))
		if err == nil || len(merged(c.refused, read, before)) == len(c.refused) {
			break
		}
	}
	return next, err
}

const (
	// quietPeriod is the time without a change in the watched directories after which
	// files are compared with what was read: editors and orchestrators write in several
	// steps.
	quietPeriod = 200 * time.Millisecond
	// busyLimit is how long changes delay that at most: other files in the directories
	// may change all the time.
	busyLimit = time.Second
	// filePollInterval is how often files are compared although no change was reported, as
	// for directories that were removed and made again, and on network file systems.
	filePollInterval = 5 * time.Second
)

// watchFiles calls reload when one of the files changes, until ctx is done. It blocks.
//
// Directories are watched, not files: a file that is replaced by rename, or by a symlink
// beside it as Kubernetes does with a ConfigMap, leaves the old file alone.
func (c *configuration) watchFiles(ctx context.Context, reload func()) error {
	var events <-chan fsnotify.Event
	var problems <-chan error
	if watcher, err := fsnotify.NewWatcher(); err != nil {
		c.log.Warn("changes of the configuration are noticed some seconds later (reload.watch)", "error", err)
	} else {
		defer watcher.Close()
		events, problems = watcher.Events, watcher.Errors
		c.loading.Lock()
		c.watcher = watcher
		c.watchDirectories()
		c.loading.Unlock()
	}
	poll := time.NewTicker(filePollInterval)
	defer poll.Stop()
	quiet := time.NewTimer(quietPeriod)
	defer quiet.Stop()
	var since time.Time // of the first change after the last comparison; zero if there was none
	changed := func() {
		if since.IsZero() {
			since = time.Now()
		}
		quiet.Reset(min(quietPeriod, max(0, busyLimit-time.Since(since))))
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-events:
			changed()
			continue
		case <-c.look:
			changed()
			continue
		case err := <-problems:
			c.log.Debug("watching files", "error", err)
			changed() // an event was missed
			continue
		case <-poll.C:
			c.loading.Lock()
			c.addDirectories()
			c.loading.Unlock()
		case <-quiet.C:
		}
		if !since.IsZero() && time.Since(since) < quietPeriod {
			continue // the poll is amid changes
		}
		since = time.Time{}
		if c.differs() {
			c.log.Info("a file of the configuration has changed")
			reload()
		}
	}
}

// differs reports whether a watched file is not as it was when it was read last. The
// files are read without holding loading, as their disk may not answer.
func (c *configuration) differs() bool {
	c.loading.Lock()
	names, watch := c.files(), c.config.Reload.Watch
	c.loading.Unlock()
	if !watch {
		return false
	}
	now := digests(names)
	c.loading.Lock()
	defer c.loading.Unlock()
	return !maps.Equal(now, c.seen)
}

// watchDirectories watches where the files are, and has the files looked at once more:
// one may have changed before its directory was watched. The caller holds loading.
func (c *configuration) watchDirectories() {
	c.addDirectories()
	select {
	case c.look <- struct{}{}:
	default:
	}
}

// addDirectories watches where the files are. It logs once for each directory that can't
// be watched. The caller holds loading.
func (c *configuration) addDirectories() {
	if c.watcher == nil || !c.config.Reload.Watch {
		return
	}
	unwatched := make(map[string]bool)
	for _, name := range c.files() {
		for _, dir := range directoriesOf(name) {
			err := c.watcher.Add(dir)
			if err == nil || errors.Is(err, fsnotify.ErrClosed) || unwatched[dir] {
				continue
			}
			if unwatched[dir] = true; !c.unwatched[dir] {
				c.log.Warn("changes of a file of the configuration are noticed some seconds later (reload.watch)", "file", name, "error", err)
			}
		}
	}
	c.unwatched = unwatched
}

// linksMax is how many symlinks there may be on the way to a file; the system has
// the same limit.
const linksMax = 40

// directoriesOf returns where a file is, and where the symlinks on the way to it are: a
// change of one of these directories may make it another file.
func directoriesOf(name string) (all []string) {
	const separator = string(filepath.Separator)
	at, rest, links := ".", name, 0 // at has no symlink
	if filepath.IsAbs(name) {
		at = separator
	}
	for rest = strings.TrimLeft(rest, separator); rest != ""; rest = strings.TrimLeft(rest, separator) {
		var part string
		part, rest, _ = strings.Cut(rest, separator)
		next := filepath.Join(at, part)
		target, err := os.Readlink(next)
		if err != nil || links == linksMax { // it is none, or not there
			at = next
			continue
		}
		all = append(all, at)
		if filepath.IsAbs(target) {
			at = separator
		}
		rest = target + separator + rest
		links++
	}
	return append(all, filepath.Dir(at))
}

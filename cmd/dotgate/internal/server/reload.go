package server

import (
	"crypto/sha256"
	"slices"
	"strings"
	"time"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/settings"
)

// Reload loads the configuration again, and puts all changes into effect that do not need
// another process. If the configuration can't be used, nothing changes.
func (s *server) Reload() (api.Reloaded, error) {
	s.loading.Lock()
	defer s.loading.Unlock()
	done, err := s.reload()
	s.watchDirectories() // symlinks may lead elsewhere, even if the configuration can't be used
	reloads := *s.reloads.Load()
	defer func() { s.reloads.Store(&reloads) }()
	if err != nil {
		reloads.Failed++
		reloads.Problem = err.Error()
		s.log.Error("the configuration was not reloaded: the old one stays in effect", "error", err)
		return done, err
	}
	reloads.Done++
	s.pools.release.later()
	reloads.Last, reloads.Problem = time.Now(), ""
	s.log.Info("the configuration was reloaded", "changed", strings.Join(done.Changed, ", "), "upstreams", s.pools.String())
	if len(done.Restart) > 0 {
		s.log.Warn("some changes need a restart", "keys", strings.Join(done.Restart, ", "))
	}
	return done, nil
}

// reload is Reload without logs and counts. The caller holds loading.
func (s *server) reload() (done api.Reloaded, err error) {
	next, err := s.loadNext()
	if err != nil {
		return done, err
	}
	for _, key := range s.config.Differences(next) {
		if s.needsRestart(key, next) {
			done.Restart = append(done.Restart, key)
		} else {
			done.Changed = append(done.Changed, key)
		}
	}
	// Options that need a restart keep their values, with which they are compared.
	next.Keep(s.config, done.Restart)
	digest, probing := digestOf(next), healthOptions(next)
	prepared, err := s.prepare(next, digest)
	if err != nil {
		return done, err
	}
	// From here on, peers' answers by the old configuration are rejected. Those that were
	// accepted are in the cache, and the gateway checks its entries when it changes.
	s.digest.Store(&digest)
	s.answers.Bind(nil) // a file has the answers of one configuration
	prepared.Commit()
	s.answers.Bind(&digest)
	s.log.handler.configure(next.Log)
	s.probing.Store(&probing)
	done.Changed = append(done.Changed, s.use(next)...)
	s.logNotes()
	slices.Sort(done.Changed)
	return done, nil
}

// prepare prepares all changes to the next configuration. On an error, nothing has
// changed.
func (s *server) prepare(next *settings.Config, digest [sha256.Size]byte) (changes, error) {
	all, err := s.parts.prepare(s.config, next, digest)
	if err != nil {
		return nil, err
	}
	terms, err := s.admin.Prepare(next.Admin)
	if err != nil {
		all.Abandon()
		return nil, err
	}
	moves, err := s.listeners.prepare(s.config, next)
	if err != nil {
		all.Abandon()
		return nil, err
	}
	return append(all, commit(terms), moves), nil
}

// needsRestart reports whether a change of the key needs another process: sockets of a
// service manager, an admin address that overlaps the one in use, and the shared cache.
func (s *server) needsRestart(key string, next *settings.Config) bool {
	switch key {
	case "gateway.listen":
		return s.handed
	case "admin.listen":
		now, next := s.config.Admin.Listen, next.Admin.Listen
		return now.Port() == next.Port() && (now.Addr().IsUnspecified() || next.Addr().IsUnspecified())
	}
	return strings.HasPrefix(key, "cache.redis.")
}

// A change is a prepared part of the next configuration. One of its methods has to be
// called, once. Neither can fail.
type change interface {
	Commit()
	Abandon()
}

// changes are committed together, in order, or not at all.
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

// A commit is a change that holds nothing to be released.
type commit func()

func (c commit) Commit()  { c() }
func (c commit) Abandon() {}

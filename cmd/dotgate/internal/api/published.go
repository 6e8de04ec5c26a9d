package api

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
)

// Published returns the paths of the symlinks to the control socket of the gateway that was
// started with this configuration file, best first. The file may have been broken, emptied
// or removed since: it need not be read to find the gateway.
func Published(file string) (links []string) {
	if file == "" || os.Getenv("DOTGATE_CONTROL_SOCKET") != "" {
		return nil // the variable, which goes before the file, says where the socket is
	}
	file, err := filepath.Abs(file)
	if err != nil {
		return nil
	}
	digest := sha256.Sum256([]byte(file))
	for _, place := range Places() {
		links = append(links, filepath.Join(filepath.Dir(place), fmt.Sprintf("dotgate-%d-%x.link", os.Geteuid(), digest[:8])))
	}
	return links
}

// Publish creates a symlink to the socket at the first of these paths that can be used.
// Close removes it. A socket at a default path needs none. Without a symlink clients still
// find the gateway, as long as its configuration file is whole.
func (l *Listener) Publish(links []string, log *slog.Logger) {
	if slices.Contains(Places(), l.path) {
		return
	}
	var err error
	for _, link := range links {
		if filepath.Dir(link) == systemDir {
			os.Mkdir(systemDir, 0o755) // if this fails, so does the symlink there
		}
		fresh := fmt.Sprintf("%s.%d", link, os.Getpid())
		if err = os.Symlink(l.path, fresh); err != nil {
			continue
		}
		if err = os.Rename(fresh, link); err == nil {
			l.mu.Lock()
			l.link = link
			l.mu.Unlock()
			return
		}
		os.Remove(fresh)
	}
	log.Debug("a health check can't find the control socket if the configuration file breaks, unless DOTGATE_CONTROL_SOCKET is set", "error", err)
}

// unpublish removes the symlink, unless it leads to the socket of a later gateway.
func (l *Listener) unpublish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if target, err := os.Readlink(l.link); l.link != "" && err == nil && target == l.path {
		os.Remove(l.link)
	}
}

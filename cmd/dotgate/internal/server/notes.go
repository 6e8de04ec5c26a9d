package server

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"dotgate/cmd/dotgate/internal/settings"
	"dotgate/gateway/cache"
	"dotgate/gateway/transport"
)

// MachineNotes are facts about this machine because of which a configuration is not
// wholly in effect here, one sentence each. None of them is an error: it may be for
// another machine, or for later. Root is the root of the file system.
func MachineNotes(config *settings.Config, root fs.FS) (notes []string) {
	notes = missingDirectories(config)
	listen := map[string][]netip.AddrPort{"gateway.listen": config.Gateway.Listen}
	if at := config.Admin.Listen.AddrPort; at.IsValid() {
		listen["admin.listen"] = []netip.AddrPort{at}
	}
	if len(config.Peers.Nodes) > 0 {
		listen["peers.listen"] = []netip.AddrPort{config.Peers.Listen}
	}
	for _, key := range []string{"gateway.listen", "admin.listen", "peers.listen"} {
		for _, at := range listen[key] {
			if transport.IsAbsent(at.Addr()) {
				notes = append(notes, fmt.Sprintf("%s: no interface has %s now; it is served once one has", key, at.Addr()))
			}
		}
	}
	if fits, limit := fittingCache(root, int64(config.Cache.Size)); fits < int64(config.Cache.Size) {
		notes = append(notes, fmt.Sprintf("cache.size: this process may have %d MiB of memory, so the cache gets %d MiB and not %v",
			limit>>20, fits>>20, cache.Size(config.Cache.Size)))
	}
	return notes
}

// missingDirectories are the facts about directories of files to be written.
func missingDirectories(config *settings.Config) (notes []string) {
	socket := config.Control.Socket
	if socket == settings.SocketAuto || socket == settings.SocketOff {
		socket = ""
	}
	for _, file := range []struct{ key, path, without string }{
		{"control.socket", socket, "the gateway does not start without it"},
		{"cache.file", config.Cache.File, "the cache is not saved"},
		{"query_log.output", strings.TrimPrefix(config.QueryLog.Output, "unix:"), "no query is logged"},
	} {
		if file.path == "" {
			continue
		}
		dir := filepath.Dir(file.path)
		switch info, err := os.Stat(dir); {
		case err != nil:
			notes = append(notes, fmt.Sprintf("%s: %v; %s", file.key, err, file.without))
		case !info.IsDir():
			notes = append(notes, fmt.Sprintf("%s: %s is no directory; %s", file.key, dir, file.without))
		}
	}
	return notes
}
